//! Many processes that wait for one kernel lock form a line: a release wakes
//! those at its front, and whoever is behind them wakes when it has a reason to.
//! Where not said otherwise the periods are an hour, so that nothing but events
//! can bring the line forward.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncKernelLock, KernelGuard, KernelOptions};
use nix::sys::signal::Signal;
use support::{Process, eventually};

const HOUR: Duration = Duration::from_secs(3600);

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

/// What `/proc/locks` says of this file.
fn locks_of(path: &Path, kind: &str) -> Vec<String> {
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let is_of = |line: &&str| line.contains(kind) && line.contains(&inode);
    locks.lines().filter(is_of).map(str::to_owned).collect()
}

/// One more process that waits, behind `line`: it has a lock on the directory
/// that says when it came, and one that says what to watch.
fn join(line: &mut Vec<Process>, test: &str, role: &str, path: &Path) {
    line.push(Process::play(test, role, path));
    let locks = 2 * line.len();
    let directory = path.parent().unwrap();
    eventually("it has its place", || locks_of(directory, "OFDLCK").len() == locks);
}

fn line(test: &str, role: &str, path: &Path, length: usize) -> Vec<Process> {
    let mut line = Vec::new();
    (0..length).for_each(|_| join(&mut line, test, role, path));
    line
}

async fn hold(path: &Path) -> KernelGuard {
    AsyncKernelLock::new(path).acquire().await.unwrap()
}

/// All of them get the lock, with nothing but what the others do to wake them.
/// The order is not promised: who is slow to wake is overtaken.
fn all_hold<'a>(line: impl IntoIterator<Item = &'a mut Process>) {
    let mut line: Vec<_> = line.into_iter().collect();
    line.iter_mut().for_each(|process| process.hang_up());
    for process in line {
        process.expect("held");
        process.expect("released");
    }
}

/// How often the threads of a process have gone to sleep.
fn sleeps(process: &Process) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let of_task = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    tasks
        .map(|task| of_task(fs::read_to_string(task.unwrap().path().join("status")).unwrap()))
        .sum()
}

/// Stopped, and not only told to.
fn stop(process: &Process) {
    process.signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", process.id());
    eventually("it stops", || fs::read_to_string(&stat).unwrap().contains(") T "));
}

/// The last two of a line sleep on while the lock passes to its first.
async fn is_calm_behind(line: &mut [Process], path: &Path, guard: KernelGuard) {
    tokio::time::sleep(support::QUIET).await;
    let behind = line.len() - 2;
    let before: Vec<u64> = line[behind..].iter().map(sleeps).collect();
    guard.release().await.unwrap();
    let mine = format!(" {} ", std::process::id());
    eventually("another holds", || {
        locks_of(path, "FLOCK").iter().any(|held| !held.contains("->") && !held.contains(&mine))
    });
    tokio::time::sleep(support::QUIET).await;
    assert_eq!(line[behind..].iter().map(sleeps).collect::<Vec<_>>(), before);
    all_hold(line);
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
    is_calm_behind(&mut line, &path, guard).await;
}

#[tokio::test]
async fn readers_sleep_behind_two_writers() {
    const TEST: &str = "readers_sleep_behind_two_writers";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("line.lock");
    let guard = hold(&path).await;
    let mut line = line(TEST, "waits", &path, 3);
    (0..3).for_each(|_| join(&mut line, TEST, "reads", &path));
    is_calm_behind(&mut line, &path, guard).await;
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
        line[stopped.clone()].iter().for_each(stop);
        guard.release().await.unwrap();
        let going = line.iter_mut().enumerate().filter(|(place, _)| !stopped.contains(place));
        all_hold(going.map(|(_, process)| process));
    }
}
