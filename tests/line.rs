//! Many processes that wait for one lock form a line: a release wakes those at
//! its front, and whoever is behind them wakes when it has a reason to. Where
//! not said otherwise the periods are an hour, so that nothing but events can
//! bring the line forward.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, FileGuard, FileOptions};
use support::{HOUR, Process, all_hold, eventually, line};

/// Wait, hold until told, release, end.
async fn wait_and_hold(role: &str, path: &Path) {
    let period = match role {
        "waits" => HOUR,
        "looks" => Duration::from_millis(100),
        other => {
            be_user(other.parse().expect("a user"));
            HOUR
        }
    };
    let options = FileOptions::default().retry_period(period).fallback_period(HOUR);
    let lock = AsyncFileLock::with_options(path, options).unwrap();
    let guard = lock.acquire().await.unwrap();
    support::tell("held");
    support::told();
    guard.release().await.unwrap();
    support::tell("released");
}

/// From now on nobody but root sees what this process has open.
fn be_user(number: u32) {
    nix::unistd::setgroups(&[]).unwrap();
    nix::unistd::setgid(number.into()).unwrap();
    nix::unistd::setuid(number.into()).unwrap();
}

/// Wait for both locks at once, and let each go at once.
async fn wait_for_two(directory: &Path) {
    let pass_on = |name: &'static str| {
        let options = FileOptions::default().retry_period(HOUR).fallback_period(HOUR);
        let lock = AsyncFileLock::with_options(directory.join(name), options).unwrap();
        tokio::spawn(async move {
            lock.acquire().await.unwrap().release().await.unwrap();
            support::tell(name);
        })
    };
    let both = ["one.lock", "other.lock"].map(pass_on);
    for one in both {
        one.await.unwrap();
    }
    support::told();
}

async fn hold(path: &Path) -> FileGuard {
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
    support::until_first_holds(async || {
        let guard = hold(&path).await;
        let mut line = line(TEST, "waits", &path, 6);
        let before = support::settled_sleeps(&line[4..]).await;
        guard.release().await.unwrap();
        let mut holder = std::process::id();
        eventually("another holds", || {
            let file = fs::read_to_string(&path).unwrap_or_default();
            let pid = file.lines().next().and_then(|pid| pid.parse().ok());
            holder = pid.unwrap_or(holder);
            holder != std::process::id()
        });
        tokio::time::sleep(support::QUIET).await;
        let after: Vec<_> = line[4..].iter().map(Process::sleeps).collect();
        let is_first = holder == line[0].id();
        all_hold(&mut line);
        (is_first, before, after)
    })
    .await;
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

/// Whoever waits for both locks listens to the same processes twice, each of which has
/// one pipe: what becomes of one wait says nothing of the other.
#[tokio::test]
async fn who_waits_behind_the_same_processes_twice_hears_of_both() {
    const TEST: &str = "who_waits_behind_the_same_processes_twice_hears_of_both";
    if let Some((_, directory)) = support::role() {
        return wait_for_two(&directory).await;
    }
    for dead in [[].as_slice(), &[1, 2], &[2, 3], &[0, 3]] {
        let directory = support::on_tmpfs();
        let [one, other] = ["one.lock", "other.lock"].map(|name| directory.path().join(name));
        let (first, second) = (hold(&one).await, hold(&other).await);
        let mut line = Vec::new();
        for length in 1..=5 {
            line.push(Process::play(TEST, "waits", directory.path()));
            eventually("it has its places", || {
                support::kernel_locks(directory.path(), "OFDLCK").len() == 4 * length
            });
        }
        dead.iter().for_each(|place| line[*place].kill());
        let living = || line.iter().enumerate().filter(|(place, _)| !dead.contains(place));
        first.release().await.unwrap();
        living().for_each(|(_, process)| process.expect("one.lock"));
        second.release().await.unwrap();
        living().for_each(|(_, process)| process.expect("other.lock"));
    }
}

/// They cannot listen to each other, so all of them listen to the directory.
#[tokio::test]
async fn processes_of_many_users_are_one_line() {
    const TEST: &str = "processes_of_many_users_are_one_line";
    if let Some((role, path)) = support::role() {
        return wait_and_hold(&role, &path).await;
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: only root can be many users");
    }
    let directory = support::on_tmpfs();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let path = directory.path().join("line.lock");
    let guard = hold(&path).await;
    let mut line = Vec::new();
    ["61001", "61002", "61003", "61004", "61005"]
        .iter()
        .for_each(|user| support::join(&mut line, TEST, user, &path));
    guard.release().await.unwrap();
    all_hold(&mut line);
    assert_eq!(support::names_in(directory.path()), Vec::<String>::new());
}
