//! When a wait has to end.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// When a wait ends, and since when it lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) started: Instant,
    pub(crate) end: Instant,
}

impl Deadline {
    /// `None` if that is so late that it cannot be computed.
    pub(crate) fn after(limit: Duration) -> Option<Self> {
        let started = Instant::now();
        Some(Self { started, end: started.checked_add(limit)? })
    }

    pub(crate) fn is_over(self) -> bool {
        Instant::now() >= self.end
    }

    /// How long a wait with this deadline, if it has one, has lasted.
    pub(crate) fn waited(this: Option<Self>) -> Duration {
        this.map_or(Duration::ZERO, |deadline| deadline.started.elapsed())
    }

    /// `None` if the deadline came first. The future is dropped then.
    pub(crate) async fn limit<T>(this: Option<Self>, wait: impl Future<Output = T>) -> Option<T> {
        match this {
            None => Some(wait.await),
            Some(deadline) => timeout_at(deadline.end, wait).await.ok(),
        }
    }
}
