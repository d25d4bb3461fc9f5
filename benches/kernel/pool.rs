//! 600 tasks whose critical section uses `tokio::fs`, 600 attempts that time
//! out, and a runtime that goes down while somebody waits. Each lock is tried
//! in a process of its own, which is given up after a while.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::figures::short;
use crate::processes::{Process, as_text};
use crate::subject::{Kind, Lock, open, runtime};
use crate::{DIRECTORY, Plan};

const TASKS: usize = 600;

/// Whoever is not done by then is wedged.
const PATIENCE: Duration = Duration::from_secs(15);

const KINDS: [Kind; 4] = [Kind::Ours, Kind::Filelock, Kind::AsyncFdLock, Kind::Std];

const PARTS: [&str; 3] =
    ["600 tasks use tokio::fs inside", "600 time-outs, then tokio::fs", "shutdown"];

pub(crate) fn measure(_plan: &Plan) {
    for part in PARTS {
        for kind in KINDS {
            let directory = TempDir::new_in(DIRECTORY).expect("a directory");
            let path = directory.path().join("pool.lock");
            let words = [part, kind.name(), as_text(&path)];
            let mut process = Process::spawn("pool", words, Stdio::null(), Stdio::null());
            let started = Instant::now();
            let outcome = loop {
                if let Some(status) = process.child().try_wait().expect("a child") {
                    break if status.success() {
                        short(started.elapsed())
                    } else {
                        "FAILED".into()
                    };
                }
                if started.elapsed() > PATIENCE {
                    break format!("WEDGED after {PATIENCE:?}");
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            println!("{part:<34} {:<32} {outcome}", kind.name());
        }
    }
}

/// The role: part, kind, path.
pub(crate) fn play(words: &[String]) {
    let [part, kind, path] = words else { panic!("part, kind, path") };
    let path = Path::new(path);
    let lock = Arc::new(Lock::new(Kind::of(kind), path));
    let runtime = runtime(2);
    let another = open(path);
    if part != PARTS[0] {
        flock(&another, FlockOperation::LockExclusive).expect("nobody has it");
    }
    match PARTS.iter().position(|known| known == part).expect("a part") {
        0 => runtime.block_on(use_files(lock, path)),
        1 => runtime.block_on(time_out(lock, path)),
        _ => {
            for _ in 0..3 {
                let lock = Arc::clone(&lock);
                runtime.spawn(async move { drop(lock.acquire().await) });
            }
            std::thread::sleep(Duration::from_millis(50));
            drop(runtime);
        }
    }
}

async fn use_files(lock: Arc<Lock>, path: &Path) {
    let content = path.with_extension("content");
    let task = |_| {
        let (lock, content) = (Arc::clone(&lock), content.clone());
        tokio::spawn(async move {
            let hold = lock.acquire().await;
            tokio::fs::write(&content, b"inside").await.expect("it can be written");
            lock.release(hold).await;
        })
    };
    for task in (0..TASKS).map(task).collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
}

async fn time_out(lock: Arc<Lock>, path: &Path) {
    let attempt = |_| {
        let lock = Arc::clone(&lock);
        tokio::spawn(async move {
            let limit = Duration::from_millis(50);
            let _ = tokio::time::timeout(limit, lock.acquire()).await;
        })
    };
    for attempt in (0..TASKS).map(attempt).collect::<Vec<_>>() {
        attempt.await.expect("no panic");
    }
    tokio::fs::write(path.with_extension("content"), b"after").await.expect("it can be written");
    // Not by the runtime's end, which is the third part.
    std::process::exit(0);
}
