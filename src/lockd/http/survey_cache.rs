//! The last survey of the books, shared by all viewers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::lockd::state::{LockTable, Survey};
use crate::sys::mutex::Mutex;

/// Between two lists.
pub(super) const SPACING: Duration = Duration::from_millis(250);

/// The last survey that was made, for all viewers.
#[derive(Clone)]
pub(crate) struct SurveyCache {
    pub(super) locks: LockTable,
    last: Arc<Mutex<Option<TimedSurvey>>>,
}

/// What there was to list.
#[derive(Clone)]
pub(super) struct TimedSurvey {
    pub(super) version: u64,
    pub(super) at: Instant,
    pub(super) survey: Arc<Survey>,
}

impl SurveyCache {
    pub(crate) fn new(locks: LockTable) -> Self {
        Self { locks, last: Arc::default() }
    }

    /// A survey that is not older than [`SPACING`].
    pub(super) fn snapshot(&self, changes: &watch::Receiver<u64>) -> TimedSurvey {
        let mut last = self.last.lock();
        let fresh = last.as_ref().filter(|last| last.at.elapsed() < SPACING);
        if let Some(fresh) = fresh {
            return fresh.clone();
        }
        // The version before the survey: what changes in between is sent again.
        let version = *changes.borrow();
        let (at, survey) = (Instant::now(), Arc::new(self.locks.survey()));
        let snapshot = TimedSurvey { version, at, survey };
        *last = Some(snapshot.clone());
        snapshot
    }
}
