//! The last survey of the books, for all who watch them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::lockd::state::{Engine, Survey};
use crate::sys::mutex::Mutex;

/// Between two lists.
pub(super) const SPACING: Duration = Duration::from_millis(250);

/// The last survey that was made, for all viewers.
#[derive(Clone)]
pub(crate) struct Live {
    pub(super) engine: Engine,
    last: Arc<Mutex<Option<Snapshot>>>,
}

/// What there was to list.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) version: u64,
    pub(super) at: Instant,
    pub(super) survey: Arc<Survey>,
}

impl Live {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, last: Arc::default() }
    }

    /// A survey that is not older than [`SPACING`].
    pub(super) fn snapshot(&self, changes: &watch::Receiver<u64>) -> Snapshot {
        let mut last = self.last.lock();
        let fresh = last.as_ref().filter(|last| last.at.elapsed() < SPACING);
        if let Some(fresh) = fresh {
            return fresh.clone();
        }
        // The version before the survey: what changes in between is sent again.
        let version = *changes.borrow();
        let (at, survey) = (Instant::now(), Arc::new(self.engine.survey()));
        let snapshot = Snapshot { version, at, survey };
        *last = Some(snapshot.clone());
        snapshot
    }
}
