//! `distributed-lock` with its backend for PostgreSQL, as its documentation says: the provider
//! makes the pool.

use distributed_lock_core::traits::{DistributedLock as _, LockHandle, LockProvider};
use distributed_lock_postgres::PostgresLockProvider;
use distributed_lock_postgres::handle::PostgresLockHandle;

use super::Peer;

pub struct DistributedLock;

impl Peer for DistributedLock {
    type Client = PostgresLockProvider;
    type Guard = PostgresLockHandle;

    const NAME: &str = "distributed-lock-postgres 0.2.0";

    async fn connect(url: String, _: usize) -> Result<Self::Client, String> {
        PostgresLockProvider::new(url).await.map_err(|error| error.to_string())
    }

    async fn acquire(client: &Self::Client, lock: &str) -> Result<Self::Guard, String> {
        client.create_lock(lock).acquire(None).await.map_err(|error| error.to_string())
    }

    async fn release(guard: Self::Guard) -> Result<(), String> {
        guard.release().await.map_err(|error| error.to_string())
    }

    fn is_told(guard: &Self::Guard) -> Option<bool> {
        Some(*guard.lost_token().borrow())
    }
}
