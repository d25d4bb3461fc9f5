//! This crate's lock.

use lockkeeper::{Guard, PostgresGuard, PostgresLocks, PostgresOptions, Table};

use super::{LEASE, Peer};

/// With the table of tokens and holders, or without.
pub struct Ours<const HAS_TABLE: bool>;

impl<const HAS_TABLE: bool> Peer for Ours<HAS_TABLE> {
    type Client = PostgresLocks;
    type Guard = PostgresGuard;

    const NAME: &str = if HAS_TABLE { "lockkeeper" } else { "lockkeeper, table=none" };

    async fn connect(url: String, number: usize) -> Result<Self::Client, String> {
        // Locks of one server share sessions and stand in one queue of their process. With
        // another name of the application each is as in a process of its own.
        let table = if HAS_TABLE { Table::Own } else { Table::None };
        let options = PostgresOptions::default().lease(LEASE).table(table);
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
