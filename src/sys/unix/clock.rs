//! A clock that is read often.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds of a clock that never jumps.
pub(crate) fn coarse_milliseconds() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
