//! [`AsyncPostgresLock`]: the lock as its users name it.

use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::acquire::Wanted;
use super::guard::PostgresGuard;
use super::key::{LockKey, Mode};
use super::options::PostgresOptions;
use super::server::Server;
use super::status::{self, Ended, Queue};
use super::target::Target;
use crate::lease::{Contender, RESPONSE_LIMIT, Watcher};
use crate::local::timer::Standing;
use crate::lock::changes::StatusChanges;
use crate::lock::error::Error;
use crate::lock::holder::{Holder, Status};

/// A lock that a PostgreSQL server keeps, for every machine that can reach it.
///
/// It is an advisory lock, held by a session.
///
/// Clones are the same lock and share its sessions; so do all locks of this process with
/// the same connection string, lease and table. The lock is held by one at a time, also
/// among clones, or shared by readers.
/// It takes turns with every session that calls `pg_advisory_lock` with its
/// [`key`](Self::key).
///
/// Waiters are served in the order in which they asked, across processes, but that each
/// asks anew after a minute; within a process one task stands in the queue of the server at
/// a time, and the others behind it in theirs. A server that restarts is ridden out by
/// those who wait. PostgreSQL 14 and later are supported, and no pooler that pools
/// transactions or statements.
///
/// Sessions, probes and releases belong to a thread of this crate, one for the
/// process. A lock may be used from several runtimes, and its futures can be spawned.
/// A forked child makes a thread and connections of its own.
///
/// ```no_run
/// use lockkeeper::AsyncPostgresLock;
///
/// # async fn work(token: lockkeeper::FencingToken) {}
/// # async fn example() -> Result<(), lockkeeper::Error> {
/// let lock = AsyncPostgresLock::new("host=db dbname=app user=app", "import")?;
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
pub struct AsyncPostgresLock {
    target: Arc<Target>,
}

impl fmt::Debug for AsyncPostgresLock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("AsyncPostgresLock")
            .field("server", &self.target.server.url)
            .field("name", &self.target.name)
            .field("options", self.target.options())
            .finish()
    }
}

impl AsyncPostgresLock {
    /// A lock of this name, in the database of this connection string, as libpq takes it.
    ///
    /// That is a URL, or pairs as in `host=db dbname=app user=app`. What it leaves out is
    /// taken from the environment (`PGHOST` …), a service file and `~/.pgpass`. The options
    /// are [`PostgresOptions::default`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncPostgresLock;
    ///
    /// let lock = AsyncPostgresLock::new("host=db dbname=app user=app", "import")?;
    /// assert_eq!(lock.resource(), "import");
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn new(config: impl AsRef<str>, name: impl AsRef<str>) -> Result<Self, Error> {
        Self::with_options(config, name, PostgresOptions::default())
    }

    /// A lock with these options. Files that they name are read; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkeeper::{AsyncPostgresLock, PostgresOptions};
    ///
    /// let options = PostgresOptions::default().lease(Duration::from_secs(10));
    /// let lock = AsyncPostgresLock::with_options("host=db dbname=app user=app", "import", options)?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn with_options(
        config: impl AsRef<str>,
        name: impl AsRef<str>,
        options: PostgresOptions,
    ) -> Result<Self, Error> {
        let server = Arc::new(Server::new(Access::parse(config.as_ref())?, options)?);
        Ok(Self::of(Arc::new(Target::new(server, name.as_ref())?)))
    }

    pub(super) fn of(target: Arc<Target>) -> Self {
        Self { target }
    }

    /// The key of the advisory lock.
    ///
    /// For `pg_advisory_xact_lock` in a transaction of one's own: that excludes the guards of
    /// this lock too, through any pooler.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncPostgresLock;
    ///
    /// let lock = AsyncPostgresLock::new("host=db dbname=app user=app", "import")?;
    /// println!("SELECT pg_advisory_xact_lock({});", lock.key());
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    #[must_use]
    pub fn key(&self) -> LockKey {
        self.target.key
    }

    /// The name of the lock.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.target.name
    }

    /// The server as a URL, without anything secret.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.target.server.url
    }

    /// How long [`acquire`](Self::acquire) waits, by its options.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.target.options().timeout
    }

    pub(super) fn contender(&self, mode: Mode) -> Contender<Wanted> {
        Contender::new(Arc::new(Wanted { target: Arc::clone(&self.target), mode }))
    }

    /// Wait for the lock, at most for [`PostgresOptions::timeout`], for ever without it.
    ///
    /// While the server does not answer it is asked again, for as long as
    /// [`PostgresOptions::reconnect`] says since the last answer, and not longer than up to the
    /// limit.
    ///
    /// Each call waits from the end of the queue. In a `select!` loop keep one future instead
    /// of making it anew in each round: `tokio::pin!` it before the loop, and poll it by
    /// `&mut`, as [`AsyncFileLock::acquire`](crate::AsyncFileLock::acquire) shows.
    ///
    /// # Cancel safety
    /// The future can be dropped at any point. Its statement is cancelled in the background
    /// and its session closed: see [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`Error::Timeout`] if another has the lock; [`Error::Unreachable`] if the server did not
    /// answer; [`Error::Forbidden`], [`Error::Untrusted`], [`Error::NotAServer`];
    /// [`Error::Refused`], with the code `pooler` behind a pooler of transactions, and
    /// `too_many_locks` beyond [`PostgresOptions::most_locks`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// println!("held, with fencing token {}", guard.fencing_token());
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("lock", "lock_owned"))]
    pub fn acquire(&self) -> impl Future<Output = Result<PostgresGuard, Error>> + Send + use<> {
        self.contender(Mode::Exclusive).acquire(self.limit())
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
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    ///
    /// match lock.acquire_timeout(Duration::from_secs(5)).await {
    ///     Ok(guard) => guard.release().await?,
    ///     Err(error) if error.is_timeout() => println!("later then: {error}"), // names the holder
    ///     Err(error) => return Err(error), // as when the server cannot be reached
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_timeout<L: Into<Option<Duration>>>(
        &self,
        limit: L,
    ) -> impl Future<Output = Result<PostgresGuard, Error>> + Send + use<L> {
        self.contender(Mode::Exclusive).acquire(limit.into())
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
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
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
    ) -> impl Future<Output = Result<PostgresGuard, Error>> + Send + use<> {
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
    /// A server that cannot be reached is asked again
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
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
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
    ) -> impl Future<Output = Result<Option<PostgresGuard>, Error>> + Send + use<> {
        self.contender(Mode::Exclusive).try_acquire()
    }

    /// Wait for the lock to share it with other readers, as [`acquire`](Self::acquire) does.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// let (one, other) = (lock.acquire_shared().await?, lock.acquire_shared().await?);
    /// assert!(lock.try_acquire().await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("read", "lock_shared", "pg_advisory_lock_shared"))]
    pub fn acquire_shared(
        &self,
    ) -> impl Future<Output = Result<PostgresGuard, Error>> + Send + use<> {
        self.contender(Mode::Shared).acquire(self.limit())
    }

    /// Wait for the lock to share it, at most this long.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    ///
    /// let reader = lock.acquire_shared_timeout(Duration::from_secs(5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_shared_timeout<L: Into<Option<Duration>>>(
        &self,
        limit: L,
    ) -> impl Future<Output = Result<PostgresGuard, Error>> + Send + use<L> {
        self.contender(Mode::Shared).acquire(limit.into())
    }

    /// Try once to share the lock; `None` if another holds it exclusively.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// if lock.try_acquire_shared().await?.is_none() {
    ///     println!("a writer is inside");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("try_read", "try_lock_shared"))]
    pub fn try_acquire_shared(
        &self,
    ) -> impl Future<Output = Result<Option<PostgresGuard>, Error>> + Send + use<> {
        self.contender(Mode::Shared).try_acquire()
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
    /// # fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.blocking_acquire()?;
    /// drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn blocking_acquire(&self) -> Result<PostgresGuard, Error> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let failed = |error| self.target.unreachable("locking", Duration::ZERO, error);
        runtime.map_err(failed)?.block_on(self.acquire())
    }

    /// Whether the lock is held, and its holder.
    ///
    /// Of other programs' sessions only what the server knows is shown. A holder that
    /// vanished is [`Status::Stale`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the question.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
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
        let asking = self.queue();
        async move { Ok(asking.await?.status()) }
    }

    /// The contenders behind the holder, in their order; at most 255 of them.
    ///
    /// Of the tasks of one process only the first is known. A waiter is named by its
    /// session: the application name is the program, its process id and its host, unless the
    /// connection string has another. It waits since it asked last, at most a minute ago.
    ///
    /// # Cancel safety
    /// As [`status`](Self::status).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// for waiter in lock.waiters().await? {
    ///     println!("{waiter} waits");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn waiters(&self) -> impl Future<Output = Result<Vec<Holder>, Error>> + Send + use<> {
        let asking = self.queue();
        async move { Ok(asking.await?.waiters) }
    }

    /// [`status`](Self::status) and [`waiters`](Self::waiters) of one moment.
    pub(crate) fn queue(&self) -> impl Future<Output = Result<Queue, Error>> + Send + use<> {
        status::queue(Arc::clone(&self.target))
    }

    /// End the session of the holder, whatever it does.
    ///
    /// `pid` is the server's process of that session, as `pg_locks` shows it. Everything that
    /// the session does and holds ends with it. A guard of this crate is told. The result is
    /// the holder, `None` if that session does not hold the lock.
    ///
    /// # Cancel safety
    /// Dropping the future ends the request, which the server may have carried out.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the role may not end that session, else as
    /// [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.force_release(4242).await? {
    ///     println!("ended the session of {holder}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "pg_terminate_backend")]
    pub fn force_release(
        &self,
        pid: i32,
    ) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + use<> {
        let ending = self.end(pid);
        async move { Ok(ending.await?.map(|ended| ended.holder)) }
    }

    /// [`force_release`](Self::force_release), with what else the session did.
    pub(crate) fn end(
        &self,
        pid: i32,
    ) -> impl Future<Output = Result<Option<Ended>, Error>> + Send + use<> {
        status::end(Arc::clone(&self.target), pid)
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
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
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
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
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
    /// The server is looked at four times a second. Trouble is ridden out as by
    /// [`acquire`](Self::acquire). If the server does not answer for
    /// [`PostgresOptions::reconnect`], one item is [`Error::Unreachable`], and the stream goes
    /// on. It ends after any other error.
    ///
    /// # Cancel safety
    /// A future of the next item can be dropped and loses nothing. A dropped stream
    /// leaves nothing.
    ///
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
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

    /// Wait until the server has nothing of guards and acquisitions that were dropped.
    ///
    /// If it cannot be reached, until their lease is over.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// drop(lock.acquire().await?);
    /// lock.flush().await; // the server knows now that the lock is free
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

/// Locks are equal that have the same connection string, name and options. Equal locks
/// exclude each other; so do all with the same key in one database.
impl PartialEq for AsyncPostgresLock {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.target, &other.target) || self.target == other.target
    }
}

impl Eq for AsyncPostgresLock {}

impl Hash for AsyncPostgresLock {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.server(), self.resource()).hash(state);
    }
}

// A panic leaves no lock half changed.
impl UnwindSafe for AsyncPostgresLock {}
impl RefUnwindSafe for AsyncPostgresLock {}
