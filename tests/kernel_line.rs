//! Many processes that wait for one kernel lock form a line: a release wakes
//! those at its front, and whoever is behind them wakes when it has a reason to.
//! Where not said otherwise the periods are an hour, so that nothing but events
//! can bring the line forward.

mod support;

use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncKernelLock, KernelGuard, KernelOptions};
use support::{HOUR, Process, all_hold, eventually, join, kernel_locks, line};

/// Wait, hold until told, release, end; or live on.
async fn wait_and_hold(role: &str, path: &Path) {
    let period = match role {
        "waits" | "reads" | "stays" => HOUR,
        "looks" => Duration::from_millis(100),
        other => panic!("no role {other}"),
    };
    let options = KernelOptions::default().retry_period(period).fallback_period(HOUR);
    let lock = AsyncKernelLock::with_options(path, options).unwrap();
    let acquired = if role == "reads" { lock.acquire_shared().await } else { lock.acquire().await };
    let guard = acquired.unwrap();
    support::tell("held");
    support::told();
    guard.release().await.unwrap();
    support::tell("released");
    if role == "stays" {
        std::future::pending::<()>().await;
    }
}

async fn hold(path: &Path) -> KernelGuard {
    AsyncKernelLock::new(path).acquire().await.unwrap()
}

/// The last two of such a line sleep on while the lock passes to its first.
async fn is_calm_behind(path: &Path, new_line: impl Fn() -> Vec<Process>) {
    support::until_first_holds(async || {
        let guard = hold(path).await;
        let mut line = new_line();
        let behind = line.len() - 2;
        let before = support::settled_sleeps(&line[behind..]).await;
        guard.release().await.unwrap();
        let mut holder = std::process::id();
        eventually("another holds", || {
            let held = kernel_locks(path, "FLOCK").into_iter().find(|lock| lock[1] != "->");
            holder = held.map_or(holder, |lock| lock[4].parse().expect("a process"));
            holder != std::process::id()
        });
        tokio::time::sleep(support::QUIET).await;
        let after: Vec<_> = line[behind..].iter().map(Process::sleeps).collect();
        let is_first = holder == line[0].id();
        all_hold(&mut line);
        (is_first, before, after)
    })
    .await;
}

#[tokio::test]
async fn a_release_wakes_those_in_front_and_nobody_else() {
    const TEST: &str = "a_release_wakes_those_in_front_and_nobody_else";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("line.lock");
    is_calm_behind(&path, || line(TEST, "waits", &path, 6)).await;
}

#[tokio::test]
async fn readers_sleep_behind_two_writers() {
    const TEST: &str = "readers_sleep_behind_two_writers";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("line.lock");
    let new_line = || {
        let mut line = line(TEST, "waits", &path, 3);
        (0..3).for_each(|_| join(&mut line, TEST, "reads", &path));
        line
    };
    is_calm_behind(&path, new_line).await;
}

#[tokio::test]
async fn who_got_the_lock_is_not_waited_for() {
    const TEST: &str = "who_got_the_lock_is_not_waited_for";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("line.lock");
    let guard = hold(&path).await;
    let mut line = line(TEST, "stays", &path, 6);
    guard.release().await.unwrap();
    all_hold(&mut line);
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
