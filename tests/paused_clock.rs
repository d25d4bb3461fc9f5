//! Under a paused clock, as in `#[tokio::test(start_paused = true)]`, a lock takes no
//! time but what is waited for.

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, Error, FileGuard, FileOptions, KernelGuard, KernelOptions,
    LostReason, Offload,
};
use support::{HOUR, Process, block_on, names_in, on_tmpfs};
use tokio::time::{Instant, sleep, timeout};

/// As long as another program's file is watched before it is taken over.
const YOUTH: Duration = Duration::from_secs(2);

const OFFLOADS: [Offload; 3] = [Offload::Auto, Offload::Always, Offload::Never];

const HOLDER: &str = "a_lock_that_another_process_holds_times_out_after_the_limit";

fn file_lock(path: &Path, offload: Offload) -> AsyncFileLock {
    AsyncFileLock::with_options(path, FileOptions::default().offload(offload)).unwrap()
}

fn kernel_lock(path: &Path, offload: Offload) -> AsyncKernelLock {
    AsyncKernelLock::with_options(path, KernelOptions::default().offload(offload)).unwrap()
}

async fn file(lock: &AsyncFileLock) -> FileGuard {
    lock.acquire_timeout(HOUR).await.expect("the lock")
}

async fn kernel(lock: &AsyncKernelLock) -> KernelGuard {
    lock.acquire_timeout(HOUR).await.expect("the lock")
}

#[track_caller]
fn assert_ran_out<T: std::fmt::Debug>(outcome: Result<T, Error>, began: Instant) {
    let Err(Error::Timeout { waited, holder, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(holder.is_some());
    assert!(waited >= HOUR && began.elapsed() < 2 * HOUR, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_free_lock_is_acquired_at_once() {
    let began = Instant::now();
    for offload in OFFLOADS {
        let directory = on_tmpfs();
        for name in ["first", "second"] {
            let path = directory.path().join(name);
            let limit = Duration::from_millis(1);
            let guard = file_lock(&path, offload).acquire_timeout(limit).await;
            guard.expect("a free lock").release().await.expect("it was held");
            assert!(file_lock(&path, offload).try_acquire().await.unwrap().is_some());
        }
        let directory = on_tmpfs();
        for name in ["first", "second"] {
            let path = directory.path().join(name);
            let limit = Duration::from_millis(1);
            let guard = kernel_lock(&path, offload).acquire_timeout(limit).await;
            guard.expect("a free lock").release().await.expect("it was held");
            let shared = kernel_lock(&path, offload).acquire_shared_timeout(limit).await;
            drop(shared.expect("a free lock"));
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "{offload:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_this_process_times_out_after_the_limit() {
    for offload in OFFLOADS {
        let directory = on_tmpfs();
        let (path, other) = (directory.path().join("file"), directory.path().join("kernel"));
        let _held =
            (file(&file_lock(&path, offload)).await, kernel(&kernel_lock(&other, offload)).await);
        let began = Instant::now();
        assert_ran_out(file_lock(&path, offload).acquire_timeout(HOUR).await, began);
        let began = Instant::now();
        assert_ran_out(kernel_lock(&other, offload).acquire_timeout(HOUR).await, began);
    }
}

#[test]
fn a_lock_that_another_process_holds_times_out_after_the_limit() {
    if let Some((_, path)) = support::role() {
        let held = block_on(async {
            let file = file(&AsyncFileLock::new(path.join("file"))).await;
            (file, kernel(&AsyncKernelLock::new(path.join("kernel"))).await)
        });
        support::tell("held");
        support::told();
        return drop(held);
    }
    let directory = on_tmpfs();
    let holder = Process::play(HOLDER, "holder", directory.path());
    holder.expect("held");
    paused(async {
        for offload in OFFLOADS {
            let began = Instant::now();
            let lock = file_lock(&directory.path().join("file"), offload);
            assert_ran_out(lock.acquire_timeout(HOUR).await, began);
            let began = Instant::now();
            let lock = kernel_lock(&directory.path().join("kernel"), offload);
            assert_ran_out(lock.acquire_timeout(HOUR).await, began);
        }
    });
}

fn paused<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(future)
}

/// While it is held for a minute, others come; each holds for a minute in turn.
#[tokio::test(start_paused = true)]
async fn tasks_hand_over_when_the_hold_ends_and_not_at_their_limits() {
    const MINUTE: Duration = Duration::from_secs(60);
    for (offload, is_dropped) in OFFLOADS.into_iter().flat_map(|each| [(each, true), (each, false)])
    {
        let directory = on_tmpfs();
        let began = Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..3 {
            let lock = file_lock(&directory.path().join("file"), offload);
            tasks.push(tokio::spawn(async move {
                let guard = file(&lock).await;
                sleep(MINUTE).await;
                if is_dropped { drop(guard) } else { guard.release().await.unwrap() }
            }));
            let lock = kernel_lock(&directory.path().join("kernel"), offload);
            tasks.push(tokio::spawn(async move {
                let guard = kernel(&lock).await;
                sleep(MINUTE).await;
                if is_dropped { drop(guard) } else { guard.release().await.unwrap() }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let took = began.elapsed();
        assert!((3 * MINUTE..4 * MINUTE).contains(&took), "{offload:?} {is_dropped}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_told() {
    for offload in OFFLOADS {
        let directory = on_tmpfs();
        let [path, other] = ["file", "kernel"].map(|name| directory.path().join(name));
        let file = file(&file_lock(&path, offload)).await;
        let kernel = kernel(&kernel_lock(&other, offload)).await;
        let tokens = [file.lost_token(), kernel.lost_token()];
        let limit = Duration::from_secs(5);
        assert!(timeout(limit, file.lost()).await.is_err(), "it is not lost");
        assert!(timeout(limit, kernel.lost()).await.is_err(), "it is not lost");
        fs::remove_file(&path).unwrap();
        fs::remove_file(&other).unwrap();
        let lost = timeout(limit, file.lost()).await.expect("in time");
        assert_eq!(lost.reason, LostReason::Removed);
        let lost = timeout(limit, kernel.lost()).await.expect("in time");
        assert_eq!(lost.reason, LostReason::Removed);
        for token in tokens {
            timeout(limit, token.cancelled()).await.expect("in time");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_dropped_guards_scheduled_is_waited_for() {
    for offload in OFFLOADS {
        let directory = on_tmpfs();
        drop(file(&file_lock(&directory.path().join("lock"), offload)).await);
        timeout(Duration::from_millis(1), lockkeeper::flush()).await.expect("in time");
        assert!(names_in(directory.path()).is_empty());
    }
}

/// It is watched for what a running program may do to it, whose time is not virtual.
#[tokio::test(start_paused = true)]
async fn a_stale_file_of_another_program_is_watched_in_real_time() {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    for offload in [Offload::Auto, Offload::Always] {
        let directory = on_tmpfs();
        let path = directory.path().join("lock");
        for is_try in [true, false] {
            fs::write(&path, format!("{}\n", child.id())).unwrap();
            let (began, lock) = (std::time::Instant::now(), file_lock(&path, offload));
            let virtually = Instant::now();
            let guard = match is_try {
                true => lock.try_acquire().await.unwrap().expect("its process is gone"),
                false => timeout(HOUR, lock.acquire()).await.expect("in time").unwrap(),
            };
            assert_eq!(guard.recovered_from().and_then(|dead| dead.pid), Some(child.id()));
            assert!(began.elapsed() >= YOUTH, "{:?}", began.elapsed());
            assert!(virtually.elapsed() < 5 * YOUTH, "{:?}", virtually.elapsed());
            guard.release().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_to_let_go_is_told_and_left_for_the_holder_to_remove() {
    for offload in OFFLOADS {
        let directory = on_tmpfs();
        let lock = file_lock(&directory.path().join("lock"), offload);
        let guard = file(&lock).await;
        assert!(lock.revoke().await.unwrap().is_some());
        let lost = timeout(Duration::from_secs(5), guard.lost()).await.expect("in time");
        assert_eq!(lost.reason, LostReason::Revoked);
        guard.release().await.unwrap();
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_is_told() {
    let directory = on_tmpfs();
    let path = directory.path().join("lock");
    File::create(&path).unwrap();
    for offload in OFFLOADS {
        let lock = kernel_lock(&path, offload);
        let limit = Duration::from_millis(1);
        assert!(!timeout(limit, lock.is_locked()).await.expect("in time").unwrap());
        let guard = kernel(&lock).await;
        assert!(timeout(limit, lock.is_locked()).await.expect("in time").unwrap());
        guard.release().await.unwrap();
    }
}
