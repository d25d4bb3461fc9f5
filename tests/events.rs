//! Waiting wakes by events: the periods here are an hour, so that nothing but
//! an event can end a wait within the patience of a test.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error, FileGuard, FileOptions, LostReason, Offload, Proof};
use nix::sys::signal::Signal;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use support::{HOUR, Process};
use tempfile::TempDir;

fn only_events(pin: Proof) -> FileOptions {
    FileOptions::default().proof(pin).retry_period(HOUR).fallback_period(HOUR)
}

fn lock(path: &Path, pin: Proof) -> AsyncFileLock {
    AsyncFileLock::with_options(path, only_events(pin)).unwrap()
}

fn pin_of(path: &Path) -> Proof {
    if path.ends_with("portable.lock") { Proof::Process } else { Proof::KernelLock }
}

/// Holds until told, on a runtime of its own.
async fn hold(role: &str, path: &Path) {
    let lock = lock(path, pin_of(path));
    let guard = lock.acquire().await.unwrap();
    support::tell("held");
    support::told();
    match role {
        "releases" => guard.release().await.unwrap(),
        other => panic!("no role {other}"),
    }
}

fn places() -> [TempDir; 2] {
    [support::on_tmpfs(), support::on_disk()]
}

/// Start waiting, make sure that it does wait, and give the time it sleeps to `wake`.
async fn acquires_after(lock: &AsyncFileLock, wake: impl FnOnce()) -> FileGuard {
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await }
    });
    tokio::time::sleep(support::QUIET).await;
    assert!(!waiting.is_finished(), "it should have waited");
    wake();
    let guard = tokio::time::timeout(support::VERY_LONG, waiting).await;
    guard.expect("an event should have woken it").unwrap().unwrap()
}

#[tokio::test]
async fn a_release_wakes() {
    const TEST: &str = "a_release_wakes";
    if let Some((role, path)) = support::role() {
        return hold(&role, &path).await;
    }
    for directory in places() {
        for name in ["pinned.lock", "portable.lock"] {
            let path = directory.path().join(name);
            let mut holder = Process::play(TEST, "releases", &path);
            holder.expect("held");
            let guard = acquires_after(&lock(&path, pin_of(&path)), || holder.hang_up()).await;
            assert_eq!(guard.recovered_from(), None);
        }
    }
}

#[tokio::test]
async fn a_death_wakes() {
    const TEST: &str = "a_death_wakes";
    if let Some((role, path)) = support::role() {
        return hold(&role, &path).await;
    }
    for directory in places() {
        for name in ["pinned.lock", "portable.lock"] {
            let path = directory.path().join(name);
            // The second one has itself taken over a dead one's file.
            for round in 0..2 {
                let mut holder = Process::play(TEST, "releases", &path);
                holder.expect("held");
                if round == 0 {
                    holder.kill();
                    continue;
                }
                let guard = acquires_after(&lock(&path, pin_of(&path)), || holder.kill()).await;
                assert_eq!(guard.recovered_from().unwrap().pid, Some(holder.id()));
            }
        }
    }
}

#[tokio::test]
async fn the_end_of_a_foreign_holder_wakes() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut holder = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(&path, format!("{}\nsleep\n", holder.id())).unwrap();
    let options = only_events(Proof::Auto).race_delay(Duration::from_millis(10));
    let lock = AsyncFileLock::with_options(&path, options).unwrap();
    let guard = acquires_after(&lock, || {
        holder.kill().unwrap();
        holder.wait().unwrap();
    });
    assert_eq!(guard.await.recovered_from().unwrap().pid, Some(holder.id()));
}

#[tokio::test]
async fn every_way_in_which_the_file_can_go_wakes() {
    const TEST: &str = "every_way_in_which_the_file_can_go_wakes";
    if let Some((role, path)) = support::role() {
        return hold(&role, &path).await;
    }
    let ways: [fn(&Path); 3] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::rename(path, path.with_extension("moved")).unwrap(),
        |path| {
            // The directory goes, and an empty one comes in its place.
            let directory = path.parent().unwrap();
            let other = directory.with_extension("other");
            fs::create_dir(&other).unwrap();
            fs::rename(directory, directory.with_extension("old")).unwrap();
            fs::rename(other, directory).unwrap();
        },
    ];
    let directory = support::on_tmpfs();
    for (number, way) in ways.into_iter().enumerate() {
        let inner = directory.path().join(number.to_string());
        fs::create_dir(&inner).unwrap();
        let path = inner.join("a.lock");
        let holder = Process::play(TEST, "releases", &path);
        holder.expect("held");
        let lock = lock(&path, Proof::KernelLock);
        // Between the two renames there is no directory, and a look says so.
        let waiting = tokio::spawn(async move {
            loop {
                match lock.acquire().await {
                    Err(Error::NoDirectory { .. }) => tokio::task::yield_now().await,
                    other => return other,
                }
            }
        });
        tokio::time::sleep(support::QUIET).await;
        assert!(!waiting.is_finished(), "it should have waited");
        way(&path);
        let woken = tokio::time::timeout(support::VERY_LONG, waiting).await;
        drop(woken.expect("an event should have woken it").unwrap().unwrap());
    }
}

#[tokio::test]
async fn after_a_directory_was_replaced_the_new_one_is_listened_to() {
    const TEST: &str = "after_a_directory_was_replaced_the_new_one_is_listened_to";
    if let Some((role, path)) = support::role() {
        return hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let inner = directory.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let path = inner.join("pinned.lock");
    let first = Process::play(TEST, "releases", &path);
    first.expect("held");
    let prepared = directory.path().join("prepared");
    fs::create_dir(&prepared).unwrap();
    let mut second = Process::play(TEST, "releases", &prepared.join("pinned.lock"));
    second.expect("held");
    let waiting = tokio::spawn({
        let lock = lock(&path, Proof::KernelLock);
        async move { lock.acquire().await }
    });
    tokio::time::sleep(support::QUIET).await;
    // In one step, so that the path always leads somewhere.
    renameat_with(CWD, &inner, CWD, &prepared, RenameFlags::EXCHANGE).unwrap();
    tokio::time::sleep(support::QUIET).await;
    assert!(!waiting.is_finished(), "the second holder has it now");
    second.kill();
    let woken = tokio::time::timeout(support::VERY_LONG, waiting).await;
    drop(woken.expect("an event should have woken it").unwrap().unwrap());
}

#[tokio::test]
async fn a_loss_is_told_by_an_event() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, Proof::KernelLock);
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let replace = |path: &Path| {
        let other = path.with_extension("other");
        fs::write(&other, "1\n").unwrap();
        fs::rename(other, path).unwrap();
    };
    for reason in [LostReason::Removed, LostReason::Replaced] {
        let guard = lock.acquire().await.unwrap();
        let lost_token = guard.lost_token();
        let lost = async {
            tokio::join!(guard.lost(), lost_token.cancelled(), async {
                tokio::time::sleep(support::QUIET).await;
                if reason == LostReason::Removed { remove(&path) } else { replace(&path) }
            })
        };
        let lost = tokio::time::timeout(support::VERY_LONG, lost).await.expect("an event").0;
        assert_eq!(lost.reason, reason);
        drop(guard);
        let _ = fs::remove_file(&path);
    }
    let guard = lock.acquire().await.unwrap();
    let lost = async { tokio::join!(guard.lost(), lock.revoke()).0 };
    let lost = tokio::time::timeout(support::VERY_LONG, lost).await.expect("an event");
    assert_eq!(lost.reason, LostReason::Revoked);
}

#[test]
fn runtimes_may_come_and_go() {
    const TEST: &str = "runtimes_may_come_and_go";
    if let Some((role, path)) = support::role() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(hold(&role, &path));
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("pinned.lock");
    for _ in 0..3 {
        let mut holder = Process::play(TEST, "releases", &path);
        holder.expect("held");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let lock = lock(&path, Proof::KernelLock);
        // One that is gone before the event, and one that hears it.
        let early = runtime.spawn({
            let lock = lock.clone();
            async move { lock.acquire().await }
        });
        std::thread::sleep(support::QUIET);
        assert!(!early.is_finished());
        drop(runtime);
        let waiting = std::thread::spawn(move || lock.blocking_acquire().map(drop));
        std::thread::sleep(support::QUIET);
        holder.hang_up();
        support::eventually("the other runtime's task acquires", || waiting.is_finished());
        waiting.join().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_stopped_holder_that_goes_on_and_releases_wakes() {
    const TEST: &str = "a_stopped_holder_that_goes_on_and_releases_wakes";
    if let Some((role, path)) = support::role() {
        return hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("pinned.lock");
    let mut holder = Process::play(TEST, "releases", &path);
    holder.expect("held");
    holder.signal(Signal::SIGSTOP);
    drop(
        acquires_after(&lock(&path, Proof::KernelLock), || {
            holder.hang_up();
            holder.signal(Signal::SIGCONT);
        })
        .await,
    );
}

#[tokio::test]
async fn without_events_the_period_is_looked_at() {
    const TEST: &str = "without_events_the_period_is_looked_at";
    if let Some((role, path)) = support::role() {
        return hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("pinned.lock");
    let mut holder = Process::play(TEST, "releases", &path);
    holder.expect("held");
    // Where calls are made elsewhere, as for a network file system, there are none.
    let options = FileOptions::default().offload(Offload::Always);
    let lock = AsyncFileLock::with_options(&path, options).unwrap();
    drop(acquires_after(&lock, || holder.hang_up()).await);
}

#[test]
fn a_runtime_without_io_waits_by_looking() {
    const TEST: &str = "a_runtime_without_io_waits_by_looking";
    if let Some((_, path)) = support::role() {
        let guard = AsyncFileLock::new(path).blocking_acquire().unwrap();
        support::tell("held");
        support::told();
        return drop(guard);
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut holder = Process::play(TEST, "holder", &path);
    holder.expect("held");
    let options = FileOptions::default().retry_period(Duration::from_millis(20));
    let lock = AsyncFileLock::with_options(&path, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let error = lock.acquire_timeout(Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        holder.tell("release");
        let guard = tokio::time::timeout(support::VERY_LONG, lock.acquire()).await;
        guard.expect("it looks now and then").unwrap().release().await.unwrap();
    });
}
