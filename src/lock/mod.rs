//! What every lock is, and nothing of how.
//!
//! [`Lock`] is what a user names and [`Guard`] what a user has. Each kind of lock
//! implements both beside methods of the same names of its own, so a program that knows its
//! kind needs neither trait. A program that does not know it is generic over `impl Lock`,
//! or takes an [`AnyLock`](crate::AnyLock).

pub(crate) mod any_lock;
pub(crate) mod changes;
pub(crate) mod duration;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod fencing_token;
pub(crate) mod guard;
pub(crate) mod holder;
pub(crate) mod name;
pub(crate) mod run;
pub(crate) mod sealed;
pub(crate) mod shared;
pub(crate) mod wait;

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use error::Error;
use guard::Guard;
use holder::{Holder, Status};
use name::LockName;
use run::Ran;
use wait::{Acquired, Wait};

/// A lock between processes, of whatever kind.
///
/// Clones are the same lock. The futures own what they need, so they can be spawned.
///
/// ```
/// use lockkeeper::{Error, Guard, Lock};
///
/// async fn import(lock: &impl Lock) -> Result<(), Error> {
///     let guard = lock.acquire().await?;
///     // What must not run twice at a time.
///     guard.release().await
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let directory = std::env::temp_dir().join(format!("lockkeeper-lock-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory).unwrap();
/// import(&lockkeeper::AsyncFileLock::new(directory.join("import.lock"))).await?;
/// # std::fs::remove_dir(directory).unwrap();
/// # Ok(())
/// # }
/// ```
#[doc(alias = "Mutex")]
pub trait Lock: Clone + Debug + Send + Sync + 'static + sealed::Sealed {
    /// What a user has while holding the lock.
    type Guard: Guard;

    /// What the lock is called.
    fn name(&self) -> LockName;

    /// How long [`acquire`](Self::acquire) waits, by the options of the lock.
    fn default_wait(&self) -> Wait;

    /// Acquire the lock, and wait for that as long as `wait` says.
    ///
    /// # Cancel safety
    /// The future can be dropped at any point and leaves no lock and no place in a queue.
    ///
    /// # Errors
    /// What keeps the lock from being acquired, but that another holds it.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    /// use lockkeeper::{Acquired, Guard, Lock, Wait};
    ///
    /// match lock.acquire_within(Wait::at_most(Duration::from_secs(5))).await? {
    ///     Acquired::Held(guard) => guard.release().await?,
    ///     Acquired::Busy(busy) => println!("held by {:?}", busy.holder),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<Self::Guard>, Error>> + Send + 'static;

    /// Whether the lock is free or held, and its holder.
    ///
    /// # Cancel safety
    /// Dropping the future ends the question.
    ///
    /// # Errors
    /// Why that cannot be found out.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Lock, Status};
    ///
    /// if let Status::Held(holder) = lock.status().await? {
    ///     println!("{} is held by {holder}", lock.name());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static;

    /// Wait until the releases that dropped guards have scheduled so far are done.
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::Lock;
    ///
    /// drop(lock.acquire().await?);
    /// lock.flush().await; // the next contender finds it free
    /// # Ok(())
    /// # }
    /// ```
    fn flush(&self) -> impl Future<Output = ()> + Send + 'static;

    /// Acquire the lock, and wait for that as long as its options say.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Self::acquire_within).
    ///
    /// # Errors
    /// [`Error::Timeout`], else as [`acquire_within`](Self::acquire_within).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Guard, Lock};
    ///
    /// let guard = lock.acquire().await?;
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("lock", "lock_owned"))]
    #[track_caller]
    fn acquire(&self) -> impl Future<Output = Result<Self::Guard, Error>> + Send + 'static {
        in_time(self.name(), self.acquire_within(self.default_wait()))
    }

    /// Try once; `None` if another holds the lock.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Self::acquire_within).
    ///
    /// # Errors
    /// As [`acquire_within`](Self::acquire_within).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Guard, Lock};
    ///
    /// if let Some(guard) = lock.try_acquire().await? {
    ///     guard.release().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("try_lock", "try_lock_owned"))]
    #[track_caller]
    fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<Self::Guard>, Error>> + Send + 'static {
        let trying = self.acquire_within(Wait::No);
        async move { Ok(trying.await?.held()) }
    }

    /// Acquire the lock, and wait for that at most this long.
    ///
    /// `Duration::ZERO` is one try.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Self::acquire_within).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    /// use lockkeeper::{Guard, Lock};
    ///
    /// let guard = lock.acquire_timeout(Duration::from_secs(5)).await?;
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    fn acquire_timeout(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<Self::Guard, Error>> + Send + 'static {
        in_time(self.name(), self.acquire_within(Wait::at_most(limit)))
    }

    /// Acquire the lock, and wait for that until `token` is cancelled.
    ///
    /// The token covers the wait alone.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Self::acquire_within).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Guard, Lock};
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let shutdown = CancellationToken::new(); // cancelled where the service is told to stop
    /// let guard = lock.acquire_with(&shutdown).await?;
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    fn acquire_with(
        &self,
        token: &CancellationToken,
    ) -> impl Future<Output = Result<Self::Guard, Error>> + Send + 'static {
        let (lock, token, acquiring) = (self.name(), token.clone(), self.acquire());
        async move {
            tokio::select! {
                biased;
                () = token.cancelled() => Err(Error::Cancelled { lock }),
                acquired = acquiring => acquired,
            }
        }
    }

    /// The holder, `None` if the lock is free.
    ///
    /// # Cancel safety
    /// Dropping the future ends the question.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::Lock;
    ///
    /// if let Some(holder) = lock.holder().await? {
    ///     println!("held by {holder}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn holder(&self) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + 'static {
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
    /// Dropping the future ends the question.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::Lock;
    ///
    /// assert!(!lock.is_locked().await?);
    /// # Ok(())
    /// # }
    /// ```
    fn is_locked(&self) -> impl Future<Output = Result<bool, Error>> + Send + 'static {
        let asking = self.holder();
        async move { Ok(asking.await?.is_some()) }
    }

    /// Acquire the lock, run `work` under it, and release the lock.
    ///
    /// Work that is not done when the lock is lost is dropped. The result says which it was.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkeeper::Error> {
    /// # async fn import() -> u32 { 7 }
    /// # let directory = std::env::temp_dir().join(format!("lockkeeper-run-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// use lockkeeper::{AsyncFileLock, Lock};
    ///
    /// let lock = AsyncFileLock::new(directory.join("import.lock"));
    /// let imported = lock.run(import()).await?.in_safety()?;
    /// assert_eq!(imported, 7);
    /// # std::fs::remove_dir(directory).unwrap();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Dropping the future drops the work and then the guard.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire). The work has not begun then.
    #[doc(alias("with_lock", "critical section"))]
    #[track_caller]
    fn run<F>(&self, work: F) -> impl Future<Output = Result<Ran<F::Output>, Error>> + Send
    where
        F: Future + Send,
        F::Output: Send,
    {
        let acquiring = self.acquire();
        async move { Ok(run::under(acquiring.await?, work).await) }
    }
}

/// [`Acquired::Busy`] as an error.
async fn in_time<G>(
    lock: LockName,
    acquiring: impl Future<Output = Result<Acquired<G>, Error>>,
) -> Result<G, Error> {
    let started = Instant::now();
    match acquiring.await? {
        Acquired::Held(guard) => Ok(guard),
        Acquired::Busy(busy) => {
            Err(Error::Timeout { lock, waited: started.elapsed(), holder: busy.holder })
        }
    }
}

/// An acquisition that ends with [`Error::Timeout`] as one that ends with [`Acquired`].
pub(crate) fn or_busy<G>(acquired: Result<G, Error>) -> Result<Acquired<G>, Error> {
    match acquired {
        Ok(guard) => Ok(Acquired::Held(guard)),
        Err(Error::Timeout { holder, .. }) => Ok(Acquired::Busy(wait::Busy::new(holder))),
        Err(error) => Err(error),
    }
}
