//! A clock that is read often.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds, by a clock that costs less than it errs: some milliseconds.
pub(crate) fn coarse_milliseconds() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
