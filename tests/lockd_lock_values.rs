//! A daemon's lock is a value: it compares, is a key, outlives what was made of it, and
//! crosses `catch_unwind`.

#[path = "cli_support/mod.rs"]
mod cli_support;
#[path = "remote_support/mod.rs"]
mod remote_support;
#[path = "support/mod.rs"]
mod support;

use std::collections::HashSet;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use lockkeeper::{AsyncRemoteLock, Error, RemoteGuard, RemoteOptions, Status};
use remote_support::Daemon;
use support::{VERY_LONG, on_tmpfs};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const URL: &str = "http://127.0.0.1:1";

#[test]
fn locks_are_equal_that_name_one_lock_for_one_client_with_equal_options() {
    let make = |url: &str, resource: &str, client: &str, options: RemoteOptions| {
        AsyncRemoteLock::with_options(url, resource, client, options).expect("a lock")
    };
    let options = RemoteOptions::default;
    let one = make(URL, "r", "c", options());
    assert_eq!(one, one.clone());
    assert_eq!(one, make(URL, "r", "c", options()));
    assert_eq!(one, make(&format!("{URL}/"), "r", "c", options()), "a slash is no other URL");
    let others = [
        make("http://127.0.0.1:2", "r", "c", options()),
        make(URL, "s", "c", options()),
        make(URL, "r", "d", options()),
        make(URL, "r", "c", options().timeout(VERY_LONG)),
        make(URL, "r", "c", options().bearer_token("x")),
    ];
    for other in &others {
        assert_ne!(one, *other);
    }
    #[allow(clippy::mutable_key_type, reason = "what is compared does not change")]
    let locks: HashSet<_> = others.iter().cloned().chain([one.clone(), one]).collect();
    assert_eq!(locks.len(), others.len() + 1);
}

#[tokio::test]
async fn the_futures_of_a_lock_outlive_it() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = || AsyncRemoteLock::new(&daemon.url, "r", "c").expect("a lock");
    let token = CancellationToken::new();
    let spawn: [&dyn Fn() -> JoinHandle<Result<RemoteGuard, Error>>; 4] = [
        &|| tokio::spawn(lock().acquire()),
        &|| tokio::spawn(lock().acquire_timeout(VERY_LONG)),
        &|| tokio::spawn(lock().acquire_timeout(None)),
        &|| tokio::spawn(lock().acquire_with(&token)),
    ];
    for spawn in spawn {
        let guard = timeout(VERY_LONG, spawn()).await.expect("in time").expect("no panic");
        guard.expect("the lock").release().await.expect("it was held");
    }
    let guard = tokio::spawn(lock().try_acquire()).await.expect("no panic").expect("an answer");
    let guard = guard.expect("it is free");
    let holder = tokio::spawn(lock().holder()).await.expect("no panic").expect("an answer");
    assert_eq!(holder.expect("it is held").hold_id, Some(guard.fencing_token().to_string()));
    assert!(tokio::spawn(lock().is_locked()).await.expect("no panic").expect("an answer"));
    let status = tokio::spawn(lock().status()).await.expect("no panic");
    assert!(matches!(status, Ok(Status::Held(_))), "{status:?}");
    let waits = tokio::spawn(lock().acquire_with(&token));
    drop(token.drop_guard());
    let cancelled = waits.await.expect("no panic");
    assert!(matches!(cancelled, Err(Error::Cancelled { .. })), "{cancelled:?}");
    guard.release().await.expect("it was held");
}

#[tokio::test]
async fn a_lock_and_its_guard_cross_a_caught_panic() {
    fn crosses<T: UnwindSafe + RefUnwindSafe>() {}
    crosses::<AsyncRemoteLock>();
    crosses::<RemoteGuard>();
    crosses::<RemoteOptions>();
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = AsyncRemoteLock::new(&daemon.url, "r", "c").expect("a lock");
    let guard = lock.acquire().await.expect("it is free");
    let caught = std::panic::catch_unwind(|| {
        let _holds = &guard;
        panic!("with {lock:?}");
    });
    assert!(caught.is_err());
    guard.release().await.expect("it was held");
    assert_eq!(lock.status().await.expect("an answer"), Status::Free);
}

#[test]
fn a_limit_is_a_duration_or_none() {
    let minute = Duration::from_secs(60);
    let options = RemoteOptions::default;
    assert_eq!(
        options().timeout(minute).lease(minute),
        options().timeout(Some(minute)).lease(Some(minute))
    );
    assert_eq!(options().timeout(minute).timeout(None), options());
    assert_ne!(options().lease(None), options());
}
