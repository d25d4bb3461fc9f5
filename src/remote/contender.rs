//! The part of an acquisition that runs on the runtime of its caller.

use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::acquire::{Acquisition, Decided, WaitEnd};
use super::endpoint::RESPONSE_LIMIT;
use super::guard::RemoteGuard;
use super::target::{Scheduled, Target};
use crate::lease::io;
use crate::local::timer::{Standing, is_paused};
use crate::lock::error::Error;
use crate::lock::events::{self, Acquiring};
use crate::lock::wait::Acquired;
use crate::sys::process_key::{ProcessKey, this_process};

/// Shorter waits are not logged: until a daemon answers, a free lock looks the same. If
/// larger, waits are logged later.
const UNTOLD: Duration = Duration::from_millis(100);

pub(super) struct Contender {
    target: Arc<Target>,
}

impl Contender {
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self { target }
    }

    /// Without a limit, for as long as it takes.
    pub(super) async fn acquire(self, limit: Option<Duration>) -> Result<RemoteGuard, Error> {
        if !events::are_wanted() {
            return self.acquire_within(limit).await;
        }
        let holder = async {
            sleep(UNTOLD).await;
            Some("one that the daemon knows".to_owned())
        };
        events::show(&self.target.name(), self.acquire_within(limit), holder).await
    }

    /// One try.
    pub(super) async fn try_acquire(self) -> Result<Option<RemoteGuard>, Error> {
        let name = self.target.name();
        let shown = Acquiring::begin(&name);
        let acquired = self.try_once().await.map(Acquired::held);
        if let Some(shown) = shown {
            shown.tried(&name, &acquired);
        }
        acquired
    }

    /// One try, which names the holder.
    pub(super) async fn try_once(&self) -> Decided {
        let _standing = Standing::at_most(RESPONSE_LIMIT);
        self.ask(WaitEnd::Now).await
    }

    async fn acquire_within(&self, limit: Option<Duration>) -> Result<RemoteGuard, Error> {
        let started = Instant::now();
        let acquired = match limit {
            _ if is_paused() => self.ask_by_a_paused_clock(limit).await?,
            None => self.ask(WaitEnd::Never).await?,
            // A limit beyond the range of the clock is none.
            Some(limit) => {
                let deadline = std::time::Instant::now().checked_add(limit);
                self.ask(deadline.map_or(WaitEnd::Never, WaitEnd::At)).await?
            }
        };
        match acquired {
            Acquired::Held(guard) => Ok(guard),
            Acquired::Busy(busy) => Err(self.target.timed_out(started.elapsed(), busy)),
        }
    }

    /// A paused clock is at any limit before the daemon answers, as the daemon's clock is
    /// not paused. So a first try does not wait, and the last one is at the limit.
    async fn ask_by_a_paused_clock(&self, limit: Option<Duration>) -> Decided {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let at_once = self.try_once().await;
        if !matches!(at_once, Ok(Acquired::Busy(_))) {
            return at_once;
        }
        let waiting = self.target.hand_over.wait();
        let (end, ended) = oneshot::channel();
        let mut asking = pin!(self.ask(WaitEnd::WhenTold(ended)));
        let Some(deadline) = deadline else {
            return asking.await;
        };
        match timeout_at(deadline, &mut asking).await {
            Ok(decided) => decided,
            Err(_) => {
                drop(waiting);
                let _standing = Standing::at_most(RESPONSE_LIMIT);
                let _ = end.send(());
                asking.await
            }
        }
    }

    async fn ask(&self, wait_end: WaitEnd) -> Decided {
        let acquisition = Acquisition::new(&self.target, wait_end)?;
        let failed = |error| self.target.unreachable("locking", Duration::ZERO, error);
        let io = io().map_err(failed)?;
        let (outcome, decided) = oneshot::channel();
        let (leave, gone) = oneshot::channel();
        drop(io.spawn(acquisition.run(outcome, gone)));
        let process = this_process();
        let mut interest = Interest { target: &self.target, process, leave: Some(leave) };
        let decided = decided.await.expect("BUG: a request was given up");
        interest.leave = None;
        decided
    }
}

/// The interest of a caller in the outcome. Dropped before there is one, it says so.
struct Interest<'a> {
    target: &'a Target,
    process: ProcessKey,
    leave: Option<oneshot::Sender<Scheduled>>,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        if self.process != this_process() {
            // The request is the parent's. (R7)
            return mem::forget(self.leave.take());
        }
        if let Some(leave) = self.leave.take() {
            // From this moment on, `flush` and an exit wait for it.
            let _ = leave.send(self.target.schedule());
        }
    }
}
