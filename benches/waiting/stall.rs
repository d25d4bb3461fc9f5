//! For how long the calling thread stands still in one acquisition and its
//! release, made inline, while another process writes and syncs as hard as it
//! can on the same file system; beside it the same on a thread of the crate's.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lockkeeper::{AsyncFileLock, FileOptions, Offload};
use tempfile::TempDir;
use tokio::runtime::Builder;

use crate::Plan;
use crate::figures::{Sample, short};
use crate::processes::{Process, as_text};

/// What the disturbing process writes between two syncs.
const BLOCK_BYTES: usize = 1 << 20;

/// Between two acquisitions: they should meet the disk in all its states.
const GAP: Duration = Duration::from_micros(200);

const DIRECTORIES: [(&str, &str); 2] =
    [("tmpfs", crate::DIRECTORY), ("disk", env!("CARGO_TARGET_TMPDIR"))];

pub(crate) fn measure(plan: &Plan) {
    for (name, top) in DIRECTORIES {
        let directory = TempDir::new_in(top).expect("a directory");
        for is_busy in [false, true] {
            let path = directory.path().join("data");
            let busy = is_busy
                .then(|| Process::spawn("writer", [as_text(&path)], Stdio::null(), Stdio::null()));
            for (place, offload) in [("inline", Offload::Auto), ("own thread", Offload::Always)] {
                let sample = stalls(&directory.path().join("a.lock"), offload, plan.time / 4);
                let state = if is_busy { "another writes and syncs" } else { "quiet" };
                let (p50, p999) = (short(sample.median()), short(sample.at(0.999)));
                println!(
                    "{name:<6} {state:<25} {place:<11} p50 {p50:>9}  p99.9 {p999:>9}  longest {:>9}  of {}",
                    short(sample.longest()),
                    sample.len()
                );
            }
            drop(busy);
        }
    }
}

fn stalls(path: &Path, offload: Offload, time: Duration) -> Sample {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let options = FileOptions::default().offload(offload);
    let lock = AsyncFileLock::with_options(path, options).expect("valid options");
    let mut sample = Sample::default();
    let end = Instant::now() + time;
    runtime.block_on(async {
        while Instant::now() < end {
            let started = Instant::now();
            let guard = lock.acquire().await.expect("nobody has it");
            guard.release().await.expect("nobody touched it");
            sample.add(started.elapsed().as_nanos() as u64);
            std::thread::sleep(GAP);
        }
    });
    sample
}

/// The role: write and sync for ever.
pub(crate) fn disturb(words: &[String]) {
    let [path] = words else { panic!("a path") };
    let block = vec![b'x'; BLOCK_BYTES];
    loop {
        let mut file = File::create(path).expect("a file");
        for _ in 0..64 {
            file.write_all(&block).and_then(|()| file.sync_all()).expect("a disk that works");
        }
    }
}
