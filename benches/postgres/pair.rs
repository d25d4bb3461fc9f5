//! Acquire and release, beside the bare statements and the hops between threads.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockkeeper::{AsyncPostgresLock, PostgresOptions, Table};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::bare::Bare;
use crate::figures::{micros, p50};
use crate::settings;

/// How far the engine may be from the statements that it is made of.
const BARE_BAR: f64 = 1.3;

/// And with the table, from two commits.
const TABLE_BAR: f64 = 1.2;

pub(crate) fn run(address: SocketAddr, disk: &str) {
    let (turns, seconds) = (settings::turns(), settings::seconds());
    let rows = Rows::new(address);
    let [mut here, mut statements, mut commits, mut bare, mut table, mut acquires, mut tries] =
        [const { Vec::new() }; 7];
    for _ in 0..turns {
        rows.statements_here(seconds, &mut here);
        rows.statements(seconds, &mut statements);
        rows.commits(seconds, &mut commits);
        rows.pairs(seconds, Table::None, &mut bare, &mut Vec::new());
        rows.pairs(seconds, Table::Own, &mut table, &mut acquires);
        rows.tries(seconds, &mut tries);
    }
    println!("\nacquire and release, one task, p50 ({disk}; {} pairs)", table.len());
    let (floor, two) = (p50(&mut statements), p50(&mut commits));
    let line = |name: &str, times: &mut [Duration], floor: Duration| {
        let ratio = micros(p50(times)) / micros(floor);
        println!("{name:<58} {:>8.0} µs {ratio:>6.2} × floor", micros(p50(times)));
        ratio
    };
    line("try, number, unlock: three statements on this thread", &mut here, floor);
    line("floor without a table: each from another thread", &mut statements, floor);
    let reached = line("acquire, release, without a table", &mut bare, floor);
    told(BARE_BAR, reached);
    line("floor with the table: two commits, each from another thread", &mut commits, two);
    let reached = line("acquire, release, with the table", &mut table, two);
    line("  of which acquire", &mut acquires, two);
    line("try_acquire, release, with the table", &mut tries, two);
    told(TABLE_BAR, reached);
}

fn told(bar: f64, reached: f64) {
    println!("bar: {bar} × floor, {}", if reached <= bar { "met" } else { "MISSED" });
}

struct Rows {
    runtime: Runtime,
    here: Bare,
    /// A thread as the engine has one, with a session of its own.
    there: Handle,
    bare_there: Bare,
    address: SocketAddr,
}

impl Rows {
    fn new(address: SocketAddr) -> Self {
        let runtime = current_thread();
        let here = runtime.block_on(Bare::connect(address));
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = current_thread();
            send.send(runtime.handle().clone()).expect("the bench");
            runtime.block_on(std::future::pending::<()>());
        });
        let there: Handle = receive.recv().expect("a thread");
        let (send, receive) = std::sync::mpsc::channel();
        there.spawn(async move { drop(send.send(Bare::connect(address).await)) });
        let bare_there = receive.recv().expect("a session");
        Self { runtime, here, there, bare_there, address }
    }

    fn statements_here(&self, seconds: Duration, times: &mut Vec<Duration>) {
        self.runtime.block_on(repeat(seconds, times, async || {
            self.here.try_lock(1).await;
            self.here.number().await;
            self.here.unlock(1).await;
        }));
    }

    fn statements(&self, seconds: Duration, times: &mut Vec<Duration>) {
        self.runtime.block_on(repeat(seconds, times, async || {
            let [one, two, three] = [(); 3].map(|()| self.bare_there.clone());
            // As the engine: a task for the acquisition, one for the release.
            hop(&self.there, async move {
                one.try_lock(2).await;
                two.number().await;
            })
            .await;
            hop(&self.there, async move { three.unlock(2).await }).await;
        }));
    }

    fn commits(&self, seconds: Duration, times: &mut Vec<Duration>) {
        self.runtime.block_on(repeat(seconds, times, async || {
            for _ in 0..2 {
                let bare = self.bare_there.clone();
                hop(&self.there, async move { bare.commit(3).await }).await;
            }
        }));
    }

    fn lock(&self, table: Table) -> AsyncPostgresLock {
        let options = PostgresOptions::default().table(table);
        let lock = AsyncPostgresLock::with_options(crate::text(self.address), "pair", options);
        lock.expect("a lock")
    }

    fn pairs(
        &self,
        seconds: Duration,
        table: Table,
        times: &mut Vec<Duration>,
        acquires: &mut Vec<Duration>,
    ) {
        let (lock, acquires) = (self.lock(table), std::cell::RefCell::new(acquires));
        self.runtime.block_on(repeat(seconds, times, async || {
            let begun = Instant::now();
            let guard = lock.acquire().await.expect("the lock");
            acquires.borrow_mut().push(begun.elapsed());
            guard.release().await.expect("its release");
        }));
    }

    fn tries(&self, seconds: Duration, times: &mut Vec<Duration>) {
        let lock = self.lock(Table::Own);
        self.runtime.block_on(repeat(seconds, times, async || {
            let guard = lock.try_acquire().await.expect("an answer").expect("the lock");
            guard.release().await.expect("its release");
        }));
    }
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Over and over. The first ones are not counted.
async fn repeat<F>(seconds: Duration, times: &mut Vec<Duration>, once: F)
where
    F: AsyncFn(),
{
    for _ in 0..10 {
        once().await;
    }
    let end = Instant::now() + seconds;
    while Instant::now() < end {
        let begun = Instant::now();
        once().await;
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
