//! A wait whose future is kept over the rounds of a `select!` loop keeps its place in
//! the line, and so gets in beside processes that are busy with the lock.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, Error};
use support::{Process, VERY_LONG, eventually_async};
use tokio::time::{interval, sleep, timeout};

/// Between two rounds of the loop.
const ROUND: Duration = Duration::from_millis(10);

/// How long a busy process holds the lock each time: the loop goes round several times
/// meanwhile.
const HOLD: Duration = ROUND.saturating_mul(4);

/// How often the loop gets in.
const TIMES: usize = 10;

/// Hold the lock over and over, and write that down each time.
async fn be_busy(role: &str, path: &Path) -> ! {
    let (file, kernel) = (AsyncFileLock::new(path), AsyncKernelLock::new(path));
    let mut journal = File::options().append(true).open(path.with_extension("log")).unwrap();
    loop {
        if role == "file" {
            let _guard = file.acquire().await.unwrap();
            journal.write_all(b"h").unwrap();
            sleep(HOLD).await;
        } else {
            let _guard = kernel.acquire().await.unwrap();
            journal.write_all(b"h").unwrap();
            sleep(HOLD).await;
        }
    }
}

/// Wait with one future that is kept over all rounds; how many rounds it took.
async fn acquire_in_a_loop<T>(acquiring: impl Future<Output = Result<T, Error>>) -> (T, usize) {
    tokio::pin!(acquiring);
    let (mut round, mut rounds) = (interval(ROUND), 0);
    loop {
        tokio::select! {
            acquired = &mut acquiring => return (acquired.unwrap(), rounds),
            _ = round.tick() => rounds += 1,
        }
    }
}

#[tokio::test]
async fn a_future_that_is_kept_gets_in_beside_busy_processes() {
    const TEST: &str = "a_future_that_is_kept_gets_in_beside_busy_processes";
    if let Some((role, path)) = support::role() {
        be_busy(&role, &path).await;
    }
    for role in ["file", "kernel"] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let log = path.with_extension("log");
        fs::write(&log, "").unwrap();
        let holds = || fs::read(&log).unwrap().len();
        let _busy = [(); 3].map(|()| Process::play(TEST, role, &path));
        let (mut others, mut rounds) = (0, 0);
        for _ in 0..TIMES {
            // We ask while another holds.
            let before = holds();
            eventually_async("another holds", || holds() > before).await;
            let asked = holds();
            let waited = timeout(VERY_LONG, async {
                if role == "file" {
                    let lock = AsyncFileLock::new(&path);
                    let (guard, rounds) = acquire_in_a_loop(lock.acquire()).await;
                    (holds() - asked, rounds, drop(guard))
                } else {
                    let lock = AsyncKernelLock::new(&path);
                    let (guard, rounds) = acquire_in_a_loop(lock.acquire()).await;
                    (holds() - asked, rounds, drop(guard))
                }
            });
            let (held, took, ()) = waited.await.expect("it never gets in");
            (others, rounds) = (others + held, rounds + took);
        }
        println!("{role}: {others} holds of others and {rounds} rounds for {TIMES} of ours");
        assert!(rounds > TIMES, "{role}: nobody was in the way");
        assert!(others <= 10 * TIMES, "{role}: {others} holds of others for {TIMES} of ours");
    }
}

/// A wait that is dropped gives its place up, with all that it had.
#[tokio::test]
async fn a_future_that_is_dropped_in_each_round_leaves_nothing() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    let guard = lock.acquire().await.unwrap();
    for _ in 0..10 {
        assert!(timeout(ROUND, lock.acquire()).await.is_err());
    }
    guard.release().await.unwrap();
    assert!(support::kernel_locks(directory.path(), "OFDLCK").is_empty());
    assert!(support::names_in(directory.path()).is_empty());
}
