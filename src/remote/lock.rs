//! [`AsyncRemoteLock`]: the lock as its users name it.

use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::endpoint::Endpoint;
use super::guard::RemoteGuard;
use super::options::RemoteOptions;
use super::status;
use super::target::Target;
use crate::lease::{Contender, RESPONSE_LIMIT, Watcher};
use crate::local::timer::Standing;
use crate::lock::changes::StatusChanges;
use crate::lock::error::Error;
use crate::lock::holder::{Holder, Status};

/// A lock that a lock daemon keeps, for every machine that can reach it.
///
/// The daemon is `lockkeeper serve`.
///
/// Clones are the same lock and share its connections. The daemon grants the lock to one
/// hold at a time, also among clones and for one client.
///
/// Every request survives a restart of the daemon: it is sent again, under the
/// same id, and granted once. A waiter joins the queue anew then.
///
/// Connections, renewals and releases belong to a thread of this crate, one for the
/// process. A lock may be used from several runtimes, and its futures can be spawned.
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
#[doc(alias("distributed", "Redlock", "lease"))]
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
    /// A lock of this resource at the daemon at this URL, for a client of this name.
    ///
    /// The URL is as in `http://127.0.0.1:8000` or `https://locks.example`. The options are
    /// [`RemoteOptions::default`]. The client's name is shown to people as the holder's; it
    /// should tell this process from others.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncRemoteLock;
    ///
    /// let lock = AsyncRemoteLock::new("http://127.0.0.1:8000", "nightly import", "web-1")?;
    /// assert_eq!(lock.resource(), "nightly import");
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn new(
        server_url: impl AsRef<str>,
        resource: impl Into<String>,
        client: impl Into<String>,
    ) -> Result<Self, Error> {
        Self::with_options(server_url, resource, client, RemoteOptions::default())
    }

    /// A lock with these options. For `https`, certificates are read from the
    /// disk; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkeeper::{AsyncRemoteLock, RemoteOptions};
    ///
    /// let options = RemoteOptions::default().lease(Duration::from_secs(10));
    /// let lock = AsyncRemoteLock::with_options("http://127.0.0.1:8000", "import", "web-1", options)?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
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

    /// The name of the client.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.target.client
    }

    /// How long [`acquire`](Self::acquire) waits, by its options.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.target.options.timeout
    }

    pub(super) fn contender(&self) -> Contender<Target> {
        Contender::new(Arc::clone(&self.target))
    }

    /// Wait for the lock, at most for [`RemoteOptions::timeout`], for ever without it.
    ///
    /// Waiters are served in the order in which the daemon heard
    /// of them. While the daemon cannot be reached it is tried again, for as long
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
    /// goes with its connection, and a grant that was on its way is released,
    /// both in the background: see [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`Error::Timeout`] if the daemon said that another client has the lock;
    /// [`Error::Unreachable`] if it said nothing; [`Error::Forbidden`] if the daemon wants
    /// a token and this one is not for this client, as a viewer's is not;
    /// [`Error::Untrusted`], [`Error::NotAServer`], [`Error::Refused`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// println!("held, with fencing token {}", guard.fencing_token());
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("lock", "lock_owned"))]
    pub fn acquire(&self) -> impl Future<Output = Result<RemoteGuard, Error>> + Send + use<> {
        self.contender().acquire(self.limit())
    }

    /// Wait for the lock, at most this long.
    ///
    /// The daemon's word that it was not free may come up to a second later.
    /// `Duration::ZERO` is one try.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    ///
    /// match lock.acquire_timeout(Duration::from_secs(5)).await {
    ///     Ok(guard) => guard.release().await?,
    ///     Err(error) if error.is_timeout() => println!("later then: {error}"), // names the holder
    ///     Err(error) => return Err(error), // as when the daemon cannot be reached
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_timeout<L: Into<Option<Duration>>>(
        &self,
        limit: L,
    ) -> impl Future<Output = Result<RemoteGuard, Error>> + Send + use<L> {
        self.contender().acquire(limit.into())
    }

    /// Wait as [`acquire`](Self::acquire) does until `token` is cancelled. The
    /// token covers only the wait: a guard that was acquired stays valid.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let shutdown = CancellationToken::new(); // cancelled where the service is told to stop
    /// let guard = lock.acquire_with(&shutdown).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_with(
        &self,
        token: &CancellationToken,
    ) -> impl Future<Output = Result<RemoteGuard, Error>> + Send + use<> {
        let (target, token, acquiring) = (Arc::clone(&self.target), token.clone(), self.acquire());
        async move {
            tokio::select! {
                biased;
                () = token.cancelled() => Err(target.cancelled()),
                acquired = acquiring => acquired,
            }
        }
    }

    /// Try once; `None` if the lock is held.
    ///
    /// A daemon that cannot be reached is
    /// tried again as by [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`Error::Timeout`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// let Some(guard) = lock.try_acquire().await? else {
    ///     println!("another client does it");
    ///     return Ok(());
    /// };
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("try_lock", "try_lock_owned"))]
    pub fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<RemoteGuard>, Error>> + Send + use<> {
        self.contender().try_acquire()
    }

    /// [`acquire`](Self::acquire) for a thread without a runtime.
    ///
    /// # Panics
    /// In an async context, where it would block the runtime; `spawn_blocking`
    /// and threads of one's own are fine.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.blocking_acquire()?;
    /// drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "blocking_lock")]
    pub fn blocking_acquire(&self) -> Result<RemoteGuard, Error> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let failed = |error| self.target.unreachable("locking", Duration::ZERO, error);
        runtime.map_err(failed)?.block_on(self.acquire())
    }

    /// Whether the lock is held, by which client and since when.
    ///
    /// A daemon that cannot be
    /// reached is tried again for as long as [`RemoteOptions::reconnect`] says.
    ///
    /// The holder's [`hold_id`](Holder::hold_id) is the number of its
    /// [`fencing_token`](RemoteGuard::fencing_token). A file in the lock's place that
    /// names no client is a holder with [`Evidence::Unknown`](crate::Evidence::Unknown).
    /// Where the daemon has tokens, any will do, also a viewer's.
    ///
    /// # Cancel safety
    /// Dropping the future ends the question.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the daemon wants a token that it knows, else as
    /// [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::Status;
    ///
    /// match lock.status().await? {
    ///     Status::Held(holder) => println!("held by {holder}"),
    ///     _ => println!("free"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + use<> {
        status::ask(Arc::clone(&self.target))
    }

    /// The holder, `None` if the lock is free.
    ///
    /// # Cancel safety
    /// As [`status`](Self::status).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.holder().await? {
    ///     println!("held by {holder}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("owner", "getpid"))]
    pub fn holder(&self) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + use<> {
        let asking = self.status();
        async move {
            match asking.await? {
                Status::Held(holder) => Ok(Some(holder)),
                Status::Free | Status::Stale(_) => Ok(None),
            }
        }
    }

    /// Whether the lock is held.
    ///
    /// # Cancel safety
    /// As [`status`](Self::status).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// assert!(!lock.is_locked().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_locked(&self) -> impl Future<Output = Result<bool, Error>> + Send + use<> {
        let asking = self.holder();
        async move { Ok(asking.await?.is_some()) }
    }

    /// The [`status`](Self::status) now, and then each time that it changes. Each item
    /// differs from the one before. The daemon sends changes, at most four times a second;
    /// of more, and while the reader is busy, only the last state is an item.
    ///
    /// A connection that breaks is made again. If that fails for
    /// [`RemoteOptions::reconnect`], one item is [`Error::Unreachable`], and the stream
    /// goes on. The stream ends after any other error, as [`Error::Forbidden`] when its
    /// token is withdrawn. Any token of the daemon will do.
    ///
    /// # Cancel safety
    /// A future of the next item can be dropped and loses nothing. A dropped stream
    /// closes its connection.
    ///
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// use futures::StreamExt;
    /// use lockkeeper::Status;
    ///
    /// let mut changes = lock.watch();
    /// while let Some(status) = changes.next().await {
    ///     match status? {
    ///         Status::Held(holder) => println!("held by {holder}"),
    ///         _ => println!("free"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch(&self) -> StatusChanges {
        StatusChanges::of(Watcher::new(Arc::clone(&self.target)))
    }

    /// Wait until the daemon knows that guards and acquisitions of this lock were dropped.
    /// If it cannot be reached, until [`RemoteOptions::reconnect`] is over.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// drop(lock.acquire().await?);
    /// lock.flush().await; // the daemon knows now that the lock is free
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) -> impl Future<Output = ()> + Send + use<> {
        let target = Arc::clone(&self.target);
        async move {
            let _standing = Standing::at_most(RESPONSE_LIMIT);
            target.background.flush().await;
        }
    }
}

/// Locks are equal that have the same URL, resource, client and options. Equal locks
/// exclude each other; so do all of the same resource of one daemon.
impl PartialEq for AsyncRemoteLock {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.target, &other.target) || self.target == other.target
    }
}

impl Eq for AsyncRemoteLock {}

impl Hash for AsyncRemoteLock {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.server(), self.resource(), self.client()).hash(state);
    }
}

// A panic leaves no lock half changed.
impl UnwindSafe for AsyncRemoteLock {}
impl RefUnwindSafe for AsyncRemoteLock {}
