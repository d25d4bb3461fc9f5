//! This crate's lock.

use lockkeeper::{Guard, PostgresGuard, PostgresLocks, PostgresOptions};

use super::{LEASE, Peer};

pub struct Ours;

impl Peer for Ours {
    type Client = PostgresLocks;
    type Guard = PostgresGuard;

    const NAME: &str = "lockkeeper";

    async fn connect(url: String, number: usize) -> Result<Self::Client, String> {
        // Locks of one server share sessions and stand in one queue of their process. With
        // another name of the application each is as in a process of its own.
        let options = PostgresOptions::default().lease(LEASE);
        let url = format!("{url}?application_name=peer-{number}");
        PostgresLocks::with_options(url, options).map_err(|error| error.to_string())
    }

    async fn acquire(client: &Self::Client, lock: &str) -> Result<Self::Guard, String> {
        let lock = client.lock(lock).map_err(|error| error.to_string())?;
        lock.acquire().await.map_err(|error| error.to_string())
    }

    async fn release(guard: Self::Guard) -> Result<(), String> {
        guard.release().await.map_err(|error| error.to_string())
    }

    fn is_told(guard: &Self::Guard) -> Option<bool> {
        Some(Guard::is_lost(guard))
    }
}
