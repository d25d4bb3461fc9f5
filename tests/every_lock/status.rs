//! What is told of a lock: free, held and by whom; and what names a hold.

use lockkeeper::{Guard, Lock, Status, Wait};
use tokio_util::sync::CancellationToken;

use crate::another_process::{holder, start};
use crate::kinds::{Kind, Place, acquired, release, soon};
use crate::support::{HOUR, block_on};

for_every_kind! {
    the_status_says_free_or_held
    the_status_is_the_same_from_another_process
    a_dead_holder_is_no_holder
    a_holder_of_this_process_says_where_it_acquired
    a_flush_waits_for_the_release
    holds_are_named_and_numbered
}

fn the_status_says_free_or_held<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.lock();
        for _ in 0..2 {
            assert_eq!(soon(lock.status()).await.expect("a status"), Status::Free);
            assert_eq!(soon(lock.holder()).await.expect("an answer"), None);
            assert!(!soon(lock.is_locked()).await.expect("an answer"));
            let guard = acquired(&place.lock()).await;
            let status = soon(lock.status()).await.expect("a status");
            let Status::Held(held) = &status else { panic!("{status:?}") };
            let holder = soon(lock.holder()).await.expect("an answer").expect("a holder");
            for holder in [held, &holder] {
                assert!(K::names(holder, std::process::id()), "{holder:?}");
                assert!(holder.evidence.is_alive());
            }
            assert!(soon(lock.is_locked()).await.expect("an answer"));
            release(guard).await;
        }
    });
}

fn the_status_is_the_same_from_another_process<K: Kind>() {
    let place = Place::<K>::new();
    let mut other = start("look", &place);
    let this = std::process::id().to_string();
    for _ in 0..2 {
        other.tell(&this);
        other.expect("free");
        let guard = block_on(acquired(&place.lock()));
        other.tell(&this);
        other.expect(if K::PROMISES.names_holders_elsewhere { "held by it" } else { "held" });
        block_on(release(guard));
    }
}

fn a_dead_holder_is_no_holder<K: Kind>() {
    let place = Place::<K>::new();
    let mut dead = holder("hold mortal", &place);
    let lock = place.lock();
    assert!(block_on(lock.is_locked()).expect("an answer"));
    dead.kill();
    crate::support::eventually("it is free", || {
        block_on(async {
            let (status, holder) = (soon(lock.status()).await, soon(lock.holder()).await);
            let is_free = !matches!(status.expect("a status"), Status::Held(_));
            is_free && holder.expect("an answer").is_none()
        })
    });
    block_on(async { release(acquired(&lock).await).await });
}

/// By each verb: a line of this file, not one of the crate.
fn a_holder_of_this_process_says_where_it_acquired<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.lock();
        let check = async |verb: &str| {
            let holder = soon(lock.holder()).await.expect("an answer").expect("a holder");
            let file = holder.acquired_at.map(|place| place.file()).unwrap_or_default();
            let is_here = file == file!();
            assert!(is_here == K::PROMISES.says_where, "{verb}: {file:?}");
        };
        let guard = soon(lock.acquire()).await.expect("the lock");
        check("acquire").await;
        release(guard).await;
        let guard = soon(lock.try_acquire()).await.expect("no error").expect("the lock");
        check("try_acquire").await;
        release(guard).await;
        let guard = soon(lock.acquire_timeout(HOUR)).await.expect("the lock");
        check("acquire_timeout").await;
        release(guard).await;
        let guard = soon(lock.acquire_within(Wait::Forever)).await.expect("no error");
        check("acquire_within").await;
        release(guard.held().expect("the lock")).await;
        let guard = soon(lock.acquire_with(&CancellationToken::new())).await.expect("the lock");
        check("acquire_with").await;
        release(guard).await;
        let ran = soon(lock.run(check("run"))).await.expect("the lock");
        ran.in_safety().expect("it was held");
    });
}

fn a_flush_waits_for_the_release<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.lock();
        for _ in 0..10 {
            drop(acquired(&lock).await);
            soon(lock.flush()).await;
            let guard = soon(place.lock().try_acquire()).await.expect("no error");
            release(guard.expect("it is free")).await;
        }
        // With nothing to wait for, and while it is held.
        let guard = acquired(&lock).await;
        soon(lock.flush()).await;
        release(guard).await;
    });
}

fn holds_are_named_and_numbered<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.lock();
        assert_eq!(lock.name(), lock.clone().name());
        assert_eq!(lock.name(), place.lock().name());
        let mut guard = acquired(&lock).await;
        for is_waited_for in [false, true, false, true] {
            let (id, token) = (guard.hold_id(), guard.fencing_token());
            assert_eq!(id.is_some(), K::PROMISES.has_hold_ids);
            assert_eq!(token.is_some(), K::PROMISES.has_fencing_tokens);
            assert_eq!((guard.hold_id(), guard.fencing_token()), (id.clone(), token.clone()));
            // Released for all, or passed to a task that waits.
            guard = if is_waited_for {
                let next = place.wait_behind(0, lock.acquire()).await;
                release(guard).await;
                soon(next).await.expect("no panic").expect("the lock")
            } else {
                release(guard).await;
                acquired(&lock).await
            };
            assert!(id.is_none() || guard.hold_id() != id, "{id:?}");
            assert!(token.is_none() || guard.fencing_token() > token, "{token:?}");
        }
        release(guard).await;
    });
}
