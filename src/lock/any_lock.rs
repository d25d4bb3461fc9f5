//! A lock of a kind that is chosen when the program runs.
//!
//! [`Lock`] and [`Guard`] have methods that give futures of their own types, so neither can
//! be a trait object. Each has a twin here that can, with futures in boxes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Lock;
use super::error::{Error, Lost};
use super::fencing_token::FencingToken;
use super::guard::Guard;
use super::holder::{Holder, Status};
use super::name::LockName;
use super::sealed::Sealed;
use super::wait::{Acquired, Wait};
use crate::sys::files::BorrowedFile;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A lock of any kind, as [`open`](crate::open) makes it from a URL, or
/// [`AnyLock::new`] from a lock.
///
/// An acquisition costs some allocations more than that of the lock itself.
#[doc(alias("dyn", "Box"))]
#[derive(Clone)]
pub struct AnyLock(Arc<dyn DynLock>);

/// A lock of any kind that is held. Dropping it releases the lock.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct AnyGuard(Box<dyn DynGuard>);

impl AnyLock {
    /// This lock.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::{AnyLock, AsyncFileLock, AsyncKernelLock};
    ///
    /// let locks = [
    ///     AnyLock::new(AsyncFileLock::new("import.lock")),
    ///     AnyLock::new(AsyncKernelLock::new("table")),
    /// ];
    /// ```
    pub fn new(lock: impl Lock) -> Self {
        Self(Arc::new(lock))
    }
}

trait DynLock: fmt::Debug + Send + Sync {
    fn name(&self) -> LockName;
    fn default_wait(&self) -> Wait;
    fn acquire_within(&self, wait: Wait) -> Boxed<'static, Result<Acquired<AnyGuard>, Error>>;
    fn acquire(&self) -> Boxed<'static, Result<AnyGuard, Error>>;
    fn try_acquire(&self) -> Boxed<'static, Result<Option<AnyGuard>, Error>>;
    fn status(&self) -> Boxed<'static, Result<Status, Error>>;
    fn flush(&self) -> Boxed<'static, ()>;
}

impl<L: Lock> DynLock for L {
    fn name(&self) -> LockName {
        Lock::name(self)
    }

    fn default_wait(&self) -> Wait {
        Lock::default_wait(self)
    }

    fn acquire_within(&self, wait: Wait) -> Boxed<'static, Result<Acquired<AnyGuard>, Error>> {
        let acquiring = Lock::acquire_within(self, wait);
        Box::pin(async move { Ok(acquiring.await?.map(AnyGuard::new)) })
    }

    fn acquire(&self) -> Boxed<'static, Result<AnyGuard, Error>> {
        let acquiring = Lock::acquire(self);
        Box::pin(async move { acquiring.await.map(AnyGuard::new) })
    }

    fn try_acquire(&self) -> Boxed<'static, Result<Option<AnyGuard>, Error>> {
        let trying = Lock::try_acquire(self);
        Box::pin(async move { Ok(trying.await?.map(AnyGuard::new)) })
    }

    fn status(&self) -> Boxed<'static, Result<Status, Error>> {
        Box::pin(Lock::status(self))
    }

    fn flush(&self) -> Boxed<'static, ()> {
        Box::pin(Lock::flush(self))
    }
}

impl Sealed for AnyLock {}

impl Lock for AnyLock {
    type Guard = AnyGuard;

    fn name(&self) -> LockName {
        self.0.name()
    }

    fn default_wait(&self) -> Wait {
        self.0.default_wait()
    }

    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<AnyGuard>, Error>> + Send + 'static {
        self.0.acquire_within(wait)
    }

    fn acquire(&self) -> impl Future<Output = Result<AnyGuard, Error>> + Send + 'static {
        self.0.acquire()
    }

    fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<AnyGuard>, Error>> + Send + 'static {
        self.0.try_acquire()
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static {
        self.0.status()
    }

    fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.flush()
    }
}

impl fmt::Debug for AnyLock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

trait DynGuard: fmt::Debug + Send + Sync {
    fn lost(&self) -> Boxed<'_, Lost>;
    fn is_lost(&self) -> bool;
    fn lost_token(&self) -> CancellationToken;
    fn fencing_token(&self) -> Option<FencingToken>;
    fn hold_id(&self) -> Option<String>;
    fn recovered_from(&self) -> Option<&Holder>;
    fn lock_fd(&self) -> Option<BorrowedFile<'_>>;
    fn release(self: Box<Self>) -> Boxed<'static, Result<(), Error>>;
}

impl<G: Guard> DynGuard for G {
    fn lost(&self) -> Boxed<'_, Lost> {
        Box::pin(Guard::lost(self))
    }

    fn is_lost(&self) -> bool {
        Guard::is_lost(self)
    }

    fn lost_token(&self) -> CancellationToken {
        Guard::lost_token(self)
    }

    fn fencing_token(&self) -> Option<FencingToken> {
        Guard::fencing_token(self)
    }

    fn hold_id(&self) -> Option<String> {
        Guard::hold_id(self)
    }

    fn recovered_from(&self) -> Option<&Holder> {
        Guard::recovered_from(self)
    }

    fn lock_fd(&self) -> Option<BorrowedFile<'_>> {
        Guard::lock_fd(self)
    }

    fn release(self: Box<Self>) -> Boxed<'static, Result<(), Error>> {
        Box::pin(Guard::release(*self))
    }
}

impl AnyGuard {
    fn new(guard: impl Guard) -> Self {
        Self(Box::new(guard))
    }
}

impl Sealed for AnyGuard {}

impl Guard for AnyGuard {
    fn lost(&self) -> impl Future<Output = Lost> + Send {
        self.0.lost()
    }

    fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    fn lost_token(&self) -> CancellationToken {
        self.0.lost_token()
    }

    fn fencing_token(&self) -> Option<FencingToken> {
        self.0.fencing_token()
    }

    fn hold_id(&self) -> Option<String> {
        self.0.hold_id()
    }

    fn recovered_from(&self) -> Option<&Holder> {
        self.0.recovered_from()
    }

    fn lock_fd(&self) -> Option<BorrowedFile<'_>> {
        self.0.lock_fd()
    }

    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        self.0.release()
    }
}

impl fmt::Debug for AnyGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}
