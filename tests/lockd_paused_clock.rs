//! Locks of a daemon under a paused clock: the daemon is a process, and its time is real.

mod cli_support;
mod remote_support;
mod support;

use std::time::Duration;

use lockkeeper::{AsyncRemoteLock, Error, LostReason, RemoteOptions};
use remote_support::Daemon;
use support::{HOUR, on_tmpfs};
use tokio::time::{Instant, sleep, timeout};

const MINUTE: Duration = Duration::from_secs(60);

fn lock(daemon: &Daemon, client: &str) -> AsyncRemoteLock {
    AsyncRemoteLock::new(&daemon.url, "r", client).expect("a lock")
}

#[tokio::test(start_paused = true)]
async fn a_free_lock_is_acquired_at_once() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let (one, began) = (lock(&daemon, "one"), Instant::now());
    for _ in 0..3 {
        let guard = one.acquire_timeout(Duration::from_millis(1)).await.expect("a free lock");
        guard.release().await.expect("it was held");
        let guard = one.try_acquire().await.expect("an answer").expect("a free lock");
        drop(guard);
        timeout(Duration::from_millis(1), one.flush()).await.expect("in time");
        one.acquire().await.expect("a free lock").release().await.expect("it was held");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_times_out_after_the_limit_and_names_the_holder() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let _guard = lock(&daemon, "the holder").acquire().await.expect("a free lock");
    let (other, began) = (lock(&daemon, "other"), Instant::now());
    let refused = other.acquire_timeout(HOUR).await;
    let Err(Error::Timeout { waited, holder, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(holder.and_then(|holder| holder.name).as_deref(), Some("the holder"));
    assert!(waited >= HOUR && began.elapsed() < 2 * HOUR, "{waited:?}");
    assert!(other.try_acquire().await.expect("an answer").is_none());
}

#[tokio::test(start_paused = true)]
async fn tasks_hand_over_when_the_hold_ends_and_not_at_their_limits() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    for limit in [Some(HOUR), None] {
        let (lock, began) = (lock(&daemon, "tasks"), Instant::now());
        let mut tasks = Vec::new();
        for _ in 0..3 {
            let lock = lock.clone();
            tasks.push(tokio::spawn(async move {
                let guard = match limit {
                    Some(limit) => lock.acquire_timeout(limit).await,
                    None => lock.acquire().await,
                };
                let guard = guard.expect("the lock");
                sleep(MINUTE).await;
                guard.release().await.expect("it was held");
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let took = began.elapsed();
        assert!((3 * MINUTE..4 * MINUTE).contains(&took), "{limit:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_came_at_the_limit_is_not_missed() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    // Another lock object: nothing in this process tells the waiter of its release.
    let guard = lock(&daemon, "holder").acquire().await.expect("a free lock");
    let other = lock(&daemon, "other");
    let waiting = tokio::spawn(async move { other.acquire_timeout(HOUR).await });
    sleep(MINUTE).await;
    guard.release().await.expect("it was held");
    waiting.await.unwrap().expect("it is free").release().await.expect("it is held");
    assert!(daemon.shown("r").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_lease_runs_in_real_time_and_its_end_is_told() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let options = RemoteOptions::default().lease(Some(Duration::from_secs(10)));
    let lock = AsyncRemoteLock::with_options(&daemon.url, "r", "one", options).expect("a lock");
    let guard = lock.acquire_timeout(HOUR).await.expect("a free lock");
    sleep(HOUR).await;
    assert!(!guard.is_lost(), "an hour of a paused clock is none of the daemon's");
    daemon.force("r");
    let token = guard.lost_token();
    assert_eq!(guard.lost().await.reason, LostReason::Ended);
    assert!(token.is_cancelled());
}
