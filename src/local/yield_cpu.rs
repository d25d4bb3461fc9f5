//! Whose processor it is once a hold has ended.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::sys::cpu;

/// Longer than a next holder takes that acquires and then waits for something.
const YIELD_MAX: Duration = Duration::from_millis(1);

/// After a yield that took longer, so many are left out, then twice as many,
/// and so on up to the last.
const FIRST_LEFT_OUT: u32 = 8;
const LAST_LEFT_OUT: u32 = 1024;

/// To be called when the end of a hold has just woken the next holder: gives it
/// the processor that this thread is on.
///
/// A thread is often woken on the processor of the one that wakes it, in a
/// virtual machine nearly always: there an idle processor counts as taken away
/// (`vcpu_is_preempted` in the kernel). It would wait until this thread sleeps.
/// On two processors of such a machine giving way takes a third to a half off the
/// time to the next acquisition where each runtime has one thread, and a tenth
/// where it has more (`cargo bench --bench waiting -- hand-over`).
///
/// Where others do, they get it as well, and this thread is back only after
/// milliseconds. Then nearly all further yields are left out. And it is only
/// for a hold that had to be waited for.
pub(crate) fn let_next_run() {
    static YIELDS: Yields = Yields::new();
    YIELDS.give_way(|| {
        let began = Instant::now();
        cpu::give_way();
        began.elapsed()
    });
}

/// What is known of how long yields take.
struct Yields {
    left_out: AtomicU32,
    /// How many are left out after the next long one.
    next: AtomicU32,
}

impl Yields {
    const fn new() -> Self {
        Self { left_out: AtomicU32::new(0), next: AtomicU32::new(FIRST_LEFT_OUT) }
    }

    /// `give_way` tells how long it took.
    fn give_way(&self, give_way: impl FnOnce() -> Duration) {
        let fewer = |left: u32| left.checked_sub(1);
        if self.left_out.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
            return;
        }
        if give_way() <= YIELD_MAX {
            return self.next.store(FIRST_LEFT_OUT, Ordering::Relaxed);
        }
        let next = self.next.load(Ordering::Relaxed);
        self.left_out.store(next, Ordering::Relaxed);
        self.next.store((2 * next).min(LAST_LEFT_OUT), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lost_the_processor_for_long_seldom_gives_way() {
        let yields = Yields::new();
        let gives_way = |time: Duration| {
            let mut has_given = false;
            yields.give_way(|| {
                has_given = true;
                time
            });
            has_given
        };
        let (short, long) = (YIELD_MAX, YIELD_MAX + Duration::from_nanos(1));
        assert!((0..100).all(|_| gives_way(short)));
        // Until the next that gives way.
        let left_out = || (0..).take_while(|_| !gives_way(long)).count() as u32;
        let counts: Vec<_> = (0..10).map(|_| left_out()).collect();
        assert_eq!(counts, [0, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
        assert!((0..1024).all(|_| !gives_way(short)) && (0..100).all(|_| gives_way(short)));
        assert!(gives_way(long));
        assert_eq!(left_out(), 8);
    }
}
