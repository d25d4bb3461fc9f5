//! [`AsyncKernelLock`]: the verbs.

use std::hash::{Hash, Hasher};
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::time::Duration;

use tokio::task::consume_budget;
use tokio_util::sync::CancellationToken;

use super::guard::KernelGuard;
use super::options::KernelOptions;
use super::shared::Named;
use super::syscalls::Sharing;
use super::{acquire, holder};
use crate::local::deadline::Deadline;
use crate::local::endurance::Endurance;
use crate::local::task_queue::CallSite;
use crate::lock::error::Error;
use crate::lock::holder::{Holder, Status};
use crate::lock::wait::Wait;

/// A lock of the kernel's on a file: `flock`, or `fcntl` on a range of bytes.
///
/// For what shares a lock with programs that use the kernel's (flock(1), cargo,
/// apt and dpkg, systemd, Python's `fcntl`), for readers and writers, and where
/// only this machine's processes contend and the fastest lock is wanted. The file
/// can be one with content of its own, which the guard gives access to; this crate
/// never reads or writes it. It is made if it is not there, and stays
/// ([`KernelOptions::delete_on_release`]).
///
/// Cheap to clone; clones are the same lock. Not re-entrant: a task that asks twice
/// waits for itself. With a limit the error names its own process as the holder.
/// The methods that wait or have a limit need a runtime that was built with
/// `enable_all`, as `#[tokio::main]` does.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir().join(format!("lockkeeper-kernel-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("table");
/// use std::io::{Read, Write};
/// use lockkeeper::AsyncKernelLock;
///
/// let lock = AsyncKernelLock::new(path);
/// let guard = lock.acquire().await?;
/// guard.file().write_all(b"42")?;
/// guard.release().await?;
///
/// let reader = lock.acquire_shared().await?;
/// let another = lock.acquire_shared().await?;
/// let mut content = String::new();
/// reader.file().read_to_string(&mut content)?;
/// assert_eq!(content, "42");
/// assert!(lock.try_acquire().await?.is_none());
/// # drop((reader, another));
/// # std::fs::remove_dir_all(directory)?;
/// # Ok(())
/// # }
/// ```
///
/// # What is promised
///
/// * **The lock is the kernel's, on the file that the path names.** A killed holder
///   releases at once; a stopped one holds. A waiter notices a file that was removed or
///   replaced, and locks the one at the path. [`KernelGuard::lost`] resolves for a
///   holder whose file is removed.
/// * **Order.** Tasks of a process are served first in, first out, readers
///   together; for a millisecond at a time the locked file itself passes from one
///   that did not use it to the next ([`KernelOptions::local_handoff`]). Between
///   processes of this crate, contenders for the same bytes are served first in, first
///   out; of those whose ranges only overlap, the first that finds it free. A reader
///   lets waiting writers go first as long as the lock is held and 10 ms
///   more: readers that come and go without a pause do not keep a writer out, and
///   a writer that is stopped while it waits does not keep readers out for long.
///   Programs that know nothing of this take the lock when they find it free. A
///   process that takes it over and over leaves it free for a fifth of a millisecond
///   in ten, for threads that sleep in the kernel for it (where it is shared, at the
///   price of a twentieth of the time, as long as no reader has it for more than
///   5 ms). A program that only tries now and then (`flock -n` in a loop, apt) finds it
///   free seldom while tasks take it without a pause.
/// * **Waiting is asleep**, as for [`AsyncFileLock`](crate::AsyncFileLock). Holders
///   of this crate, and all that end, wake the waiters. A holder of another
///   program that unlocks and keeps its file open is noticed by looking, seldom: see
///   [`KernelOptions::fallback_period`].
///
/// # What the three kinds of the kernel do
///
/// Seen by `cargo run --example kernel_locks` on Linux 6.18, ext4:
///
/// | | `F_SETLK` | `F_OFD_SETLK` (Ofd) | `flock` (Flock) |
/// |---|---|---|---|
/// | two processes exclude each other | yes | yes | yes |
/// | a killed holder's lock is free | yes | yes | yes |
/// | two opens in one process exclude each other | **no** | yes | yes |
/// | it survives the close of a second open of the file | **no** | yes | yes |
/// | a forked child has it when the parent closes | **no** | yes | yes |
///
/// To share a file with programs that use `F_SETLK`, choose
/// [`Primitive::Ofd`](crate::Primitive::Ofd): each excludes the other. This crate takes no
/// such lock, as it ends with any close of the file anywhere in the process. For the same
/// reason other code of the process must not rely on one on a file that is locked here.
///
/// # Where
///
/// Local file systems: all of it. A longer wait for a `flock` of a directory, or
/// of a file that is waited for here in other ways too, has a thread of this crate
/// read `/proc/locks`, one for the process. On network file systems calls run on a
/// thread of this crate and waiting looks each [`KernelOptions::retry_period`]. Over
/// NFS, `flock` is a lock of all bytes on the server: it excludes other machines and
/// `fcntl` locks, and an exclusive one needs a file that may be written.
/// A forked child shares the open file, and with it the lock, until the guard is
/// released.
///
/// A directory can be locked by `flock`, shared or not. Its release is no event for
/// other processes. They hear only of the end of the process that has it, where
/// `/proc/locks` shows which that is; else they notice it by looking.
#[doc(alias("flock", "fcntl", "lockf", "RwLock", "fd-lock", "fs4"))]
#[derive(Clone)]
pub struct AsyncKernelLock {
    named: Named,
}

impl std::fmt::Debug for AsyncKernelLock {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("AsyncKernelLock")
            .field("path", &self.path())
            .field("options", self.named.options())
            .finish()
    }
}

/// Equal are locks of the same path with equal options, clones or not.
impl PartialEq for AsyncKernelLock {
    fn eq(&self, other: &Self) -> bool {
        self.path() == other.path() && self.named.options() == other.named.options()
    }
}

impl Eq for AsyncKernelLock {}

impl Hash for AsyncKernelLock {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let options = self.named.options();
        (self.path(), options.primitive, options.range).hash(state);
    }
}

// What clones share is whole at each moment in which a caller's code can panic.
impl UnwindSafe for AsyncKernelLock {}
impl RefUnwindSafe for AsyncKernelLock {}

impl AsyncKernelLock {
    /// A `flock` of the file at `path`, which is made if it is not there.
    ///
    /// What is wrong with the path is reported when the lock is acquired. A relative path
    /// is taken from the working directory of this moment.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncKernelLock;
    ///
    /// let lock = AsyncKernelLock::new("table.db");
    /// assert!(lock.path().is_absolute());
    /// ```
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::with_checked(path.as_ref(), KernelOptions::default())
    }

    /// A lock with these options.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::{AsyncKernelLock, KernelOptions, Primitive};
    ///
    /// // As apt takes it.
    /// let options = KernelOptions::default().primitive(Primitive::Ofd);
    /// let lock = AsyncKernelLock::with_options("/var/lib/dpkg/lock-frontend", options)?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn with_options(path: impl AsRef<Path>, options: KernelOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self::with_checked(path.as_ref(), options))
    }

    fn with_checked(path: &Path, options: KernelOptions) -> Self {
        Self { named: Named::new(path, options) }
    }

    /// The file, as an absolute path where that could be made.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.named.path()
    }

    /// Wait for the lock, to hold it alone.
    ///
    /// The wait lasts at most for [`KernelOptions::timeout`], for ever without it. It
    /// outlasts a shortage of
    /// descriptors and a directory that is away, as
    /// [`AsyncFileLock::acquire`](crate::AsyncFileLock::acquire) does.
    ///
    /// # Keep the future
    /// Each call waits from the end of the line. A `select!` loop that calls this
    /// anew in each round gives its place up each time, and beside processes that
    /// are busy with the lock it hardly ever gets in. Pin one future before the loop,
    /// and poll it by `&mut` in each round:
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkeeper::Error> {
    /// # let directory = std::env::temp_dir().join(format!("lockkeeper-keep-kernel-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let lock = lockkeeper::AsyncKernelLock::new(directory.join("job.lock"));
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
    /// The future can be dropped at any point and leaves no lock and no place
    /// in the queue. The file stays if it was made. One that is kept and not polled
    /// keeps its place, and those of this process behind it wait, as with Tokio's own
    /// locks.
    ///
    /// # Errors
    /// [`Error::Timeout`], or what is wrong with the path, the file or the system.
    /// [`Error::MayNotOpen`] at once if this process may not open the file: the kernel
    /// locks open files, so there is nothing that could be waited for.
    #[doc(alias("lock", "lock_owned", "write", "lock_exclusive"))]
    #[track_caller]
    pub fn acquire(
        &self,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static + use<> {
        acquire::acquire(
            self.named.clone(),
            Sharing::Exclusive,
            starting(self.limit()),
            Location::caller(),
        )
    }

    /// Wait for the lock, shared with other readers, else as
    /// [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// let (one, other) = (lock.acquire_shared().await?, lock.acquire_shared().await?);
    /// assert!(lock.try_acquire().await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("read", "lock_shared"))]
    #[track_caller]
    pub fn acquire_shared(
        &self,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static + use<> {
        acquire::acquire(
            self.named.clone(),
            Sharing::Shared,
            starting(self.limit()),
            Location::caller(),
        )
    }

    /// [`acquire`](Self::acquire), at most this long.
    ///
    /// There is always one last try at the deadline; `Duration::ZERO` is one try. It lasts up to a
    /// second longer where a network file system does not answer.
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
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    ///
    /// match lock.acquire_timeout(Duration::from_secs(5)).await {
    ///     Ok(guard) => guard.release().await?,
    ///     Err(error) if error.is_timeout() => println!("later then: {error}"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn acquire_timeout<L: Into<Option<Duration>>>(
        &self,
        limit: L,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static + use<L> {
        acquire::acquire(
            self.named.clone(),
            Sharing::Exclusive,
            starting(limit.into()),
            Location::caller(),
        )
    }

    /// [`acquire_shared`](Self::acquire_shared), at most this long.
    ///
    /// # Panics
    /// As [`acquire_timeout`](Self::acquire_timeout).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    ///
    /// let reader = lock.acquire_shared_timeout(Duration::from_secs(5)).await?;
    /// assert!(reader.is_shared());
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn acquire_shared_timeout<L: Into<Option<Duration>>>(
        &self,
        limit: L,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static + use<L> {
        acquire::acquire(
            self.named.clone(),
            Sharing::Shared,
            starting(limit.into()),
            Location::caller(),
        )
    }

    /// [`acquire`](Self::acquire) until `token` is cancelled. The token covers
    /// only the wait.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let shutdown = CancellationToken::new(); // cancelled where the service is told to stop
    /// let guard = lock.acquire_with(&shutdown).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn acquire_with(
        &self,
        token: &CancellationToken,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static + use<> {
        until(token.clone(), self.named.clone(), self.acquire())
    }

    /// [`acquire_shared`](Self::acquire_shared) until `token` is cancelled.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let shutdown = CancellationToken::new(); // cancelled where the service is told to stop
    /// let reader = lock.acquire_shared_with(&shutdown).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn acquire_shared_with(
        &self,
        token: &CancellationToken,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static + use<> {
        until(token.clone(), self.named.clone(), self.acquire_shared())
    }

    /// Try once; `None` if the lock is held, in this process too.
    ///
    /// So it is if a task of this process comes first.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`Error::Timeout`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// let Some(guard) = lock.try_acquire().await? else {
    ///     println!("another program uses the file");
    ///     return Ok(());
    /// };
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("try_lock", "try_write", "try_lock_exclusive"))]
    #[track_caller]
    pub fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<KernelGuard>, Error>> + Send + 'static + use<> {
        acquire::try_once(self.named.clone(), Sharing::Exclusive, Location::caller())
    }

    /// Try once to share the lock; `None` if a writer holds it.
    ///
    /// So it is if readers hold it and a writer waits.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(reader) = lock.try_acquire_shared().await? {
    ///     println!("{} bytes", reader.file().metadata().unwrap().len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("try_read", "try_lock_shared"))]
    #[track_caller]
    pub fn try_acquire_shared(
        &self,
    ) -> impl Future<Output = Result<Option<KernelGuard>, Error>> + Send + 'static + use<> {
        acquire::try_once(self.named.clone(), Sharing::Shared, Location::caller())
    }

    /// [`acquire`](Self::acquire) for a thread without a runtime.
    ///
    /// # Panics
    /// In an async context, where it would block the runtime.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::AsyncKernelLock;
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("table");
    /// let lock = AsyncKernelLock::new(path);
    /// let guard = lock.blocking_acquire()?;
    /// drop(guard);
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    #[doc(alias = "blocking_lock")]
    #[track_caller]
    pub fn blocking_acquire(&self) -> Result<KernelGuard, Error> {
        let deadline = self.limit().and_then(Deadline::after);
        let retry_period = self.named.options().wait.retry_period;
        let runtime = Endurance::until(deadline, retry_period).runtime(self.path())?;
        let (named, asked_at) = (self.named.clone(), Location::caller());
        runtime.block_on(acquire::acquire(named, Sharing::Exclusive, || deadline, asked_at))
    }

    /// The holder, `None` if the lock is free.
    ///
    /// It has a process for `flock` and for POSIX
    /// locks of other programs, where that can be seen from here. Of several readers one is
    /// named. Where `/proc/locks` does not show the holder of a `flock`, the file is
    /// locked and unlocked at once to see whether it is free, which another program's try
    /// can meet. The kernel takes some ten milliseconds to show that list, which a thread
    /// of this crate waits out.
    ///
    /// # Cancel safety
    /// Dropping the future ends the look and leaves no lock.
    ///
    /// # Errors
    /// What is wrong with the path or the file.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// if let Some(holder) = lock.holder().await? {
    ///     println!("locked by process {:?}", holder.pid);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("owner", "getpid"))]
    pub async fn holder(&self) -> Result<Option<Holder>, Error> {
        consume_budget().await;
        holder::holder(&self.named.clone().lock()?).await
    }

    /// Whether the lock is held, shared or not.
    ///
    /// # Cancel safety
    /// Dropping the future ends the look and leaves no lock.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// assert!(!lock.is_locked().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.holder().await?.is_some())
    }

    /// [`Status::Free`] or [`Status::Held`]: a kernel lock is never stale.
    ///
    /// # Cancel safety
    /// Dropping the future ends the look and leaves no lock.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::Status;
    ///
    /// match lock.status().await? {
    ///     Status::Held(holder) => println!("held by {holder}"),
    ///     _ => println!("free"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn status(&self) -> Result<Status, Error> {
        consume_budget().await;
        holder::status(&self.named.clone().lock()?).await
    }

    /// For the traits. How much of `wait` is left is asked for when the wait begins.
    pub(super) fn contend_within(
        &self,
        sharing: Sharing,
        wait: Wait,
        asked_at: CallSite,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static + use<> {
        let deadline = move || wait.left().and_then(Deadline::after);
        acquire::acquire(self.named.clone(), sharing, deadline, asked_at)
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.named.options().wait.timeout
    }
}

/// The deadline of a wait that begins now.
fn starting(limit: Option<Duration>) -> impl FnOnce() -> Option<Deadline> {
    move || limit.and_then(Deadline::after)
}

async fn until(
    token: CancellationToken,
    named: Named,
    acquire: impl Future<Output = Result<KernelGuard, Error>>,
) -> Result<KernelGuard, Error> {
    tokio::select! {
        biased;
        () = token.cancelled() => Err(Error::Cancelled { lock: named.path().into() }),
        acquired = acquire => acquired,
    }
}
