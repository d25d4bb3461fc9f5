//! That somebody died holding the lock is told, once, to whoever gets it; and
//! what must not be taken for a death.

mod support;

use std::fs;
use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lockkeeper::{AsyncFileLock, Evidence, FileOptions, Offload, Proof, Status};
use support::Process;

fn lock(path: &Path, options: FileOptions) -> AsyncFileLock {
    AsyncFileLock::with_options(path, options).unwrap()
}

/// Leaves the file of a process that was killed; its id.
fn leave_stale(test: &str, path: &Path) -> u32 {
    let mut holder = Process::play(test, "holder", path);
    holder.expect("held");
    holder.kill();
    holder.id()
}

async fn hold(path: &Path, options: FileOptions) {
    let _guard = lock(path, options).acquire().await.unwrap();
    support::tell("held");
    support::told();
}

/// Poll again and again for so long, finer than a timer can, then drop.
fn poll_for<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    let started = Instant::now();
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending if started.elapsed() >= time => return None,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acquisition_that_is_dropped_leaves_the_recovery_to_the_next() {
    const TEST: &str = "an_acquisition_that_is_dropped_leaves_the_recovery_to_the_next";
    let pin = |path: &Path| match path.ends_with("pinned.lock") {
        true => Proof::KernelLock,
        false => Proof::Process,
    };
    if let Some((_, path)) = support::role() {
        return hold(&path, FileOptions::default().proof(pin(&path))).await;
    }
    let directory = support::on_tmpfs();
    let mut dropped = 0;
    for name in ["pinned.lock", "portable.lock"] {
        let path = directory.path().join(name);
        let options = FileOptions::default().proof(pin(&path)).offload(Offload::Always);
        for round in 0..30 {
            let dead = leave_stale(TEST, &path);
            // Dropped somewhere on its way: before, while or after it took over.
            let early = lock(&path, options.clone());
            let guard = match poll_for(Duration::from_micros(10 * round), early.acquire()) {
                Some(guard) => guard.unwrap(),
                None => {
                    dropped += 1;
                    lock(&path, options.clone()).acquire().await.unwrap()
                }
            };
            let recovered_from = guard.recovered_from().expect("somebody died").pid;
            assert_eq!(recovered_from, Some(dead), "round {round} of {name}");
            guard.release().await.unwrap();
        }
    }
    assert!(dropped > 0, "nothing was dropped early");
    assert!(support::names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn a_probation_that_is_dropped_leaves_the_recovery_to_the_next() {
    let directory = support::on_tmpfs();
    for pin in [Proof::KernelLock, Proof::Process] {
        let path = directory.path().join("a.lock");
        let gone = std::process::Command::new("true").spawn().unwrap();
        let pid = gone.id();
        gone.wait_with_output().unwrap();
        fs::write(&path, format!("{pid}\nworker\n")).unwrap();
        let options = FileOptions::default().proof(pin).retry_period(Duration::from_millis(20));
        let slow = lock(&path, options.clone().race_delay(support::VERY_LONG));
        {
            let acquire = slow.acquire();
            tokio::pin!(acquire);
            let is_taken = async {
                while fs::read_to_string(&path).is_ok_and(|text| !text.contains("token:")) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                _ = &mut acquire => panic!("the probation did not last"),
                () = is_taken => {}
            }
        }
        let quick = lock(&path, options.race_delay(Duration::from_millis(1)));
        let guard = quick.acquire_timeout(support::VERY_LONG).await.unwrap();
        assert_eq!(guard.recovered_from().expect("somebody died").pid, Some(pid));
        guard.release().await.unwrap();
        assert!(support::names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn a_file_that_vanishes_in_its_probation_takes_no_recovery_with_it() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let gone = std::process::Command::new("true").spawn().unwrap();
    let pid = gone.id();
    gone.wait_with_output().unwrap();
    fs::write(&path, format!("{pid}\nworker\n")).unwrap();
    let lock = lock(&path, FileOptions::default().race_delay(support::QUIET));
    let vanishes = async {
        while fs::read_to_string(&path).is_ok_and(|text| !text.contains("token:")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fs::remove_file(&path).unwrap();
    };
    let (guard, ()) = tokio::join!(lock.acquire(), vanishes);
    assert_eq!(guard.unwrap().recovered_from().expect("somebody died").pid, Some(pid));
}

#[tokio::test]
async fn what_was_told_once_is_not_told_again() {
    const TEST: &str = "what_was_told_once_is_not_told_again";
    if let Some((_, path)) = support::role() {
        return hold(&path, FileOptions::default()).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    leave_stale(TEST, &path);
    let lock = lock(&path, FileOptions::default());
    drop(lock.acquire().await.unwrap());
    assert_eq!(lock.acquire().await.unwrap().recovered_from(), None);
}

/// As a holder writes it that could not remove its file.
fn released_record(pin: &str) -> String {
    let token = "0123456789abcdef0123456789abcdef";
    format!("1\nworker\ntoken: {token}\npin: {pin}\nreleased: yes\n")
}

#[tokio::test]
async fn a_released_file_is_taken_by_its_own_protocol_only_and_nobody_died() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    for (written, own, other) in
        [("flock", Proof::KernelLock, Proof::Process), ("none", Proof::Process, Proof::KernelLock)]
    {
        fs::write(&path, released_record(written)).unwrap();
        let own = lock(&path, FileOptions::default().proof(own));
        let other = lock(&path, FileOptions::default().proof(other));
        let Status::Stale(holder) = own.status().await.unwrap() else { panic!("not stale") };
        assert_eq!(holder.evidence, Evidence::Released);
        assert!(other.try_acquire().await.unwrap().is_none());
        let guard = own.try_acquire().await.unwrap().expect("nobody holds");
        assert_eq!(guard.recovered_from(), None);
        guard.release().await.unwrap();

        fs::write(&path, released_record(written)).unwrap();
        assert!(other.break_stale().await.unwrap().is_some(), "break follows the record");
        assert!(support::names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn a_holder_whose_container_has_a_boot_id_of_its_own_is_alive() {
    const TEST: &str = "a_holder_whose_container_has_a_boot_id_of_its_own_is_alive";
    let options = FileOptions::default().proof(Proof::Process);
    if let Some((_, path)) = support::role() {
        return hold(&path, options).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut holder = Process::play(TEST, "holder", &path);
    holder.expect("held");
    let text = fs::read_to_string(&path).unwrap();
    let boot = text.lines().find_map(|line| line.strip_prefix("boot: ")).expect("a boot id");
    let another = "00000000-0000-4000-8000-000000000000";
    fs::write(&path, text.replace(boot, another)).unwrap();
    let lock = lock(&path, options);
    assert!(lock.try_acquire().await.unwrap().is_none());
    holder.kill();
    let guard = lock.acquire_timeout(support::VERY_LONG).await.unwrap();
    assert_eq!(guard.recovered_from().unwrap().pid, Some(holder.id()));
}

#[tokio::test]
async fn a_lock_that_is_released_all_the_time_never_looks_stale() {
    const TEST: &str = "a_lock_that_is_released_all_the_time_never_looks_stale";
    if let Some((_, path)) = support::role() {
        let lock = lock(&path, FileOptions::default());
        support::tell("held");
        loop {
            drop(lock.acquire().await.unwrap());
        }
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let holder = Process::play(TEST, "holder", &path);
    holder.expect("held");
    let lock = lock(&path, FileOptions::default());
    let (mut looks, mut held) = (0, 0);
    let end = Instant::now() + support::VERY_LONG;
    // The holder may not run while this does.
    while looks < 20_000 || held == 0 {
        assert!(Instant::now() < end, "it was never seen held");
        looks += 1;
        match lock.status().await.unwrap() {
            Status::Stale(holder) => panic!("{holder} looks dead: {}", holder.evidence),
            Status::Held(_) => held += 1,
            _ => {}
        }
    }
}
