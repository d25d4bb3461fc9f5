//! A clock that goes on while the machine is suspended, made of one that stands still then
//! and the time of day.
//!
//! The time of day is ahead of the other by more after a suspend than before it. So this
//! clock takes every such step. It also takes one when the clock is set forward: what ends
//! at a point ends sooner then, and never later. It takes none when the clock is set back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How far the time of day was ahead at the most, in nanoseconds.
static AHEAD: AtomicU64 = AtomicU64::new(0);

pub(crate) fn time() -> Duration {
    step(&AHEAD, read(ClockId::Monotonic), read(ClockId::Realtime))
}

fn step(ahead: &AtomicU64, steady: Duration, time_of_day: Duration) -> Duration {
    let now = time_of_day.saturating_sub(steady);
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let most = ahead.fetch_max(now, Ordering::AcqRel).max(now);
    steady.saturating_add(Duration::from_nanos(most))
}

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    // Neither is negative, and the second fits: clock_gettime(2).
    Duration::new(now.tv_sec.unsigned_abs() as _, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_steps_forward_and_none_back() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let (ahead, second) = (AtomicU64::new(0), Duration::from_secs(1));
        let mut read = |steady: u32, time_of_day| step(&ahead, steady * second, time_of_day);
        let first = read(1, DAY);
        assert_eq!(read(2, DAY + second), first + second);
        // Suspended for an hour.
        let hour = 3600 * second;
        assert_eq!(read(3, DAY + 2 * second + hour), first + 2 * second + hour);
        // The clock was set back by a day, and a second went by.
        assert_eq!(read(4, 3 * second), first + 3 * second + hour);
        assert_eq!(read(4, DAY), first + 3 * second + hour);
    }
}
