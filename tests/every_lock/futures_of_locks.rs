//! Futures of locks compose as those of Tokio do.

use std::fmt::Debug;
use std::time::Duration;

use lockkeeper::{Error, Guard, Lock, Wait};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::kinds::{GuardOf, Kind, Place, acquired, release, soon};
use crate::support::{HOUR, QUIET, block_on};

for_every_kind! {
    a_token_ends_the_wait
    a_token_covers_the_wait_alone
    each_future_can_be_spawned
    a_lock_is_used_from_two_runtimes
    select_and_timeout_compose
    a_future_that_is_kept_keeps_its_place
}

fn a_token_ends_the_wait<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let (lock, token) = (place.lock(), CancellationToken::new());
        let guard = acquired(&place.lock()).await;
        let waiting = place.wait_behind(0, lock.acquire_with(&token)).await;
        assert!(!waiting.is_finished());
        token.cancel();
        let error = soon(waiting).await.expect("no panic").expect_err("it is held");
        assert!(matches!(&error, Error::Cancelled { lock: named } if *named == lock.name()));
        release(guard).await;
        soon(lock.flush()).await;
        // Free by now, and a token that is cancelled wins.
        let error = soon(lock.acquire_with(&token)).await.expect_err("it is cancelled");
        assert!(matches!(error, Error::Cancelled { .. }), "{error}");
        place.expect_as_new(&lock, "after the token").await;
    });
}

fn a_token_covers_the_wait_alone<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let token = CancellationToken::new();
        let guard = soon(place.lock().acquire_with(&token)).await.expect("a free lock");
        token.cancel();
        assert!(timeout(QUIET / 4, guard.lost()).await.is_err());
        assert!(!guard.is_lost());
        assert!(soon(place.lock().try_acquire()).await.expect("no error").is_none());
        release(guard).await;
        // The limit of the options is one as well.
        let guard = acquired(&place.lock()).await;
        let limited = place.limited(QUIET / 8);
        let error = soon(limited.acquire_with(&CancellationToken::new())).await;
        assert!(error.expect_err("it is held").is_timeout());
        release(guard).await;
    });
}

fn must_be_shared_by_tasks<T: Clone + Debug + Send + Sync + 'static>(_: &T) {}

fn must_cross_tasks<T: Debug + Send + Sync + 'static>(_: &T) {}

/// What is made in a scope that ends.
async fn spawned<T: Send + 'static>(task: JoinHandle<Result<T, Error>>) -> T {
    soon(task).await.expect("no panic").expect("no error")
}

fn each_future_can_be_spawned<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        must_be_shared_by_tasks(&place.lock());
        let lock = || place.lock();
        let guard = spawned(tokio::spawn(lock().acquire())).await;
        must_cross_tasks(&guard);
        spawned(tokio::spawn(guard.release())).await;
        let guard = spawned(tokio::spawn(lock().try_acquire())).await;
        spawned(tokio::spawn(guard.expect("it is free").release())).await;
        let guard = spawned(tokio::spawn(lock().acquire_timeout(HOUR))).await;
        spawned(tokio::spawn(guard.release())).await;
        let guard = spawned(tokio::spawn(lock().acquire_within(Wait::Forever))).await;
        spawned(tokio::spawn(guard.held().expect("it is free").release())).await;
        let guard = spawned(tokio::spawn(lock().acquire_with(&CancellationToken::new()))).await;
        spawned(tokio::spawn(guard.release())).await;
        let running = lock();
        let ran = tokio::spawn(async move { running.run(async { 7 }).await });
        assert_eq!(spawned(ran).await.in_safety().expect("it was held"), 7);
        soon(tokio::spawn(lock().flush())).await.expect("no panic");
        spawned(tokio::spawn(lock().status())).await;
        assert!(!spawned(tokio::spawn(lock().is_locked())).await);
        assert!(spawned(tokio::spawn(lock().holder())).await.is_none());
        // A guard is watched by one task, and released by another.
        let guard = std::sync::Arc::new(acquired(&lock()).await);
        let watched = std::sync::Arc::clone(&guard);
        let watching = tokio::spawn(async move { watched.lost().await });
        watching.abort();
        let _ = soon(watching).await;
        release(std::sync::Arc::into_inner(guard).expect("the only one")).await;
    });
}

fn a_lock_is_used_from_two_runtimes<K: Kind>() {
    const TIMES: usize = 10;
    let place = Place::<K>::new();
    let lock = place.lock();
    // One after the other, and a guard that outlives its runtime.
    let guard: GuardOf<K> = block_on(acquired(&lock));
    block_on(async {
        assert!(soon(lock.try_acquire()).await.expect("no error").is_none());
        assert!(!guard.is_lost());
        let token = guard.lost_token();
        release(guard).await;
        assert!(!token.is_cancelled());
    });
    // At once: the hand-over goes from runtime to runtime.
    let visits = || {
        block_on(async {
            for _ in 0..TIMES {
                let guard = acquired(&lock).await;
                sleep(Duration::from_micros(100)).await;
                release(guard).await;
            }
        });
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(visits), scope.spawn(visits)];
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
    block_on(place.expect_as_new(&lock, "after both"));
}

fn select_and_timeout_compose<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let (lock, guard) = (place.lock(), acquired(&place.lock()).await);
        assert!(timeout(QUIET / 8, lock.acquire()).await.is_err());
        tokio::select! {
            _ = lock.acquire() => panic!("it is held"),
            () = sleep(QUIET / 8) => {}
        }
        tokio::select! {
            _ = guard.lost() => panic!("it is held"),
            () = sleep(QUIET / 8) => {}
        }
        release(guard).await;
        place.expect_as_new(&lock, "after both").await;
    });
}

/// In a loop of `select!`, polled by `&mut`.
fn a_future_that_is_kept_keeps_its_place<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let guard = acquired(&place.lock()).await;
        let (first, second) = (place.lock(), place.lock());
        let kept = async move {
            let acquiring = first.acquire();
            tokio::pin!(acquiring);
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            loop {
                tokio::select! {
                    acquired = &mut acquiring => break acquired.expect("the lock"),
                    _ = tick.tick() => {}
                }
            }
        };
        let kept = place.wait_behind(0, kept).await;
        let behind = place.wait_behind(1, second.acquire()).await;
        sleep(QUIET / 8).await;
        release(guard).await;
        let guard = soon(kept).await.expect("no panic");
        assert!(!behind.is_finished(), "it came later");
        release(guard).await;
        release(soon(behind).await.expect("no panic").expect("the lock")).await;
    });
}
