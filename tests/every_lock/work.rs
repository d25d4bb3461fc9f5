//! `run`: work under a lock, and what is said of it. `lost.rs` has the lost lock.

use std::sync::atomic::{AtomicBool, Ordering};

use lockkeeper::{Lock, Ran};

use crate::kinds::{Kind, Place, acquired, release, soon};
use crate::support::{QUIET, block_on};

for_every_kind! {
    work_is_done_under_the_lock
    work_that_fails_gives_its_own_error
    work_does_not_begin_without_the_lock
    work_that_panics_releases_the_lock
}

fn work_is_done_under_the_lock<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let (lock, other) = (place.lock(), place.lock());
        let work = async {
            assert!(soon(other.try_acquire()).await.expect("no error").is_none(), "it is held");
            7
        };
        let ran = soon(lock.run(work)).await.expect("the lock");
        assert!(matches!(ran, Ran::Done(7)), "{ran:?}");
        assert_eq!(ran.in_safety().expect("it was held"), 7);
        place.expect_as_new(&lock, "after the work").await;
    });
}

fn work_that_fails_gives_its_own_error<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.lock();
        let ran = soon(lock.run(async { Err::<(), _>("no luck") })).await.expect("the lock");
        assert_eq!(ran.in_safety().expect("it was held"), Err("no luck"));
        place.expect_as_new(&lock, "after the work").await;
    });
}

fn work_does_not_begin_without_the_lock<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let guard = acquired(&place.lock()).await;
        let has_begun = AtomicBool::new(false);
        let lock = place.limited(QUIET / 8);
        let work = async { has_begun.store(true, Ordering::SeqCst) };
        let error = soon(lock.run(work)).await.expect_err("it is held");
        assert!(error.is_timeout(), "{error}");
        assert!(!has_begun.load(Ordering::SeqCst));
        release(guard).await;
        place.expect_as_new(&lock, "after the work").await;
    });
}

fn work_that_panics_releases_the_lock<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.lock();
        let running = lock.clone();
        let task = tokio::spawn(async move {
            let _ = running.run(async { panic!("on purpose") }).await;
        });
        assert!(soon(task).await.expect_err("a panic").is_panic());
        place.expect_as_new(&lock, "after the panic").await;
    });
}
