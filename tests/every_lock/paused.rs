//! Under a paused clock a lock takes no time but what is waited for.

use std::sync::mpsc;
use std::time::Duration;

use lockkeeper::{Acquired, Error, Guard, Holder, Lock, Ran, Wait};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::kinds::{GuardOf, Kind, Place, release};
use crate::limits::named;
use crate::support::{HOUR, VERY_LONG};

for_every_kind! {
    a_free_lock_is_acquired_at_once
    limits_run_out_after_their_time
    limits_do_not_add_up
    a_moment_to_wait_until_is_absolute
    tasks_hand_over_when_the_hold_ends
    a_loss_ends_work
}

const MINUTE: Duration = Duration::from_secs(60);

/// By a paused clock. No timer in there tells real time, so a thread does.
fn paused<T>(future: impl Future<Output = T>) -> T {
    let (late, is_late) = oneshot::channel();
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if is_done.recv_timeout(VERY_LONG) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = late.send(());
        }
    });
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
    let output = runtime.block_on(async {
        tokio::select! {
            output = future => output,
            Ok(()) = is_late => panic!("it does not end"),
        }
    });
    drop(done);
    output
}

fn a_free_lock_is_acquired_at_once<K: Kind>() {
    let place = Place::<K>::new();
    paused(async {
        let (lock, began) = (place.lock(), Instant::now());
        let limit = Duration::from_millis(1);
        for _ in 0..2 {
            let guard = lock.acquire_timeout(limit).await.expect("a free lock");
            guard.release().await.expect("it was held");
            let guard = lock.try_acquire().await.expect("no error");
            drop(guard.expect("a free lock"));
            lock.flush().await;
            assert!(matches!(lock.run(async { 7 }).await, Ok(Ran::Done(7))));
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    });
}

/// Gives the holder that is named.
#[track_caller]
fn must_have_lasted(limit: Duration, began: Instant, error: Error) -> Option<Box<Holder>> {
    let Error::Timeout { waited, holder, .. } = error else { panic!("{error}") };
    let took = began.elapsed();
    assert!(waited >= limit && (limit..limit + MINUTE).contains(&took), "{waited:?} {took:?}");
    holder
}

fn limits_run_out_after_their_time<K: Kind>() {
    let place = Place::<K>::new();
    paused(async {
        let guard = acquired_at_once::<K>(&place).await;
        named(async || {
            let began = Instant::now();
            let error = place.lock().acquire_timeout(HOUR).await.expect_err("it is held");
            must_have_lasted(HOUR, began, error)
        })
        .await;
        named(async || {
            let began = Instant::now();
            let error = place.limited(HOUR).acquire().await.expect_err("it is held");
            must_have_lasted(HOUR, began, error)
        })
        .await;
        release(guard).await;
    });
}

async fn acquired_at_once<K: Kind>(place: &Place<K>) -> GuardOf<K> {
    place.lock().acquire().await.expect("a free lock")
}

fn limits_do_not_add_up<K: Kind>() {
    let place = Place::<K>::new();
    paused(async {
        let guard = acquired_at_once::<K>(&place).await;
        for limit in [HOUR, MINUTE, 3 * HOUR] {
            named(async || {
                let began = Instant::now();
                let ended = place.limited(limit).acquire_timeout(HOUR).await;
                must_have_lasted(HOUR, began, ended.expect_err("it is held"))
            })
            .await;
            let began = Instant::now();
            let ended = place.limited(limit).acquire_within(Wait::at_most(HOUR)).await;
            assert!(matches!(ended, Ok(Acquired::Busy(_))));
            let took = began.elapsed();
            assert!((HOUR..HOUR + MINUTE).contains(&took), "{took:?}");
        }
        release(guard).await;
    });
}

/// Also for a future that is made early and polled late.
fn a_moment_to_wait_until_is_absolute<K: Kind>() {
    let place = Place::<K>::new();
    paused(async {
        let guard = acquired_at_once::<K>(&place).await;
        let began = Instant::now();
        let waiting = place.lock().acquire_within(Wait::Until(began + HOUR));
        sleep(HOUR / 2).await;
        assert!(matches!(waiting.await, Ok(Acquired::Busy(_))));
        let took = began.elapsed();
        assert!((HOUR..HOUR + MINUTE).contains(&took), "{took:?}");
        release(guard).await;
    });
}

fn tasks_hand_over_when_the_hold_ends<K: Kind>() {
    let place = Place::<K>::new();
    for is_dropped in [false, true] {
        paused(async {
            let (lock, began) = (place.lock(), Instant::now());
            let tasks = [(); 3].map(|()| {
                let lock = lock.clone();
                tokio::spawn(async move {
                    let guard = lock.acquire_timeout(HOUR).await.expect("the lock");
                    sleep(MINUTE).await;
                    match is_dropped {
                        true => drop(guard),
                        false => guard.release().await.expect("it was held"),
                    }
                })
            });
            for task in tasks {
                task.await.expect("no panic");
            }
            lock.flush().await;
            let took = began.elapsed();
            assert!((3 * MINUTE..4 * MINUTE).contains(&took), "{took:?}");
        });
    }
}

fn a_loss_ends_work<K: Kind>() {
    for &reason in K::LOSSES {
        let place = Place::<K>::new();
        paused(async {
            let work = async {
                sleep(MINUTE).await;
                K::lose(&place.site(), reason);
                std::future::pending::<()>().await;
            };
            let ran = place.mortal().run(work).await.expect("a free lock");
            let Ran::Lost(lost) = ran else { panic!("{ran:?}") };
            assert_eq!(lost.reason, reason);
        });
    }
}
