//! The status of a lock file, each time that it changes.
//!
//! 1. A watcher listens before each look, as contenders do, and in addition to new
//!    files and to writes: an acquisition is one or the other.
//! 2. A watcher only looks. It has no ticket, makes no file, and asks for no lock but
//!    the shared one of `AsyncFileLock::status`, where nothing else can tell.
//! 3. Looks are at least [`PACE`] apart, so that a lock which passes from one holder to
//!    the next all the time is not disturbed. What changes in between is not told, but
//!    the last is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::protocol::Found;
use super::spec::LockSpec;
use crate::local::hold_id::HoldId;
use crate::local::jitter::jittered;
use crate::lock::changes::{self, Change};
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};
use crate::sys::events::{Event, Following, Subscription, UNLOCKS_ARE_HEARD};

/// Between two looks. A person sees no difference; if shorter, watchers of a busy lock
/// take more of its time.
const PACE: Duration = Duration::from_millis(10);

/// How many `retry_period`s pass between two looks while events are heard: they are
/// only for what gives no event.
const FALLBACK_PERIODS: u32 = 30;

/// After a close the kernel lock may not be free yet: looks follow after 1 ms, 2, 4 and
/// so on up to the last.
const FIRST_RECHECK: Duration = Duration::from_millis(1);
const LAST_RECHECK: Duration = Duration::from_millis(64);

/// What goes from one look to the next.
pub(super) struct Watcher {
    lock: Arc<LockSpec>,
    /// The last item.
    last: Option<Report>,
    subscription: Option<Subscription>,
    looked_at: Option<Instant>,
    recheck: Option<Duration>,
}

/// An error by its words: what it is made of cannot be compared.
type Report = Result<Status, String>;

impl changes::Watcher for Watcher {
    async fn next(mut self) -> (Option<Self>, Change) {
        let mut is_doubted = false;
        loop {
            let found = self.look().await;
            let must_look_again = self.hears_of_more(&found);
            let status = found.map(|found| found.status);
            // A contender that takes a dead holder's file over, or looks whether it is dead,
            // has it locked for a moment.
            if is_inherited(&status) && !std::mem::replace(&mut is_doubted, true) {
                continue;
            }
            let report = report(&status);
            if self.last.as_ref() != Some(&report) {
                self.last = Some(report);
                // Without a name there never will be another.
                let has_name = self.lock.names().is_some();
                return (has_name.then_some(self), status);
            }
            is_doubted = false;
            if !must_look_again {
                self.until_next_look().await;
            }
        }
    }
}

impl Watcher {
    pub(super) fn new(lock: Arc<LockSpec>) -> Self {
        Self { lock, last: None, subscription: None, looked_at: None, recheck: None }
    }

    async fn look(&mut self) -> Result<Found, Error> {
        if let Some(looked_at) = self.looked_at {
            sleep_until(looked_at + PACE).await;
        }
        self.looked_at = Some(Instant::now());
        let subscription = self.subscription.take();
        let contender = self.lock.contender().await?;
        if let Some(path) = self.lock.names().filter(|_| contender.executor().has_events()) {
            self.subscription = Subscription::follow_changes(subscription, path);
        }
        contender.probe().await
    }

    /// Whether what was found tells of an end that was not listened to, so that another
    /// look has to follow.
    fn hears_of_more(&mut self, found: &Result<Found, Error>) -> bool {
        let Some((subscription, path)) = self.subscription.as_mut().zip(self.lock.names()) else {
            return false;
        };
        let Ok(found) = found else {
            return false;
        };
        // The file of such a holder is not open, so its end is not the close of one.
        let process = match &found.status {
            Status::Held(Holder { pid, evidence: Evidence::ProcessRuns, .. }) => *pid,
            Status::Held(Holder { pid, .. }) if !UNLOCKS_ARE_HEARD => *pid,
            _ => None,
        };
        if subscription.follow_process(process) == Following::Gone {
            self.recheck = self.recheck.or(Some(FIRST_RECHECK));
        }
        let Some(inode) = found.inode else {
            return false;
        };
        let unnamed = path.directory().join(format!("#{inode}"));
        subscription.await_closes([unnamed, path.candidate(found.hold_id.unwrap_or(HoldId(0)))])
    }

    async fn until_next_look(&mut self) {
        let options = self.lock.options();
        let Some(subscription) = &self.subscription else {
            let period = options.wait.fallback_period.unwrap_or(options.wait.retry_period);
            return sleep(jittered(period)).await;
        };
        let long = options.wait.retry_period.saturating_mul(FALLBACK_PERIODS);
        let period = jittered(options.wait.fallback_period.unwrap_or(long));
        tokio::select! {
            biased;
            event = subscription.event() => {
                if event == Event::Close {
                    self.recheck = Some(FIRST_RECHECK);
                }
            }
            () = sleep(self.recheck.map_or(period, |recheck| recheck.min(period))) => {
                self.recheck = self.recheck.map(|recheck| recheck * 2).filter(|recheck| *recheck <= LAST_RECHECK);
            }
        }
    }
}

fn is_inherited(status: &Change) -> bool {
    matches!(status, Ok(Status::Held(Holder { evidence: Evidence::Inherited, .. })))
}

/// What two items in a row differ in. Where in this program a hold was asked for is
/// known a moment after it began.
fn report(status: &Change) -> Report {
    let mut report = match status {
        Ok(status) => Ok(status.clone()),
        Err(error) => Err(error.to_string()),
    };
    if let Ok(Status::Held(holder)) = &mut report {
        holder.acquired_at = None;
    }
    report
}
