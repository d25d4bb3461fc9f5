//! A guard that goes out of scope gives the lock back, runtime or not, and a
//! release says how that went.

mod support;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use lockkeeper::{AsyncFileLock, Error, FileGuard, FileOptions, Lost, LostReason, Offload, Proof};
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use support::{Process, VERY_LONG, names_in};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// Enough for some to be still on their way.
const MANY: usize = 200;

fn every_kind() -> impl Iterator<Item = FileOptions> {
    [Proof::Auto, Proof::Process].into_iter().flat_map(|pin| {
        [Offload::Never, Offload::Always]
            .map(|offload| FileOptions::default().proof(pin).offload(offload))
    })
}

type MakeRuntime = fn() -> Runtime;

const EVERY_RUNTIME: [MakeRuntime; 2] = [
    || Builder::new_current_thread().enable_all().build().unwrap(),
    || Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
];

fn every_way() -> impl Iterator<Item = (FileOptions, MakeRuntime)> {
    every_kind().flat_map(|options| EVERY_RUNTIME.map(|make| (options.clone(), make)))
}

fn lock_in(directory: &TempDir, options: &FileOptions) -> AsyncFileLock {
    numbered_lock_in(directory, options, 0)
}

fn numbered_lock_in(directory: &TempDir, options: &FileOptions, number: usize) -> AsyncFileLock {
    let path = directory.path().join(format!("{number}.lock"));
    AsyncFileLock::with_options(path, options.clone()).unwrap()
}

async fn many_guards(directory: &TempDir, options: &FileOptions) -> Vec<FileGuard> {
    let mut guards = Vec::new();
    for number in 0..MANY {
        guards.push(numbered_lock_in(directory, options, number).acquire().await.unwrap());
    }
    assert_eq!(names_in(directory.path()).len(), MANY);
    guards
}

#[tokio::test]
async fn a_dropped_guard_gives_the_lock_back() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, &options);
        for _ in 0..10 {
            drop(lock.acquire().await.unwrap());
            let guard = timeout(VERY_LONG, lock.acquire()).await.expect("it is free").unwrap();
            assert_eq!(guard.recovered_from(), None);
            drop(guard);
        }
        lockkeeper::flush().await;
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn inline_the_file_is_gone_when_drop_returns() {
    for pin in [Proof::Auto, Proof::Process] {
        let directory = support::on_tmpfs();
        let options = FileOptions::default().proof(pin).offload(Offload::Never);
        drop(lock_in(&directory, &options).acquire().await.unwrap());
        assert!(names_in(directory.path()).is_empty());
    }
}

#[test]
fn flush_waits_for_every_deletion_that_was_scheduled() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        make_runtime().block_on(async {
            drop(many_guards(&directory, &options).await);
            timeout(VERY_LONG, lockkeeper::flush()).await.unwrap();
            assert!(names_in(directory.path()).is_empty());
            timeout(VERY_LONG, lockkeeper::flush()).await.expect("nothing to wait for");
        });
    }
}

/// What no runtime would do later is done on the spot.
#[test]
fn without_a_runtime_the_file_is_gone_when_drop_returns() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, &options);
        let thread = std::thread::spawn(move || {
            let guard = lock.blocking_acquire().unwrap();
            assert!(lock.path().exists());
            drop(guard);
            assert!(!lock.path().exists());
        });
        thread.join().unwrap();
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn a_thread_waits_for_a_task_and_a_task_for_a_thread() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, &options);
        let guard = lock.acquire().await.unwrap();
        let thread = tokio::task::spawn_blocking({
            let lock = lock.clone();
            move || lock.blocking_acquire().unwrap()
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!thread.is_finished());
        drop(guard);
        let guard = timeout(VERY_LONG, thread).await.unwrap().unwrap();
        let waiter = tokio::spawn(async move { lock.acquire().await.map(drop) });
        tokio::task::spawn_blocking(|| drop(guard)).await.unwrap();
        timeout(VERY_LONG, waiter).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
#[should_panic(expected = "runtime")]
async fn blocking_in_a_task_panics() {
    let directory = support::on_tmpfs();
    let _ = lock_in(&directory, &FileOptions::default()).blocking_acquire();
}

#[test]
fn blocking_has_the_limit_of_the_options() {
    let directory = support::on_tmpfs();
    let options = FileOptions::default().timeout(Duration::from_millis(20));
    let lock = lock_in(&directory, &options);
    let _guard = lock.blocking_acquire().unwrap();
    let error = lock.blocking_acquire().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn a_guard_outlives_its_runtime() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, &options);
        let runtime = make_runtime();
        let task = async move { tokio::spawn(async move { lock.acquire().await.unwrap() }).await };
        let guard = runtime.block_on(task).unwrap();
        drop(runtime);
        assert!(guard.path().exists());
        drop(guard);
        assert!(names_in(directory.path()).is_empty());
    }
}

/// Tasks that hold guards and never end.
fn hold_for_ever(runtime: &Runtime, directory: &TempDir, options: &FileOptions) {
    let guards = runtime.block_on(many_guards(directory, options));
    for guard in guards {
        runtime.spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
    }
    runtime.block_on(tokio::task::yield_now());
}

#[test]
fn the_file_does_not_outlive_a_runtime_that_is_dropped() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        let runtime = make_runtime();
        hold_for_ever(&runtime, &directory, &options);
        assert_eq!(names_in(directory.path()).len(), MANY);
        drop(runtime);
        assert_eq!(names_in(directory.path()), [""; 0]);
    }
}

#[test]
fn the_file_does_not_outlive_a_runtime_that_is_shut_down() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        let runtime = make_runtime();
        hold_for_ever(&runtime, &directory, &options);
        runtime.shutdown_timeout(VERY_LONG);
        assert_eq!(names_in(directory.path()), [""; 0]);
    }
}

#[test]
fn a_runtime_that_goes_down_in_the_background_takes_the_file_along() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        let runtime = make_runtime();
        hold_for_ever(&runtime, &directory, &options);
        runtime.shutdown_background();
        support::eventually("the files are gone", || names_in(directory.path()).is_empty());
    }
}

#[test]
fn deletions_that_are_on_their_way_do_not_outlive_the_runtime() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        let runtime = make_runtime();
        runtime.block_on(async { drop(many_guards(&directory, &options).await) });
        drop(runtime);
        assert_eq!(names_in(directory.path()), [""; 0]);
    }
}

#[test]
fn a_release_that_is_on_its_way_does_not_outlive_the_runtime() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        let runtime = make_runtime();
        runtime.block_on(async {
            for guard in many_guards(&directory, &options).await {
                let mut release = guard.release().boxed();
                if futures::poll!(&mut release).is_pending() {
                    tokio::spawn(release);
                }
            }
        });
        drop(runtime);
        assert_eq!(names_in(directory.path()), [""; 0]);
    }
}

#[test]
fn a_task_that_panics_gives_the_lock_back() {
    for (options, make_runtime) in every_way() {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, &options);
        make_runtime().block_on(async {
            let task = tokio::spawn({
                let lock = lock.clone();
                async move {
                    let _guard = lock.acquire().await.unwrap();
                    panic!("as intended");
                }
            });
            assert!(task.await.unwrap_err().is_panic());
            let guard = timeout(VERY_LONG, lock.acquire()).await.expect("it is free").unwrap();
            assert_eq!(guard.recovered_from(), None);
            guard.release().await.unwrap();
        });
        let thread = std::thread::spawn(move || {
            let _guard = lock.blocking_acquire().unwrap();
            panic!("as intended");
        });
        thread.join().unwrap_err();
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn a_release_says_that_the_file_was_removed() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, &options);
        let guard = lock.acquire().await.unwrap();
        std::fs::remove_file(lock.path()).unwrap();
        let error = guard.release().await.unwrap_err();
        assert!(
            matches!(&error, Error::Lost(Lost { lock: named, reason: LostReason::Removed, .. })
            if *named == *lock.path())
        );
        assert!(error.to_string().contains(lock.path().to_str().unwrap()), "{error}");
        let guard = timeout(VERY_LONG, lock.acquire()).await.unwrap().unwrap();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn neither_release_nor_drop_deletes_what_is_not_ours() {
    for options in every_kind() {
        for is_released in [true, false] {
            let directory = support::on_tmpfs();
            let lock = lock_in(&directory, &options);
            let guard = lock.acquire().await.unwrap();
            let other = directory.path().join("other");
            std::fs::write(&other, b"somebody's\0data").unwrap();
            std::fs::rename(&other, lock.path()).unwrap();
            if is_released {
                let error = guard.release().await.unwrap_err();
                assert!(matches!(error, Error::Lost(Lost { reason: LostReason::Replaced, .. })));
            } else {
                drop(guard);
                lockkeeper::flush().await;
            }
            assert_eq!(std::fs::read(lock.path()).unwrap(), b"somebody's\0data");
            assert_eq!(names_in(directory.path()), ["0.lock"]);
        }
    }
}

#[tokio::test]
async fn the_lock_of_a_successor_stays() {
    const TEST: &str = "the_lock_of_a_successor_stays";
    if let Some((role, path)) = support::role() {
        let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
        let lock = AsyncFileLock::with_options(path, FileOptions::default().proof(pin)).unwrap();
        let guard = lock.acquire().await.unwrap();
        support::tell("held");
        support::told();
        guard.release().await.unwrap();
        support::tell("released");
        return;
    }
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, &options);
        let guard = lock.acquire().await.unwrap();
        std::fs::remove_file(lock.path()).unwrap();
        let is_portable = options == options.clone().proof(Proof::Process);
        let role = if is_portable { "portable" } else { "pinned" };
        let mut successor = Process::play(TEST, role, lock.path());
        successor.expect("held");
        let error = guard.release().await.unwrap_err();
        assert!(matches!(error, Error::Lost(Lost { reason: LostReason::Replaced, .. })), "{error}");
        assert_eq!(lock.holder().await.unwrap().unwrap().pid, Some(successor.id()));
        successor.hang_up();
        successor.expect("released");
        assert!(names_in(directory.path()).is_empty());
    }
}

/// A directory that nobody may write to stops everybody but root, so this
/// needs a process without privileges.
#[test]
fn a_file_that_cannot_be_removed_is_marked_as_released() {
    const TEST: &str = "a_file_that_cannot_be_removed_is_marked_as_released";
    if let Some((role, path)) = support::role() {
        return be_unable_to_remove(&role, &path);
    }
    for role in ["pinned", "portable"] {
        let directory = support::on_tmpfs();
        if geteuid().is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut child = Process::play(TEST, role, &directory.path().join("0.lock"));
        child.expect("done");
        assert!(child.wait().success());
    }
}

/// The overflow user id: it owns nothing.
const NOBODY: u32 = 65534;

fn drop_privileges() {
    if geteuid().is_root() {
        setgroups(&[]).unwrap();
        setgid(Gid::from_raw(NOBODY)).unwrap();
        setuid(Uid::from_raw(NOBODY)).unwrap();
        // Else /proc/self is root's: that state is another test's.
        nix::sys::prctl::set_dumpable(true).unwrap();
    }
}

fn be_unable_to_remove(role: &str, path: &Path) {
    drop_privileges();
    let directory = path.parent().unwrap();
    let allow = |mode| {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
    };
    for offload in [Offload::Never, Offload::Always] {
        let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
        let options = FileOptions::default().proof(pin).offload(offload).note("a note");
        let lock = AsyncFileLock::with_options(path, options).unwrap();
        EVERY_RUNTIME[0]().block_on(async {
            for is_released in [true, false] {
                let guard = lock.acquire().await.unwrap();
                allow(0o555);
                if is_released {
                    let error = guard.release().await.unwrap_err();
                    let Error::NotRemoved { lock: named, source } = &error else {
                        panic!("{error}")
                    };
                    assert_eq!(named.path(), Some(lock.path()));
                    assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
                    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
                } else {
                    drop(guard);
                    lockkeeper::flush().await;
                }
                let text = std::fs::read_to_string(path).unwrap();
                assert!(text.lines().any(|line| line.starts_with("released:")), "{text}");
                assert_eq!(text.len(), 512);
                assert!(!lock.is_locked().await.unwrap());
                allow(0o755);
                let guard = lock.acquire().await.unwrap();
                assert_eq!(guard.recovered_from(), None, "nobody died");
                let text = std::fs::read_to_string(path).unwrap();
                assert!(!text.contains("released:"), "{text}");
                guard.release().await.unwrap();
                assert!(names_in(directory).is_empty());
            }
        });
    }
    support::tell("done");
}
