//! Raw `fork` with a guard in hand: the child can neither end its parent's
//! hold nor, once that was released, prolong it.

// A raw fork is what is tested. Each is made by a process that plays a role,
// whose other threads are idle.
#![allow(unsafe_code)]

mod support;

use std::path::Path;

use lockkeeper::{AsyncFileLock, AtExit, Error, Evidence, FileGuard, FileOptions, Proof};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use support::{Process, block_on};

/// As a role names it.
const PINS: [&str; 2] = ["pinned", "portable"];

fn lock(pin: &str, path: &Path) -> AsyncFileLock {
    let pin = if pin == "pinned" { Proof::KernelLock } else { Proof::Process };
    let options = FileOptions::default().proof(pin).at_exit(AtExit::Remove);
    AsyncFileLock::with_options(path, options).unwrap()
}

/// Acquire and fork. The child does `act` and ends as `std::process::exit` does.
fn fork_holding(pin: &str, path: &Path, act: impl FnOnce(FileGuard)) -> (FileGuard, Pid) {
    let guard = lock(pin, path).blocking_acquire().unwrap();
    // SAFETY: the other threads of this process are idle and keep no lock.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => (guard, child),
        ForkResult::Child => {
            act(guard);
            std::process::exit(0);
        }
    }
}

/// In the parent: the child is gone, release when told.
fn outlive((guard, child): (FileGuard, Pid)) {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
    support::tell("the child is gone");
    support::told();
    block_on(guard.release()).expect("the hold and its file are as they were");
    support::tell("released");
}

/// What the child did left the hold and its file alone.
fn is_left_alone(parent: &mut Process, pin: &str, path: &Path) {
    let directory = path.parent().unwrap();
    parent.expect("the child is gone");
    let lock = lock(pin, path);
    assert_eq!(support::names_in(directory), ["a.lock"]);
    assert_eq!(block_on(lock.holder()).unwrap().unwrap().pid, Some(parent.id()));
    assert!(block_on(lock.try_acquire()).unwrap().is_none());
    parent.tell("release");
    parent.expect("released");
    assert!(support::names_in(directory).is_empty());
    let guard = block_on(lock.try_acquire()).unwrap().expect("it was released");
    assert_eq!(guard.recovered_from(), None);
}

#[test]
fn a_child_that_drops_the_guard_does_not_end_the_hold() {
    const TEST: &str = "a_child_that_drops_the_guard_does_not_end_the_hold";
    if let Some((pin, path)) = support::role() {
        return outlive(fork_holding(&pin, &path, drop));
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        is_left_alone(&mut Process::play(TEST, pin, &path), pin, &path);
    }
}

#[test]
fn a_child_that_releases_the_guard_is_refused() {
    const TEST: &str = "a_child_that_releases_the_guard_is_refused";
    if let Some((pin, path)) = support::role() {
        return outlive(fork_holding(&pin, &path, |guard| match block_on(guard.release()) {
            Err(Error::Forked { holder, .. }) => support::tell(&format!("held by {holder}")),
            other => support::tell(&format!("{other:?}")),
        }));
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut parent = Process::play(TEST, pin, &path);
        parent.expect(&format!("held by {}", parent.id()));
        is_left_alone(&mut parent, pin, &path);
    }
}

#[test]
fn a_child_that_exits_does_not_remove_the_file() {
    const TEST: &str = "a_child_that_exits_does_not_remove_the_file";
    if let Some((pin, path)) = support::role() {
        // Still held when the child runs its exit handlers.
        return outlive(fork_holding(&pin, &path, std::mem::forget));
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        is_left_alone(&mut Process::play(TEST, pin, &path), pin, &path);
    }
}

#[test]
fn a_child_contends_for_itself() {
    const TEST: &str = "a_child_contends_for_itself";
    if let Some((pin, path)) = support::role() {
        return outlive(fork_holding(&pin, &path, |_inherited| {
            let lock = lock(&pin, &path);
            let is_busy = block_on(lock.try_acquire()).unwrap().is_none();
            let other = lock.path().with_extension("other");
            let own = block_on(AsyncFileLock::new(other).try_acquire()).unwrap();
            support::tell(&format!("busy: {is_busy}, another is free: {}", own.is_some()));
        }));
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut parent = Process::play(TEST, pin, &path);
        parent.expect("busy: true, another is free: true");
        is_left_alone(&mut parent, pin, &path);
    }
}

/// Stay until the test hangs up.
fn stay(inherited: FileGuard) {
    support::told();
    std::mem::forget(inherited);
}

fn lives(child: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_child_that_keeps_the_descriptor_does_not_outlast_a_release() {
    const TEST: &str = "a_child_that_keeps_the_descriptor_does_not_outlast_a_release";
    if let Some((pin, path)) = support::role() {
        let (guard, child) = fork_holding(&pin, &path, stay);
        block_on(guard.release()).unwrap();
        support::tell(&child.to_string());
        waitpid(child, None).unwrap();
        return;
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut parent = Process::play(TEST, pin, &path);
        let child = parent.next();
        let guard = block_on(lock(pin, &path).try_acquire()).unwrap().expect("it was released");
        assert!(lives(&child));
        assert_eq!(guard.recovered_from(), None);
        assert!(parent.wait().success());
    }
}

#[test]
fn a_child_that_keeps_the_descriptor_keeps_the_lock_of_a_killed_parent() {
    const TEST: &str = "a_child_that_keeps_the_descriptor_keeps_the_lock_of_a_killed_parent";
    if let Some((pin, path)) = support::role() {
        let (_guard, child) = fork_holding(&pin, &path, stay);
        support::tell(&child.to_string());
        waitpid(child, None).unwrap();
        return;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut parent = Process::play(TEST, "pinned", &path);
    let child = parent.next();
    parent.kill();
    let lock = lock("pinned", &path);
    assert!(block_on(lock.acquire_timeout(support::QUIET)).is_err(), "the child keeps it");
    assert!(lives(&child));
    assert_eq!(block_on(lock.holder()).unwrap().unwrap().evidence, Evidence::Inherited);
    parent.hang_up();
    let guard = block_on(lock.acquire_timeout(support::VERY_LONG)).unwrap();
    assert_eq!(guard.recovered_from().unwrap().pid, Some(parent.id()));
}

#[test]
fn the_portable_lock_of_a_killed_parent_is_free_whatever_its_children_do() {
    const TEST: &str = "the_portable_lock_of_a_killed_parent_is_free_whatever_its_children_do";
    if let Some((pin, path)) = support::role() {
        let (_guard, child) = fork_holding(&pin, &path, stay);
        support::tell(&child.to_string());
        waitpid(child, None).unwrap();
        return;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut parent = Process::play(TEST, "portable", &path);
    let child = parent.next();
    parent.kill();
    let guard = block_on(lock("portable", &path).try_acquire()).unwrap().expect("it is free");
    assert!(lives(&child));
    assert_eq!(guard.recovered_from().unwrap().pid, Some(parent.id()));
    parent.hang_up();
}
