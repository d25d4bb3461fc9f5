//! The three ways to stop waiting: a timeout, a branch of `select!` that wins,
//! a cancellation token. None of them leaves anything behind.
//!
//! `cargo run --example timeout_and_select`

use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let path = std::env::temp_dir().join(format!("lockkeeper-{}.lock", std::process::id()));
    let lock = AsyncFileLock::new(&path);
    let guard = lock.acquire().await?;

    // The crate's own limit: the error says who has it.
    let late = lock.acquire_timeout(Duration::from_millis(100)).await;
    println!("acquire_timeout: {}", late.expect_err("it is held"));

    // Tokio's: the future is simply dropped.
    let late = tokio::time::timeout(Duration::from_millis(100), lock.acquire()).await;
    println!("tokio::time::timeout: {}", late.expect_err("it is held"));

    tokio::select! {
        _ = lock.acquire() => unreachable!("it is held"),
        () = tokio::time::sleep(Duration::from_millis(100)) => println!("select!: something else was first"),
    }

    // A token, such as the one that shuts a service down.
    let shutdown = CancellationToken::new();
    let waiter = tokio::spawn({
        let (lock, shutdown) = (lock.clone(), shutdown.clone());
        async move { lock.acquire_with(&shutdown).await.map(drop) }
    });
    shutdown.cancel();
    println!("acquire_with: {}", waiter.await.expect("it ran").expect_err("it is cancelled"));

    guard.release().await?;
    assert!(!path.exists());
    println!("released, and nothing is left at {}", path.display());
    Ok(())
}
