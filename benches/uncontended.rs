//! Acquire and release of a lock that nobody else wants, with the floor of raw
//! system calls in the same run.
//!
//! `cargo bench --bench uncontended` prints the ratio first, then divan's
//! tables. The two are measured in turns and compared by their medians, since
//! file systems and machines drift.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use divan::Bencher;
use lockkeeper::{AsyncFileLock, FileOptions, Proof};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Pairs of measurements behind a ratio.
const ROUNDS: usize = 60;

/// Acquisitions in one measurement.
const BATCH: u32 = 500;

/// Where `memory` and `disk` are.
const DIRECTORIES: [(&str, &str); 2] =
    [("memory", "/dev/shm"), ("disk", env!("CARGO_TARGET_TMPDIR"))];

fn main() {
    for (name, directory) in DIRECTORIES {
        let directory = TempDir::new_in(directory).expect("a directory to measure in");
        print_ratio(name, &directory.path().join("bench.lock"));
    }
    divan::main();
}

/// The system calls that the pinned protocol cannot do without.
fn floor(path: &Path) {
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, open, Mode::empty()).expect_err("nothing is there");
    let make = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let directory = path.parent().expect("a directory");
    let file: OwnedFd = rustix::fs::open(directory, make, Mode::from(0o644)).expect("a file");
    rustix::io::pwrite(&file, &[b'\n'; 512], 0).expect("it can be written");
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    rustix::fs::linkat(&file, c"", CWD, path, AtFlags::EMPTY_PATH).expect("no such name yet");
    let named = rustix::fs::lstat(path).expect("it is there");
    let opened = rustix::fs::fstat(&file).expect("it is open");
    assert_eq!(named.st_ino, opened.st_ino);
    rustix::fs::unlink(path).expect("it is ours");
    rustix::fs::flock(&file, FlockOperation::Unlock).expect("it is locked");
}

async fn acquire_and_release(lock: &AsyncFileLock) {
    let guard = lock.acquire().await.expect("nobody has it");
    guard.release().await.expect("nobody touched it");
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn print_ratio(name: &str, path: &Path) {
    let runtime = current_thread();
    let lock = AsyncFileLock::new(path);
    let mut ours = Vec::new();
    let mut floors = Vec::new();
    runtime.block_on(async {
        for _ in 0..ROUNDS {
            let started = Instant::now();
            (0..BATCH).for_each(|_| floor(path));
            floors.push(started.elapsed() / BATCH);
            let started = Instant::now();
            for _ in 0..BATCH {
                acquire_and_release(&lock).await;
            }
            ours.push(started.elapsed() / BATCH);
        }
    });
    ours.sort();
    floors.sort();
    let (ours, floor) = (ours[ROUNDS / 2], floors[ROUNDS / 2]);
    let ratio = ours.as_secs_f64() / floor.as_secs_f64();
    println!("{name}: acquire and release {ours:?}, floor {floor:?}, ratio {ratio:.2}");
}

fn fresh(directory: &str) -> (TempDir, PathBuf) {
    let directory = TempDir::new_in(directory).expect("a directory to measure in");
    let path = directory.path().join("bench.lock");
    (directory, path)
}

#[divan::bench(args = DIRECTORIES)]
fn raw_system_calls(bencher: Bencher<'_, '_>, (_, directory): (&str, &str)) {
    let (_directory, path) = fresh(directory);
    bencher.bench_local(|| floor(&path));
}

#[divan::bench(args = DIRECTORIES)]
fn pinned(bencher: Bencher<'_, '_>, (_, directory): (&str, &str)) {
    bench_lock(bencher, directory, FileOptions::default());
}

#[divan::bench(args = DIRECTORIES)]
fn portable(bencher: Bencher<'_, '_>, (_, directory): (&str, &str)) {
    bench_lock(bencher, directory, FileOptions::default().proof(Proof::Process));
}

fn bench_lock(bencher: Bencher<'_, '_>, directory: &str, options: FileOptions) {
    let (_directory, path) = fresh(directory);
    let runtime = current_thread();
    let lock = AsyncFileLock::with_options(path, options).expect("possible options");
    bencher.bench_local(|| runtime.block_on(acquire_and_release(&lock)));
}
