//! Kernel locks shared with other programs: flock(1), Python's `fcntl`, a
//! script that does as lockmgr does, apt-get.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lockkeeper::{AsyncKernelLock, KernelGuard, KernelOptions, LostReason, Primitive};
use tokio::time::timeout;

use support::{Process, QUIET, VERY_LONG, block_on, on_disk, on_tmpfs, role, tell, told};

fn of(primitive: Primitive, path: &Path) -> AsyncKernelLock {
    let options = KernelOptions::default().primitive(primitive);
    AsyncKernelLock::with_options(path, options).unwrap()
}

fn acquired(lock: &AsyncKernelLock) -> KernelGuard {
    block_on(lock.acquire_timeout(VERY_LONG)).expect("it becomes free")
}

fn is_busy(lock: &AsyncKernelLock) -> bool {
    block_on(lock.try_acquire()).unwrap().is_none()
}

/// flock(1) that holds until its standard input is closed.
fn flock(flags: &[&str], path: &Path) -> Process {
    let mut command = Command::new("flock");
    command.args(flags).arg(path).args(["sh", "-c", "echo @inside; read line; exit 0"]);
    Process::start(command)
}

/// The status of flock(1) with this command.
fn flock_status(flags: &[&str], path: &Path) -> i32 {
    let mut command = Command::new("flock");
    let status = command.args(flags).arg(path).arg("true").status();
    status.expect("flock(1), which tests/setup.sh sets up").code().expect("it ends by itself")
}

fn python(script: &str, arguments: &[&str]) -> Process {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let environment = home.join("target/python/openlock-1.2.1/bin/python");
    let mut command = match environment.exists() {
        true => Command::new(environment),
        false => Command::new("python3"),
    };
    command.arg(home.join("tests/kernel").join(script)).args(arguments);
    Process::start(command)
}

#[test]
fn flock_1_excludes_us_and_we_exclude_it() {
    for directory in [on_tmpfs(), on_disk()] {
        let path = directory.path().join("shared.lock");
        let lock = of(Primitive::Flock, &path);
        let guard = acquired(&lock);
        assert_eq!(flock_status(&["-n"], &path), 1);
        assert_eq!(flock_status(&["-n", "-s", "-E", "42"], &path), 42);
        let waiting = flock(&[], &path);
        waiting.expect_quiet();
        drop(guard);
        waiting.expect("inside");
        assert!(is_busy(&lock));
        assert!(block_on(lock.try_acquire_shared()).unwrap().is_none());
        let seen = block_on(lock.holder()).unwrap().expect("it is held");
        assert_eq!(seen.pid, Some(waiting.id()));
        assert_eq!(seen.name.as_deref(), Some("flock"));
        drop(waiting);
        drop(acquired(&lock));
    }
}

#[test]
fn flock_1_shares_with_us() {
    let directory = on_tmpfs();
    let path = directory.path().join("shared.lock");
    let lock = of(Primitive::Flock, &path);
    let reader = block_on(lock.acquire_shared()).unwrap();
    assert_eq!(flock_status(&["-s", "-n"], &path), 0);
    assert_eq!(flock_status(&["-n"], &path), 1);
    let other = flock(&["-s"], &path);
    other.expect("inside");
    drop(reader);
    assert!(is_busy(&lock));
    drop(block_on(lock.try_acquire_shared()).unwrap().expect("flock(1) shares it"));
}

/// flock(1) opens the file for reading, whose close is no event to us: its end is.
#[test]
fn the_end_of_flock_1_lets_us_in() {
    let directory = on_tmpfs();
    let path = directory.path().join("shared.lock");
    let mut holder = flock(&[], &path);
    holder.expect("inside");
    let lock = of(Primitive::Flock, &path);
    block_on(async {
        let mut waiting = std::pin::pin!(lock.acquire());
        assert!(timeout(Duration::from_secs(11), &mut waiting).await.is_err());
        holder.hang_up();
        // By looking alone it would be some nine seconds.
        drop(timeout(Duration::from_secs(7), waiting).await.expect("an event").unwrap());
    });
}

#[test]
fn python_excludes_us_and_we_exclude_it() {
    let directory = on_tmpfs();
    for (how, primitive) in [("flock", Primitive::Flock), ("lockf", Primitive::Ofd)] {
        let path = directory.path().join(format!("{how} {primitive:?}"));
        let lock = of(primitive, &path);
        let guard = acquired(&lock);
        let mut other = python("player.py", &[how, path.to_str().unwrap()]);
        other.expect_quiet();
        drop(guard);
        other.expect("held");
        assert!(is_busy(&lock), "{how} {primitive:?}");
        let seen = block_on(lock.holder()).unwrap().expect("it is held");
        assert_eq!(seen.pid, Some(other.id()), "{how} {primitive:?}");
        // Unlocking without closing is found by looking, closing by an event.
        other.tell("unlock");
        other.expect("done");
        drop(acquired(&lock));
        other.hang_up();
    }
}

#[test]
fn a_holder_that_unlocks_without_closing_is_noticed_while_we_wait() {
    let directory = on_tmpfs();
    for (how, primitive) in [("flock", Primitive::Flock), ("lockf", Primitive::Ofd)] {
        let path = directory.path().join(how);
        let mut other = python("player.py", &[how, path.to_str().unwrap()]);
        other.expect("held");
        let lock = of(primitive, &path);
        block_on(async {
            let mut waiting = std::pin::pin!(lock.acquire_timeout(VERY_LONG));
            assert!(timeout(QUIET, &mut waiting).await.is_err());
            other.tell("unlock");
            drop(waiting.await.unwrap());
        });
    }
}

/// A local file system's `flock` does not see fcntl's locks: the docs say so.
#[test]
fn flock_and_fcntl_do_not_see_each_other_here() {
    let directory = on_tmpfs();
    let path = directory.path().join("both.lock");
    let _flock = acquired(&of(Primitive::Flock, &path));
    let posix = python("player.py", &["lockf", path.to_str().unwrap()]);
    posix.expect("held");
    assert!(is_busy(&of(Primitive::Ofd, &path)));
}

fn deleting(path: &Path) -> AsyncKernelLock {
    let options = KernelOptions::default().delete_on_release(true);
    AsyncKernelLock::with_options(path, options).unwrap()
}

/// One that unlinks first excludes and is excluded.
#[test]
fn a_script_that_deletes_safely_takes_turns_with_us() {
    let directory = on_tmpfs();
    let path = directory.path().join("deleted.lock");
    let lock = deleting(&path);
    for _ in 0..3 {
        let guard = acquired(&lock);
        let mut other = python("deleter.py", &[path.to_str().unwrap(), "safe", "1"]);
        other.expect_quiet();
        drop(guard);
        other.expect("held");
        assert!(is_busy(&lock));
        let ours = lock.clone();
        let waiter = std::thread::spawn(move || acquired(&ours));
        std::thread::sleep(QUIET);
        assert!(!waiter.is_finished());
        other.tell("release");
        other.expect("released");
        drop(waiter.join().unwrap());
        assert!(!path.exists());
    }
}

/// lockmgr unlocks before it unlinks. Whoever locks in between has its file
/// unlinked, and the next comes in beside it. We cannot prevent it, and tell.
#[test]
fn the_race_of_a_script_that_unlocks_before_it_deletes_is_told() {
    let directory = on_tmpfs();
    let path = directory.path().join("deleted.lock");
    let lock = deleting(&path);
    let mut other = python("deleter.py", &[path.to_str().unwrap(), "slow", "1"]);
    other.expect("held");
    assert!(is_busy(&lock), "until it unlocks, it excludes");
    other.tell("release");
    other.expect("unlocked");
    let guard = acquired(&lock);
    assert!(is_busy(&lock));
    other.tell("unlink");
    other.expect("released");
    // As another process could: this one does not take its own task's place.
    let other = of(Primitive::Flock, &path);
    let second = block_on(other.try_acquire()).unwrap().expect("the path names nothing");
    let lost = block_on(async { timeout(VERY_LONG, guard.lost()).await }).expect("it is told");
    assert_eq!(lost.reason, LostReason::Replaced);
    drop((guard, second));
}

/// Needs root and a dpkg that nobody uses at the moment.
#[test]
fn apt_get_waits_for_us() {
    const LOCK: &str = "/var/lib/dpkg/lock-frontend";
    let skip = |why: &str| eprintln!("SKIPPED: apt-get against a held {LOCK}: {why}");
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || !Path::new(LOCK).exists() || Command::new("apt-get").arg("-v").output().is_err()
    {
        return skip("needs root, apt-get and that file");
    }
    let lock = of(Primitive::Ofd, Path::new(LOCK));
    let Some(guard) = block_on(lock.try_acquire()).unwrap() else {
        return skip("somebody has it");
    };
    let mut install = Command::new("apt-get");
    // Nothing would be installed or removed: the package does not exist.
    let arguments = ["-o", "DPkg::Lock::Timeout=0", "remove", "lockkeeper-no-such-package"];
    install.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    let output = install.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("Could not get lock"), "{message}");
    drop(guard);
    let output = install.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("Could not get lock"), "{message}");
}

/// Processes that cannot see each other's ids exclude each other all the same.
#[test]
fn a_container_excludes_and_its_death_lets_in() {
    const TEST: &str = "a_container_excludes_and_its_death_lets_in";
    if let Some((_, path)) = role() {
        let guard = acquired(&of(Primitive::Flock, &path));
        tell("held");
        told();
        drop(guard);
        return;
    }
    let directory = on_tmpfs();
    let path: PathBuf = directory.path().join("shared.lock");
    let inside = support::player(TEST, "holder", &path);
    let Some(inside) = support::in_a_pid_namespace(&inside) else { return };
    let mut holder = Process::start(inside);
    holder.expect("held");
    let lock = of(Primitive::Flock, &path);
    assert!(is_busy(&lock));
    assert!(block_on(lock.is_locked()).unwrap());
    let waiter = std::thread::spawn(move || acquired(&lock));
    std::thread::sleep(QUIET);
    assert!(!waiter.is_finished());
    holder.kill();
    drop(waiter.join().unwrap());
    assert!(fs::metadata(&path).unwrap().len() == 0);
}
