//! Acquire and release, beside two bare transactions and the hops between threads.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockkeeper::EtcdLocks;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::bare::Bare;
use crate::figures::{micros, p50};
use crate::{role, settings};

/// How far the engine may be from its floor.
const BAR: f64 = 1.1;

pub(crate) fn run(address: SocketAddr, disk: &str) {
    let (turns, seconds) = (settings::turns(), settings::seconds());
    let mut rows = Rows::new(address);
    let [mut bare, mut there, mut hops, mut pairs, mut tries] = [const { Vec::new() }; 5];
    let mut acquires = Vec::new();
    for _ in 0..turns {
        rows.bare(seconds, &mut bare);
        rows.bare_on_a_thread(seconds, &mut there);
        rows.hops(seconds.min(Duration::from_millis(200)), &mut hops);
        rows.pairs(seconds, &mut pairs, &mut acquires);
        rows.tries(seconds, &mut tries);
    }
    // A hop costs more where both threads have slept for as long as a request takes.
    let floor = p50(&mut there);
    println!("\nacquire and release, one task, p50 ({disk}; {} pairs)", pairs.len());
    let line = |name: &str, times: &mut [Duration]| {
        let ratio = micros(p50(times)) / micros(floor);
        println!("{name:<46} {:>8.0} µs {ratio:>6.2} × floor", micros(p50(times)));
    };
    line("two bare transactions: put, delete", &mut bare);
    println!(
        "{:<46} {:>8.0} µs",
        "an empty hop to another thread and back",
        micros(p50(&mut hops))
    );
    line("floor: each transaction on another thread", &mut there);
    line("acquire, release", &mut pairs);
    line("  of which acquire", &mut acquires);
    line("try_acquire, release", &mut tries);
    let reached = micros(p50(&mut pairs)) / micros(floor);
    println!("bar: {BAR} × floor, {}", if reached <= BAR { "met" } else { "MISSED" });
}

struct Rows {
    runtime: Runtime,
    bare: Bare,
    /// A thread as the engine has one, with a connection of its own.
    there: Handle,
    bare_there: Bare,
    lease: i64,
    locks: EtcdLocks,
}

impl Rows {
    fn new(address: SocketAddr) -> Self {
        let runtime = current_thread();
        let (bare, lease) = runtime.block_on(async {
            let bare = Bare::connect(address).await;
            let lease = bare.lease(600).await;
            (bare, lease)
        });
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = current_thread();
            send.send(runtime.handle().clone()).expect("the bench");
            runtime.block_on(std::future::pending::<()>());
        });
        let there: Handle = receive.recv().expect("a thread");
        let (send, receive) = std::sync::mpsc::channel();
        there.spawn(async move { drop(send.send(Bare::connect(address).await)) });
        let bare_there = receive.recv().expect("a connection");
        let locks = EtcdLocks::new(address.to_string()).expect("its locks");
        Self { runtime, bare, there, bare_there, lease, locks }
    }

    fn bare(&mut self, seconds: Duration, times: &mut Vec<Duration>) {
        self.runtime.block_on(async {
            let (bare, lease) = (&self.bare, self.lease);
            repeat(seconds, times, async |key| {
                bare.put(&key, lease).await;
                bare.delete(&key).await;
            })
            .await;
        });
    }

    fn bare_on_a_thread(&mut self, seconds: Duration, times: &mut Vec<Duration>) {
        self.runtime.block_on(async {
            repeat(seconds, times, async |key| {
                let (bare, lease, name) = (self.bare_there.clone(), self.lease, key.clone());
                hop(&self.there, async move { bare.put(&name, lease).await }).await;
                let bare = self.bare_there.clone();
                hop(&self.there, async move { bare.delete(&key).await }).await;
            })
            .await;
        });
    }

    fn hops(&mut self, seconds: Duration, times: &mut Vec<Duration>) {
        self.runtime.block_on(async {
            let end = Instant::now() + seconds;
            while Instant::now() < end {
                // Both threads sleep before each, as they do beside requests.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let begun = Instant::now();
                hop(&self.there, async {}).await;
                times.push(begun.elapsed());
            }
        });
    }

    fn pairs(
        &mut self,
        seconds: Duration,
        times: &mut Vec<Duration>,
        acquires: &mut Vec<Duration>,
    ) {
        let (lock, acquires) = (self.locks.lock("pair").expect("a lock"), RefCell::new(acquires));
        self.runtime.block_on(repeat(seconds, times, async |_| {
            let begun = Instant::now();
            let guard = lock.acquire().await.expect("the lock");
            acquires.borrow_mut().push(begun.elapsed());
            guard.release().await.expect("its release");
        }));
    }

    fn tries(&mut self, seconds: Duration, times: &mut Vec<Duration>) {
        let lock = self.locks.lock("try").expect("a lock");
        self.runtime.block_on(repeat(seconds, times, async |_| {
            let guard = lock.try_acquire().await.expect("an answer").expect("the lock");
            guard.release().await.expect("its release");
        }));
    }
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Over and over, with a key of its own each time. The first ones are not counted.
async fn repeat<F>(seconds: Duration, times: &mut Vec<Duration>, once: F)
where
    F: AsyncFn(String),
{
    for number in 0..10 {
        once(format!("bare/first-{number}")).await;
    }
    let end = Instant::now() + seconds;
    let mut number = 0;
    while Instant::now() < end {
        number += 1;
        let begun = Instant::now();
        once(format!("bare/7587a3c1f6a2b8{number:016x}")).await;
        times.push(begun.elapsed());
    }
}

/// Have it done by that thread, as the engine does.
async fn hop<F>(there: &Handle, work: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (send, receive) = oneshot::channel();
    there.spawn(async move {
        work.await;
        let _ = send.send(());
    });
    receive.await.expect("it was done");
}

/// Pairs of one process, by an own lock.
pub(crate) async fn in_a_process(address: SocketAddr, name: &str) {
    let locks = EtcdLocks::new(address.to_string()).expect("its locks");
    let lock = locks.lock(name).expect("a lock");
    role::until_asked_to_end(async || {
        let from = role::now();
        let guard = lock.acquire().await.expect("the lock");
        guard.release().await.expect("its release");
        Some((from, role::now()))
    })
    .await;
}

/// The same with no lock.
pub(crate) async fn bare_in_a_process(address: SocketAddr, name: &str) {
    let bare = Bare::connect(address).await;
    let lease = bare.lease(60).await;
    let mut number = 0;
    role::until_asked_to_end(async || {
        number += 1;
        let (from, key) = (role::now(), format!("bare/{name}/{number:032x}"));
        bare.put(&key, lease).await;
        bare.delete(&key).await;
        Some((from, role::now()))
    })
    .await;
}
