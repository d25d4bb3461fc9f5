//! A lock is a value: it compares, is a key, outlives what was made of it, and crosses
//! `catch_unwind`.

mod support;

use std::collections::HashSet;
use std::panic::{RefUnwindSafe, UnwindSafe, catch_unwind};

use futures::poll;
use lockkeeper::{AsyncFileLock, Error, FileGuard, FileOptions, LockGuards, Status, acquire_all};
use support::{VERY_LONG, names_in, on_tmpfs};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[test]
#[expect(clippy::mutable_key_type, reason = "what a lock remembers is not part of its key")]
fn locks_are_equal_that_have_one_path_and_equal_options() {
    let absolute = std::env::current_dir().unwrap().join("a.lock");
    let (one, same) = (AsyncFileLock::new("a.lock"), AsyncFileLock::new(&absolute));
    assert_eq!(one, same);
    assert_eq!(one, one.clone());
    assert_ne!(one, AsyncFileLock::new("b.lock"));
    let noted = || AsyncFileLock::with_options("a.lock", FileOptions::default().note("x")).unwrap();
    assert_ne!(one, noted());
    assert_eq!(noted(), noted());
    let locks = HashSet::from([one, same, noted(), noted(), AsyncFileLock::new("b.lock")]);
    assert_eq!(locks.len(), 3);
}

#[tokio::test]
async fn the_futures_of_a_lock_outlive_it() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = || AsyncFileLock::new(&path);
    let token = CancellationToken::new();
    let waits = [
        tokio::spawn(lock().acquire()),
        tokio::spawn(lock().acquire_timeout(VERY_LONG)),
        tokio::spawn(lock().acquire_with(&token)),
    ];
    for waits in waits {
        let guard = timeout(VERY_LONG, waits).await.expect("it gets the lock").unwrap().unwrap();
        guard.release().await.unwrap();
    }
    let guard = tokio::spawn(lock().try_acquire()).await.unwrap().unwrap().expect("it is free");
    let holder = tokio::spawn(lock().holder()).await.unwrap().unwrap().expect("it is held");
    assert_eq!(holder.hold_id, Some(guard.hold_id()));
    assert!(tokio::spawn(lock().is_locked()).await.unwrap().unwrap());
    assert!(matches!(tokio::spawn(lock().status()).await.unwrap(), Ok(Status::Held(_))));
    let waits = tokio::spawn(lock().acquire_with(&token));
    drop(token.drop_guard());
    assert!(matches!(waits.await.unwrap(), Err(Error::Cancelled { .. })));
}

#[tokio::test]
async fn guards_are_given_in_the_order_of_the_locks() {
    let directory = on_tmpfs();
    let locks =
        ["c.lock", "a.lock", "b.lock"].map(|name| AsyncFileLock::new(directory.path().join(name)));
    let guards = acquire_all(&locks).await.unwrap();
    let mut guards: Vec<FileGuard> = guards.into_iter().collect();
    let paths = || locks.iter().map(AsyncFileLock::path);
    assert!(guards.iter().map(FileGuard::path).eq(paths()));
    guards.remove(1).release().await.unwrap();
    assert!(!locks[1].is_locked().await.unwrap());
    assert!(locks[0].is_locked().await.unwrap() && locks[2].is_locked().await.unwrap());
    drop(guards);
    let mut guards = acquire_all(&locks).await.unwrap().into_iter();
    drop(guards.next());
    drop(guards);
    assert!(names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn a_lock_and_its_guard_cross_a_caught_panic() {
    fn crosses<T: UnwindSafe + RefUnwindSafe>() {}
    crosses::<AsyncFileLock>();
    crosses::<FileGuard>();
    crosses::<LockGuards>();
    crosses::<FileOptions>();
    let directory = on_tmpfs();
    let lock = AsyncFileLock::new(directory.path().join("a.lock"));
    let guard = lock.acquire().await.unwrap();
    let mut waits = Box::pin(lock.acquire());
    assert!(poll!(&mut waits).is_pending());
    let panics = || {
        let _guard = guard;
        panic!("the work failed");
    };
    assert!(catch_unwind(panics).is_err());
    let guard = timeout(VERY_LONG, waits).await.expect("the lock is free").unwrap();
    // Also while another thread unwinds over it.
    let borrows = || {
        assert_eq!(guard.path(), lock.path());
        panic!("again");
    };
    assert!(catch_unwind(borrows).is_err());
    guard.release().await.unwrap();
    assert!(names_in(directory.path()).is_empty());
}
