//! Locks that several may hold at once, to read.

use std::future::Future;
use std::time::Duration;

use super::error::Error;
use super::holder::Status;
use super::name::LockName;
use super::sealed::Sealed;
use super::wait::{Acquired, Wait};
use super::{Lock, in_time};

/// A lock that readers can share while no writer holds it.
///
/// Any number of holders that want it shared hold it at once, while none holds it
/// exclusively.
#[doc(alias = "RwLock")]
pub trait SharedLock: Lock {
    /// Acquire the lock shared, and wait for that as long as `wait` says.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Errors
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::SharedLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{SharedLock, Wait};
    ///
    /// let acquired = lock.acquire_shared_within(Wait::No).await?;
    /// println!("free for readers: {}", acquired.held().is_some());
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    fn acquire_shared_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<Self::Guard>, Error>> + Send + 'static;

    /// Acquire the lock shared, and wait for that as long as its options say.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Errors
    /// As [`acquire`](Lock::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::SharedLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::SharedLock;
    ///
    /// let (one, other) = (lock.acquire_shared().await?, lock.acquire_shared().await?);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("read", "lock_shared"))]
    #[track_caller]
    fn acquire_shared(&self) -> impl Future<Output = Result<Self::Guard, Error>> + Send + 'static {
        in_time(self.name(), self.acquire_shared_within(self.default_wait()))
    }

    /// Try once to acquire the lock shared; `None` if another holds it exclusively.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Errors
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::SharedLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::SharedLock;
    ///
    /// if lock.try_acquire_shared().await?.is_none() {
    ///     println!("a writer is inside");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    fn try_acquire_shared(
        &self,
    ) -> impl Future<Output = Result<Option<Self::Guard>, Error>> + Send + 'static {
        let trying = self.acquire_shared_within(Wait::No);
        async move { Ok(trying.await?.held()) }
    }

    /// Acquire the lock shared, and wait for that at most this long. `Duration::ZERO` is
    /// one try.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Errors
    /// As [`acquire`](Lock::acquire).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::SharedLock) -> Result<(), lockkeeper::Error> {
    /// use std::time::Duration;
    /// use lockkeeper::SharedLock;
    ///
    /// let guard = lock.acquire_shared_timeout(Duration::from_secs(5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    fn acquire_shared_timeout(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<Self::Guard, Error>> + Send + 'static {
        in_time(self.name(), self.acquire_shared_within(Wait::at_most(limit)))
    }

    /// The same lock for a reader: to acquire it is to acquire it shared.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::SharedLock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Lock, SharedLock};
    ///
    /// async fn read(lock: &impl Lock) -> Result<(), lockkeeper::Error> {
    ///     lock.run(async { /* read the file */ }).await?.in_safety()
    /// }
    ///
    /// read(&lock.shared()).await?; // beside other readers
    /// # Ok(())
    /// # }
    /// ```
    fn shared(&self) -> Shared<Self> {
        Shared(self.clone())
    }
}

/// A lock as its readers name it, from [`SharedLock::shared`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shared<L>(L);

impl<L: SharedLock> Sealed for Shared<L> {}

impl<L: SharedLock> Lock for Shared<L> {
    type Guard = L::Guard;

    fn name(&self) -> LockName {
        self.0.name()
    }

    fn default_wait(&self) -> Wait {
        self.0.default_wait()
    }

    #[track_caller]
    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<L::Guard>, Error>> + Send + 'static {
        self.0.acquire_shared_within(wait)
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static {
        self.0.status()
    }

    fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.flush()
    }
}
