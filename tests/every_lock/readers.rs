//! Locks that several may hold at once, to read.

use std::sync::{Arc, Mutex};

use lockkeeper::{Acquired, Lock, Ran, SharedLock, Wait};
use tokio_util::sync::CancellationToken;

use crate::another_process::holder;
use crate::kinds::{Kind, Place, acquired, release, soon};
use crate::limits::named;
use crate::support::{HOUR, QUIET, block_on};

for_every_shared_kind! {
    readers_share_and_exclude_writers
    a_writer_excludes_readers
    readers_share_with_another_process
    a_lock_for_readers_is_a_lock
    a_writer_that_waits_is_served_before_later_readers
    limits_hold_for_readers
}

fn readers_share_and_exclude_writers<K: Kind<Lock: SharedLock>>() {
    block_on(async {
        let place = Place::<K>::new();
        let (lock, other) = (place.lock(), place.lock());
        let first = soon(lock.acquire_shared()).await.expect("it is free");
        let second = soon(other.try_acquire_shared()).await.expect("no error");
        let second = second.expect("it is shared");
        let third = soon(lock.acquire_shared_within(Wait::No)).await.expect("no error");
        let third = third.held().expect("it is shared");
        for guard in [first, second, third] {
            assert!(soon(other.try_acquire()).await.expect("no error").is_none());
            release(guard).await;
        }
        place.expect_as_new(&lock, "after the readers").await;
    });
}

fn a_writer_excludes_readers<K: Kind<Lock: SharedLock>>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.lock();
        let guard = acquired(&place.lock()).await;
        assert!(soon(lock.try_acquire_shared()).await.expect("no error").is_none());
        let waiting = lock.acquire_shared();
        let waiting = place.wait_behind(0, waiting).await;
        let another = place.wait_behind(1, lock.acquire_shared_timeout(HOUR)).await;
        release(guard).await;
        let reader = soon(waiting).await.expect("no panic").expect("it is free");
        // While the first reads.
        let other = soon(another).await.expect("no panic").expect("it is shared");
        release(reader).await;
        release(other).await;
        place.expect_as_new(&lock, "after the readers").await;
    });
}

fn readers_share_with_another_process<K: Kind<Lock: SharedLock>>() {
    let place = Place::<K>::new();
    let mut writer = holder("hold", &place);
    block_on(async {
        let lock = place.lock();
        assert!(soon(lock.try_acquire_shared()).await.expect("no error").is_none());
        writer.tell("release");
        writer.expect("released");
        let guard = soon(lock.acquire_shared()).await.expect("it is free");
        let mut reader = holder("read", &place);
        let mut writer = crate::another_process::start("hold", &place);
        place.expect_processes(1);
        release(guard).await;
        writer.expect_quiet();
        reader.tell("release");
        reader.expect("released");
        writer.expect("held");
        writer.tell("release");
        writer.expect("released");
        place.expect_as_new(&lock, "after all of them").await;
    });
}

/// Each verb of [`Lock`] means to read.
fn a_lock_for_readers_is_a_lock<K: Kind<Lock: SharedLock>>() {
    block_on(async {
        let place = Place::<K>::new();
        let (lock, readers) = (place.lock(), place.lock().shared());
        assert_eq!(lock.name(), readers.name());
        let first = acquired(&readers).await;
        let second = soon(readers.try_acquire()).await.expect("no error").expect("it is shared");
        let third = soon(readers.acquire_timeout(HOUR)).await.expect("it is shared");
        let token = CancellationToken::new();
        let fourth = soon(readers.acquire_with(&token)).await.expect("it is shared");
        assert!(matches!(soon(readers.run(async { 7 })).await, Ok(Ran::Done(7))));
        assert!(soon(readers.is_locked()).await.expect("an answer"));
        assert!(soon(lock.try_acquire()).await.expect("no error").is_none());
        for guard in [first, second, third, fourth] {
            release(guard).await;
        }
        let writer = acquired(&lock).await;
        assert!(soon(readers.try_acquire()).await.expect("no error").is_none());
        release(writer).await;
        soon(readers.flush()).await;
        place.expect_as_new(&lock, "after all of them").await;
    });
}

fn a_writer_that_waits_is_served_before_later_readers<K: Kind<Lock: SharedLock>>() {
    block_on(async {
        let (place, order) = (Place::<K>::new(), Arc::new(Mutex::new(Vec::new())));
        let guard = acquired(&place.lock()).await;
        let mut tasks = Vec::new();
        for (number, is_writer) in [true, false, false].into_iter().enumerate() {
            let (lock, order) = (place.lock(), Arc::clone(&order));
            let waiter = async move {
                let guard = match is_writer {
                    true => lock.acquire().await,
                    false => lock.acquire_shared().await,
                };
                let guard = guard.expect("the lock");
                order.lock().expect("no panic").push(is_writer);
                tokio::task::yield_now().await;
                release(guard).await;
            };
            tasks.push(place.wait_behind(number, waiter).await);
        }
        release(guard).await;
        for task in tasks {
            soon(task).await.expect("no panic");
        }
        assert_eq!(*order.lock().expect("no panic"), [true, false, false]);
    });
}

fn limits_hold_for_readers<K: Kind<Lock: SharedLock>>() {
    block_on(async {
        let place = Place::<K>::new();
        let guard = acquired(&place.lock()).await;
        let (lock, limited) = (place.lock(), place.limited(QUIET / 8));
        let error = soon(lock.acquire_shared_timeout(QUIET / 8)).await.expect_err("it is held");
        assert!(error.is_timeout() && error.lock() == Some(&lock.name()), "{error}");
        for error in [soon(limited.acquire_shared()).await, soon(limited.shared().acquire()).await]
        {
            assert!(error.expect_err("it is held").is_timeout());
        }
        named(async || {
            let busy = soon(limited.acquire_shared_within(Wait::No)).await.expect("no error");
            let Acquired::Busy(busy) = busy else { panic!("it is held") };
            busy.holder
        })
        .await;
        release(guard).await;
        place.expect_as_new(&lock, "after all of them").await;
    });
}
