//! A holder that stops working when its lock is gone, told in two ways: by a
//! future to select on, and by a token for code further down.
//!
//! `cargo run --example stop_when_lost`

use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error, FileOptions, LostReason};
use tokio_util::sync::CancellationToken;

/// Work that looks at a token now and then, as libraries do.
async fn work(stop: CancellationToken) -> u32 {
    let mut steps = 0;
    while !stop.is_cancelled() {
        steps += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    steps
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let path = std::env::temp_dir().join(format!("lockkeeper-{}.lock", std::process::id()));
    let options = FileOptions::default().retry_period(Duration::from_millis(50));
    let lock = AsyncFileLock::with_options(&path, options)?;

    // Another process asks for the lock. It is still held: stop, then release.
    let guard = lock.acquire().await?;
    let asker = tokio::spawn({
        let lock = lock.clone();
        async move { lock.revoke().await }
    });
    println!("revoked after {} steps", work(guard.lost_token()).await);
    asker.await.expect("it ran")?;
    guard.release().await?;

    // A person removes the file. From now on another holder may be inside.
    let guard = lock.acquire().await?;
    let remover = tokio::spawn(async move { tokio::fs::remove_file(path).await });
    let lost = guard.lost().await;
    println!("{lost}");
    assert_eq!(lost.reason, LostReason::Removed);
    remover.await.expect("it ran").expect("the file was there");
    match guard.release().await {
        Err(Error::Lost(lost)) => println!("release says so too: {}", lost.reason),
        other => println!("release: {other:?}"),
    }
    Ok(())
}
