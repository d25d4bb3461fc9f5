//! Many processes that wait for one lock form a line: a release wakes those at
//! its front, and whoever is behind them wakes when it has a reason to. Where
//! not said otherwise the periods are an hour, so that nothing but events can
//! bring the line forward.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, LockGuard, Options};
use support::{HOUR, Process, all_hold, eventually, line};

/// Wait, hold until told, release, end.
async fn wait_and_hold(role: &str, path: &Path) {
    let period = match role {
        "waits" => HOUR,
        "looks" => Duration::from_millis(100),
        other => panic!("no role {other}"),
    };
    let options = Options::default().retry_period(period).fallback_period(HOUR);
    let lock = AsyncFileLock::with_options(path, options).unwrap();
    let guard = lock.acquire().await.unwrap();
    support::tell("held");
    support::told();
    guard.release().await.unwrap();
    support::tell("released");
}

async fn hold(path: &Path) -> LockGuard {
    AsyncFileLock::new(path).acquire().await.unwrap()
}

#[tokio::test]
async fn a_release_wakes_those_in_front_and_nobody_else() {
    const TEST: &str = "a_release_wakes_those_in_front_and_nobody_else";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("line.lock");
    let guard = hold(&path).await;
    let mut line = line(TEST, "waits", &path, 6);
    tokio::time::sleep(support::QUIET).await;
    let before: Vec<u64> = line[4..].iter().map(Process::sleeps).collect();
    let last_holder = fs::read(&path).unwrap();
    guard.release().await.unwrap();
    eventually("another holds", || fs::read(&path).is_ok_and(|holder| holder != last_holder));
    tokio::time::sleep(support::QUIET).await;
    assert_eq!(line[4..].iter().map(Process::sleeps).collect::<Vec<_>>(), before);
    all_hold(&mut line);
    assert_eq!(support::names_in(directory.path()), Vec::<String>::new());
}

#[tokio::test]
async fn who_dies_in_the_line_is_closed_up_to() {
    const TEST: &str = "who_dies_in_the_line_is_closed_up_to";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    for dead in [[1, 2], [2, 4], [3, 4], [0, 1], [4, 5]] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("line.lock");
        let guard = hold(&path).await;
        let mut line = line(TEST, "waits", &path, 6);
        dead.into_iter().for_each(|place| line[place].kill());
        guard.release().await.unwrap();
        let living = line.iter_mut().enumerate().filter(|(place, _)| !dead.contains(place));
        all_hold(living.map(|(_, process)| process));
        assert_eq!(support::names_in(directory.path()), Vec::<String>::new());
    }
}

#[tokio::test]
async fn who_is_stopped_in_the_line_does_not_hold_it_up() {
    const TEST: &str = "who_is_stopped_in_the_line_does_not_hold_it_up";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    // One can be in front without anybody having to look: events will do.
    for (role, stopped) in [("waits", 0..1), ("waits", 1..2), ("looks", 0..2), ("looks", 1..4)] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("line.lock");
        let guard = hold(&path).await;
        let mut line = line(TEST, role, &path, 6);
        line[stopped.clone()].iter().for_each(Process::stop);
        guard.release().await.unwrap();
        let going = line.iter_mut().enumerate().filter(|(place, _)| !stopped.contains(place));
        all_hold(going.map(|(_, process)| process));
    }
}
