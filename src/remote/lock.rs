//! The lock as its users name it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::claim::Claim;
use super::error::RemoteError;
use super::guard::RemoteGuard;
use super::options::RemoteOptions;
use super::petition::{Decided, Outcome, Petition, Wait};
use super::server::Server;
use crate::debug_events::{self, Acquiring};

/// How much later than its limit a wait may end: the daemon has the last word.
const OVERRUN: Duration = Duration::from_secs(1);

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
/// It needs a Tokio runtime with I/O and time.
///
/// ```no_run
/// use lockkeeper::AsyncRemoteLock;
///
/// # async fn work(token: u64) {}
/// # async fn example() -> Result<(), lockkeeper::RemoteError> {
/// let lock = AsyncRemoteLock::new("http://127.0.0.1:8000", "nightly import", "web-1")?;
/// let guard = lock.acquire().await?;
/// tokio::select! {
///     () = work(guard.token()) => {}
///     why = guard.lost() => return Err(why.into()),
/// }
/// guard.release().await
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncRemoteLock {
    claim: Arc<Claim>,
}

impl fmt::Debug for AsyncRemoteLock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("AsyncRemoteLock")
            .field("server", &self.server())
            .field("resource", &self.resource())
            .field("client", &self.client())
            .field("options", &self.claim.options)
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
    /// [`RemoteError::InvalidOption`].
    pub fn new(
        server_url: impl AsRef<str>,
        resource: impl Into<String>,
        client: impl Into<String>,
    ) -> Result<Self, RemoteError> {
        Self::with_options(server_url, resource, client, RemoteOptions::default())
    }

    /// A lock with these options. For `https` it reads certificates from the
    /// disk; nothing is sent yet.
    ///
    /// # Errors
    /// [`RemoteError::InvalidOption`].
    pub fn with_options(
        server_url: impl AsRef<str>,
        resource: impl Into<String>,
        client: impl Into<String>,
        options: RemoteOptions,
    ) -> Result<Self, RemoteError> {
        options.check()?;
        let (resource, client) = (resource.into(), client.into());
        for (option, name) in [("resource", &resource), ("client", &client)] {
            if name.trim().is_empty() {
                let why = "it is empty".to_owned();
                return Err(RemoteError::InvalidOption { option, why });
            }
        }
        let server = Server::new(server_url.as_ref(), &options)?;
        Ok(Self { claim: Arc::new(Claim::new(server, resource, client, options)) })
    }

    /// The daemon's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        self.claim.server.url()
    }

    /// What is locked.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.claim.resource
    }

    /// The name by which it is asked for.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.claim.client
    }

    /// Wait for the lock, at most for [`RemoteOptions::timeout`], for ever
    /// without it. Who waits is served in the order in which the daemon heard
    /// of it. While the daemon cannot be reached it is tried again, for as long
    /// as [`RemoteOptions::reconnect`] says.
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
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn acquire(&self) -> Result<RemoteGuard, RemoteError> {
        self.contend(self.claim.options.timeout).await
    }

    /// Wait for the lock, at most this long; the daemon's word that it was not
    /// free may come up to a second later. `Duration::ZERO` is one try.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_timeout(&self, limit: Duration) -> Result<RemoteGuard, RemoteError> {
        self.contend(Some(limit)).await
    }

    /// Wait as [`acquire`](Self::acquire) does until `token` is cancelled. The
    /// token covers only the wait: a guard that was had stays valid.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`RemoteError::Cancelled`], else as [`acquire`](Self::acquire).
    pub async fn acquire_with(
        &self,
        token: &CancellationToken,
    ) -> Result<RemoteGuard, RemoteError> {
        tokio::select! {
            biased;
            () = token.cancelled() => Err(self.claim.cancelled()),
            acquired = self.acquire() => acquired,
        }
    }

    /// One try; `None` if somebody has it. A daemon that cannot be reached is
    /// tried again as by [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`RemoteError::Timeout`].
    pub async fn try_acquire(&self) -> Result<Option<RemoteGuard>, RemoteError> {
        let name = self.claim.name();
        let shown = Acquiring::begin(&name);
        let outcome = self.ask(Wait::No).await.map(|outcome| match outcome {
            Outcome::Granted(guard) => Some(guard),
            Outcome::Busy(_) => None,
        });
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
        self.claim.background.wait().await;
    }

    async fn contend(&self, limit: Option<Duration>) -> Result<RemoteGuard, RemoteError> {
        if !debug_events::are_wanted() {
            return self.contend_within(limit).await;
        }
        let holder = async {
            sleep(UNTOLD).await;
            Some("one that the daemon knows".to_owned())
        };
        debug_events::show(&self.claim.name(), self.contend_within(limit), holder).await
    }

    async fn contend_within(&self, limit: Option<Duration>) -> Result<RemoteGuard, RemoteError> {
        let started = Instant::now();
        let deadline = limit.and_then(|limit| started.checked_add(limit));
        let end = deadline.and_then(|deadline| deadline.checked_add(OVERRUN));
        let outcome = match deadline.zip(end) {
            // So late a limit is none.
            None => self.ask(Wait::Forever).await?,
            Some((deadline, end)) => match timeout_at(end, self.ask(Wait::Until(deadline))).await {
                Ok(outcome) => outcome?,
                Err(_) => Outcome::Busy(None),
            },
        };
        match outcome {
            Outcome::Granted(guard) => Ok(guard),
            Outcome::Busy(holder) => Err(self.claim.timed_out(started.elapsed(), holder)),
        }
    }

    async fn ask(&self, wait: Wait) -> Decided {
        let (outcome, decided) = oneshot::channel();
        let (leave, gone) = oneshot::channel();
        tokio::spawn(Petition::new(Arc::clone(&self.claim), wait)?.run(outcome, gone));
        let mut interest = Interest { claim: &self.claim, leave: Some(leave) };
        let decided = decided.await;
        interest.leave = None;
        decided.unwrap_or_else(|_| {
            let source = io::Error::other("the runtime has gone down");
            Err(self.claim.unreachable("locking", Duration::ZERO, source))
        })
    }
}

/// That somebody wants the outcome. Dropped before there is one, it says so.
struct Interest<'a> {
    claim: &'a Claim,
    leave: Option<oneshot::Sender<TaskTrackerToken>>,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            // From this moment on `flush` waits for it.
            let _ = leave.send(self.claim.background.token());
        }
    }
}
