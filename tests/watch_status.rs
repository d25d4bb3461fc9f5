//! `AsyncFileLock::watch`: the status of a lock, each time that it changes.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lockkeeper::{
    AsyncFileLock, Error, Evidence, FileOptions, Holder, Offload, Proof, Status, StatusChanges,
};
use support::{HOUR, Process, VERY_LONG, block_on, kernel_locks, on_tmpfs};
use tokio::time::timeout;

/// Many times what a watcher takes to look twice. Should it take longer, a test
/// tests less.
const ASLEEP: Duration = Duration::from_millis(200);

/// Only events are a reason to look.
fn by_events() -> FileOptions {
    FileOptions::default().retry_period(HOUR).fallback_period(HOUR)
}

fn with(path: &Path, options: FileOptions) -> AsyncFileLock {
    AsyncFileLock::with_options(path, options).unwrap()
}

fn watch(path: &Path) -> StatusChanges {
    with(path, by_events()).watch()
}

async fn next(changes: &mut StatusChanges) -> Result<Status, Error> {
    timeout(VERY_LONG, changes.next()).await.expect("it was not told").expect("it goes on")
}

/// It has looked, and waits for an event.
async fn asleep(changes: &mut StatusChanges) {
    let told = timeout(ASLEEP, changes.next()).await;
    assert!(told.is_err(), "nothing has changed: {told:?}");
}

async fn held(changes: &mut StatusChanges) -> Holder {
    match next(changes).await.unwrap() {
        Status::Held(holder) => holder,
        status => panic!("{status:?}"),
    }
}

/// Holds as it is told to, until its input ends.
fn play((role, path): (String, std::path::PathBuf)) {
    let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
    let lock = with(&path, FileOptions::default().note("at work").proof(pin));
    block_on(async {
        while let Some(word) = support::told() {
            let guard = timeout(VERY_LONG, lock.acquire()).await.expect("in time").unwrap();
            assert_eq!(word, "acquire");
            support::tell("held");
            if support::told().is_none() {
                return;
            }
            guard.release().await.unwrap();
            support::tell("released");
        }
    });
}

fn holder(test: &str, path: &Path) -> Process {
    Process::play(test, "holder", path)
}

fn acquire(process: &mut Process) {
    process.tell("acquire");
    process.expect("held");
}

fn release(process: &mut Process) {
    process.tell("release");
    process.expect("released");
}

#[tokio::test]
async fn what_another_process_does_is_told_as_it_happens() {
    const TEST: &str = "what_another_process_does_is_told_as_it_happens";
    if let Some(role) = support::role() {
        return std::thread::spawn(|| play(role)).join().unwrap();
    }
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let (mut one, mut changes) = (holder(TEST, &path), watch(&path));
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    for _ in 0..3 {
        asleep(&mut changes).await;
        acquire(&mut one);
        let seen = held(&mut changes).await;
        assert_eq!((seen.pid, seen.note.as_deref()), (Some(one.id()), Some("at work")));
        assert_eq!(seen.evidence, Evidence::KernelLock);
        asleep(&mut changes).await;
        release(&mut one);
        assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    }
}

#[tokio::test]
async fn a_killed_holder_is_seen_stale_and_then_who_takes_the_file_over() {
    const TEST: &str = "a_killed_holder_is_seen_stale_and_then_who_takes_the_file_over";
    if let Some(role) = support::role() {
        return std::thread::spawn(|| play(role)).join().unwrap();
    }
    // On a file system with unnamed files and on one with others.
    for directory in [on_tmpfs(), support::on_disk()] {
        let path = directory.path().join("a.lock");
        let [mut dead, mut next_one] = [(); 2].map(|()| holder(TEST, &path));
        let mut changes = watch(&path);
        assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
        acquire(&mut dead);
        assert_eq!(held(&mut changes).await.pid, Some(dead.id()));
        asleep(&mut changes).await;
        dead.kill();
        let stale = next(&mut changes).await.unwrap();
        let Status::Stale(seen) = &stale else { panic!("{stale:?}") };
        assert_eq!((seen.pid, &seen.evidence), (Some(dead.id()), &Evidence::KernelLockFree));
        asleep(&mut changes).await;
        acquire(&mut next_one);
        assert_eq!(held(&mut changes).await.pid, Some(next_one.id()));
        asleep(&mut changes).await;
        // The file was opened by its name this time.
        next_one.kill();
        let stale = next(&mut changes).await.unwrap();
        assert!(matches!(&stale, Status::Stale(seen) if seen.pid == Some(next_one.id())));
        asleep(&mut changes).await;
        fs::remove_file(&path).unwrap();
        assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    }
}

/// Its file is not open, so that no close tells of its death.
#[tokio::test]
async fn the_death_of_a_portable_holder_is_told() {
    const TEST: &str = "the_death_of_a_portable_holder_is_told";
    if let Some(role) = support::role() {
        return std::thread::spawn(|| play(role)).join().unwrap();
    }
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let (mut dead, mut changes) = (Process::play(TEST, "portable", &path), watch(&path));
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    asleep(&mut changes).await;
    acquire(&mut dead);
    assert_eq!(held(&mut changes).await.evidence, Evidence::ProcessRuns);
    asleep(&mut changes).await;
    dead.kill();
    assert!(matches!(next(&mut changes).await.unwrap(), Status::Stale(_)));
}

#[tokio::test]
async fn the_file_and_the_death_of_another_program_are_told() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut program = Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn().unwrap();
    let mut changes = watch(&path);
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    asleep(&mut changes).await;
    // In one step: an empty file is one that nobody holds.
    let other = directory.path().join("other");
    fs::write(&other, format!("{}\nsleep\n", program.id())).unwrap();
    fs::rename(other, &path).unwrap();
    let seen = held(&mut changes).await;
    assert!(seen.is_foreign() && seen.pid == Some(program.id()));
    asleep(&mut changes).await;
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(matches!(next(&mut changes).await.unwrap(), Status::Stale(_)));
}

#[tokio::test]
async fn a_slow_reader_is_told_the_last_state_once() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let (lock, mut changes) = (AsyncFileLock::new(&path), watch(&path));
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    for _ in 0..20 {
        lock.acquire().await.unwrap().release().await.unwrap();
    }
    let guard = lock.acquire().await.unwrap();
    assert_eq!(held(&mut changes).await.hold_id, Some(guard.hold_id()));
    // And nothing more.
    let quiet = timeout(support::QUIET, changes.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // Nothing has changed when it looks again.
    guard.release().await.unwrap();
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    lock.acquire().await.unwrap().release().await.unwrap();
    let quiet = timeout(support::QUIET, changes.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn no_two_items_in_a_row_are_equal() {
    const TEST: &str = "no_two_items_in_a_row_are_equal";
    const ITEMS: usize = 40;
    if let Some((_, path)) = support::role() {
        let contend = async move {
            let lock = with(&path, FileOptions::default().local_handoff(Duration::ZERO));
            support::tell("busy");
            loop {
                let guard = lock.acquire().await.unwrap();
                tokio::time::sleep(Duration::from_millis(3)).await;
                guard.release().await.unwrap();
            }
        };
        return std::thread::spawn(|| block_on(contend)).join().unwrap();
    }
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let contenders = [(); 2].map(|()| holder(TEST, &path));
    contenders.iter().for_each(|contender| contender.expect("busy"));
    let mut changes = watch(&path);
    let mut items = Vec::new();
    while items.len() < ITEMS {
        items.push(next(&mut changes).await.unwrap());
    }
    assert!(items.windows(2).all(|pair| pair[0] != pair[1]));
    let pids: std::collections::HashSet<_> = contenders.iter().map(|one| Some(one.id())).collect();
    for item in &items {
        if let Status::Held(holder) | Status::Stale(holder) = item {
            assert!(pids.contains(&holder.pid), "{item:?}");
            assert_ne!(holder.evidence, Evidence::Inherited);
        }
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// In a process of its own, as other tests have descriptors too.
#[test]
fn watching_takes_no_descriptor_and_leaves_none() {
    const TEST: &str = "watching_takes_no_descriptor_and_leaves_none";
    let Some((role, path)) = support::role() else {
        let directory = on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut other = Process::play(TEST, "holder", &path);
        other.expect("held");
        let mut watcher = Process::play(TEST, "watcher", &path);
        watcher.expect("ended");
        assert!(kernel_locks(directory.path(), "OFDLCK").is_empty());
        assert!(watcher.wait().success());
        other.hang_up();
        return;
    };
    if role == "holder" {
        return block_on(async {
            let guard = AsyncFileLock::new(&path).acquire().await.unwrap();
            support::tell("held");
            support::told();
            drop(guard);
        });
    }
    block_on(async {
        // What the first lock of a process needs.
        assert!(AsyncFileLock::new(&path).is_locked().await.unwrap());
        let before = descriptors();
        let mut watchers = Vec::new();
        for _ in 0..50 {
            let mut changes = watch(&path);
            held(&mut changes).await;
            assert!(changes.next().now_or_never().is_none());
            watchers.push(changes);
        }
        assert_eq!(descriptors(), before);
        assert!(kernel_locks(path.parent().unwrap(), "OFDLCK").is_empty(), "it stands in line");
        drop(watchers);
        assert_eq!(descriptors(), before);
    });
    support::tell("ended");
}

#[tokio::test]
async fn an_error_is_told_and_what_comes_after_it() {
    let top = on_tmpfs();
    let directory = top.path().join("later");
    let path = directory.join("a.lock");
    // Nothing can tell of a directory that is not there.
    let retry_period = Duration::from_millis(5);
    let mut changes = with(&path, FileOptions::default().retry_period(retry_period)).watch();
    assert!(matches!(next(&mut changes).await, Err(Error::NoDirectory { .. })));
    fs::create_dir(&directory).unwrap();
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    let data = directory.join("data");
    fs::write(&data, "precious").unwrap();
    fs::rename(&data, &path).unwrap();
    assert!(matches!(next(&mut changes).await, Err(Error::NotALockFile { .. })));
    fs::remove_file(&path).unwrap();
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    // Another directory in its place.
    let guard = AsyncFileLock::new(&path).acquire().await.unwrap();
    held(&mut changes).await;
    fs::rename(&directory, top.path().join("away")).unwrap();
    assert!(matches!(next(&mut changes).await, Err(Error::NoDirectory { .. })));
    fs::create_dir(&directory).unwrap();
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    drop(guard);
}

#[tokio::test]
async fn a_path_that_can_never_name_a_lock_ends_the_stream() {
    let mut changes = AsyncFileLock::new("/dev/shm/slash/..").watch();
    assert!(matches!(next(&mut changes).await, Err(Error::BadPath { .. })));
    assert!(timeout(VERY_LONG, changes.next()).await.expect("in time").is_none());
    assert!(changes.next().now_or_never().expect("it has ended").is_none());
}

#[tokio::test]
async fn without_events_it_looks_each_retry_period() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let options = FileOptions::default().offload(Offload::Always);
    let lock = with(&path, options.retry_period(Duration::from_millis(5)));
    let mut changes = lock.watch();
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    let guard = lock.acquire().await.unwrap();
    held(&mut changes).await;
    guard.release().await.unwrap();
    assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
}

#[tokio::test(start_paused = true)]
async fn under_a_paused_clock_each_change_is_told() {
    for offload in [Offload::Auto, Offload::Always] {
        let directory = on_tmpfs();
        let path = directory.path().join("a.lock");
        let lock = with(&path, FileOptions::default().offload(offload));
        let mut changes = lock.watch();
        let began = tokio::time::Instant::now();
        assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let guard = lock.acquire().await.unwrap();
        held(&mut changes).await;
        guard.release().await.unwrap();
        assert_eq!(next(&mut changes).await.unwrap(), Status::Free);
    }
}

#[test]
fn a_stream_can_be_kept_anywhere() {
    fn is_shared<T: Send + Sync + Unpin + std::fmt::Debug + 'static>(_: &T) {}
    is_shared(&watch(Path::new("/dev/shm/a.lock")));
}
