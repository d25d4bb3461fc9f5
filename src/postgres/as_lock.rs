//! A server's locks as locks of any kind.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::guard::PostgresGuard;
use super::key::Mode;
use super::lock::AsyncPostgresLock;
use crate::lock::error::{Error, Lost};
use crate::lock::fencing_token::FencingToken;
use crate::lock::guard::Guard;
use crate::lock::holder::{Holder, Status};
use crate::lock::name::LockName;
use crate::lock::sealed::Sealed;
use crate::lock::shared::SharedLock;
use crate::lock::wait::{Acquired, Wait};
use crate::lock::{Lock, or_busy};

impl Sealed for AsyncPostgresLock {}

impl Lock for AsyncPostgresLock {
    type Guard = PostgresGuard;

    fn name(&self) -> LockName {
        LockName::at(self.resource(), self.server())
    }

    fn default_wait(&self) -> Wait {
        Wait::at_most(self.limit())
    }

    fn acquire_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<PostgresGuard>, Error>> + Send + 'static {
        let contender = self.contender(Mode::Exclusive);
        async move { or_busy(contender.acquire(wait.left()).await) }
    }

    fn acquire(&self) -> impl Future<Output = Result<PostgresGuard, Error>> + Send + 'static {
        AsyncPostgresLock::acquire(self)
    }

    fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<PostgresGuard>, Error>> + Send + 'static {
        AsyncPostgresLock::try_acquire(self)
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + 'static {
        AsyncPostgresLock::status(self)
    }

    fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        AsyncPostgresLock::flush(self)
    }
}

impl SharedLock for AsyncPostgresLock {
    fn acquire_shared_within(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Acquired<PostgresGuard>, Error>> + Send + 'static {
        let contender = self.contender(Mode::Shared);
        async move { or_busy(contender.acquire(wait.left()).await) }
    }
}

impl Sealed for PostgresGuard {}

impl Guard for PostgresGuard {
    async fn lost(&self) -> Lost {
        PostgresGuard::lost(self).await
    }

    fn is_lost(&self) -> bool {
        PostgresGuard::is_lost(self)
    }

    fn lost_token(&self) -> CancellationToken {
        PostgresGuard::lost_token(self)
    }

    fn fencing_token(&self) -> Option<FencingToken> {
        Some(PostgresGuard::fencing_token(self))
    }

    fn hold_id(&self) -> Option<String> {
        PostgresGuard::hold_id(self).map(str::to_owned)
    }

    fn recovered_from(&self) -> Option<&Holder> {
        PostgresGuard::recovered_from(self)
    }

    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        PostgresGuard::release(self)
    }
}
