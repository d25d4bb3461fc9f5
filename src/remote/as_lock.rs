//! The daemon's locks as locks of any kind.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::guard::RemoteGuard;
use super::lock::AsyncRemoteLock;
use crate::lock::error::{Error, Lost};
use crate::lock::fencing_token::FencingToken;
use crate::lock::guard::Guard;
use crate::lock::holder::Status;
use crate::lock::name::LockName;
use crate::lock::sealed::Sealed;
use crate::lock::wait::{Acquired, Wait};
use crate::lock::{Lock, or_busy};

impl Sealed for AsyncRemoteLock {}

impl Lock for AsyncRemoteLock {
    type Guard = RemoteGuard;

    fn name(&self) -> LockName {
        LockName::at(self.resource(), self.server())
    }

    fn default_wait(&self) -> Wait {
        Wait::at_most(self.limit())
    }

    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<RemoteGuard>, Error>> + Send + 'static {
        let contender = self.contender();
        async move {
            // Without a wait a daemon that is away is asked once as well.
            or_busy(contender.acquire(wait.left()).await)
        }
    }

    fn acquire(&self) -> impl Future<Output = Result<RemoteGuard, Error>> + Send + 'static {
        AsyncRemoteLock::acquire(self)
    }

    fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<RemoteGuard>, Error>> + Send + 'static {
        AsyncRemoteLock::try_acquire(self)
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static {
        AsyncRemoteLock::status(self)
    }

    fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        AsyncRemoteLock::flush(self)
    }
}

impl Sealed for RemoteGuard {}

impl Guard for RemoteGuard {
    async fn lost(&self) -> Lost {
        RemoteGuard::lost(self).await
    }

    fn is_lost(&self) -> bool {
        RemoteGuard::is_lost(self)
    }

    fn lost_token(&self) -> CancellationToken {
        RemoteGuard::lost_token(self)
    }

    fn fencing_token(&self) -> Option<FencingToken> {
        Some(RemoteGuard::fencing_token(self))
    }

    fn hold_id(&self) -> Option<String> {
        Some(RemoteGuard::fencing_token(self).to_string())
    }

    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        RemoteGuard::release(self)
    }
}
