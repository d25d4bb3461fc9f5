//! What `tracing` shows of each acquisition, as events of level debug under the target
//! `lockkeeper`: `acquiring`; `waiting` and for which holder, where it did not have the lock at
//! once; `acquired` and how long that took, or `not acquired` and why; `released`.
//!
//! Each comes once for an acquisition. Where no subscriber wants them, each costs one
//! comparison, and the holder is not looked for.

use std::fmt::Display;
use std::pin::pin;
use std::time::{Duration, Instant};

use tracing::debug;
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};

const TARGET: &str = "lockkeeper";

/// Whether some subscriber wants events of this level, ours or others'.
#[inline]
pub(crate) fn are_wanted() -> bool {
    LevelFilter::DEBUG <= STATIC_MAX_LEVEL && LevelFilter::DEBUG <= LevelFilter::current()
}

/// An acquisition that has begun.
pub(crate) struct Acquiring(Instant);

impl Acquiring {
    /// `None` if no subscriber wants to see it.
    #[inline]
    pub(crate) fn begin(lock: &dyn Display) -> Option<Self> {
        are_wanted().then(|| Self::begin_shown(lock))
    }

    #[cold]
    fn begin_shown(lock: &dyn Display) -> Self {
        debug!(target: TARGET, %lock, "acquiring");
        Self(Instant::now())
    }

    fn acquired(&self, lock: &dyn Display) {
        // More digits say nothing.
        let micros = u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX);
        let took = Duration::from_micros(micros);
        debug!(target: TARGET, %lock, ?took, "acquired");
    }

    #[cold]
    pub(crate) fn tried<G, E: Display>(&self, lock: &dyn Display, outcome: &Result<Option<G>, E>) {
        match outcome {
            Ok(Some(_)) => self.acquired(lock),
            Ok(None) => self.failed(lock, &"it is held"),
            Err(error) => self.failed(lock, error),
        }
    }

    fn failed(&self, lock: &dyn Display, why: &dyn Display) {
        debug!(target: TARGET, %lock, %why, "not acquired");
    }
}

/// The lock was given back.
#[inline]
pub(crate) fn released(lock: &dyn Display) {
    if are_wanted() {
        released_shown(lock);
    }
}

#[cold]
fn released_shown(lock: &dyn Display) {
    debug!(target: TARGET, %lock, "released");
}

/// `acquire` with its events. `holder` is asked for beside it, and not before it: what
/// is logged changes nothing of when a lock is had.
pub(crate) async fn show<G, E: Display>(
    lock: &(dyn Display + Sync),
    acquire: impl Future<Output = Result<G, E>>,
    holder: impl Future<Output = Option<String>>,
) -> Result<G, E> {
    let acquiring = Acquiring::begin_shown(lock);
    let mut acquire = pin!(acquire);
    let outcome = tokio::select! {
        biased;
        outcome = &mut acquire => outcome,
        () = show_waiting(lock, holder) => acquire.await,
    };
    match &outcome {
        Ok(_) => acquiring.acquired(lock),
        Err(error) => acquiring.failed(lock, error),
    }
    outcome
}

async fn show_waiting(lock: &(dyn Display + Sync), holder: impl Future<Output = Option<String>>) {
    if let Some(holder) = holder.await {
        debug!(target: TARGET, %lock, holder, "waiting");
    }
}
