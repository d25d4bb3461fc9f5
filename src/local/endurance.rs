//! What a wait outlasts besides a busy lock: a shortage of descriptors or memory, a file
//! that another program lets no other open, and a directory that is away.
//!
//! 1. A shortage passes by itself, and so does the use of a file by a virus scanner, say. They
//!    end a wait only at its limit.
//! 2. A directory that is missing when a wait begins is a mistake in the path, and
//!    said at once. One that goes while a contender waits is expected back.
//! 3. At the limit the error names what was in the way at the last look.
//! 4. What was in the way is said once for each wait, as a `tracing` warning.

use std::path::Path;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

use super::deadline::Deadline;
use super::jitter::jittered;
use crate::lock::error::{Error, Hindrance};

/// How long one contender waits, and what it outlasts meanwhile.
pub(crate) struct Endurance {
    deadline: Option<Deadline>,
    retry_period: Duration,
    has_begun: bool,
    has_warned: bool,
}

impl Endurance {
    pub(crate) fn until(deadline: Option<Deadline>, retry_period: Duration) -> Self {
        Self { deadline, retry_period, has_begun: false, has_warned: false }
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    /// The contender has found its directory, and has to wait (2).
    pub(crate) fn wait_begins(&mut self) {
        self.has_begun = true;
    }

    /// An error of a look; given back if it ends the wait.
    pub(crate) fn outlast(&mut self, error: Error) -> Result<(), Error> {
        let may_pass = match error.hindrance() {
            Some(Hindrance::Shortage | Hindrance::InUse) => true, // (1)
            Some(Hindrance::NoDirectory) => self.has_begun,
            None => false,
        };
        if !may_pass || self.deadline.is_some_and(Deadline::is_over) {
            return Err(error); // (3)
        }
        self.has_begun = true;
        if !std::mem::replace(&mut self.has_warned, true) {
            let period = self.retry_period;
            tracing::warn!("{error}; the wait goes on and looks each {period:?}"); // (4)
        }
        Ok(())
    }

    /// Until the next look after an error, or the limit.
    pub(crate) async fn pause(&self) {
        let _ = Deadline::limit(self.deadline, sleep(jittered(self.retry_period))).await;
    }

    /// A runtime for a thread that has none. It needs descriptors.
    pub(crate) fn runtime(mut self, path: &Path) -> Result<Runtime, Error> {
        loop {
            let error = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => return Ok(runtime),
                Err(error) => error,
            };
            self.outlast(Error::io("starting a runtime to wait for", path, error))?;
            let left = self.deadline.map(|deadline| deadline.end - Instant::now());
            thread::sleep(left.unwrap_or(self.retry_period).min(self.retry_period));
        }
    }
}
