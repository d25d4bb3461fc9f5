//! SIGKILL: a holder's lock goes to the next, who is told; a waiter leaves nothing.

mod support;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, FileOptions, Proof};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::Process;
use tempfile::TempDir;

const KILLS: u32 = 40;

/// As a role names it.
const PINS: [&str; 2] = ["pinned", "portable"];

fn lock(pin: &str, path: &Path) -> AsyncFileLock {
    let pin = if pin == "pinned" { Proof::KernelLock } else { Proof::Process };
    let options = FileOptions::default().proof(pin).retry_period(Duration::from_millis(5));
    AsyncFileLock::with_options(path, options).unwrap()
}

/// Acquire, say how, and hold until told.
fn contend((pin, path): (String, std::path::PathBuf)) {
    support::tell("contends");
    let guard = lock(&pin, &path).blocking_acquire().unwrap();
    match guard.recovered_from() {
        Some(dead) => support::tell(&format!("acquired from {}", dead.pid.unwrap())),
        None => support::tell("acquired"),
    }
    support::told();
}

fn contender(test: &str, pin: &str, path: &Path) -> Process {
    let contender = Process::play(test, pin, path);
    contender.expect("contends");
    contender
}

fn holder(test: &str, pin: &str, path: &Path) -> Process {
    let holder = contender(test, pin, path);
    holder.expect("acquired");
    holder
}

fn waiter(test: &str, pin: &str, path: &Path) -> Process {
    let waiter = contender(test, pin, path);
    waiter.expect_quiet();
    waiter
}

fn directories() -> [TempDir; 2] {
    [support::on_tmpfs(), support::on_disk()]
}

#[test]
fn a_killed_holders_lock_goes_to_a_waiter_who_is_told_whose_it_was() {
    const TEST: &str = "a_killed_holders_lock_goes_to_a_waiter_who_is_told_whose_it_was";
    if let Some(role) = support::role() {
        return contend(role);
    }
    for directory in directories() {
        for pin in PINS {
            let path = directory.path().join("a.lock");
            let mut holder = holder(TEST, pin, &path);
            let mut waiter = waiter(TEST, pin, &path);
            holder.kill();
            waiter.expect(&format!("acquired from {}", holder.id()));
            assert_eq!(support::names_in(directory.path()), ["a.lock"]);
            assert!(waiter.wait().success());
            assert!(support::names_in(directory.path()).is_empty());
        }
    }
}

#[test]
fn a_killed_waiter_leaves_nothing_and_blocks_nobody() {
    const TEST: &str = "a_killed_waiter_leaves_nothing_and_blocks_nobody";
    if let Some(role) = support::role() {
        return contend(role);
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut holder = holder(TEST, pin, &path);
        let mut first = waiter(TEST, pin, &path);
        let mut second = waiter(TEST, pin, &path);
        first.kill();
        assert_eq!(support::names_in(directory.path()), ["a.lock"]);
        second.expect_quiet();
        holder.hang_up();
        second.expect("acquired");
        assert!(second.wait().success());
        assert!(support::names_in(directory.path()).is_empty());
    }
}

#[test]
fn who_took_over_and_is_killed_is_taken_over_from() {
    const TEST: &str = "who_took_over_and_is_killed_is_taken_over_from";
    if let Some(role) = support::role() {
        return contend(role);
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut last = holder(TEST, pin, &path);
        for _ in 0..3 {
            let next = waiter(TEST, pin, &path);
            last.kill();
            next.expect(&format!("acquired from {}", last.id()));
            last = next;
        }
        assert!(last.wait().success());
        assert!(support::names_in(directory.path()).is_empty());
    }
}

/// Elsewhere than on Linux, each candidate has a name from the start, which a kill leaves.
const CANDIDATES_HAVE_NAMES: bool = cfg!(lockkeeper_generic_unix);

#[tokio::test]
async fn pinned_contenders_killed_at_random_leave_at_most_a_file_that_the_next_takes() {
    const TEST: &str =
        "pinned_contenders_killed_at_random_leave_at_most_a_file_that_the_next_takes";
    if let Some((_, path)) = support::role() {
        let lock = lock("pinned", &path);
        support::tell("contends");
        loop {
            lock.acquire().await.unwrap().release().await.unwrap();
        }
    }
    for directory in directories() {
        let path = directory.path().join("a.lock");
        let lock = lock("pinned", &path);
        let mut left = 0;
        // More of them where no holder was hit yet.
        for round in 0..20 * KILLS {
            if round >= KILLS && left > 0 {
                break;
            }
            let mut contenders = [(); 2].map(|()| contender(TEST, "pinned", &path));
            std::thread::sleep(Duration::from_micros(RandomState::new().hash_one(0) % 5000));
            for contender in &mut contenders {
                contender.kill();
            }
            let names = support::names_in(directory.path());
            let is_candidate = |name: &String| name.starts_with("a.lock.new.");
            let (candidates, names): (Vec<_>, Vec<_>) = names.into_iter().partition(is_candidate);
            assert!(candidates.is_empty() || CANDIDATES_HAVE_NAMES, "{candidates:?}");
            assert!(names.is_empty() || names == ["a.lock"], "{names:?}");
            let guard = lock.try_acquire().await.unwrap().expect("a dead holder's lock is free");
            assert_eq!(guard.recovered_from().is_some(), !names.is_empty());
            left += names.len();
            guard.release().await.unwrap();
            if CANDIDATES_HAVE_NAMES {
                lock.break_stale().await.unwrap();
            }
            assert!(support::names_in(directory.path()).is_empty());
        }
        assert!(left > 0, "no holder was ever hit");
    }
}

/// Else its records would not tell who it is, and nobody could see that it died.
#[test]
fn who_was_short_of_descriptors_once_is_seen_to_be_dead() {
    const TEST: &str = "who_was_short_of_descriptors_once_is_seen_to_be_dead";
    if let Some((role, path)) = support::role() {
        if role == "short" {
            let other = lock("portable", &path.with_file_name("other.lock"));
            // The first look at a directory needs more.
            support::block_on(lock("portable", &path).status()).unwrap();
            let limit = getrlimit(Resource::Nofile);
            let few = Rlimit { current: Some(64), maximum: limit.maximum };
            setrlimit(Resource::Nofile, few).unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let mut all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            // It opens the file, and has none left to look who this is.
            all.pop();
            let _ = runtime.block_on(other.status());
            drop(all);
            setrlimit(Resource::Nofile, limit).unwrap();
        }
        return contend(("portable".to_owned(), path));
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let _other = holder(TEST, "portable", &directory.path().join("other.lock"));
    let mut short = holder(TEST, "short", &path);
    short.kill();
    let next = contender(TEST, "portable", &path);
    next.expect(&format!("acquired from {}", short.id()));
}
