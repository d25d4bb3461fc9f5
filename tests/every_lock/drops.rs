//! A guard that is dropped releases the lock, wherever that is.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use lockkeeper::{Guard, Lock};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::another_process::holder;
use crate::kinds::{Kind, Place, acquired, release, soon};
use crate::support::{VERY_LONG, block_on, eventually};

for_every_kind! {
    in_its_runtime
    outside_any_runtime
    on_a_runtime_that_ends
    by_a_thread_that_may_block
    by_a_panic
    as_the_last_thing_of_main
    never
}

/// How long the exit of a process waits for a release.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

fn runtimes() -> [Runtime; 2] {
    let current_thread = Builder::new_current_thread().enable_all().build();
    let multi_thread = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    [current_thread, multi_thread].map(|runtime| runtime.expect("a runtime"))
}

fn in_its_runtime<K: Kind>() {
    for runtime in runtimes() {
        let place = Place::<K>::new();
        runtime.block_on(async {
            let lock = place.lock();
            let guard = acquired(&lock).await;
            let next = place.lock();
            let next = async move { next.acquire().await.expect("the lock").release().await };
            let next = place.wait_behind(0, next).await;
            drop(guard);
            soon(next).await.expect("no panic").expect("it was held");
            drop(acquired(&lock).await);
            place.expect_as_new(&lock, "after the drop").await;
        });
    }
}

fn outside_any_runtime<K: Kind>() {
    for runtime in runtimes() {
        let place = Place::<K>::new();
        let lock = place.lock();
        // The runtime is there, and this thread is not in it.
        drop(runtime.block_on(acquired(&lock)));
        runtime.block_on(place.expect_as_new(&lock, "beside its runtime"));
        let guard = runtime.block_on(acquired(&lock));
        drop(runtime);
        std::thread::spawn(move || drop(guard)).join().expect("no panic");
        block_on(place.expect_as_new(&lock, "after its runtime"));
    }
}

/// A task that holds is dropped with its runtime; those that wait are as well.
fn on_a_runtime_that_ends<K: Kind>() {
    for (is_awaited, in_background) in [(false, false), (true, false), (true, true)] {
        for runtime in runtimes() {
            let place = Place::<K>::new();
            let (lock, (holds, held)) = (place.lock(), oneshot::channel());
            let (alive, gone) = mpsc::channel::<()>();
            let (holder, holder_alive) = (lock.clone(), alive.clone());
            runtime.spawn(async move {
                let _alive = holder_alive;
                let _guard = acquired(&holder).await;
                holds.send(()).expect("somebody waits");
                std::future::pending::<()>().await;
            });
            runtime.block_on(async {
                soon(held).await.expect("it is held");
                if is_awaited {
                    let (waiter, waiter_alive) = (lock.clone(), alive.clone());
                    let waiter = async move {
                        let _alive = waiter_alive;
                        waiter.acquire().await.map(drop)
                    };
                    drop(place.wait_behind(0, waiter).await);
                }
            });
            match in_background {
                false => drop(runtime),
                true => runtime.shutdown_background(),
            }
            // A thread of the runtime may still poll one of them.
            drop(alive);
            assert_eq!(gone.recv_timeout(VERY_LONG), Err(mpsc::RecvTimeoutError::Disconnected));
            block_on(async {
                release(acquired(&place.lock()).await).await;
                place.expect_as_new(&lock, "after its runtime").await;
            });
        }
    }
}

fn by_a_thread_that_may_block<K: Kind>() {
    for runtime in runtimes() {
        let place = Place::<K>::new();
        runtime.block_on(async {
            let lock = place.lock();
            let guard = acquired(&lock).await;
            soon(tokio::task::spawn_blocking(move || drop(guard))).await.expect("no panic");
            place.expect_as_new(&lock, "after the drop").await;
        });
    }
}

/// Of a task, and of a thread without a runtime. There is no poison.
fn by_a_panic<K: Kind>() {
    let place = Place::<K>::new();
    let lock = place.lock();
    block_on(async {
        let holder = lock.clone();
        let panics = tokio::spawn(async move {
            let _guard = acquired(&holder).await;
            panic!("on purpose");
        });
        assert!(soon(panics).await.expect_err("a panic").is_panic());
        place.expect_as_new(&lock, "after the panic of a task").await;
    });
    let guard = block_on(acquired(&lock));
    let panics = std::thread::spawn(move || {
        let _guard = guard;
        panic!("on purpose");
    });
    assert!(panics.join().is_err());
    block_on(async {
        let guard = acquired(&place.lock()).await;
        assert!(guard.recovered_from().is_none(), "no process died");
        release(guard).await;
        place.expect_as_new(&lock, "after the panic of a thread").await;
    });
}

fn as_the_last_thing_of_main<K: Kind>() {
    eventually("the release is in time for the exit", || {
        let place = Place::<K>::new();
        let mut holder = holder("end dropping", &place);
        let begun = Instant::now();
        assert!(holder.wait().success());
        // On a busy machine a server may be too late: that proves nothing.
        let is_late = begun.elapsed() >= EXIT_LIMIT;
        block_on(async {
            let lock = place.lock();
            let guard = match is_late {
                false => Some(acquired(&lock).await),
                true => soon(lock.try_acquire()).await.expect("no error"),
            };
            let Some(guard) = guard else { return false };
            let is_released = guard.recovered_from().is_none();
            release(guard).await;
            assert!(is_released || is_late, "it was not released");
            is_released
        })
    });
}

/// `main` returns with a guard that is alive, as one in a static.
fn never<K: Kind>() {
    eventually("one ends while it holds the lock", || {
        let place = Place::<K>::new();
        let mut holder = holder("end holding", &place);
        block_on(async {
            // A server tells of a death that was waited for: that wait must not begin late.
            let Some(lock) = place.contender().await else { return false };
            holder.hang_up();
            let is_held = holder.next() == "mine";
            assert!(holder.wait().success());
            if !is_held {
                // A busy machine may bring that about.
                return false;
            }
            let guard = acquired(&lock).await;
            let is_told = guard.recovered_from().is_some();
            assert_eq!(is_told, K::PROMISES.tells_of_the_dead);
            release(guard).await;
            true
        })
    });
}
