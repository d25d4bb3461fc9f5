//! How long the tasks of one process should keep a lock that another process
//! waits for: what they gain by it, and what the other waits.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, FileOptions};
use tempfile::TempDir;

use crate::contender::Kind;
use crate::figures::{Sample, now, short};
use crate::processes::{Process, as_text};
use crate::{DIRECTORY, Plan};

const TASKS: usize = 64;

/// In microseconds; the third is the default.
const SHARES: [u64; 6] = [0, 300, 1000, 3000, 10_000, 30_000];

/// For the other process to start.
const START: Duration = Duration::from_millis(200);

pub(crate) fn measure(plan: &Plan) {
    let time = plan.time.min(Duration::from_secs(3));
    for share in SHARES.map(Duration::from_micros) {
        let (holds, waits) = run(share, time);
        println!(
            "share {:>9}, 64 tasks: {:>7.0} holds/s; the other: {:>6.1} holds of 1 ms a second, wait p50 {:>9} p99 {:>9}",
            short(share),
            holds as f64 / time.as_secs_f64(),
            waits.len() as f64 / time.as_secs_f64(),
            short(waits.median()),
            short(waits.at(0.99)),
        );
    }
}

/// How often the tasks had it, and what the other process waited.
fn run(share: Duration, time: Duration) -> (u64, Sample) {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let (path, waits) = (directory.path().join("share.lock"), directory.path().join("waits"));
    let start = now() + START.as_nanos() as u64;
    let end = start + time.as_nanos() as u64;
    let times = [start.to_string(), end.to_string()];
    let words =
        [Kind::Ours.name(), as_text(&path), as_text(&waits), times[0].as_str(), times[1].as_str()];
    let other = Process::spawn("server", words, Stdio::null(), Stdio::null());
    let options = FileOptions::default().local_handoff(share);
    let lock = AsyncFileLock::with_options(&path, options).expect("options that go together");
    let (holds, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    Kind::Ours.runtime().block_on(async {
        tokio::time::sleep(START).await;
        let work = || {
            let (lock, holds, is_over) = (lock.clone(), holds.clone(), is_over.clone());
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let guard = lock.acquire().await.expect("nothing is wrong");
                    guard.release().await.expect("nobody touched it");
                    holds.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let tasks: Vec<_> = (0..TASKS).map(|_| work()).collect();
        tokio::time::sleep(time).await;
        is_over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("no panic");
        }
    });
    other.wait();
    (
        holds.load(Ordering::Relaxed),
        Sample::parse(&std::fs::read(waits).expect("it wrote its waits")),
    )
}
