//! How long a server that does not answer is asked again.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Between the first two tries to reach a server; doubled after each. If larger, a short
/// restart is noticed later.
const PAUSE: Duration = Duration::from_millis(20);

/// Between two tries at most. If larger, a server that is back is found later.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How much longer a server that does not answer is asked again.
pub(crate) struct Patience {
    limit: Duration,
    /// When the caller's own limit ends.
    deadline: Option<Instant>,
    /// Of the last sign of life; before the first, when the first try began.
    since: Option<Instant>,
    pause: Duration,
}

/// Patience is at an end.
pub(crate) struct Exhausted {
    pub(crate) tried: Duration,
    pub(crate) error: io::Error,
}

impl Patience {
    /// At most for `limit` without a sign of life.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, deadline: None, since: None, pause: PAUSE }
    }

    /// And not longer than up to this point.
    pub(crate) fn until(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// When a request is given up that outlasts the caller's limit by this much.
    #[cfg(any(feature = "etcd", feature = "postgres"))]
    pub(crate) fn end_of(&self, last_request: Duration) -> Option<Instant> {
        self.deadline.and_then(|deadline| deadline.checked_add(last_request))
    }

    /// The server was there, or a proxy before it, as a request shows that lasted so long.
    /// A server that fails at once is asked again at growing intervals all the same.
    pub(crate) fn renew(&mut self, lasted: Duration) {
        self.since = Some(Instant::now());
        if lasted > PAUSE_MAX {
            self.pause = PAUSE;
        }
    }

    /// Whether the next pause is the second in a row: one alone is not logged.
    pub(crate) fn is_trouble(&self) -> bool {
        self.pause == PAUSE * 2
    }

    /// Wait before the next try. `begun` is when the try that failed began.
    pub(crate) async fn pause(
        &mut self,
        begun: Instant,
        error: io::Error,
    ) -> Result<(), Exhausted> {
        let since = *self.since.get_or_insert(begun);
        let tried = since.elapsed();
        let left = self.deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map_or(self.limit.saturating_sub(tried), |left| {
            left.min(self.limit.saturating_sub(tried))
        });
        if left.is_zero() {
            return Err(Exhausted { tried, error });
        }
        sleep(self.pause.min(left)).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
