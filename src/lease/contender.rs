//! The part of an acquisition that runs on the runtime of its caller.

use std::future::Future;
#[cfg(any(feature = "etcd", feature = "postgres"))]
use std::future::pending;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::sync::oneshot;
#[cfg(any(feature = "etcd", feature = "postgres"))]
use tokio::time::sleep_until;
use tokio::time::{Instant, sleep, timeout_at};

use super::background::{Background, Scheduled};
use super::io::io;
use crate::local::timer::{Standing, is_paused};
use crate::lock::error::Error;
use crate::lock::events::{self, Acquiring as Shown};
use crate::lock::name::LockName;
use crate::lock::wait::{Acquired, Busy};
use crate::sys::process_key::{ProcessKey, this_process};

/// Shorter waits are not logged: until a server answers, a free lock looks the same. If
/// larger, waits are logged later.
const UNTOLD: Duration = Duration::from_millis(100);

/// How long a server may take for a connection, and for a response to a request that does
/// not wait for a lock. If larger, a server that is stalled holds callers up longer.
pub(crate) const RESPONSE_LIMIT: Duration = Duration::from_secs(10);

/// When a wait ends.
pub(crate) enum WaitEnd {
    /// One try.
    Now,
    At(StdInstant),
    Never,
    /// By the caller's clock, which is not the server's.
    WhenTold(oneshot::Receiver<()>),
}

#[cfg(any(feature = "etcd", feature = "postgres"))]
impl WaitEnd {
    /// When a server is not asked any more, if that is known.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::At(point) => Some(Instant::from_std(*point)),
            _ => None,
        }
    }

    /// Whether there is no time to wait, but for one try.
    pub(crate) fn is_now(&self) -> bool {
        match self {
            Self::Now => true,
            Self::At(point) => *point <= StdInstant::now(),
            Self::Never | Self::WhenTold(_) => false,
        }
    }

    /// Resolves when the wait is to end, and at once from then on.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn reached(&mut self) {
        match self {
            Self::Now => {}
            // The timer is up to a millisecond late.
            Self::At(point) if *point <= StdInstant::now() => {}
            Self::At(point) => sleep_until(Instant::from_std(*point)).await,
            Self::Never => pending().await,
            Self::WhenTold(told) => {
                if told.await.is_err() {
                    return pending().await;
                }
            }
        }
        *self = Self::Now;
    }
}

/// Acquire and send what was decided, unless the caller is gone before: then what was under
/// way is dropped, which schedules what has to follow.
#[cfg(any(feature = "etcd", feature = "postgres"))]
pub(crate) async fn unless_gone<G>(
    acquiring: impl Future<Output = Decided<G>>,
    outcome: oneshot::Sender<Decided<G>>,
    mut gone: Gone,
) {
    let (decided, scheduled) = {
        let mut acquiring = pin!(acquiring);
        tokio::select! {
            biased;
            decided = &mut acquiring => (Some(decided), None),
            scheduled = &mut gone => (None, scheduled.ok()),
        }
    };
    if let Some(decided) = decided {
        // If the caller is gone by now, a guard in it releases the lock. What the
        // caller scheduled stays in `gone` until that is scheduled too.
        let _ = outcome.send(decided);
    }
    drop(scheduled);
}

/// How an acquisition ended.
pub(crate) type Decided<G> = Result<Acquired<G>, Error>;

/// Sent when the caller has dropped its future; what it leaves behind is scheduled by this.
pub(crate) type Gone = oneshot::Receiver<Scheduled>;

/// What acquires, boxed where it is made: a program that uses the crate has nothing of it
/// to compile.
pub(crate) type Acquiring = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A lock of a server, which acquires on the thread of (L1).
pub(crate) trait Target: Send + Sync + 'static {
    type Guard: Send + 'static;

    fn name(&self) -> LockName;

    fn background(&self) -> &Background;

    /// What the system refused before a request was made.
    fn failed(&self, error: io::Error) -> Error;

    /// Acquire, and send what was decided. If `gone` comes first, leave nothing behind and
    /// keep what it brings until then.
    ///
    /// # Errors
    /// What keeps it from being begun.
    fn acquire(
        self: &Arc<Self>,
        end: WaitEnd,
        outcome: oneshot::Sender<Decided<Self::Guard>>,
        gone: Gone,
    ) -> Result<Acquiring, Error>;
}

/// One acquisition.
pub(crate) struct Contender<T> {
    target: Arc<T>,
}

impl<T: Target> Contender<T> {
    pub(crate) fn new(target: Arc<T>) -> Self {
        Self { target }
    }

    /// Without a limit, for as long as it takes.
    pub(crate) async fn acquire(self, limit: Option<Duration>) -> Result<T::Guard, Error> {
        if !events::are_wanted() {
            return self.acquire_within(limit).await;
        }
        let holder = async {
            sleep(UNTOLD).await;
            Some("one that the server knows".to_owned())
        };
        events::show(&self.target.name(), self.acquire_within(limit), holder).await
    }

    /// One try.
    pub(crate) async fn try_acquire(self) -> Result<Option<T::Guard>, Error> {
        let name = self.target.name();
        let shown = Shown::begin(&name);
        let acquired = self.try_once().await.map(Acquired::held);
        if let Some(shown) = shown {
            shown.tried(&name, &acquired);
        }
        acquired
    }

    /// One try, which names the holder.
    pub(crate) async fn try_once(&self) -> Decided<T::Guard> {
        let _standing = Standing::at_most(RESPONSE_LIMIT);
        self.ask(WaitEnd::Now).await
    }

    async fn acquire_within(&self, limit: Option<Duration>) -> Result<T::Guard, Error> {
        let started = Instant::now();
        let acquired = match limit {
            _ if is_paused() => self.ask_by_a_paused_clock(limit).await?,
            None => self.ask(WaitEnd::Never).await?,
            // A limit beyond the range of the clock is none.
            Some(limit) => {
                let deadline = StdInstant::now().checked_add(limit);
                self.ask(deadline.map_or(WaitEnd::Never, WaitEnd::At)).await?
            }
        };
        match acquired {
            Acquired::Held(guard) => Ok(guard),
            Acquired::Busy(Busy { holder, .. }) => {
                let (lock, waited) = (self.target.name(), started.elapsed());
                Err(Error::Timeout { lock, waited, holder })
            }
        }
    }

    /// A paused clock is at any limit before the server answers, as the server's clock is
    /// not paused. So a first try does not wait, and the last one is at the limit.
    async fn ask_by_a_paused_clock(&self, limit: Option<Duration>) -> Decided<T::Guard> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let at_once = self.try_once().await;
        let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
        if is_over || !matches!(at_once, Ok(Acquired::Busy(_))) {
            return at_once;
        }
        let waiting = self.target.background().hand_over.wait();
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

    async fn ask(&self, wait_end: WaitEnd) -> Decided<T::Guard> {
        let io = io().map_err(|error| self.target.failed(error))?;
        let (outcome, decided) = oneshot::channel();
        let (leave, gone) = oneshot::channel();
        drop(io.spawn(self.target.acquire(wait_end, outcome, gone)?));
        let (background, process) = (self.target.background(), this_process());
        let mut interest = Interest { background, process, leave: Some(leave) };
        let decided = decided.await.expect("BUG: a request was given up");
        interest.leave = None;
        decided
    }
}

/// The interest of a caller in the outcome. Dropped before there is one, it says so.
struct Interest<'a> {
    background: &'a Background,
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
            let _ = leave.send(self.background.schedule());
        }
    }
}
