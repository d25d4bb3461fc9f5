//! Kernel locks as locks of any kind.

use std::future::Future;
use std::panic::Location;

use tokio_util::sync::CancellationToken;

use super::guard::KernelGuard;
use super::lock::AsyncKernelLock;
use super::syscalls::Sharing;
use crate::lock::error::{Error, Lost};
use crate::lock::guard::Guard;
use crate::lock::holder::Status;
use crate::lock::name::LockName;
use crate::lock::sealed::Sealed;
use crate::lock::shared::SharedLock;
use crate::lock::wait::{Acquired, Wait};
use crate::lock::{Lock, or_busy};
use crate::sys::files::{self, BorrowedFile};

impl Sealed for AsyncKernelLock {}

impl Lock for AsyncKernelLock {
    type Guard = KernelGuard;

    fn name(&self) -> LockName {
        self.path().into()
    }

    fn default_wait(&self) -> Wait {
        Wait::at_most(self.limit())
    }

    #[track_caller]
    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<KernelGuard>, Error>> + Send + 'static {
        let acquire = self.contend_within(Sharing::Exclusive, wait, Location::caller());
        async move { or_busy(acquire.await) }
    }

    #[track_caller]
    fn acquire(&self) -> impl Future<Output = Result<KernelGuard, Error>> + Send + 'static {
        AsyncKernelLock::acquire(self)
    }

    #[track_caller]
    fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<KernelGuard>, Error>> + Send + 'static {
        AsyncKernelLock::try_acquire(self)
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static {
        let lock = self.clone();
        async move { AsyncKernelLock::status(&lock).await }
    }

    fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        crate::local::executor::flush()
    }
}

impl SharedLock for AsyncKernelLock {
    #[track_caller]
    fn acquire_shared_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<KernelGuard>, Error>> + Send + 'static {
        let acquire = self.contend_within(Sharing::Shared, wait, Location::caller());
        async move { or_busy(acquire.await) }
    }
}

impl Sealed for KernelGuard {}

impl Guard for KernelGuard {
    async fn lost(&self) -> Lost {
        KernelGuard::lost(self).await
    }

    fn is_lost(&self) -> bool {
        KernelGuard::is_lost(self)
    }

    fn lost_token(&self) -> CancellationToken {
        KernelGuard::lost_token(self)
    }

    fn lock_fd(&self) -> Option<BorrowedFile<'_>> {
        files::ARE_INHERITED_LOCKED.then(|| files::lend(self.file()))
    }

    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        KernelGuard::release(self)
    }
}
