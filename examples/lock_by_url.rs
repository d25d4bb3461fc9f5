//! A program whose operator chooses the kind of lock, by a URL in the environment: a
//! directory on one machine, a lock daemon for many.
//!
//! `LOCKKEEPER_AT=/run/lock cargo run --example lock_by_url`, or
//! `LOCKKEEPER_AT=lockd+http://127.0.0.1:8000 cargo run --features lockd-client --example lock_by_url`

use std::time::Duration;

use lockkeeper::{Error, Lock, Locks, Ran};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::var("LOCKKEEPER_AT").unwrap_or(std::env::temp_dir().display().to_string());
    let locks = lockkeeper::open(url)?;
    println!("made {} items", import(&locks).await?);
    Ok(())
}

async fn import(locks: &Locks) -> Result<u32, Error> {
    let lock = locks.lock("import")?;
    match lock.run(work()).await? {
        Ran::Done(items) => Ok(items),
        Ran::Lost(lost) => Err(lost.into()),
        // Done, but another may have been inside meanwhile.
        ran => ran.in_safety(),
    }
}

async fn work() -> u32 {
    tokio::time::sleep(Duration::from_millis(100)).await;
    7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_program_takes_any_kind_of_lock() {
        let directory = tempfile::tempdir().unwrap();
        for scheme in ["file", "flock", "ofd"] {
            let url = format!("{scheme}://{}", directory.path().display());
            assert_eq!(import(&lockkeeper::open(url).unwrap()).await.unwrap(), 7);
        }
    }
}
