//! What takes a lock from its holder, and how the holder is notified.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::poll;
use lockkeeper::{Error, Guard, Lock, Ran};
use tokio::time::timeout;

use crate::kinds::{Kind, Place, acquired, release, soon};
use crate::support::{QUIET, block_on, eventually_async};

for_every_kind! {
    the_holder_is_notified_in_each_way
    a_loss_can_be_asked_for_afterwards
    a_lock_that_is_held_is_not_lost
    work_under_a_lost_lock_is_dropped
    work_that_ends_as_the_lock_is_lost_is_not_called_safe
}

fn the_holder_is_notified_in_each_way<K: Kind>() {
    for &reason in K::LOSSES {
        block_on(async {
            let place = Place::<K>::new();
            let lock = place.mortal();
            let guard = acquired(&lock).await;
            let token = guard.lost_token();
            {
                let mut lost = std::pin::pin!(guard.lost());
                assert!(poll!(&mut lost).is_pending(), "it is held");
                assert!(!guard.is_lost() && !token.is_cancelled(), "it is held");
                K::lose(&place.site(), reason);
                let lost = soon(lost).await;
                assert_eq!((&lost.lock, lost.reason), (&lock.name(), reason));
            }
            assert!(guard.is_lost());
            soon(token.cancelled()).await;
            assert!(guard.lost_token().is_cancelled());
            assert_eq!(soon(guard.lost()).await.reason, reason, "it stays lost");
            let released = soon(guard.release()).await;
            if K::PROMISES.release_says_lost {
                let Err(Error::Lost(lost)) = released else { panic!("{released:?}") };
                assert_eq!((&lost.lock, lost.reason), (&lock.name(), reason));
            } else {
                released.expect("it does not look");
            }
        });
    }
}

/// Nothing listened while it was lost.
fn a_loss_can_be_asked_for_afterwards<K: Kind>() {
    for &reason in K::LOSSES {
        block_on(async {
            let place = Place::<K>::new();
            let guard = acquired(&place.mortal()).await;
            K::lose(&place.site(), reason);
            eventually_async("it is lost", || guard.is_lost()).await;
            assert_eq!(soon(guard.lost()).await.reason, reason);
            soon(guard.lost_token().cancelled()).await;
            // Nothing of the next holder's is touched.
            drop(guard);
        });
    }
}

fn a_lock_that_is_held_is_not_lost<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let lock = place.mortal();
        let guard = acquired(&lock).await;
        let token = guard.lost_token();
        // One that waits takes nothing from the holder, and one that gives up neither.
        assert!(timeout(QUIET, place.lock().acquire()).await.is_err());
        let other = place.lock();
        soon(other.flush()).await;
        assert!(timeout(QUIET / 8, guard.lost()).await.is_err());
        assert!(!guard.is_lost() && !token.is_cancelled());
        // Cancelling it affects nothing else.
        token.cancel();
        assert!(!guard.is_lost() && !guard.lost_token().is_cancelled());
        let kept = guard.lost_token();
        release(guard).await;
        assert!(!kept.is_cancelled(), "a release is no loss");
    });
}

/// Notes that it was dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn work_under_a_lost_lock_is_dropped<K: Kind>() {
    for &reason in K::LOSSES {
        block_on(async {
            let place = Place::<K>::new();
            let (lock, is_dropped) = (place.mortal(), Arc::new(AtomicBool::new(false)));
            let dropped = Dropped(Arc::clone(&is_dropped));
            let work = async {
                let _dropped = dropped;
                K::lose(&place.site(), reason);
                std::future::pending::<()>().await;
            };
            let ran = soon(lock.run(work)).await.expect("the lock");
            assert!(is_dropped.load(Ordering::SeqCst));
            let Ran::Lost(lost) = ran else { panic!("{ran:?}") };
            assert_eq!((&lost.lock, lost.reason), (&lock.name(), reason));
            assert!(Ran::<()>::Lost(lost).in_safety().expect_err("it is lost").is_lost());
        });
    }
}

fn work_that_ends_as_the_lock_is_lost_is_not_called_safe<K: Kind>() {
    for &reason in K::LOSSES {
        block_on(async {
            let place = Place::<K>::new();
            let work = async { K::lose(&place.site(), reason) };
            let ran = soon(place.mortal().run(work)).await.expect("the lock");
            let Ran::Doubtful((), error) = ran else { panic!("{ran:?}") };
            assert!(error.is_lost(), "{error}");
        });
    }
}
