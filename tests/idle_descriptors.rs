//! A lock that nobody holds or waits for keeps nothing open.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lockkeeper::{AsyncFileLock, AsyncKernelLock, FileOptions, KernelOptions, Offload, Primitive};
use rustix::fs::{FlockOperation, flock};
use support::{Process, VERY_LONG, block_on, eventually, on_tmpfs};
use tokio::time::timeout;

const OFFLOADS: [Offload; 2] = [Offload::Auto, Offload::Always];

/// What this process has open there.
fn open_in(directory: &Path) -> Vec<PathBuf> {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let paths = open.filter_map(|each| fs::read_link(each.path()).ok());
    paths.filter(|path| path.starts_with(directory)).collect()
}

#[track_caller]
fn expect_nothing_open(directory: &Path) {
    eventually("nothing is open there", || open_in(directory).is_empty());
}

fn kernel_locks(directory: &Path) -> Vec<AsyncKernelLock> {
    let mut locks = Vec::new();
    for offload in OFFLOADS {
        for primitive in [Primitive::Flock, Primitive::Ofd] {
            let options = KernelOptions::default().offload(offload).primitive(primitive);
            let path = directory.join(format!("{primitive:?}-{offload:?}"));
            let lock = AsyncKernelLock::with_options(path, options);
            locks.push(lock.unwrap());
        }
    }
    locks
}

/// Tasks of this process one after the other, some of them together, and some in vain.
async fn contend(lock: &AsyncKernelLock) {
    let guard = lock.acquire().await.unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none());
    let tasks: Vec<_> = (0..6)
        .map(|number| {
            let lock = lock.clone();
            tokio::spawn(async move {
                let guard = match number % 2 {
                    0 => lock.acquire().await,
                    _ => lock.acquire_shared().await,
                };
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                guard.unwrap().release().await.unwrap();
            })
        })
        .collect();
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    guard.release().await.unwrap();
    for task in tasks {
        timeout(VERY_LONG, task).await.expect("in time").unwrap();
    }
    lock.acquire_shared().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_kernel_lock_that_tasks_contended_for_keeps_nothing_open() {
    let directory = on_tmpfs();
    let locks = kernel_locks(directory.path());
    for lock in &locks {
        contend(lock).await;
    }
    expect_nothing_open(directory.path());
    for lock in &locks {
        contend(lock).await;
    }
    expect_nothing_open(directory.path());
}

/// Not closed at once: its close wakes whoever waits elsewhere, for each try.
#[tokio::test]
async fn a_kernel_lock_that_was_tried_in_vain_keeps_nothing_open() {
    let directory = on_tmpfs();
    let locks = kernel_locks(directory.path());
    for lock in locks.iter().filter(|lock| is_flock(lock)) {
        let holder = fs::File::create(lock.path()).unwrap();
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none());
    }
    expect_nothing_open(directory.path());
}

fn is_flock(lock: &AsyncKernelLock) -> bool {
    lock.path().to_string_lossy().contains("Flock")
}

#[tokio::test]
async fn kernel_locks_that_are_to_be_kept_open_keep_their_files_and_one_directory() {
    let directory = on_tmpfs();
    let options = KernelOptions::default().keep_open(true);
    let names = ["a", "b", "c"].map(|name| directory.path().join(name));
    let lock = |path| AsyncKernelLock::with_options(path, options.clone()).unwrap();
    let locks = names.each_ref().map(lock);
    let expected = [&[directory.path().to_owned()], &names[..]].concat();
    let is_as_expected = || {
        let mut open = open_in(directory.path());
        open.sort();
        open == expected
    };
    for _ in 0..2 {
        for lock in &locks {
            contend(lock).await;
            lock.acquire().await.unwrap().release().await.unwrap();
        }
        eventually("the files and their directory are open", is_as_expected);
    }
    // By then what is idle is closed.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(is_as_expected(), "they stay open");
    drop(locks);
    expect_nothing_open(directory.path());
}

#[tokio::test]
async fn a_lock_file_that_tasks_contended_for_keeps_nothing_open() {
    let directory = on_tmpfs();
    for offload in OFFLOADS {
        let path = directory.path().join(format!("{offload:?}"));
        let lock =
            AsyncFileLock::with_options(path, FileOptions::default().offload(offload)).unwrap();
        let guard = lock.acquire().await.unwrap();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let lock = lock.clone();
                tokio::spawn(async move { lock.acquire().await.unwrap().release().await.unwrap() })
            })
            .collect();
        guard.release().await.unwrap();
        for task in tasks {
            timeout(VERY_LONG, task).await.expect("in time").unwrap();
        }
        assert!(!lock.is_locked().await.unwrap());
    }
    expect_nothing_open(directory.path());
}

const MOUNT: &str = "a_file_system_can_be_unmounted_after_its_locks_were_contended_for";

/// Unmounted when dropped, whatever happened.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount(&["-l"], self.0);
    }
}

fn umount(flags: &[&str], path: &Path) -> bool {
    let mut umount = Command::new("umount");
    umount.args(flags).arg(path).stderr(Stdio::null());
    umount.status().is_ok_and(|status| status.success())
}

#[test]
fn a_file_system_can_be_unmounted_after_its_locks_were_contended_for() {
    if let Some((_, path)) = support::role() {
        return block_on(async {
            let file = AsyncFileLock::new(path.join("file")).acquire().await.unwrap();
            let kernel = AsyncKernelLock::new(path.join("kernel")).acquire().await.unwrap();
            support::tell("held");
            support::told();
            drop((file, kernel));
        });
    }
    let top = on_tmpfs();
    let directory = top.path().join("mounted");
    fs::create_dir(&directory).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "tmpfs"]).arg(&directory).stderr(Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: this user may not mount a tmpfs");
    }
    let _mounted = Mounted(&directory);
    let (file, kernel) = (
        AsyncFileLock::new(directory.join("file")),
        AsyncKernelLock::new(directory.join("kernel")),
    );
    // Kept: the runtime, and with it all that a service has.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut other = Process::play(MOUNT, "holder", &directory);
    other.expect("held");
    runtime.block_on(async {
        let waits = async {
            let guard = file.acquire().await.unwrap();
            drop((guard, kernel.acquire().await.unwrap()));
        };
        let mut waits = Box::pin(waits);
        assert!(timeout(support::QUIET, &mut waits).await.is_err(), "it is held");
        other.hang_up();
        timeout(VERY_LONG, waits).await.expect("in time");
        contend(&kernel).await;
    });
    other.wait();
    eventually("it is unmounted", || umount(&[], &directory));
}
