//! A program that does not know its kind of lock: in production the daemon's, so that the
//! job runs on one machine of many, in its tests a file.
//!
//! `lockkeeper serve --dir /var/lib/lockkeeper`, then
//! `cargo run --features lockd-client --example generic_over_locks -- http://127.0.0.1:8000`

use std::path::Path;

use lockkeeper::{AsyncRemoteLock, Error, FencingToken, Guard, Lock};

/// Adds a line to a report that no two processes may write at a time.
struct Reporter<L> {
    lock: L,
}

impl<L: Lock> Reporter<L> {
    async fn report(&self, path: &Path, line: &str) -> Result<(), Error> {
        let guard = self.lock.acquire().await?;
        if let Some(dead) = guard.recovered_from() {
            eprintln!("{dead} died while it wrote: its line may be cut short");
        }
        tokio::select! {
            () = append(path, line, guard.fencing_token()) => guard.release().await,
            lost = guard.lost() => Err(lost.into()),
        }
    }
}

/// A database would store the number with the line, and refuse a smaller one.
async fn append(path: &Path, line: &str, number: Option<FencingToken>) {
    let number = number.map_or(String::new(), |number| format!("{number}: "));
    let before = tokio::fs::read_to_string(path).await.unwrap_or_default();
    let after = format!("{before}{number}{line}\n");
    tokio::fs::write(path, after).await.expect("the report can be written");
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or("http://127.0.0.1:8000".to_owned());
    let client = format!("reporter-{}", std::process::id());
    let lock = AsyncRemoteLock::new(server, "report", client)?;
    let path = std::env::temp_dir().join("report.txt");
    Reporter { lock }.report(&path, "done").await?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use lockkeeper::AsyncFileLock;

    use super::*;

    #[tokio::test]
    async fn no_line_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.txt");
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let (lock, path) = (AsyncFileLock::new(directory.path().join("a.lock")), path.clone());
            writers.spawn(async move {
                Reporter { lock }.report(&path, &format!("line {writer}")).await
            });
        }
        writers.join_all().await.into_iter().collect::<Result<Vec<()>, Error>>().unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 8);
    }
}
