//! Pauses that differ between processes, and end together within one.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::sys::random;

/// Between two and five quarters of `period`, so that processes do not march in
/// step.
pub(crate) fn jittered(period: Duration) -> Duration {
    // The middle, without random bits, which a running system has.
    let mut bits = (u16::MAX / 2).to_ne_bytes();
    let _ = random::fill_at_once(&mut bits);
    let share = f64::from(u16::from_ne_bytes(bits)) / f64::from(u16::MAX);
    in_step(period.mul_f64(0.75 + share / 2.0), BEGINNING.elapsed())
}

/// When the first pause of this process began.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Long pauses of one process end together, so that it wakes once for many: a
/// thousand waits for as many locks take a quarter to a seventh as much (`cargo bench
/// --bench waiting -- idle`, and `--bench kernel`). They end at multiples of a time
/// that is at most an eighth of them, which began when others' did not.
fn in_step(pause: Duration, now: Duration) -> Duration {
    const LONG: Duration = Duration::from_secs(1);
    if pause < LONG {
        return pause;
    }
    // Of more than eight hours, an hour will do.
    let step = Duration::from_secs(3600).min(pause / 8).as_millis() as u64;
    let step = Duration::from_millis(1 << step.ilog2()).as_nanos();
    let past = now.saturating_add(pause).as_nanos() % step;
    pause.saturating_sub(Duration::from_nanos(past as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_varies() {
        let period = Duration::from_secs(4);
        let pauses: Vec<_> = (0..100).map(|_| jittered(period)).collect();
        let (least, most) = (Duration::from_millis(2500), Duration::from_secs(5));
        assert!(pauses.iter().all(|pause| (least..=most).contains(pause)));
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn long_pauses_end_together() {
        let step = Duration::from_millis(512);
        let moments = (0..5000).map(|number| Duration::from_micros(number * 1234));
        for (now, pause) in moments.zip([4200, 7300, 8100].into_iter().cycle()) {
            let pause = Duration::from_millis(pause);
            let shorter = in_step(pause, now);
            assert_eq!((now + shorter).as_nanos() % step.as_nanos(), 0, "{now:?} {pause:?}");
            assert!(shorter <= pause && shorter > pause - step, "{shorter:?} of {pause:?}");
        }
        let short = Duration::from_millis(999);
        assert_eq!(in_step(short, short), short);
        // Does not overflow.
        let _ = in_step(Duration::MAX, short);
    }
}
