//! What the directed tests of PostgreSQL's locks share: a server with the table, locks,
//! contenders.

#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use lockkeeper::{
    AsyncPostgresLock, Error, LockKey, Lost, PostgresGuard, PostgresLocks, PostgresOptions,
};

use crate::postgres_support::{Builder, PASSWORD, ROLE, Server};
use crate::support::{HOUR, VERY_LONG, block_on, eventually};

/// So long that no test sees what is due once in a lease.
pub const LONG: Duration = HOUR;

/// With the table, that its role may use.
#[track_caller]
pub fn server() -> Server {
    with_table(Server::builder())
}

#[track_caller]
pub fn with_table(builder: Builder) -> Server {
    let server = builder.start();
    server.sql(PostgresLocks::SCHEMA);
    grant(&server, ROLE);
    server
}

#[track_caller]
pub fn grant(server: &Server, role: &str) {
    server.sql(&format!(
        "GRANT USAGE ON SCHEMA lockkeeper TO {role}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA lockkeeper TO {role}"
    ));
}

pub fn text(address: SocketAddr) -> String {
    let (host, port) = (address.ip(), address.port());
    format!("host={host} port={port} user={ROLE} password='{PASSWORD}' dbname=postgres")
}

/// As another process would: sessions of its own.
pub fn text_of_another(address: SocketAddr) -> String {
    format!("{} application_name=another", text(address))
}

pub fn options(lease: Duration) -> PostgresOptions {
    PostgresOptions::default().lease(lease).reconnect(HOUR)
}

/// The lock `a`.
pub fn lock(text: &str, options: PostgresOptions) -> AsyncPostgresLock {
    AsyncPostgresLock::with_options(text, "a", options).expect("options")
}

#[track_caller]
pub fn acquire(lock: &AsyncPostgresLock) -> PostgresGuard {
    let acquiring = lock.acquire();
    let acquired = block_on(async { tokio::time::timeout(VERY_LONG, acquiring).await });
    acquired.expect("it is acquired in time").expect("it is acquired")
}

#[track_caller]
pub fn release(guard: PostgresGuard) {
    block_on(guard.release()).expect("it is released");
}

#[track_caller]
pub fn lost(guard: &PostgresGuard) -> Lost {
    let lost = block_on(async { tokio::time::timeout(VERY_LONG, guard.lost()).await });
    lost.expect("it is told in time")
}

/// SQL for the sessions that have something of the lock.
pub fn of_lock(lock: &AsyncPostgresLock) -> String {
    let LockKey::One(key) = lock.key() else { panic!("a name has one key") };
    let (class, object) = ((key >> 32) & 0xffff_ffff, key & 0xffff_ffff);
    format!("locktype = 'advisory' and classid = {class} and objid = {object} and objsubid = 1")
}

/// SQL for how many sessions hold the lock and how many wait for it, as in `1 0`.
pub fn standing(lock: &AsyncPostgresLock) -> String {
    format!(
        "select count(*) filter (where granted) || ' ' || count(*) filter (where not granted) \
         from pg_locks where {}",
        of_lock(lock)
    )
}

/// Wait until so many sessions hold the lock and wait for it.
#[track_caller]
pub fn stand(server: &Server, lock: &AsyncPostgresLock, holders: usize, waiters: usize) {
    server.wait_for(&standing(lock), &format!("{holders} {waiters}"));
}

/// The server's process of the one session that waits for the lock.
#[track_caller]
pub fn waiting(server: &Server, lock: &AsyncPostgresLock) -> u32 {
    let sql = format!("select pid from pg_locks where not granted and {}", of_lock(lock));
    server.value(&sql).parse().expect("a process id")
}

/// Have the sessions end that hold the lock. They may still be there for a moment.
#[track_caller]
pub fn terminate_holder(server: &Server, lock: &AsyncPostgresLock) {
    assert!(has_terminated_holder(server, lock), "no session holds it");
}

/// The same; `false` if no session holds the lock.
#[track_caller]
pub fn has_terminated_holder(server: &Server, lock: &AsyncPostgresLock) -> bool {
    let sql = format!(
        "select bool_and(pg_terminate_backend(pid)) from pg_locks where granted and {}",
        of_lock(lock)
    );
    server.value(&sql) == "t"
}

/// A contender, on a thread of its own.
pub struct Waiter(mpsc::Receiver<Result<PostgresGuard, Error>>);

impl Waiter {
    pub fn of(lock: &AsyncPostgresLock) -> Self {
        let (acquiring, (sender, outcome)) = (lock.acquire(), mpsc::channel());
        std::thread::spawn(move || drop(sender.send(block_on(acquiring))));
        Self(outcome)
    }

    #[track_caller]
    pub fn outcome(&self) -> Result<PostgresGuard, Error> {
        self.0.recv_timeout(VERY_LONG).expect("the wait ends in time")
    }

    #[track_caller]
    pub fn guard(&self) -> PostgresGuard {
        self.outcome().expect("it is acquired")
    }

    #[track_caller]
    pub fn expect_waiting(&self) {
        let outcome = self.0.try_recv();
        assert!(matches!(outcome, Err(mpsc::TryRecvError::Empty)), "it waits no more: {outcome:?}");
    }
}

/// Wait until the sessions of the role are so many.
#[track_caller]
pub fn sessions(server: &Server, count: usize) {
    eventually("so many sessions", || server.backends_of(ROLE).len() == count);
}
