//! A held file is handed off from task to task within a process, each time as a hold of
//! its own, and never where that would hide something.

mod support;

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use futures::poll;
use lockkeeper::{AsyncFileLock, Error, FileGuard, FileOptions, Holder, LostReason};
use support::{Process, names_in, on_tmpfs};
use tokio::time::{sleep, timeout};

/// The share does not end while the test runs.
fn sharing() -> FileOptions {
    FileOptions::default().local_handoff(support::VERY_LONG)
}

fn lock(path: &Path, options: FileOptions) -> AsyncFileLock {
    AsyncFileLock::with_options(path, options).unwrap()
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

async fn holder(lock: &AsyncFileLock) -> Holder {
    lock.holder().await.unwrap().unwrap()
}

fn second(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

type Waiter = Pin<Box<dyn Future<Output = Result<FileGuard, Error>> + Send>>;

/// One who waits, surely in the queue.
async fn waiter(lock: &AsyncFileLock) -> Waiter {
    let lock = lock.clone();
    let mut waiter: Waiter = Box::pin(async move { lock.acquire().await });
    assert!(poll!(&mut waiter).is_pending());
    waiter
}

async fn had(waiter: Waiter) -> FileGuard {
    timeout(support::VERY_LONG, waiter).await.expect("it is woken").unwrap()
}

#[tokio::test]
async fn the_file_stays_and_names_each_hold_and_its_beginning() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    let mut guard = lock.acquire().await.unwrap();
    let (first_inode, mut holds) = (inode(&path), HashSet::from([guard.hold_id()]));
    for round in 0..60 {
        let next = waiter(&lock).await;
        match round % 2 {
            0 => guard.release().await.unwrap(),
            _ => drop(guard),
        }
        // It is held at every moment.
        assert!(lock.try_acquire().await.unwrap().is_none());
        let before = second(SystemTime::now());
        guard = had(next).await;
        assert_eq!(inode(&path), first_inode, "round {round}: another file");
        let holder = holder(&lock).await;
        let since = second(holder.since.unwrap());
        assert!((before..=second(SystemTime::now())).contains(&since), "round {round}");
        assert_eq!(holder.hold_id, Some(guard.hold_id()), "round {round}");
        assert!(holds.insert(guard.hold_id()), "round {round}: the id of an earlier hold");
        // Three seconds in all.
        sleep(Duration::from_millis(50)).await;
    }
    guard.release().await.unwrap();
    assert!(names_in(directory.path()).is_empty());
}

/// By what is in the file, another process sees each hold.
#[tokio::test]
async fn another_process_sees_and_asks_the_hold_that_is_on() {
    const TEST: &str = "another_process_sees_and_asks_the_hold_that_is_on";
    if let Some((_, path)) = support::role() {
        let lock = AsyncFileLock::new(&path);
        support::tell(&holder(&lock).await.hold_id.unwrap());
        let asked = lock.revoke().await.unwrap().expect("it is held");
        return support::tell(&asked.hold_id.unwrap());
    }
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    let mut guard = lock.acquire().await.unwrap();
    let file = inode(&path);
    for _ in 0..3 {
        let (next, last) = (waiter(&lock).await, guard.lost_token());
        guard.release().await.unwrap();
        guard = had(next).await;
        let other = Process::play(TEST, "asks", &path);
        other.expect(&guard.hold_id());
        assert_eq!(guard.lost().await.reason, LostReason::Revoked);
        other.expect(&guard.hold_id());
        assert!(!last.is_cancelled(), "it was another hold");
        assert_eq!(inode(&path), file);
    }
}

#[tokio::test]
async fn a_recovery_is_told_to_the_first_holder_only() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    fs::write(&path, "").unwrap();
    let lock = lock(&path, sharing().race_delay(Duration::from_millis(1)));
    let guard = lock.acquire().await.unwrap();
    assert!(guard.recovered_from().is_some());
    let next = waiter(&lock).await;
    let taken_over = inode(&path);
    guard.release().await.unwrap();
    let guard = had(next).await;
    assert_eq!(inode(&path), taken_over);
    assert!(guard.recovered_from().is_none());
}

#[tokio::test]
async fn without_a_handoff_each_hold_has_a_file_of_its_own() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing().local_handoff(Duration::ZERO));
    let guard = lock.acquire().await.unwrap();
    let (next, first) = (waiter(&lock).await, inode(&path));
    guard.release().await.unwrap();
    let _guard = had(next).await;
    assert_ne!(inode(&path), first);
}

#[tokio::test]
async fn a_file_that_a_child_may_have_is_not_handed_off() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    let guard = lock.acquire().await.unwrap();
    let copy = guard.lock_fd().unwrap().try_clone_to_owned().unwrap();
    let (next, first) = (waiter(&lock).await, inode(&path));
    guard.release().await.unwrap();
    let _guard = had(next).await;
    assert_ne!(inode(&path), first);
    drop(copy);
}

#[tokio::test]
async fn the_file_is_handed_off_only_to_equal_options() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let one = lock(&path, sharing());
    let other = lock(&path, sharing().note("other"));
    let guard = one.acquire().await.unwrap();
    let (next, first) = (waiter(&other).await, inode(&path));
    guard.release().await.unwrap();
    let guard = had(next).await;
    assert_ne!(inode(&path), first);
    assert_eq!(other.holder().await.unwrap().unwrap().note.as_deref(), Some("other"));
    guard.release().await.unwrap();
    assert!(names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn a_file_that_is_gone_or_anothers_is_not_handed_off() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    let guard = lock.acquire().await.unwrap();
    let next = waiter(&lock).await;
    fs::remove_file(&path).unwrap();
    let lost = guard.release().await.unwrap_err();
    assert!(matches!(&lost, Error::Lost(lost) if lost.reason == LostReason::Removed), "{lost}");
    let guard = had(next).await;

    let mut next = waiter(&lock).await;
    fs::remove_file(&path).unwrap();
    // A holder of another program, which lives.
    fs::write(&path, format!("{}\n", std::process::id())).unwrap();
    let lost = guard.release().await.unwrap_err();
    assert!(matches!(&lost, Error::Lost(lost) if lost.reason == LostReason::Replaced), "{lost}");
    sleep(support::QUIET).await;
    assert!(poll!(&mut next).is_pending(), "two hold");
    fs::remove_file(&path).unwrap();
    had(next).await.release().await.unwrap();
    assert!(names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn a_request_asks_the_hold_that_it_names_and_not_the_next() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    let guard = lock.acquire().await.unwrap();
    let (next, first, file) = (waiter(&lock).await, guard.hold_id(), inode(&path));
    let asked = tokio::spawn({
        let lock = lock.clone();
        async move { lock.revoke().await }
    });
    assert_eq!(guard.lost().await.reason, LostReason::Revoked);
    // The request stays until the hold ends.
    assert_eq!(asked.await.unwrap().unwrap().expect("it is held").hold_id, Some(first));
    assert_eq!(names_in(directory.path()).len(), 2);
    guard.release().await.unwrap();
    let guard = had(next).await;
    assert_eq!(inode(&path), file);
    assert_eq!(names_in(directory.path()), ["a.lock"], "the request ended with its hold");
    assert!(timeout(support::QUIET, guard.lost()).await.is_err(), "this one was not asked");
    guard.release().await.unwrap();
    assert!(names_in(directory.path()).is_empty());
}

/// The end of a short hold does not look for a request: its asker removes it.
#[tokio::test]
async fn a_request_to_a_short_hold_leaves_nothing() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    for _ in 0..5 {
        let guard = lock.acquire().await.unwrap();
        let (next, file) = (waiter(&lock).await, inode(&path));
        let mut asking = Box::pin(lock.revoke());
        assert!(poll!(&mut asking).is_pending());
        assert_eq!(guard.lost().await.reason, LostReason::Revoked);
        guard.release().await.unwrap();
        let guard = had(next).await;
        assert_eq!(inode(&path), file);
        assert!(timeout(support::VERY_LONG, asking).await.unwrap().unwrap().is_some());
        assert!(poll!(Box::pin(guard.lost())).is_pending());
        assert_eq!(names_in(directory.path()), ["a.lock"]);
        guard.release().await.unwrap();
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn a_file_that_is_removed_before_it_is_taken_is_not_taken() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    for _ in 0..10 {
        let guard = lock.acquire().await.unwrap();
        let next = waiter(&lock).await;
        guard.release().await.unwrap();
        fs::remove_file(&path).unwrap();
        // No task is taken to be so quick.
        std::thread::sleep(Duration::from_millis(1));
        let guard = had(next).await;
        assert!(path.exists(), "it has a file that is gone");
        guard.release().await.unwrap();
        assert!(names_in(directory.path()).is_empty());
    }
}

/// Whoever has the turn is not polled: no runtime does anything here meanwhile.
#[tokio::test]
async fn a_handoff_that_is_not_taken_in_time_keeps_no_process_out() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, FileOptions::default().local_handoff(Duration::from_millis(20)));
    let mut passes = 0;
    while passes < 10 {
        let guard = lock.acquire().await.unwrap();
        let (next, last) = (waiter(&lock).await, waiter(&lock).await);
        guard.release().await.unwrap();
        had(next).await.release().await.unwrap();
        passes += u32::from(path.exists());
        support::eventually("it is given up", || !path.exists());
        let guard = had(last).await;
        assert!(path.exists());
        guard.release().await.unwrap();
    }
    // One that is never polled again.
    let guard = lock.acquire().await.unwrap();
    std::mem::forget(waiter(&lock).await);
    guard.release().await.unwrap();
    support::eventually("it is given up", || names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn a_long_share_does_not_make_a_shorter_one_longer() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let long = lock(&path, FileOptions::default().local_handoff(Duration::from_secs(3600)));
    let short = lock(&path, FileOptions::default());
    let guard = long.acquire().await.unwrap();
    let next = waiter(&long).await;
    guard.release().await.unwrap();
    had(next).await.release().await.unwrap();
    let guard = short.acquire().await.unwrap();
    let _next = waiter(&short).await;
    guard.release().await.unwrap();
    support::eventually("it is given up", || names_in(directory.path()).is_empty());
}

/// Each request is for a hold that ends soon, wherever in it the request comes.
#[tokio::test]
async fn requests_beside_a_series_of_short_holds_leave_nothing() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    let tasks: Vec<_> = (0..4u64)
        .map(|task| {
            let lock = lock.clone();
            tokio::spawn(async move {
                loop {
                    let guard = lock.acquire().await.unwrap();
                    sleep(Duration::from_millis(10 * task)).await;
                    guard.release().await.unwrap();
                }
            })
        })
        .collect();
    let ask = async {
        let mut asked = HashSet::new();
        while asked.len() < 20 {
            let asks = (0..3).map(|_| lock.revoke());
            for holder in join_all(asks).await {
                asked.extend(holder.unwrap().and_then(|holder| holder.hold_id));
            }
        }
    };
    timeout(support::VERY_LONG, ask).await.expect("twenty holds are asked");
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    for task in tasks {
        assert!(task.await.unwrap_err().is_cancelled());
    }
    assert!(names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn the_token_of_a_hold_says_nothing_of_the_next() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    let guard = lock.acquire().await.unwrap();
    let first = guard.lost_token();
    let next = waiter(&lock).await;
    guard.release().await.unwrap();
    let guard = had(next).await;
    let second = guard.lost_token();
    fs::remove_file(&path).unwrap();
    timeout(support::VERY_LONG, second.cancelled()).await.expect("it is told");
    assert!(!first.is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_takes_is_removed() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock(&path, sharing());
    for round in 0..2000u32 {
        let guard = lock.acquire().await.unwrap();
        let waits = lock.clone();
        let waiter = tokio::spawn(async move {
            let _ = timeout(Duration::from_micros(u64::from(round % 50)), waits.acquire()).await;
        });
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
        let release = tokio::spawn(async move { drop(guard) });
        if round % 2 == 0 {
            waiter.abort();
        }
        let _ = waiter.await;
        release.await.unwrap();
        assert!(names_in(directory.path()).is_empty(), "round {round}");
    }
}

#[test]
fn a_runtime_that_goes_down_takes_the_file_along() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    for _ in 0..200 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let lock = lock(&path, sharing());
        for _ in 0..8 {
            let lock = lock.clone();
            runtime.spawn(async move {
                loop {
                    drop(lock.acquire().await.unwrap());
                }
            });
        }
        std::thread::sleep(Duration::from_millis(1));
        drop(runtime);
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn another_process_has_its_turn_among_greedy_tasks() {
    const TEST: &str = "another_process_has_its_turn_among_greedy_tasks";
    if let Some((_, path)) = support::role() {
        let lock = AsyncFileLock::new(&path);
        for _ in 0..8 {
            let lock = lock.clone();
            tokio::spawn(async move {
                loop {
                    lock.acquire().await.unwrap().release().await.unwrap();
                }
            });
        }
        support::tell("greedy");
        return std::future::pending().await;
    }
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut greedy = Process::play(TEST, "greedy", &path);
    greedy.expect("greedy");
    let lock = AsyncFileLock::new(&path);
    for _ in 0..20 {
        // Asked for only while they hold, or it would be free to us anyway.
        let they_hold = async {
            while lock.holder().await.unwrap().and_then(|holder| holder.pid) != Some(greedy.id()) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(support::VERY_LONG, they_hold).await.expect("they hold");
        let guard = timeout(support::VERY_LONG, lock.acquire()).await.expect("it is kept out");
        guard.unwrap().release().await.unwrap();
    }
    greedy.kill();
    // The next one takes over at once.
    let guard = timeout(support::VERY_LONG, lock.acquire()).await.expect("it is stuck").unwrap();
    guard.release().await.unwrap();
    assert!(names_in(directory.path()).is_empty());
}

/// Its tasks do not begin a share each time they have let the lock go for others.
#[tokio::test]
async fn another_process_waits_for_few_holds_of_two_tasks() {
    const TEST: &str = "another_process_waits_for_few_holds_of_two_tasks";
    const ROUNDS: u64 = 20;
    /// The one that is on, and whatever they get done before it is awake.
    const HOLDS_MAX: u64 = 5;
    if let Some((_, path)) = support::role() {
        let (lock, served) = (AsyncFileLock::new(&path), path.with_file_name("served"));
        for _ in 0..2 {
            let (lock, served) = (lock.clone(), served.clone());
            tokio::spawn(async move {
                loop {
                    let guard = lock.acquire().await.unwrap();
                    let mut served = fs::File::options().append(true).open(&served).unwrap();
                    served.write_all(b".").unwrap();
                    sleep(Duration::from_millis(2)).await;
                    guard.release().await.unwrap();
                }
            });
        }
        support::tell("greedy");
        return std::future::pending().await;
    }
    let directory = on_tmpfs();
    let [path, served] = ["a.lock", "served"].map(|name| directory.path().join(name));
    fs::write(&served, "").unwrap();
    let holds = || fs::metadata(&served).unwrap().len();
    let mut greedy = Process::play(TEST, "greedy", &path);
    greedy.expect("greedy");
    let lock = AsyncFileLock::new(&path);
    let waited_for = async || {
        let mut waited_for = 0;
        for _ in 0..ROUNDS {
            let before = holds();
            while holds() == before {
                sleep(Duration::from_millis(1)).await;
            }
            let asked = holds();
            let guard = timeout(support::VERY_LONG, lock.acquire()).await.expect("it is kept out");
            waited_for += holds() - asked;
            guard.unwrap().release().await.unwrap();
        }
        waited_for
    };
    // While this process cannot run, they hold on and on.
    let mut runs = Vec::new();
    while runs.last().is_none_or(|waited_for| *waited_for > ROUNDS * HOLDS_MAX) {
        assert!(runs.len() < 6, "for {runs:?} holds in {ROUNDS} waits");
        runs.push(waited_for().await);
    }
    greedy.kill();
}
