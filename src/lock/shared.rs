//! Locks that several may hold at once, to read.

use std::future::Future;
use std::time::Duration;

use super::error::Error;
use super::holder::Status;
use super::name::LockName;
use super::sealed::Sealed;
use super::wait::{Acquired, Wait};
use super::{Lock, in_time};

/// A lock that can be held shared: by any number of holders that want it so, while none
/// holds it exclusively.
pub trait SharedLock: Lock {
    /// Acquire the lock shared, and wait for that as long as `wait` says.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Errors
    /// As [`acquire_within`](Lock::acquire_within).
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
    #[track_caller]
    fn acquire_shared(&self) -> impl Future<Output = Result<Self::Guard, Error>> + Send + 'static {
        in_time(self.name(), self.acquire_shared_within(self.default_wait()))
    }

    /// One try to acquire the lock shared; `None` if another holds it exclusively.
    ///
    /// # Cancel safety
    /// As [`acquire_within`](Lock::acquire_within).
    ///
    /// # Errors
    /// As [`acquire_within`](Lock::acquire_within).
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
    #[track_caller]
    fn acquire_shared_timeout(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<Self::Guard, Error>> + Send + 'static {
        in_time(self.name(), self.acquire_shared_within(Wait::at_most(limit)))
    }

    /// The same lock for a reader: to acquire it is to acquire it shared.
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
