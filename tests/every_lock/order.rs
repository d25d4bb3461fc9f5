//! First in, first out: among the tasks of a process, and among processes.

use std::sync::{Arc, Mutex};

use lockkeeper::{Guard, Lock};

use crate::another_process::{holder, start};
use crate::kinds::{Kind, Place, acquired, release, soon};
use crate::support::{HOUR, QUIET, block_on, on_tmpfs};

for_every_kind! {
    tasks_are_served_in_order
    a_waiter_that_is_dropped_does_not_hold_up_those_behind
    processes_are_served_in_order
    a_process_passes_the_lock_to_another
}

fn tasks_are_served_in_order<K: Kind>() {
    block_on(async {
        let (place, order) = (Place::<K>::new(), Arc::new(Mutex::new(Vec::new())));
        let (holder, guard) = (place.lock(), acquired(&place.lock()).await);
        let mut tasks = Vec::new();
        for number in 0..5 {
            let lock = if number % 2 == 0 { holder.clone() } else { place.lock() };
            let order = Arc::clone(&order);
            let waiter = async move {
                let guard = match number % 3 {
                    0 => lock.acquire_timeout(HOUR).await.expect("the lock"),
                    _ => lock.acquire().await.expect("the lock"),
                };
                order.lock().expect("no panic").push(number);
                tokio::task::yield_now().await;
                guard.release().await.expect("it was held");
            };
            tasks.push(place.wait_behind(number, waiter).await);
        }
        drop(guard);
        for task in tasks {
            soon(task).await.expect("no panic");
        }
        assert_eq!(*order.lock().expect("no panic"), [0, 1, 2, 3, 4]);
    });
}

fn a_waiter_that_is_dropped_does_not_hold_up_those_behind<K: Kind>() {
    block_on(async {
        let place = Place::<K>::new();
        let (lock, guard) = (place.lock(), acquired(&place.lock()).await);
        let mut tasks = Vec::new();
        for number in 0..3 {
            let lock = lock.clone();
            let waiter = async move { lock.acquire().await.expect("the lock").release().await };
            tasks.push(place.wait_behind(number, waiter).await);
        }
        tasks[0].abort();
        tasks[1].abort();
        drop(guard);
        let last = tasks.pop().expect("three of them");
        soon(last).await.expect("no panic").expect("it was held");
        place.expect_as_new(&lock, "after the last").await;
    });
}

const WAITERS: usize = 5;

/// Chance would turn half of thirty pairs round, and hardly ever as few as [`FEW`]. Some
/// may be, where a process takes long to wake.
const ROUNDS: usize = 3;

const FEW: usize = 5;

/// A machine that is busy is asked more often.
const RUNS: usize = 6;

fn processes_are_served_in_order<K: Kind>() {
    if !K::PROMISES.has_lines {
        return println!("processes are served as they come");
    }
    for _ in 0..RUNS {
        let inversions: usize = (0..ROUNDS).map(|_| inversions_of_ten_pairs::<K>()).sum();
        if inversions <= FEW {
            return;
        }
        println!("{inversions} of thirty pairs in the wrong order");
    }
    panic!("served in the wrong order");
}

fn inversions_of_ten_pairs<K: Kind>() -> usize {
    let (place, directory) = (Place::<K>::new(), on_tmpfs());
    let journal = directory.path().join("journal");
    std::fs::write(&journal, "").expect("a journal");
    let guard = block_on(acquired(&place.lock()));
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        let waiter = start(&format!("wait {number} {}", journal.display()), &place);
        waiter.expect("asks");
        waiters.push(waiter);
        place.expect_processes(number + 1);
        // Until it is asleep.
        std::thread::sleep(QUIET / 20);
    }
    block_on(release(guard));
    assert!(waiters.iter_mut().all(|waiter| waiter.wait().success()));
    let order = std::fs::read(&journal).expect("a journal");
    assert_eq!(order.len(), WAITERS);
    let pairs = (0..WAITERS).flat_map(|first| (first + 1..WAITERS).map(move |next| (first, next)));
    pairs.filter(|(first, next)| order[*first] > order[*next]).count()
}

fn a_process_passes_the_lock_to_another<K: Kind>() {
    let place = Place::<K>::new();
    let mut other = holder("hold", &place);
    block_on(async {
        let lock = place.lock();
        assert!(soon(lock.try_acquire()).await.expect("no error").is_none());
        let waiting = tokio::spawn(lock.acquire());
        place.expect_to_wait().await;
        other.tell("release");
        other.expect("released");
        let guard = soon(waiting).await.expect("no panic").expect("the lock");
        assert!(guard.recovered_from().is_none(), "it was released");
        release(guard).await;
    });
}
