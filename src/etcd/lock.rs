//! [`AsyncEtcdLock`]: the lock as its users name it.

use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::guard::EtcdGuard;
use super::options::EtcdOptions;
use super::status;
#[cfg(feature = "cli")]
use super::status::Queue;
use super::target::Target;
use crate::lease::{Contender, RESPONSE_LIMIT, Watcher};
use crate::local::timer::Standing;
use crate::lock::changes::StatusChanges;
use crate::lock::error::Error;
use crate::lock::holder::{Holder, Status};

/// A lock that an etcd cluster keeps, for every machine that can reach it.
///
/// Clones are the same lock and share its connections and its lease; so do all locks of
/// this process with the same endpoints, prefix, TTL and credentials. The lock is held by
/// one at a time, also among clones.
/// It takes turns with `etcdctl lock` and with the mutex of etcd's client for Go, of the
/// same key: prefix and name.
///
/// Waiters are served in the order in which they asked, across processes; within a process
/// one task stands in the queue of the cluster at a time, and the others behind it in
/// theirs. A change of the leader and a member that dies are ridden out. etcd 3.4 and later
/// are supported.
///
/// Connections, renewals and releases belong to a thread of this crate, one for the
/// process. A lock may be used from several runtimes, and its futures can be spawned.
/// A forked child makes a thread and connections of its own.
///
/// ```no_run
/// use lockkeeper::AsyncEtcdLock;
///
/// # async fn work(token: lockkeeper::FencingToken) {}
/// # async fn example() -> Result<(), lockkeeper::Error> {
/// let lock = AsyncEtcdLock::new("h1:2379,h2:2379,h3:2379", "import")?;
/// let guard = lock.acquire().await?;
/// tokio::select! {
///     () = work(guard.fencing_token()) => {}
///     why = guard.lost() => return Err(why.into()),
/// }
/// guard.release().await
/// # }
/// ```
#[doc(alias("distributed", "lease", "Mutex"))]
#[derive(Clone)]
pub struct AsyncEtcdLock {
    target: Arc<Target>,
}

impl fmt::Debug for AsyncEtcdLock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("AsyncEtcdLock")
            .field("cluster", &self.target.cluster.url)
            .field("name", &self.target.name)
            .field("options", self.target.options())
            .finish()
    }
}

impl AsyncEtcdLock {
    /// A lock of this name, at the cluster with these endpoints.
    ///
    /// Endpoints are as in `h1:2379,h2:2379`. The options are [`EtcdOptions::default`].
    /// Locks of the same endpoints and the same way in (prefix, TTL, user, files) share a
    /// session.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncEtcdLock;
    ///
    /// let lock = AsyncEtcdLock::new("h1:2379,h2:2379,h3:2379", "import")?;
    /// assert_eq!(lock.resource(), "import");
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn new(endpoints: impl AsRef<str>, name: impl AsRef<str>) -> Result<Self, Error> {
        Self::with_options(endpoints, name, EtcdOptions::default())
    }

    /// A lock with these options. Files that they name are read; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkeeper::{AsyncEtcdLock, EtcdOptions};
    ///
    /// let options = EtcdOptions::default().prefix("jobs").ttl(Duration::from_secs(10));
    /// let lock = AsyncEtcdLock::with_options("h1:2379,h2:2379,h3:2379", "import", options)?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn with_options(
        endpoints: impl AsRef<str>,
        name: impl AsRef<str>,
        options: EtcdOptions,
    ) -> Result<Self, Error> {
        let cluster = Arc::new(Cluster::new(endpoints.as_ref(), options)?);
        Ok(Self::of(Arc::new(Target::new(cluster, name.as_ref())?)))
    }

    pub(super) fn of(target: Arc<Target>) -> Self {
        Self { target }
    }

    /// What is locked, without the prefix.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.target.name
    }

    /// The cluster as a URL, without anything secret.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.target.cluster.url
    }

    /// How long [`acquire`](Self::acquire) waits, by its options.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.target.options().timeout
    }

    pub(super) fn contender(&self) -> Contender<Target> {
        Contender::new(Arc::clone(&self.target))
    }

    /// Wait for the lock, at most for [`EtcdOptions::timeout`], for ever without it.
    ///
    /// While no member of the cluster answers they are asked again, for as long as
    /// [`EtcdOptions::reconnect`] says since the last answer, and not longer than up to the
    /// limit.
    ///
    /// Each call waits from the end of the queue. In a `select!` loop keep one future instead
    /// of making it anew in each round: `tokio::pin!` it before the loop, and poll it by
    /// `&mut`, as [`AsyncFileLock::acquire`](crate::AsyncFileLock::acquire) shows.
    ///
    /// # Cancel safety
    /// The future can be dropped at any point. Its key is deleted in the background, and
    /// with it what may still be on its way: see [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`Error::Timeout`] if another has the lock; [`Error::Unreachable`] if no member of
    /// the cluster answered; [`Error::Foreign`] if a key stands first that no release will
    /// remove; [`Error::Forbidden`], [`Error::Untrusted`], [`Error::NotAServer`],
    /// [`Error::Refused`], with the code `no_space` if the database is full.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// println!("held, with fencing token {}", guard.fencing_token());
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("lock", "lock_owned"))]
    pub fn acquire(&self) -> impl Future<Output = Result<EtcdGuard, Error>> + Send + use<> {
        self.contender().acquire(self.limit())
    }

    /// Wait for the lock, at most this long.
    ///
    /// The word that it was not free may come some moments later. `Duration::ZERO` is one
    /// try.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    ///
    /// match lock.acquire_timeout(Duration::from_secs(5)).await {
    ///     Ok(guard) => guard.release().await?,
    ///     Err(error) if error.is_timeout() => println!("later then: {error}"), // names the holder
    ///     Err(error) => return Err(error), // as when no member can be reached
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_timeout<L: Into<Option<Duration>>>(
        &self,
        limit: L,
    ) -> impl Future<Output = Result<EtcdGuard, Error>> + Send + use<L> {
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
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
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
    ) -> impl Future<Output = Result<EtcdGuard, Error>> + Send + use<> {
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
    /// A cluster that cannot be reached is asked again
    /// as by [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`Error::Timeout`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// let Some(guard) = lock.try_acquire().await? else {
    ///     println!("another machine does it");
    ///     return Ok(());
    /// };
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("try_lock", "try_lock_owned"))]
    pub fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<EtcdGuard>, Error>> + Send + use<> {
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
    /// # fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.blocking_acquire()?;
    /// drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn blocking_acquire(&self) -> Result<EtcdGuard, Error> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let failed = |error| self.target.unreachable("locking", Duration::ZERO, error);
        runtime.map_err(failed)?.block_on(self.acquire())
    }

    /// Whether the lock is held, and its holder.
    ///
    /// Of etcdctl and Go only the lease is known. A key that stands first and that no release will remove is a holder with
    /// [`Evidence::Unknown`](crate::Evidence::Unknown).
    ///
    /// # Cancel safety
    /// Dropping the future ends the question.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
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

    /// The contenders behind the holder, in their order; at most 255 of them.
    ///
    /// Of the tasks of one process only the first is known.
    ///
    /// # Cancel safety
    /// As [`status`](Self::status).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// for waiter in lock.waiters().await? {
    ///     println!("{waiter} waits");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn waiters(&self) -> impl Future<Output = Result<Vec<Holder>, Error>> + Send + use<> {
        status::waiters(Arc::clone(&self.target))
    }

    /// [`status`](Self::status) and [`waiters`](Self::waiters) of one moment.
    #[cfg(feature = "cli")]
    pub(crate) fn queue(&self) -> impl Future<Output = Result<Queue, Error>> + Send + use<> {
        status::queue(Arc::clone(&self.target))
    }

    /// Ask the holder to release the lock.
    ///
    /// Its guard is told [`LostReason::Revoked`], and holds on until it is dropped. The
    /// result is the holder, `None` if there is none.
    ///
    /// [`LostReason::Revoked`]: crate::LostReason::Revoked
    ///
    /// # Cancel safety
    /// Dropping the future ends the request, which the holder may have seen.
    ///
    /// # Errors
    /// [`Error::CannotAsk`] for a holder of another program, else as
    /// [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.revoke().await? {
    ///     println!("asked {holder}");
    /// }
    /// let guard = lock.acquire().await?; // waits until that holder has released it
    /// # Ok(())
    /// # }
    /// ```
    pub fn revoke(&self) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + use<> {
        status::revoke(Arc::clone(&self.target))
    }

    /// End the hold of this lease, whatever its holder does.
    ///
    /// Its key is deleted, and the next contender enters at once, though the holder may
    /// still be inside. A guard of this crate is told. The result is the holder, `None` if
    /// the lease is not the holder's.
    ///
    /// # Cancel safety
    /// Dropping the future ends the request, which the cluster may have carried out.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.holder().await? {
    ///     println!("{holder} does not answer");
    ///     let lease = 0x694d; // as `lockkeeper status` or etcdctl shows it
    ///     lock.force_release(lease).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn force_release(
        &self,
        lease: i64,
    ) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + use<> {
        status::end(Arc::clone(&self.target), lease)
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
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.holder().await? {
    ///     println!("held by {holder}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "owner")]
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
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// assert!(!lock.is_locked().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_locked(&self) -> impl Future<Output = Result<bool, Error>> + Send + use<> {
        let asking = self.holder();
        async move { Ok(asking.await?.is_some()) }
    }

    /// The [`status`](Self::status) now, and then each time that it changes.
    ///
    /// Each item differs from the one before. While the reader is busy, only the last state is an item.
    ///
    /// Trouble is ridden out as by [`acquire`](Self::acquire). If no member answers for
    /// [`EtcdOptions::reconnect`], one item is [`Error::Unreachable`], and the stream goes
    /// on. It ends after any other error.
    ///
    /// # Cancel safety
    /// A future of the next item can be dropped and loses nothing. A dropped stream
    /// leaves nothing.
    ///
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
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

    /// Wait until the keys of guards and acquisitions that were dropped are deleted.
    ///
    /// If no member can be reached, until their lease is over.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
    /// drop(lock.acquire().await?);
    /// lock.flush().await; // the cluster knows now that the lock is free
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

/// Locks are equal that have the same endpoints, name and options. Equal locks exclude
/// each other; so do all with the same key in one cluster.
impl PartialEq for AsyncEtcdLock {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.target, &other.target) || self.target == other.target
    }
}

impl Eq for AsyncEtcdLock {}

impl Hash for AsyncEtcdLock {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.server(), self.resource()).hash(state);
    }
}

// A panic leaves no lock half changed.
impl UnwindSafe for AsyncEtcdLock {}
impl RefUnwindSafe for AsyncEtcdLock {}
