//! [`AsyncFileLock`]: the verbs.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::acquire;
use super::changes::Watcher;
use super::guard::FileGuard;
use super::options::{FileOptions, Proof};
use super::record::RecordedProof;
use super::revoke::revoke;
use super::spec::LockSpec;
use crate::lock::changes::StatusChanges;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};

/// A lock between processes that is a file: the process that made it holds the lock.
///
/// Cheap to clone; clones are the same lock. The futures of its methods own what they
/// need, so they can be spawned and outlive it. Tasks of one process are served first in,
/// first out.
///
/// Not re-entrant: a task that asks twice waits for itself, as with `tokio::sync::Mutex`.
/// Such a deadlock can be found. [`holder`](Self::holder) and [`Error::Timeout`] name the
/// line of this program that asked for the lock, and so does the `tracing` span `acquire`
/// (level debug) of each waiter.
///
/// For logs there are `tracing` events of level debug under the target `lockkeeper`, each
/// once for an acquisition: `acquiring`, `waiting` (with the holder, if the lock was not
/// free at once), `acquired` (and how long that took) or `not acquired` (and why), and
/// `released`. A waiter looks once more for the holder then, beside its wait.
///
/// The methods that wait, have a limit or talk to a holder need a runtime that
/// was built with `enable_all`, as `#[tokio::main]` does. Without `enable_time`
/// they panic; without `enable_io` Tokio's message of a panic is printed once
/// for that runtime, and waiting is done by looking each
/// [`retry_period`](FileOptions::retry_period).
/// [`blocking_acquire`](Self::blocking_acquire) needs no runtime.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lockkeeper::Error> {
/// # let directory = std::env::temp_dir().join(format!("lockkeeper-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory).unwrap();
/// # let path = directory.join("job.lock");
/// use lockkeeper::AsyncFileLock;
///
/// let lock = AsyncFileLock::new(path);
/// let guard = lock.acquire().await?;
/// assert!(lock.try_acquire().await?.is_none());
/// guard.release().await?;
/// # std::fs::remove_dir(directory).unwrap();
/// # Ok(())
/// # }
/// ```
#[doc(alias("lockfile", "FileLock", "Mutex", "pidfile", "single instance"))]
#[derive(Clone)]
pub struct AsyncFileLock {
    spec: Arc<LockSpec>,
}

/// openlock's default path: `openlock.lock` in the working directory.
impl Default for AsyncFileLock {
    fn default() -> Self {
        Self::new("openlock.lock")
    }
}

/// Locks are equal that have the same absolute path and equal options. Equal locks exclude
/// each other; so do others whose paths lead to one file.
impl PartialEq for AsyncFileLock {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.spec, &other.spec) || self.spec == other.spec
    }
}

impl Eq for AsyncFileLock {}

impl Hash for AsyncFileLock {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.path().hash(state);
    }
}

// A panic leaves no lock half changed.
impl UnwindSafe for AsyncFileLock {}
impl RefUnwindSafe for AsyncFileLock {}

impl fmt::Debug for AsyncFileLock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("AsyncFileLock")
            .field("path", &self.path())
            .field("options", self.spec.options())
            .finish()
    }
}

impl AsyncFileLock {
    /// A lock with [`FileOptions::process_default`].
    ///
    /// What is wrong with the path is reported when the lock is acquired. A relative path
    /// is taken from the working directory of this moment.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncFileLock;
    ///
    /// let lock = AsyncFileLock::new("import.lock");
    /// assert!(lock.path().is_absolute());
    /// ```
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::with_checked(path.as_ref(), FileOptions::process_default())
    }

    /// A lock with these options.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkeeper::{AsyncFileLock, FileOptions};
    ///
    /// let options = FileOptions::default().timeout(Duration::from_secs(30)).note("nightly import");
    /// let lock = AsyncFileLock::with_options("/run/lock/import.lock", options)?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn with_options(path: impl AsRef<Path>, options: FileOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self::with_checked(path.as_ref(), options))
    }

    fn with_checked(path: &Path, options: FileOptions) -> Self {
        Self { spec: Arc::new(LockSpec::new(path, options)) }
    }

    pub(crate) fn spec(&self) -> &Arc<LockSpec> {
        &self.spec
    }

    /// The lock file, as an absolute path where that could be made.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.spec.path()
    }

    /// Wait for the lock, at most for [`FileOptions::timeout`], for ever without it.
    ///
    /// A wait outlasts a moment in which the process or the system has no descriptor
    /// to spare, and keeps its place meanwhile. It also outlasts a directory that is
    /// missing for a while, once it has begun: at the start that is an error. It then
    /// looks each [`retry_period`](FileOptions::retry_period), and a `tracing` warning says so.
    /// At its limit the error says what was in the way.
    ///
    /// A lock file that this process may not read counts as held, also if its holder
    /// is dead. The wait ends when a holder removes it.
    ///
    /// # Keep the future
    /// Each call waits from the end of the line. A `select!` loop that calls this
    /// anew in each round gives its place up each time, and beside processes that
    /// are busy with the lock it hardly ever gets in. Pin one future before the loop,
    /// and poll it by `&mut` in each round:
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkeeper::Error> {
    /// # let directory = std::env::temp_dir().join(format!("lockkeeper-keep-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let lock = lockkeeper::AsyncFileLock::new(directory.join("job.lock"));
    /// # fn report_progress() {}
    /// let acquiring = lock.acquire();
    /// tokio::pin!(acquiring);
    /// let mut tick = tokio::time::interval(std::time::Duration::from_millis(10));
    /// let guard = loop {
    ///     tokio::select! {
    ///         acquired = &mut acquiring => break acquired?,
    ///         _ = tick.tick() => report_progress(),
    ///     }
    /// };
    /// # guard.release().await?;
    /// # std::fs::remove_dir_all(directory).unwrap();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// The future can be dropped at any point and leaves no file, no place in
    /// the queue and no lock. Where system calls run on a thread of this crate
    /// (network file systems) an attempt that has begun ends first, and then
    /// undoes what it did. A future that is kept and not polled keeps its place, and
    /// those of this process behind it wait, as with Tokio's own locks.
    ///
    /// # Errors
    /// [`Error::Timeout`], or what is wrong with the path, the file or the system.
    /// [`Error::MayNotWrite`] at once where the wait would be in vain.
    #[doc(alias("lock", "lock_owned"))]
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<FileGuard, Error>> + Send + use<> {
        let (lock, limit) = (Arc::clone(&self.spec), self.spec.options().wait.timeout);
        acquire::acquire(lock, limit, Location::caller())
    }

    /// Wait for the lock, at most this long.
    ///
    /// There is always one last try at the deadline; `Duration::ZERO` is one try, as in
    /// [`try_acquire`](Self::try_acquire). The last try can last longer: where
    /// another program's file has to be watched for two seconds, where a lock
    /// file has to be watched for `race_delay`, and by a second where a network
    /// file system does not answer.
    ///
    /// # Panics
    /// Without Tokio's timer, also if the lock is free.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    ///
    /// match lock.acquire_timeout(Duration::from_secs(5)).await {
    ///     Ok(guard) => guard.release().await?,
    ///     Err(error) if error.is_timeout() => println!("later then: {error}"), // names the holder
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn acquire_timeout(
        &self,
        limit: impl Into<Option<Duration>>,
    ) -> impl Future<Output = Result<FileGuard, Error>> + Send + 'static {
        acquire::acquire(Arc::clone(&self.spec), limit.into(), Location::caller())
    }

    /// Wait as [`acquire`](Self::acquire) does until `token` is cancelled. The
    /// token covers only the wait: an acquired guard stays valid.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::Error;
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let shutdown = CancellationToken::new(); // cancelled where the service is told to stop
    /// match lock.acquire_with(&shutdown).await {
    ///     Ok(guard) => guard.release().await?,
    ///     Err(Error::Cancelled { .. }) => return Ok(()),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn acquire_with(
        &self,
        token: &CancellationToken,
    ) -> impl Future<Output = Result<FileGuard, Error>> + Send + use<> {
        acquire::acquire_with(Arc::clone(&self.spec), token.clone(), Location::caller())
    }

    /// Try once; `None` if the lock is held, or another task of this process is first.
    ///
    /// The first look is made at once. If all that is in the way is a
    /// foreign file (openlock's, a bare process id, an empty one) whose process
    /// is gone, the try lasts the two seconds for which such a file is watched.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`Error::Timeout`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// let Some(guard) = lock.try_acquire().await? else {
    ///     println!("another process does it");
    ///     return Ok(());
    /// };
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("try_lock", "try_lock_owned"))]
    #[track_caller]
    pub fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<FileGuard>, Error>> + Send + use<> {
        acquire::try_acquire(Arc::clone(&self.spec), Location::caller())
    }

    /// [`acquire`](Self::acquire) for a thread without a runtime.
    ///
    /// # Panics
    /// In an async context, where it would block the runtime; `spawn_blocking`
    /// and threads of one's own are fine. The guard's [`lost`](FileGuard::lost)
    /// needs a runtime like any other.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncFileLock;
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("job.lock");
    /// let lock = AsyncFileLock::new(path);
    /// let guard = lock.blocking_acquire()?;
    /// drop(guard);
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    #[doc(alias = "blocking_lock")]
    #[track_caller]
    pub fn blocking_acquire(&self) -> Result<FileGuard, Error> {
        acquire::blocking_acquire(&self.spec, Location::caller())
    }

    /// The holder, `None` if the lock is free. Nothing is changed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the look. Nothing is changed in any case.
    ///
    /// # Errors
    /// What is wrong with the path or the file.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.holder().await? {
    ///     println!("held by {holder}: {}", holder.evidence);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("owner", "getpid"))]
    pub fn holder(&self) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + use<> {
        let lock = Arc::clone(&self.spec);
        async move { lock.holder().await }
    }

    /// Whether the lock is held, or that cannot be ruled out.
    ///
    /// # Cancel safety
    /// Dropping the future ends the look. Nothing is changed in any case.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// assert!(!lock.is_locked().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_locked(&self) -> impl Future<Output = Result<bool, Error>> + Send + use<> {
        let holder = self.holder();
        async move { Ok(holder.await?.is_some()) }
    }

    /// What is at the path: nothing, a holder's file, or a stale one.
    ///
    /// # Cancel safety
    /// Dropping the future ends the look. Nothing is changed in any case.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::Status;
    ///
    /// match lock.status().await? {
    ///     Status::Held(holder) => println!("held by {holder}"),
    ///     Status::Stale(holder) => println!("free, and {holder} died holding it"),
    ///     _ => println!("free"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + use<> {
        let lock = Arc::clone(&self.spec);
        async move { lock.status().await }
    }

    /// The lock's status now, and then each time that it changes, as a stream.
    ///
    /// It is for programs that show locks. The first item comes at once. Each one differs from the one before. A reader that
    /// is slow, and changes within a hundredth of a second, give the last state
    /// only. An error is an item as well, and the stream goes on; it ends only after
    /// [`Error::BadPath`] where the path can never name a lock.
    ///
    /// Watching is asleep: an acquisition, a release and a death are events. What gives
    /// none is noticed as by [`acquire`](Self::acquire), each
    /// [`fallback_period`](FileOptions::fallback_period). A watcher has no place in the queue
    /// and looks as [`status`](Self::status) does. It needs no descriptor but the one by
    /// which a process hears of all events, and one more while a holder has a file that
    /// it does not keep open ([`Proof::Process`], other programs).
    ///
    /// There is none for [`AsyncKernelLock`](crate::AsyncKernelLock): an acquisition
    /// there is no event, and each look would have the kernel list all locks.
    ///
    /// # Cancel safety
    /// A future of the next item can be dropped and loses nothing. A dropped stream
    /// leaves nothing behind.
    ///
    /// # Panics
    /// When polled without Tokio's timer.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkeeper::Error> {
    /// # let directory = std::env::temp_dir().join(format!("lockkeeper-watch-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let path = directory.join("job.lock");
    /// use futures::StreamExt;
    /// use lockkeeper::{AsyncFileLock, Status};
    ///
    /// let lock = AsyncFileLock::new(path);
    /// let mut changes = lock.watch();
    /// assert_eq!(changes.next().await.unwrap()?, Status::Free);
    /// let guard = lock.acquire().await?;
    /// match changes.next().await.unwrap()? {
    ///     Status::Held(holder) => println!("held by {holder}"),
    ///     status => panic!("{status:?}"),
    /// }
    /// # drop(guard);
    /// # std::fs::remove_dir(directory).unwrap();
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch(&self) -> StatusChanges {
        StatusChanges::of(Watcher::new(Arc::clone(&self.spec)))
    }

    /// Remove the file of a dead holder, and what killed contenders left beside it.
    ///
    /// The result is that holder, `None` if there was none. This is an acquisition and a
    /// release, by the protocol that the file names, so it can take nothing from a living
    /// holder.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Timeout`] with the holder and the evidence that it lives.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// match lock.break_stale().await {
    ///     Ok(Some(dead)) => println!("removed what {dead} left"),
    ///     Ok(None) => println!("nothing was stale"),
    ///     Err(error) => println!("refused: {error}"), // its holder lives
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "force_unlock")]
    pub async fn break_stale(&self) -> Result<Option<Holder>, Error> {
        let options = self.spec.options();
        let contender = self.spec.contender().await?;
        let found = contender.probe().await?;
        let proof = match (found.proof, options.proof) {
            (Some(RecordedProof::Process), _) => Proof::Process,
            (Some(RecordedProof::Flock), Proof::Process) => Proof::Auto,
            (_, proof) => proof,
        };
        let openlock_compat = options.openlock_compat && proof != Proof::Process;
        let options = FileOptions { proof, openlock_compat, ..FileOptions::clone(options) };
        let by_its_protocol = Self::with_checked(self.path(), options);
        let guard = by_its_protocol.acquire_timeout(Duration::ZERO).await?;
        let stale = guard.recovered_from().cloned();
        guard.release().await?;
        if let Err(error) = contender.sweep().await {
            tracing::warn!("{error}");
        }
        Ok(match found.status {
            // No holder died, so none was recovered from.
            Status::Stale(holder) if holder.evidence == Evidence::Released => Some(holder),
            _ => stale,
        })
    }

    /// Ask the holder to release the lock: its [`lost`](FileGuard::lost) resolves.
    ///
    /// The result is the holder that was asked, `None` if the lock is free. It may have released the lock by
    /// the time this returns. The lock file is not touched, and nothing makes a deaf
    /// holder listen.
    ///
    /// Exactly one hold is asked: that with the [`hold_id`](Holder::hold_id) that this
    /// returns. A task to which the file is then handed off
    /// ([`FileOptions::local_handoff`]) is not. Every process that may make files in the
    /// directory can ask.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back, and others' for the same
    /// hold, though the holder may have seen it.
    ///
    /// # Errors
    /// [`Error::CannotAsk`] for a holder that is not of this crate.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.revoke().await? {
    ///     println!("asked {holder}");
    /// }
    /// let guard = lock.acquire().await?; // waits until that holder has released it
    /// # Ok(())
    /// # }
    /// ```
    pub async fn revoke(&self) -> Result<Option<Holder>, Error> {
        revoke(&self.spec).await
    }
}
