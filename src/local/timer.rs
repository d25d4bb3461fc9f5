//! Real time while Tokio's clock is paused, as in `#[tokio::test(start_paused = true)]`.
//!
//! A paused clock jumps to the next timer whenever the runtime has nothing to do. Of
//! work by a thread of this crate, and of other processes, the runtime knows nothing:
//! every limit would run out at the first look at a directory. Tokio lets the clock
//! stand while a task of `spawn_blocking` exists, so one exists while the work is done.
//! No work of a lock runs on that pool.

#![expect(
    clippy::disallowed_methods,
    reason = "it makes a paused clock stand, and does no work of a lock"
)]

use std::convert::Infallible;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

/// How long a paused clock stands for one piece of work. Many times what a local file
/// system takes on a busy machine; if longer, a test beside a dead server is held up so
/// long before its limits run out.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Lets a paused clock stand until it is dropped.
pub(crate) struct Standing {
    /// Its end is what the blocking task waits for.
    _end: Sender<Infallible>,
}

impl Standing {
    /// At most for `limit` of real time. `None` where no clock is paused.
    pub(crate) fn at_most(limit: Duration) -> Option<Self> {
        let runtime = Handle::try_current().ok().filter(|_| is_paused())?;
        let (end, ended) = channel();
        let stand = move || {
            let _ = ended.recv_timeout(limit);
        };
        drop(runtime.spawn_blocking(stand));
        Some(Self { _end: end })
    }
}

/// Whether Tokio's clock stands while time passes.
pub(crate) fn is_paused() -> bool {
    let (stands_at, began) = (Instant::now(), std::time::Instant::now());
    while std::time::Instant::now() == began {
        std::hint::spin_loop();
    }
    Instant::now() == stands_at
}

/// Sleep for what other processes do meanwhile: as long by their clock as by Tokio's.
pub(crate) async fn sleep(duration: Duration) {
    let _standing = Standing::at_most(duration);
    tokio::time::sleep(duration).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_runs_is_left_alone() {
        assert!(!is_paused());
        assert!(Standing::at_most(PATIENCE).is_none());
    }

    #[test]
    fn no_clock_is_paused_outside_a_runtime() {
        assert!(Standing::at_most(PATIENCE).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_stands_for_as_long_as_it_is_told_to() {
        let (limit, began) = (Duration::from_millis(30), std::time::Instant::now());
        let standing = Standing::at_most(limit).expect("the clock is paused");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(began.elapsed() >= limit);
        drop(standing);
        let began = std::time::Instant::now();
        sleep(limit).await;
        assert!(began.elapsed() >= limit, "it passes for others too");
    }

    #[tokio::test]
    async fn a_clock_that_goes_on_after_a_pause_runs() {
        tokio::time::pause();
        tokio::time::advance(PATIENCE).await;
        assert!(is_paused());
        tokio::time::resume();
        assert!(!is_paused());
    }
}
