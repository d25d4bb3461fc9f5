//! What becomes of a lock when its holder, or a waiter, is killed or stopped.

use lockkeeper::{Guard, Lock};
use nix::sys::signal::Signal;

use crate::another_process::{holder, start};
use crate::kinds::{GuardOf, Kind, Place, acquired, release, soon};
use crate::support::{Process, QUIET, block_on, eventually, on_tmpfs};

for_every_kind! {
    a_killed_holder_is_followed_by_a_waiter
    a_killed_holder_is_followed_by_one_that_comes_later
    a_killed_waiter_is_passed_over
    a_stopped_holder_holds
}

fn is_told_of<K: Kind>(guard: &GuardOf<K>, process: u32) {
    let told = guard.recovered_from();
    assert_eq!(told.is_some(), K::PROMISES.tells_of_the_dead, "{told:?}");
    if let Some(dead) = told {
        assert!(K::names(dead, process), "{dead:?}");
        assert!(!dead.evidence.is_alive(), "{dead:?}");
    }
}

/// Kill it. `false` if it had lost the lock before, which a busy machine may bring about.
fn kill_while_it_holds(holder: &mut Process) -> bool {
    holder.tell("is it lost?");
    let is_held = holder.next() == "mine";
    holder.kill();
    is_held
}

fn a_killed_holder_is_followed_by_a_waiter<K: Kind>() {
    eventually("one is killed while it holds the lock", || {
        let place = Place::<K>::new();
        let mut dead = holder("hold mortal", &place);
        block_on(async {
            let mut waiting = tokio::spawn(place.lock().acquire());
            tokio::select! {
                () = place.expect_to_wait() => {}
                acquired = &mut waiting => {
                    drop(acquired.expect("no panic").expect("the lock"));
                    return false;
                }
            }
            if !kill_while_it_holds(&mut dead) {
                return false;
            }
            let guard = soon(waiting).await.expect("no panic").expect("the lock");
            is_told_of::<K>(&guard, dead.id());
            release(guard).await;
            // Once.
            let lock = place.lock();
            let guard = acquired(&lock).await;
            assert!(guard.recovered_from().is_none());
            release(guard).await;
            place.expect_as_new(&lock, "after the dead holder").await;
            true
        })
    });
}

fn a_killed_holder_is_followed_by_one_that_comes_later<K: Kind>() {
    eventually("one is killed while it holds the lock", || {
        let place = Place::<K>::new();
        let mut dead = holder("hold mortal", &place);
        block_on(async {
            // A server tells of a death that was waited for: that wait must not begin late.
            let Some(lock) = place.contender().await else { return false };
            if !kill_while_it_holds(&mut dead) {
                return false;
            }
            let guard = acquired(&lock).await;
            is_told_of::<K>(&guard, dead.id());
            release(guard).await;
            true
        })
    });
}

fn a_killed_waiter_is_passed_over<K: Kind>() {
    let (place, directory) = (Place::<K>::new(), on_tmpfs());
    let guard = block_on(acquired(&place.lock()));
    let journal = directory.path().join("journal");
    std::fs::write(&journal, "").expect("a journal");
    let mut waiters = Vec::new();
    for number in 0..2 {
        waiters.push(start(&format!("wait {number} {}", journal.display()), &place));
        place.expect_processes(number + 1);
    }
    waiters[0].kill();
    place.expect_processes(1);
    block_on(release(guard));
    assert!(waiters[1].wait().success());
    assert_eq!(std::fs::read(&journal).expect("a journal"), b"1");
}

fn a_stopped_holder_holds<K: Kind>() {
    let place = Place::<K>::new();
    let mut other = holder("hold", &place);
    other.stop();
    block_on(async {
        let lock = place.lock();
        let error = soon(lock.acquire_timeout(QUIET)).await.expect_err("it is held");
        assert!(error.is_timeout(), "{error}");
        assert!(soon(lock.try_acquire()).await.expect("no error").is_none());
        other.signal(Signal::SIGCONT);
        other.tell("is it lost?");
        other.expect("mine");
        other.tell("release");
        other.expect("released");
        let guard = acquired(&lock).await;
        assert!(guard.recovered_from().is_none(), "it was released");
        release(guard).await;
    });
}
