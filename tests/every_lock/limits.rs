//! How long an acquisition waits, and what is said at the end.

use std::time::Duration;

use futures::poll;
use lockkeeper::{Acquired, Error, Holder, Lock, Wait};
use tokio::time::{Instant, timeout};

use crate::another_process::holder;
use crate::kinds::{Kind, Place, acquired, release, soon};
use crate::support::block_on;

for_every_kind! {
    a_free_lock_needs_no_time
    one_try_says_that_the_lock_is_busy
    a_timeout_names_the_lock_and_its_holder
    a_limit_of_the_options_ends_the_wait
    a_call_outlasts_the_limit_of_the_options
    the_last_try_is_at_the_deadline
    a_holder_in_another_process_is_named
}

/// Passes while the test does something else.
const MOMENT: Duration = Duration::from_millis(25);

fn a_free_lock_needs_no_time<K: Kind>() {
    block_on(async {
        let (place, past) = (Place::<K>::new(), Instant::now());
        let lock = place.lock();
        for wait in [Wait::No, Wait::Until(past), Wait::at_most(Duration::ZERO), Wait::Forever] {
            let acquired = soon(lock.acquire_within(wait)).await.expect("no error");
            release(acquired.held().expect("it is free")).await;
        }
        release(soon(lock.acquire_timeout(Duration::ZERO)).await.expect("it is free")).await;
        let guard = soon(lock.try_acquire()).await.expect("no error");
        release(guard.expect("it is free")).await;
        // As long as no clock can show.
        release(soon(lock.acquire_timeout(Duration::MAX)).await.expect("it is free")).await;
        place.expect_as_new(&lock, "after all of them").await;
    });
}

/// The holder that is named. Where a server could not be asked at once none is, and no limit
/// is outlasted for it: then it is tried again.
pub async fn named(mut tried: impl AsyncFnMut() -> Option<Box<Holder>>) -> Box<Holder> {
    for _ in 0..3 {
        if let Some(holder) = tried().await {
            return holder;
        }
    }
    panic!("the lock is held, and three tries named no holder");
}

async fn must_name<K: Kind>(tried: impl AsyncFnMut() -> Option<Box<Holder>>) {
    let holder = named(tried).await;
    assert!(K::names(&holder, std::process::id()), "{holder:?}");
}

fn one_try_says_that_the_lock_is_busy<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let guard = acquired(&place.lock()).await;
        for lock in [place.lock(), place.limited(crate::support::HOUR)] {
            for wait in [Wait::No, Wait::Until(Instant::now()), Wait::at_most(Duration::ZERO)] {
                must_name::<K>(async || {
                    let busy = soon(lock.acquire_within(wait)).await.expect("no error");
                    let Acquired::Busy(busy) = busy else { panic!("it is held") };
                    busy.holder
                })
                .await;
            }
            assert!(soon(lock.try_acquire()).await.expect("no error").is_none());
        }
        release(guard).await;
        place.expect_as_new(&place.lock(), "after all tries").await;
    });
}

fn a_timeout_names_the_lock_and_its_holder<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let guard = acquired(&place.lock()).await;
        let lock = place.lock();
        for limit in [Duration::ZERO, MOMENT] {
            must_name::<K>(async || {
                let error = soon(lock.acquire_timeout(limit)).await.expect_err("it is held");
                assert!(error.is_timeout() && error.lock() == Some(&lock.name()), "{error}");
                assert!(error.to_string().contains(&lock.name().to_string()), "{error}");
                let Error::Timeout { waited, holder, .. } = error else { panic!("{error}") };
                assert!(waited >= limit);
                holder
            })
            .await;
        }
        release(guard).await;
        place.expect_as_new(&lock, "after both").await;
    });
}

fn a_limit_of_the_options_ends_the_wait<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let guard = acquired(&place.lock()).await;
        let lock = place.limited(MOMENT);
        assert!(matches!(lock.default_wait(), Wait::Until(_)));
        must_name::<K>(async || {
            let error = soon(lock.acquire()).await.expect_err("it is held");
            let Error::Timeout { holder, .. } = error else { panic!("{error}") };
            holder
        })
        .await;
        release(guard).await;
        release(acquired(&lock).await).await;
    });
}

fn a_call_outlasts_the_limit_of_the_options<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let guard = acquired(&place.lock()).await;
        let lock = place.limited(MOMENT);
        let outlasts = |wait| {
            let waiting = lock.acquire_within(wait);
            async move { release(waiting.await.expect("no error").held().expect("it is free")).await }
        };
        let long = Wait::at_most(crate::support::HOUR);
        let mut both = Box::pin(futures::future::join(outlasts(Wait::Forever), outlasts(long)));
        assert!(poll!(&mut both).is_pending());
        assert!(timeout(4 * MOMENT, &mut both).await.is_err(), "it is held");
        release(guard).await;
        soon(both).await;
    });
}

/// The runtime is busy while the lock is released, and until the limit is over.
fn the_last_try_is_at_the_deadline<K: Kind>() {
    let place = Place::<K>::new();
    for is_by_option in [false, true] {
        let mut limit = 4 * MOMENT;
        // A server may need longer to be told that it is free.
        while !is_had_at_the_deadline(&place, limit, is_by_option) {
            limit *= 2;
        }
    }
}

/// Unless the holder did not release in time.
fn is_had_at_the_deadline<K: Kind>(place: &Place<K>, limit: Duration, is_by_option: bool) -> bool {
    let mut other = holder("hold", place);
    block_on(async {
        let lock = place.limited(limit);
        // So that the limit begins with the first poll below.
        assert!(soon(lock.try_acquire()).await.expect("no error").is_none());
        let began = Instant::now();
        let mut waiting = match is_by_option {
            true => futures::FutureExt::boxed(lock.acquire()),
            false => futures::FutureExt::boxed(lock.acquire_timeout(limit)),
        };
        assert!(poll!(&mut waiting).is_pending(), "it is held");
        other.tell("release");
        other.expect("released");
        if began.elapsed() >= limit {
            return false;
        }
        while began.elapsed() < limit + MOMENT {
            std::thread::sleep(MOMENT);
        }
        let guard = soon(waiting).await.expect("it was free at the deadline");
        release(guard).await;
        true
    })
}

fn a_holder_in_another_process_is_named<K: Kind>() {
    let place = Place::<K>::new();
    let other = holder("hold", &place);
    block_on(async {
        let by_timeout = named(async || {
            let error = soon(place.lock().acquire_timeout(MOMENT)).await.expect_err("it is held");
            let Error::Timeout { holder, .. } = error else { panic!("{error}") };
            holder
        });
        let by_one_try = named(async || {
            let busy = soon(place.lock().acquire_within(Wait::No)).await.expect("no error");
            let Acquired::Busy(busy) = busy else { panic!("it is held") };
            busy.holder
        });
        for holder in [by_timeout.await, by_one_try.await] {
            assert!(holder.evidence.is_alive());
            let is_named = K::names(&holder, other.id());
            assert_eq!(is_named, K::PROMISES.names_holders_elsewhere, "{holder:?}");
        }
    });
}
