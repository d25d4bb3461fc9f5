//! `PgAdvisoryLock` of sqlx, with connections of a pool.

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockGuard, PgPool, Postgres};

use super::Peer;

pub struct Sqlx;

impl Peer for Sqlx {
    type Client = PgPool;
    type Guard = PgAdvisoryLockGuard<PoolConnection<Postgres>>;

    const NAME: &str = "sqlx 0.9.0, PgAdvisoryLock";

    async fn connect(url: String, _: usize) -> Result<Self::Client, String> {
        PgPool::connect(&url).await.map_err(|error| error.to_string())
    }

    async fn acquire(client: &Self::Client, lock: &str) -> Result<Self::Guard, String> {
        let connection = client.acquire().await.map_err(|error| error.to_string())?;
        let acquired = PgAdvisoryLock::new(lock).acquire(connection).await;
        acquired.map_err(|error| error.to_string())
    }

    async fn release(guard: Self::Guard) -> Result<(), String> {
        guard.release_now().await.map(drop).map_err(|error| error.to_string())
    }

    fn is_told(_: &Self::Guard) -> Option<bool> {
        None
    }
}
