//! Only one instance of this program runs at a time; a second one says who
//! runs and ends. Killing the first with `kill -9` lets the next one in.
//!
//! `cargo run --example single_instance` in two terminals.

use std::process::ExitCode;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error, FileOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Error> {
    let path = std::env::temp_dir().join("lockkeeper-single-instance.lock");
    let lock = AsyncFileLock::with_options(path, FileOptions::default().note("the example"))?;
    let Some(guard) = lock.try_acquire().await? else {
        match lock.holder().await? {
            Some(holder) => eprintln!("already running: {holder} ({})", holder.evidence),
            None => eprintln!("another instance just ended: try again"),
        }
        return Ok(ExitCode::FAILURE);
    };
    if let Some(dead) = guard.recovered_from() {
        println!("the last instance died: {dead}");
    }
    println!("running as {}; press Ctrl-C to end", std::process::id());
    tokio::select! {
        _ = tokio::signal::ctrl_c() => println!("ending"),
        () = tokio::time::sleep(Duration::from_secs(60)) => println!("done"),
        why = guard.lost() => eprintln!("{why}"),
    }
    guard.release().await?;
    Ok(ExitCode::SUCCESS)
}
