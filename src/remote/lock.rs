//! The lock as its users name it.

use std::fmt;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::acquire::{Acquisition, Decided, WaitEnd};
use super::endpoint::{Endpoint, RESPONSE_LIMIT};
use super::guard::RemoteGuard;
use super::options::RemoteOptions;
use super::target::{Scheduled, Target};
use crate::lease::io;
use crate::local::timer::{Standing, is_paused};
use crate::lock::error::Error;
use crate::lock::events::{self, Acquiring};
use crate::lock::wait::Acquired;
use crate::sys::process_key::{ProcessKey, this_process};

/// Shorter waits are not shown: until a daemon answers, a free lock looks the same.
const UNTOLD: Duration = Duration::from_millis(100);

/// A lock that a lock daemon (`lockkeeper serve`) keeps, for every machine that
/// can reach it.
///
/// Clones are the same lock and share its connections. Two of them that hold
/// at once are two contenders: the daemon gives the lock to one hold at a time,
/// also to the same client.
///
/// Every request survives a restart of the daemon: it is sent again, under the
/// same id, and granted once. Who was waiting joins the queue anew then.
///
/// Connections, renewals and releases belong to a thread of this crate, one for the
/// process. A lock may be used from several runtimes, at once and one after the other.
/// A forked child makes a thread and connections of its own.
///
/// ```no_run
/// use lockkeeper::AsyncRemoteLock;
///
/// # async fn work(token: lockkeeper::FencingToken) {}
/// # async fn example() -> Result<(), lockkeeper::Error> {
/// let lock = AsyncRemoteLock::new("http://127.0.0.1:8000", "nightly import", "web-1")?;
/// let guard = lock.acquire().await?;
/// tokio::select! {
///     () = work(guard.fencing_token()) => {}
///     why = guard.lost() => return Err(why.into()),
/// }
/// guard.release().await
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncRemoteLock {
    target: Arc<Target>,
}

impl fmt::Debug for AsyncRemoteLock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("AsyncRemoteLock")
            .field("server", &self.server())
            .field("resource", &self.resource())
            .field("client", &self.client())
            .field("options", &self.target.options)
            .finish()
    }
}

impl AsyncRemoteLock {
    /// A lock with [`RemoteOptions::default`]: of this resource at the daemon
    /// at this URL, as in `http://127.0.0.1:8000` or `https://locks.example`,
    /// for a client of this name. The name tells people who has the lock; it
    /// should tell this process from others.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn new(
        server_url: impl AsRef<str>,
        resource: impl Into<String>,
        client: impl Into<String>,
    ) -> Result<Self, Error> {
        Self::with_options(server_url, resource, client, RemoteOptions::default())
    }

    /// A lock with these options. For `https` it reads certificates from the
    /// disk; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn with_options(
        server_url: impl AsRef<str>,
        resource: impl Into<String>,
        client: impl Into<String>,
        options: RemoteOptions,
    ) -> Result<Self, Error> {
        options.check()?;
        let (resource, client) = (resource.into(), client.into());
        for (option, name) in [("resource", &resource), ("client", &client)] {
            if name.trim().is_empty() {
                let why = "it is empty".to_owned();
                return Err(Error::InvalidOption { option, why });
            }
        }
        let endpoint = Endpoint::new(server_url.as_ref(), &options)?;
        Ok(Self { target: Arc::new(Target::new(endpoint, resource, client, options)) })
    }

    /// How long [`acquire`](Self::acquire) waits, by its options.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.target.options.timeout
    }

    /// The daemon's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        self.target.endpoint.url()
    }

    /// What is locked.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.target.resource
    }

    /// The name by which it is asked for.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.target.client
    }

    /// Wait for the lock, at most for [`RemoteOptions::timeout`], for ever
    /// without it. Who waits is served in the order in which the daemon heard
    /// of it. While the daemon cannot be reached it is tried again, for as long
    /// as [`RemoteOptions::reconnect`] says since its last answer, and not longer
    /// than up to the limit.
    ///
    /// Each call waits from the end of the daemon's queue. In a `select!` loop keep one
    /// future instead of making it anew in each round: `tokio::pin!` it before the
    /// loop, and poll it by `&mut`, as [`AsyncFileLock::acquire`](crate::AsyncFileLock::acquire)
    /// shows.
    ///
    /// # Cancel safety
    /// The future can be dropped at any point. Its place in the daemon's queue
    /// goes with its connection, and a grant that was on its way is given back,
    /// both in the background: see [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`Error::Timeout`] if the daemon said that somebody else has the lock, and
    /// [`Error::Unreachable`] if it said nothing; else the rest of [`Error`].
    pub async fn acquire(&self) -> Result<RemoteGuard, Error> {
        self.contend(self.target.options.timeout).await
    }

    /// Wait for the lock, at most this long; the daemon's word that it was not
    /// free may come up to a second later. `Duration::ZERO` is one try.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_timeout(
        &self,
        limit: impl Into<Option<Duration>>,
    ) -> Result<RemoteGuard, Error> {
        self.contend(limit.into()).await
    }

    /// Wait as [`acquire`](Self::acquire) does until `token` is cancelled. The
    /// token covers only the wait: a guard that was had stays valid.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    pub async fn acquire_with(&self, token: &CancellationToken) -> Result<RemoteGuard, Error> {
        tokio::select! {
            biased;
            () = token.cancelled() => Err(self.target.cancelled()),
            acquired = self.acquire() => acquired,
        }
    }

    /// One try; `None` if somebody has it. A daemon that cannot be reached is
    /// tried again as by [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`Error::Timeout`].
    pub async fn try_acquire(&self) -> Result<Option<RemoteGuard>, Error> {
        let name = self.target.name();
        let shown = Acquiring::begin(&name);
        let outcome = self.ask(WaitEnd::Now).await.map(Acquired::held);

        if let Some(shown) = shown {
            shown.tried(&name, &outcome);
        }
        outcome
    }

    /// Wait for what dropped guards and dropped acquisitions of this lock left
    /// to be told to the daemon. It is over when
    /// [`RemoteOptions::reconnect`] is, though the daemon cannot be reached.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn flush(&self) {
        let _standing = Standing::at_most(RESPONSE_LIMIT);
        self.target.background().wait().await;
    }

    /// As [`try_acquire`](Self::try_acquire), but [`Error::Timeout`] says who has it.
    pub(crate) async fn acquire_at_once(&self) -> Result<RemoteGuard, Error> {
        self.had(Duration::ZERO, self.ask(WaitEnd::Now).await?)
    }

    async fn contend(&self, limit: Option<Duration>) -> Result<RemoteGuard, Error> {
        if !events::are_wanted() {
            return self.contend_within(limit).await;
        }
        let holder = async {
            sleep(UNTOLD).await;
            Some("one that the daemon knows".to_owned())
        };
        events::show(&self.target.name(), self.contend_within(limit), holder).await
    }

    async fn contend_within(&self, limit: Option<Duration>) -> Result<RemoteGuard, Error> {
        let started = Instant::now();
        let outcome = match limit {
            _ if is_paused() => self.ask_by_a_paused_clock(limit).await?,
            None => self.ask(WaitEnd::Never).await?,
            // So late a limit is none.
            Some(limit) => {
                let deadline = std::time::Instant::now().checked_add(limit);
                self.ask(deadline.map_or(WaitEnd::Never, WaitEnd::At)).await?
            }
        };
        self.had(started.elapsed(), outcome)
    }

    fn had(&self, waited: Duration, outcome: Acquired<RemoteGuard>) -> Result<RemoteGuard, Error> {
        match outcome {
            Acquired::Held(guard) => Ok(guard),
            Acquired::Busy(busy) => Err(self.target.timed_out(waited, busy)),
        }
    }

    /// A paused clock would be at any limit before the daemon answers, whose clock is
    /// not. So the daemon is asked without waiting first, and once more at the limit.
    async fn ask_by_a_paused_clock(&self, limit: Option<Duration>) -> Decided {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let at_once = self.ask(WaitEnd::Now).await;
        if !matches!(at_once, Ok(Acquired::Busy(_))) {
            return at_once;
        }
        let waiting = self.target.hand_over.wait();
        let (end, ended) = oneshot::channel();
        let mut asking =
            pin!(self.request(Acquisition::new(&self.target, WaitEnd::WhenTold(ended))?));
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
        let _standing = matches!(wait_end, WaitEnd::Now).then(|| Standing::at_most(RESPONSE_LIMIT));
        self.request(Acquisition::new(&self.target, wait_end)?).await
    }

    async fn request(&self, acquisition: Acquisition) -> Decided {
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

/// That somebody wants the outcome. Dropped before there is one, it says so.
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
            // From this moment on `flush` waits for it, and an exit.
            let _ = leave.send(self.target.schedule());
        }
    }
}
