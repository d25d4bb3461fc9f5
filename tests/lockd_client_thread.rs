//! A daemon's locks and the runtimes of those who use them: blocked, dropped,
//! several, forked, or at the end of `main`.

// A raw fork is one of the scenes. It is made by a process whose other threads are idle.
#![allow(unsafe_code)]

#[path = "cli_support/mod.rs"]
mod cli_support;
#[path = "remote_support/mod.rs"]
mod remote_support;
#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use lockkeeper::{
    AsyncRemoteLock, Error, LostReason, RemoteGuard, RemoteOptions, Status, StatusChanges,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use remote_support::{Daemon, Network, Weather};
use support::{HOUR, Process, QUIET, VERY_LONG, block_on, eventually, on_tmpfs};
use tokio::time::{sleep, timeout};

const RESOURCE: &str = "r";

/// Short, but no machine is so busy that it is not renewed in time.
const LEASE: Duration = Duration::from_secs(8);

/// As many ends of `main`.
const ENDS: usize = 10;

/// How long an exit waits for what is not answered: a busy machine may take longer.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

fn with(url: &str, options: RemoteOptions) -> AsyncRemoteLock {
    AsyncRemoteLock::with_options(url, RESOURCE, "one", options).expect("a lock")
}

fn lock(url: &str) -> AsyncRemoteLock {
    with(url, RemoteOptions::default().lease(Some(LEASE)).reconnect(VERY_LONG))
}

async fn acquired(lock: &AsyncRemoteLock) -> RemoteGuard {
    timeout(VERY_LONG, lock.acquire()).await.expect("in time").expect("the lock")
}

/// Hold, and drop the guard as the last thing that this process does.
fn drop_at_the_end(url: &str, options: RemoteOptions) -> ! {
    block_on(async {
        let guard = acquired(&with(url, options)).await;
        support::tell("held");
        support::told();
        drop(guard);
    });
    std::process::exit(0);
}

#[test]
fn a_guard_dropped_at_the_end_of_main_leaves_nothing() {
    const NAME: &str = "a_guard_dropped_at_the_end_of_main_leaves_nothing";
    if let Some((_, url)) = support::role() {
        drop_at_the_end(url.to_str().expect("a URL"), RemoteOptions::default().lease(None));
    }
    for _ in 0..ENDS {
        eventually("an exit is in time", || {
            let directory = on_tmpfs();
            let daemon = Daemon::start(directory.path(), &[]);
            let mut process = Process::play(NAME, "holder", daemon.url.as_ref());
            process.expect("held");
            let begun = Instant::now();
            assert!(process.wait().success());
            let is_cut_short = begun.elapsed() >= EXIT_LIMIT;
            let left = daemon.shown(RESOURCE);
            assert!(left.is_none() || is_cut_short, "{left:?}");
            left.is_none()
        });
    }
}

#[test]
fn an_exit_does_not_wait_for_long_for_a_daemon_that_is_silent() {
    const NAME: &str = "an_exit_does_not_wait_for_long_for_a_daemon_that_is_silent";
    if let Some((_, url)) = support::role() {
        drop_at_the_end(url.to_str().expect("a URL"), RemoteOptions::default().reconnect(HOUR));
    }
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let network = Network::to(daemon.address);
    let mut process = Process::play(NAME, "holder", network.url.as_ref());
    process.expect("held");
    network.turn(Weather::Frozen);
    assert!(process.wait().success());
}

#[tokio::test]
async fn a_blocked_runtime_keeps_its_lock() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let guard = acquired(&lock(&daemon.url)).await;
    std::thread::sleep(LEASE + QUIET);
    assert!(!guard.is_lost());
    assert!(daemon.shown(RESOURCE).is_some());
    guard.release().await.expect("it was held");
}

#[tokio::test]
async fn a_blocked_runtime_does_not_keep_a_loss_from_being_told() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let network = Network::to(daemon.address);
    let guard = acquired(&lock(&network.url)).await;
    let lost = guard.lost_token();
    network.turn(Weather::Frozen);
    // On the only thread of this runtime, and without a look at the guard.
    eventually("the token is cancelled", || lost.is_cancelled());
    assert!(guard.is_lost());
    assert_eq!(guard.lost().await.reason, LostReason::Expired);
}

#[test]
fn a_lock_is_used_from_one_runtime_after_the_other() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url);
    for _ in 0..3 {
        block_on(async { acquired(&lock).await.release().await }).expect("it was held");
    }
    let guard = block_on(acquired(&lock));
    // Its runtime is gone.
    std::thread::sleep(LEASE + QUIET);
    assert!(!guard.is_lost());
    block_on(guard.release()).expect("it was held");
    // Outside any runtime.
    drop(block_on(acquired(&lock)));
    block_on(lock.flush());
    assert!(daemon.shown(RESOURCE).is_none());
}

#[test]
fn a_lock_is_used_from_several_runtimes_at_once() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url);
    let use_it = || {
        block_on(async {
            for _ in 0..20 {
                acquired(&lock).await.release().await.expect("it was held");
            }
        });
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(use_it)).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
    assert!(daemon.shown(RESOURCE).is_none());
}

/// In the child: the lock is lost, and nothing of the parent's is used.
fn inherit(
    lock: AsyncRemoteLock,
    guard: RemoteGuard,
    second: RemoteGuard,
    mut changes: StatusChanges,
    url: &str,
) {
    assert!(guard.is_lost());
    assert!(guard.lost_token().is_cancelled());
    assert_eq!(block_on(guard.lost()).reason, LostReason::Forked);
    let Err(Error::Lost(lost)) = block_on(guard.release()) else { panic!("not ours") };
    assert_eq!(lost.reason, LostReason::Forked);
    drop(second);
    block_on(lock.flush());
    assert!(block_on(lock.try_acquire()).expect("an answer").is_none(), "the parent has it");
    drop(lock);
    let other = AsyncRemoteLock::new(url, "of the child", "child").expect("a lock");
    assert!(!block_on(other.is_locked()).expect("an answer"));
    let guard = block_on(acquired(&other));
    let change = block_on(async { timeout(VERY_LONG, changes.next()).await.expect("in time") });
    assert!(matches!(change, Some(Ok(Status::Held(_)))), "{change:?}");
    drop(changes);
    support::tell("the child is about to exit");
    support::told();
    drop(guard);
}

fn fork_holding(url: &str) {
    let lock = lock(url);
    let guard = block_on(acquired(&lock));
    let other = AsyncRemoteLock::new(url, "second", "one").expect("a lock");
    let second = block_on(acquired(&other));
    let mut changes = AsyncRemoteLock::new(url, "of the child", "one").expect("a lock").watch();
    block_on(async {
        let free = timeout(VERY_LONG, changes.next()).await.expect("in time");
        assert!(matches!(free, Some(Ok(Status::Free))), "{free:?}");
        // The child finds it asleep.
        assert!(timeout(QUIET, changes.next()).await.is_err());
    });
    // SAFETY: the other threads of this process are idle and keep no lock.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            // A panic would end the only thread, and the process as if all were well.
            let inherit =
                std::panic::AssertUnwindSafe(|| inherit(lock, guard, second, changes, url));
            let is_well = std::panic::catch_unwind(inherit).is_ok();
            std::process::exit(i32::from(!is_well));
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            support::tell("the child is gone");
            std::thread::sleep(LEASE + QUIET);
            assert!(!guard.is_lost() && !second.is_lost());
            support::told();
            block_on(guard.release()).expect("it is held");
            block_on(second.release()).expect("it is held");
            support::tell("released");
        }
    }
}

#[test]
fn a_forked_child_leaves_its_parents_locks_and_connections_alone() {
    const NAME: &str = "a_forked_child_leaves_its_parents_locks_and_connections_alone";
    if let Some((_, url)) = support::role() {
        // Not the thread that libtest takes its own for.
        return fork_holding(url.to_str().expect("a URL"));
    }
    eventually("the exit of the child is in time", || {
        let directory = on_tmpfs();
        let daemon = Daemon::start(directory.path(), &[]);
        let mut parent = Process::play(NAME, "parent", daemon.url.as_ref());
        parent.expect("the child is about to exit");
        let begun = Instant::now();
        parent.tell("exit");
        parent.expect("the child is gone");
        let is_cut_short = begun.elapsed() >= EXIT_LIMIT;
        if daemon.shown("of the child").is_some() {
            assert!(is_cut_short, "its exit waited for the release");
            return false;
        }
        for resource in [RESOURCE, "second"] {
            assert!(daemon.shown(resource).is_some(), "{resource}");
        }
        parent.tell("release");
        parent.expect("released");
        assert!(parent.wait().success());
        for resource in [RESOURCE, "second"] {
            assert!(daemon.shown(resource).is_none(), "{resource}");
        }
        true
    });
}

#[tokio::test]
async fn a_request_that_is_dropped_with_its_runtime_leaves_no_queue_entry() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let guard = acquired(&lock(&daemon.url)).await;
    let waiter = lock(&daemon.url);
    let waiting = waiter.clone();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.spawn(async move { waiting.acquire().await.map(drop) });
    while daemon.waiting(RESOURCE) != 1 {
        sleep(Duration::from_millis(2)).await;
    }
    runtime.shutdown_background();
    eventually("nobody waits", || daemon.waiting(RESOURCE) == 0);
    waiter.flush().await;
    guard.release().await.expect("it was held");
    assert!(daemon.shown(RESOURCE).is_none());
}
