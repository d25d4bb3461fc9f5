//! Lock files as locks of any kind.

use std::future::Future;
use std::panic::Location;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::acquire;
use super::guard::FileGuard;
use super::lock::AsyncFileLock;
use crate::lock::error::{Error, Lost};
use crate::lock::guard::Guard;
use crate::lock::holder::{Holder, Status};
use crate::lock::name::LockName;
use crate::lock::sealed::Sealed;
use crate::lock::wait::{Acquired, Wait};
use crate::lock::{Lock, or_busy};
use crate::sys::files::BorrowedFile;

impl Sealed for AsyncFileLock {}

impl Lock for AsyncFileLock {
    type Guard = FileGuard;

    fn name(&self) -> LockName {
        self.path().into()
    }

    fn default_wait(&self) -> Wait {
        Wait::at_most(self.spec().options().wait.timeout)
    }

    #[track_caller]
    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<FileGuard>, Error>> + Send + 'static {
        let (lock, site) = (Arc::clone(self.spec()), Location::caller());
        // The time that is left is asked for when the wait begins.
        async move { or_busy(acquire::acquire(lock, wait.left(), site).await) }
    }

    #[track_caller]
    fn acquire(&self) -> impl Future<Output = Result<FileGuard, Error>> + Send + 'static {
        AsyncFileLock::acquire(self)
    }

    #[track_caller]
    fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<FileGuard>, Error>> + Send + 'static {
        AsyncFileLock::try_acquire(self)
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static {
        AsyncFileLock::status(self)
    }

    fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        crate::local::executor::flush()
    }
}

impl Sealed for FileGuard {}

impl Guard for FileGuard {
    async fn lost(&self) -> Lost {
        FileGuard::lost(self).await
    }

    fn is_lost(&self) -> bool {
        FileGuard::is_lost(self)
    }

    fn lost_token(&self) -> CancellationToken {
        FileGuard::lost_token(self)
    }

    fn hold_id(&self) -> Option<String> {
        Some(FileGuard::hold_id(self))
    }

    fn recovered_from(&self) -> Option<&Holder> {
        FileGuard::recovered_from(self)
    }

    fn lock_fd(&self) -> Option<BorrowedFile<'_>> {
        FileGuard::lock_fd(self)
    }

    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        FileGuard::release(self)
    }
}
