//! A cluster's locks as locks of any kind.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::guard::EtcdGuard;
use super::lock::AsyncEtcdLock;
use crate::lock::error::{Error, Lost};
use crate::lock::fencing_token::FencingToken;
use crate::lock::guard::Guard;
use crate::lock::holder::{Holder, Status};
use crate::lock::name::LockName;
use crate::lock::sealed::Sealed;
use crate::lock::wait::{Acquired, Wait};
use crate::lock::{Lock, or_busy};

impl Sealed for AsyncEtcdLock {}

impl Lock for AsyncEtcdLock {
    type Guard = EtcdGuard;

    fn name(&self) -> LockName {
        LockName::at(self.resource(), self.server())
    }

    fn default_wait(&self) -> Wait {
        Wait::at_most(self.limit())
    }

    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<EtcdGuard>, Error>> + Send + 'static {
        let contender = self.contender();
        async move {
            // Without a wait a cluster that is away is asked once as well.
            or_busy(contender.acquire(wait.left()).await)
        }
    }

    fn acquire(&self) -> impl Future<Output = Result<EtcdGuard, Error>> + Send + 'static {
        AsyncEtcdLock::acquire(self)
    }

    fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<EtcdGuard>, Error>> + Send + 'static {
        AsyncEtcdLock::try_acquire(self)
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static {
        AsyncEtcdLock::status(self)
    }

    fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        AsyncEtcdLock::flush(self)
    }
}

impl Sealed for EtcdGuard {}

impl Guard for EtcdGuard {
    async fn lost(&self) -> Lost {
        EtcdGuard::lost(self).await
    }

    fn is_lost(&self) -> bool {
        EtcdGuard::is_lost(self)
    }

    fn lost_token(&self) -> CancellationToken {
        EtcdGuard::lost_token(self)
    }

    fn fencing_token(&self) -> Option<FencingToken> {
        Some(EtcdGuard::fencing_token(self))
    }

    fn hold_id(&self) -> Option<String> {
        Some(EtcdGuard::hold_id(self).to_owned())
    }

    fn recovered_from(&self) -> Option<&Holder> {
        EtcdGuard::recovered_from(self)
    }

    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        EtcdGuard::release(self)
    }
}
