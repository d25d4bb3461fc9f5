//! What locks promise, on Windows: with processes of its own, which `tests/wine/run.sh`
//! runs under wine elsewhere. Other tests need what only Unix has.

#![cfg(windows)]
#![allow(clippy::incompatible_msrv, reason = "a newer Rust's own locks are what ours exclude")]

mod process;

use std::fs::{self, File};
use std::future::Future;
use std::os::windows::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use futures::StreamExt;
use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, AtExit, Error, Evidence, FileOptions, KernelOptions, Primitive,
    Proof, Status,
};
use process::{HOUR, Process, block_on, names_in, tell, told};
use tempfile::TempDir;

/// Woken by events alone: no look by the passing of time comes soon enough.
fn patient(path: &Path) -> AsyncFileLock {
    let options = FileOptions::default().retry_period(HOUR).fallback_period(HOUR);
    AsyncFileLock::with_options(path, options).unwrap()
}

fn place() -> TempDir {
    TempDir::new().expect("a directory")
}

/// Not a test: what the other processes do.
#[test]
fn roles() {
    let Some((role, path)) = process::role() else { return };
    match role.as_str() {
        "file" => contend(&path),
        "give-way" => give_way(&path),
        "kernel" => contend_kernel(&path, false),
        "kernel-shared" => contend_kernel(&path, true),
        "many" => acquire_many(&path),
        "std" => lock_by_std(&path),
        other => panic!("{other} is no role"),
    }
}

/// Acquire, say how, and hold until told.
fn contend(path: &Path) {
    tell("contends");
    let guard = block_on(patient(path).acquire()).unwrap();
    match guard.recovered_from() {
        Some(dead) => tell(&format!("held, from {}", dead.pid.unwrap())),
        None => tell("held"),
    }
    if told().is_some() {
        block_on(guard.release()).unwrap();
        tell("released");
        // Its end is not to be what wakes another.
        told();
    }
}

/// Hold until asked to release.
fn give_way(path: &Path) {
    tell("contends");
    block_on(async {
        let guard = patient(path).acquire().await.unwrap();
        tell("held");
        let lost = guard.lost().await;
        tell(&format!("{:?}", lost.reason));
        guard.release().await.unwrap();
    });
    tell("released");
}

fn contend_kernel(path: &Path, is_shared: bool) {
    tell("contends");
    let lock = AsyncKernelLock::new(path);
    let guard = block_on(async {
        match is_shared {
            true => lock.acquire_shared().await,
            false => lock.acquire().await,
        }
    });
    let guard = guard.unwrap();
    tell("held");
    if told().is_some() {
        block_on(guard.release()).unwrap();
        tell("released");
        // Its end is not to be what wakes another.
        told();
    }
}

fn lock_by_std(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.lock().unwrap();
    tell("held");
    told();
}

fn holder(role: &str, path: &Path) -> Process {
    let holder = Process::play(role, path);
    if role != "std" {
        holder.expect("contends");
    }
    holder.expect("held");
    holder
}

fn waiter(role: &str, path: &Path) -> Process {
    let waiter = Process::play(role, path);
    waiter.expect("contends");
    waiter.expect_quiet();
    waiter
}

#[test]
fn one_process_has_it_at_a_time_and_a_release_leaves_nothing() {
    let place = place();
    let path = place.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    let mut other = holder("file", &path);
    block_on(async {
        assert!(lock.try_acquire().await.unwrap().is_none());
        let Status::Held(holder) = lock.status().await.unwrap() else { panic!("not held") };
        assert_eq!(holder.pid, Some(other.id()));
        assert_eq!(holder.evidence, Evidence::KernelLock);
        assert!(holder.name.unwrap().starts_with("windows"));
    });
    other.tell("release");
    other.expect("released");
    block_on(async {
        assert_eq!(lock.status().await.unwrap(), Status::Free);
        assert!(names_in(place.path()).is_empty());
        // Free at once, each time: also while the last file is not closed yet.
        for _ in 0..100 {
            let guard = lock.try_acquire().await.unwrap().expect("it is free");
            assert!(guard.recovered_from().is_none());
            assert!(lock.try_acquire().await.unwrap().is_none());
            guard.release().await.unwrap();
        }
    });
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn a_waiter_is_woken_by_the_release() {
    let place = place();
    let path = place.path().join("a.lock");
    let mut holder = holder("file", &path);
    let mut waiter = waiter("file", &path);
    // Changes that do not concern it are heard as well, and are not the last.
    for name in ["one", "other"] {
        let other = place.path().join(name);
        fs::write(&other, name).unwrap();
        waiter.expect_quiet();
        fs::remove_file(&other).unwrap();
    }
    holder.tell("release");
    waiter.expect("held");
    waiter.tell("release");
    waiter.expect("released");
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn a_waiter_is_woken_by_the_death_of_the_holder_and_told_whose_it_was() {
    let place = place();
    let path = place.path().join("a.lock");
    let mut dead = holder("file", &path);
    let mut waiter = waiter("file", &path);
    dead.terminate();
    waiter.expect(&format!("held, from {}", dead.id()));
    // Its own death is told in turn, to a contender that comes later.
    waiter.terminate();
    let guard = block_on(patient(&path).acquire()).unwrap();
    let from = guard.recovered_from().expect("a dead holder");
    assert_eq!((from.pid, &from.evidence), (Some(waiter.id()), &Evidence::KernelLockFree));
    drop(guard);
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn a_holder_that_is_asked_to_release_hears_of_it() {
    let place = place();
    let path = place.path().join("a.lock");
    let holder = holder("give-way", &path);
    let asked = block_on(AsyncFileLock::new(&path).revoke()).unwrap().expect("a holder");
    assert_eq!(asked.pid, Some(holder.id()));
    holder.expect("Revoked");
    holder.expect("released");
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn a_watcher_of_the_status_hears_of_each_change() {
    let place = place();
    let path = place.path().join("a.lock");
    let lock = patient(&path);
    block_on(async {
        let mut changes = lock.watch();
        assert_eq!(changes.next().await.unwrap().unwrap(), Status::Free);
        let mut dead = holder("file", &path);
        let mut next = async || changes.next().await.unwrap().unwrap();
        let held = next().await;
        assert!(matches!(&held, Status::Held(by) if by.pid == Some(dead.id())), "{held:?}");
        dead.terminate();
        let stale = next().await;
        assert!(matches!(&stale, Status::Stale(by) if by.pid == Some(dead.id())), "{stale:?}");
        lock.break_stale().await.unwrap().expect("a dead holder");
        // What it is while it is broken may be told.
        while next().await != Status::Free {}
    });
}

#[test]
fn a_process_that_wine_does_not_end_is_dead_as_well() {
    let place = place();
    let path = place.path().join("a.lock");
    let mut dead = holder("file", &path);
    let waiter = waiter("file", &path);
    if dead.kill_below() {
        waiter.expect(&format!("held, from {}", dead.id()));
    }
}

#[test]
fn the_file_of_a_dead_holder_is_stale_until_it_is_broken() {
    let place = place();
    let path = place.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    let mut dead = holder("file", &path);
    dead.terminate();
    block_on(async {
        let found = lock.status().await.unwrap();
        let Status::Stale(last) = found else { panic!("{found:?}") };
        assert_eq!(last.pid, Some(dead.id()));
        let broken = lock.break_stale().await.unwrap().expect("a dead holder");
        assert_eq!(broken.pid, Some(dead.id()));
        assert_eq!(lock.status().await.unwrap(), Status::Free);
    });
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn the_file_of_a_living_holder_can_be_read_and_neither_removed_nor_renamed() {
    let place = place();
    let path = place.path().join("a.lock");
    let _holder = holder("file", &path);
    let before = fs::read(&path).unwrap();
    assert!(!before.is_empty());
    assert!(fs::remove_file(&path).is_err());
    assert!(fs::rename(&path, place.path().join("b.lock")).is_err());
    let other = place.path().join("other");
    fs::write(&other, "other").unwrap();
    assert!(fs::rename(&other, &path).is_err());
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(block_on(AsyncFileLock::new(&path).is_locked()).unwrap());
}

/// While a program reads the file without letting others remove it, the lock can still be
/// released.
#[test]
fn a_reader_does_not_keep_the_lock_from_the_next_holder() {
    let place = place();
    let path = place.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    block_on(async {
        let guard = lock.acquire().await.unwrap();
        let reader = File::open(&path).unwrap();
        guard.release().await.unwrap();
        let guard = lock.try_acquire().await.unwrap().expect("it is free");
        guard.release().await.unwrap();
        drop(reader);
    });
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn a_dropped_future_leaves_nothing() {
    let place = place();
    let path = place.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    block_on(async {
        let guard = lock.acquire().await.unwrap();
        for _ in 0..20 {
            let mut waiting = pin!(lock.acquire());
            assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert_eq!(names_in(place.path()), ["a.lock"]);
        guard.release().await.unwrap();
        for micros in 0..50 {
            let limit = Duration::from_micros(micros * 10);
            drop(tokio::time::timeout(limit, lock.acquire()).await);
        }
        lock.acquire_timeout(process::VERY_LONG).await.unwrap().release().await.unwrap();
    });
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn data_of_another_program_is_refused_and_left_as_it_is() {
    let place = place();
    let path = place.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    fs::write(&path, "the last will of somebody, on two\nlines").unwrap();
    block_on(async {
        let refused = lock.try_acquire().await.expect_err("refused");
        assert!(matches!(refused, Error::NotALockFile { .. }), "{refused:?}");
        assert!(lock.break_stale().await.is_err());
    });
    assert_eq!(fs::read(&path).unwrap(), b"the last will of somebody, on two\nlines");
    let directory = AsyncFileLock::new(place.path());
    let refused = block_on(directory.try_acquire()).expect_err("refused");
    assert!(matches!(refused, Error::NotALockFile { .. }), "{refused:?}");
    let nowhere = AsyncFileLock::new(place.path().join("no such").join("a.lock"));
    let refused = block_on(nowhere.try_acquire()).expect_err("refused");
    assert!(matches!(refused, Error::NoDirectory { .. }), "{refused:?}");
    for name in ["a.lock:stream", "a?.lock"] {
        let refused = block_on(AsyncFileLock::new(place.path().join(name)).try_acquire());
        let refused = refused.expect_err("refused");
        assert!(matches!(refused, Error::BadPath { .. }), "{name}: {refused:?}");
    }
}

/// As a virus scanner, a backup or an office program has it.
#[test]
fn a_file_that_another_program_does_not_share_is_waited_for() {
    let place = place();
    let path = place.path().join("a.data");
    let theirs = File::options().write(true).create_new(true).share_mode(0).open(&path).unwrap();
    let options = KernelOptions::default().retry_period(Duration::from_millis(20));
    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
    block_on(async {
        let late = lock.acquire_timeout(Duration::from_millis(200)).await;
        assert!(late.is_err(), "it was locked");
        let mut waiting = pin!(lock.acquire());
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(theirs);
        waiting.await.unwrap().release().await.unwrap();
    });
}

#[test]
fn two_spellings_of_one_name_are_one_lock() {
    let place = place();
    let [one, other] = ["a.lock", "A.LOCK"].map(|name| AsyncFileLock::new(place.path().join(name)));
    let refused = block_on(lockkeeper::acquire_all([&one, &other])).expect_err("refused");
    assert!(matches!(refused, Error::SameLockTwice { .. }), "{refused:?}");
    assert!(names_in(place.path()).is_empty());
}

#[test]
fn what_the_system_cannot_do_is_refused() {
    let path = Path::new("a.lock");
    let file = |options| AsyncFileLock::with_options(path, options).expect_err("refused");
    for refused in [
        file(FileOptions::default().openlock_compat(true)),
        file(FileOptions::default().proof(Proof::Process)),
        file(FileOptions::default().at_exit(AtExit::Remove)),
        AsyncKernelLock::with_options(path, KernelOptions::default().primitive(Primitive::Ofd))
            .expect_err("refused"),
    ] {
        assert!(matches!(refused, Error::InvalidOption { .. }), "{refused:?}");
    }
    let place = place();
    let lock = AsyncFileLock::new(place.path().join("a.lock"));
    assert!(block_on(lock.acquire()).unwrap().lock_fd().is_none());
}

const ACQUISITIONS: u32 = 50;

/// What two at a time would spoil.
fn acquire_many(path: &Path) {
    let lock = AsyncFileLock::new(path);
    let number = path.with_extension("number");
    block_on(async {
        for _ in 0..ACQUISITIONS {
            let guard = lock.acquire().await.unwrap();
            let last: u32 = fs::read_to_string(&number).unwrap().parse().unwrap();
            fs::write(&number, (last + 1).to_string()).unwrap();
            guard.release().await.unwrap();
        }
    });
    tell("done");
}

#[test]
fn no_two_processes_are_in_at_a_time() {
    const PROCESSES: u32 = 4;
    let place = place();
    let path = place.path().join("a.lock");
    fs::write(path.with_extension("number"), "0").unwrap();
    let processes: Vec<_> = (0..PROCESSES).map(|_| Process::play("many", &path)).collect();
    processes.iter().for_each(|process| process.expect("done"));
    let number = fs::read_to_string(path.with_extension("number")).unwrap();
    assert_eq!(number, (PROCESSES * ACQUISITIONS).to_string());
    assert_eq!(names_in(place.path()), ["a.number"]);
}

#[test]
fn kernel_locks_exclude_each_other_and_those_of_rusts_library() {
    let place = place();
    let path = place.path().join("data");
    fs::write(&path, "data").unwrap();
    let lock = AsyncKernelLock::new(&path);
    let free = || File::options().read(true).write(true).open(&path).unwrap().try_lock().is_ok();
    block_on(async {
        let guard = lock.acquire().await.unwrap();
        assert!(!free());
        guard.release().await.unwrap();
        assert!(free());
        let shared = lock.acquire_shared().await.unwrap();
        let file = File::open(&path).unwrap();
        file.try_lock_shared().unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none());
        file.unlock().ok();
        drop(file);
        shared.release().await.unwrap();
        let guard = lock.acquire().await.unwrap().downgrade().await.unwrap();
        File::open(&path).unwrap().try_lock_shared().unwrap();
        guard.release().await.unwrap();
        assert!(free());
    });
    for role in ["kernel", "std"] {
        let mut other = holder(role, &path);
        assert!(block_on(lock.try_acquire()).unwrap().is_none(), "{role}");
        assert!(block_on(lock.try_acquire_shared()).unwrap().is_none(), "{role}");
        other.terminate();
        drop(block_on(lock.acquire_timeout(process::VERY_LONG)).unwrap());
    }
    let refused = block_on(AsyncKernelLock::new(place.path()).try_acquire()).expect_err("refused");
    assert!(matches!(refused, Error::NotALockFile { .. }), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

/// There is no event of that: it looks.
#[test]
fn a_waiter_for_a_kernel_lock_gets_it_after_a_release_and_after_a_death() {
    let place = place();
    let path = place.path().join("data");
    let mut first = holder("kernel", &path);
    let mut second = waiter("kernel", &path);
    first.tell("release");
    second.expect("held");
    let third = waiter("kernel", &path);
    second.terminate();
    third.expect("held");
}
