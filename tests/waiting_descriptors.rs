//! What waiting costs in open files: one for each directory and one for each
//! process that is waited for, and a few for the process that waits, however many
//! locks are waited for. Afterwards nothing is left.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, FileOptions, Proof};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{HOUR, Process, eventually, kernel_locks};
use tokio::task::JoinSet;

const LOCKS: usize = 40;

/// Beside the directory and the holder's process: the pipe by which others hear of this
/// process, and at most eight files that are ready to become lock files.
const OF_A_PROCESS: usize = 1 + 8;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The locks of a kind in a directory.
fn path(directory: &Path, number: usize) -> std::path::PathBuf {
    directory.join(format!("{number}.lock"))
}

fn file_lock(kind: &str, path: &Path) -> AsyncFileLock {
    let pin = if kind == "portable" { Proof::Process } else { Proof::Auto };
    let options = FileOptions::default().proof(pin).retry_period(HOUR).fallback_period(HOUR);
    AsyncFileLock::with_options(path, options).unwrap()
}

/// Hold all of them until told.
async fn hold(kind: &str, directory: &Path) {
    let (mut files, mut kernel) = (Vec::new(), Vec::new());
    for number in 0..LOCKS {
        let path = path(directory, number);
        match kind {
            "kernel" => kernel.push(AsyncKernelLock::new(path).acquire().await.unwrap()),
            _ => files.push(file_lock(kind, &path).acquire().await.unwrap()),
        }
    }
    support::tell("held");
    support::told();
    drop((files, kernel));
    support::tell("released");
    support::told();
}

async fn acquire(kind: &str, directory: &Path, number: usize) {
    let path = path(directory, number);
    match kind {
        "kernel" => drop(AsyncKernelLock::new(path).acquire().await.unwrap()),
        _ => drop(file_lock(kind, &path).acquire().await.unwrap()),
    }
}

/// Wait for all of them, after this process had them all itself if it `had_them`.
async fn wait(kind: &str, directory: &Path, had_them: bool) {
    if had_them {
        for number in 0..LOCKS {
            acquire(kind, directory, number).await;
        }
    }
    // What is there once for a process that ever waited: what reads events.
    let first = directory.join("first.lock");
    let held = AsyncFileLock::new(&first).acquire().await.unwrap();
    let _ = AsyncFileLock::new(&first).acquire_timeout(Duration::from_millis(1)).await;
    let lost = tokio::time::timeout(Duration::from_millis(1), held.lost()).await;
    assert!(lost.is_err());
    drop(held);
    let before = descriptors();
    support::tell("ready");
    support::told();
    let mut waits = JoinSet::new();
    for number in 0..LOCKS {
        let (kind, directory) = (kind.to_owned(), directory.to_owned());
        waits.spawn(async move { acquire(&kind, &directory, number).await });
    }
    // They have tickets, and have looked since.
    while kernel_locks(directory, "OFDLCK").len() < 2 * LOCKS {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(support::QUIET).await;
    support::tell(&format!("{}", descriptors().saturating_sub(before)));
    waits.join_all().await;
    // What is put away after an acquisition is put away by a task.
    for _ in 0..1000 {
        if descriptors() <= before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    support::tell(&format!("{}", descriptors().saturating_sub(before)));
}

/// The number of open files that waiting took, and that are left.
fn used_and_left(test: &str, kind: &str, had_them: bool) -> (usize, usize) {
    let directory = support::on_tmpfs();
    let role = if had_them { "waits again" } else { "waits" };
    let mut waiter = Process::play(test, &format!("{role},{kind}"), directory.path());
    waiter.expect("ready");
    let mut holder = Process::play(test, &format!("holds,{kind}"), directory.path());
    holder.expect("held");
    waiter.tell("wait");
    let used = waiter.next().parse().unwrap();
    holder.tell("release");
    holder.expect("released");
    let left = waiter.next().parse().unwrap();
    (used, left)
}

#[tokio::test]
async fn many_waits_of_a_process_share_what_is_open() {
    const TEST: &str = "many_waits_of_a_process_share_what_is_open";
    if let Some((role, directory)) = support::role() {
        return match role.split_once(',').unwrap() {
            ("holds", kind) => hold(kind, &directory).await,
            ("waits", kind) => wait(kind, &directory, false).await,
            (_, kind) => wait(kind, &directory, true).await,
        };
    }
    for kind in ["pinned", "portable", "kernel"] {
        for had_them in [false, true] {
            let (used, left) = used_and_left(TEST, kind, had_them);
            println!("{kind}: {LOCKS} waits used {used} descriptors, {left} are left");
            // A kernel lock cannot be looked at but by its open file.
            let files = if kind == "kernel" { LOCKS } else { 0 };
            let (directory, holder) = (1, 1);
            assert!(used <= directory + holder + OF_A_PROCESS + files, "{kind}: {used}");
            assert_eq!(left, 0, "{kind}");
        }
    }
}

/// Wait where two more files can be opened, for the directory and for an attempt, until
/// told; then where they can again.
async fn wait_in_need(path: &Path) {
    let lock = file_lock("pinned", path);
    // What a process has once it waited is open, and so is what it tells with.
    let _ = lock.acquire_timeout(Duration::from_millis(1)).await;
    let told = tokio::task::spawn_blocking(support::told);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..limit }).unwrap();
    let mut others: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    others.truncate(others.len() - 2);
    let waits = tokio::spawn(async move { lock.acquire().await });
    told.await.unwrap();
    drop(others);
    support::tell("no longer");
    drop(waits.await.unwrap().unwrap());
    support::tell("acquired");
}

#[tokio::test]
async fn what_there_was_no_room_for_is_shown_later() {
    const TEST: &str = "what_there_was_no_room_for_is_shown_later";
    if let Some((_, path)) = support::role() {
        return wait_in_need(&path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let guard = AsyncFileLock::new(&path).acquire().await.unwrap();
    let mut waiter = Process::play(TEST, "waits", &path);
    let shown = || kernel_locks(directory.path(), "OFDLCK").len();
    eventually("it stands in line", || shown() > 0);
    tokio::time::sleep(support::QUIET).await;
    eventually("there was room for its pipe alone", || shown() == 1);
    waiter.tell("go on");
    waiter.expect("no longer");
    // A reason to look.
    drop(fs::File::options().append(true).open(&path).unwrap());
    eventually("it can be watched", || shown() == 2);
    guard.release().await.unwrap();
    waiter.expect("acquired");
}
