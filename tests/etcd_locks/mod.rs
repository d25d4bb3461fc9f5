//! What the directed tests of etcd's locks share: a lock, its queue, contenders.

#![allow(dead_code, unreachable_pub)]

use std::sync::mpsc;
use std::time::Duration;

use lockkeeper::{AsyncEtcdLock, Error, EtcdGuard, EtcdLocks, EtcdOptions, Lost};

use crate::etcd_support::{Cluster, Entry};
use crate::support::{HOUR, VERY_LONG, block_on, eventually};

/// So long that no test sees a look that is due once in a lease.
pub const LONG: u64 = HOUR.as_secs();

/// Locks of these options but for their TTL have sessions of their own.
pub fn options(ttl: u64) -> EtcdOptions {
    let options = EtcdOptions::default().prefix("jobs").ttl(Duration::from_secs(ttl));
    options.reconnect(HOUR)
}

/// The lock `a`, whose keys are those of [`queue`].
pub fn lock(endpoints: &str, ttl: u64) -> AsyncEtcdLock {
    AsyncEtcdLock::with_options(endpoints, "a", options(ttl)).expect("options")
}

pub fn locks(endpoints: &str, ttl: u64) -> EtcdLocks {
    EtcdLocks::with_options(endpoints, options(ttl)).expect("options")
}

/// The keys of the holder and the waiters, in their order.
#[track_caller]
pub fn queue(cluster: &Cluster) -> Vec<Entry> {
    cluster.keys("jobs/a/")
}

/// Wait until there are so many keys.
#[track_caller]
pub fn stand(cluster: &Cluster, keys: usize) {
    eventually("so many keys are in the queue", || queue(cluster).len() == keys);
}

#[track_caller]
pub fn acquire(lock: &AsyncEtcdLock) -> EtcdGuard {
    let acquiring = lock.acquire();
    let acquired = block_on(async { tokio::time::timeout(VERY_LONG, acquiring).await });
    acquired.expect("it is acquired in time").expect("it is acquired")
}

#[track_caller]
pub fn release(guard: EtcdGuard) {
    block_on(guard.release()).expect("it is released");
}

#[track_caller]
pub fn lost(guard: &EtcdGuard) -> Lost {
    let lost = block_on(async { tokio::time::timeout(VERY_LONG, guard.lost()).await });
    lost.expect("it is told in time")
}

/// So that the lock has a session, and connections.
#[track_caller]
pub fn warm(lock: &AsyncEtcdLock) {
    release(acquire(lock));
}

/// A contender, on a thread of its own.
pub struct Waiter(mpsc::Receiver<Result<EtcdGuard, Error>>);

impl Waiter {
    pub fn of(lock: &AsyncEtcdLock) -> Self {
        let (acquiring, (sender, outcome)) = (lock.acquire(), mpsc::channel());
        std::thread::spawn(move || drop(sender.send(block_on(acquiring))));
        Self(outcome)
    }

    #[track_caller]
    pub fn outcome(&self) -> Result<EtcdGuard, Error> {
        self.0.recv_timeout(VERY_LONG).expect("the wait ends in time")
    }

    #[track_caller]
    pub fn guard(&self) -> EtcdGuard {
        self.outcome().expect("it is acquired")
    }

    #[track_caller]
    pub fn expect_waiting(&self) {
        let outcome = self.0.try_recv();
        assert!(matches!(outcome, Err(mpsc::TryRecvError::Empty)), "it waits no more: {outcome:?}");
    }
}

/// How many requests of a method a member has begun to serve. What it refuses for want of a
/// leader does not count.
pub fn begun(cluster: &Cluster, member: usize, method: &str) -> f64 {
    let label = format!("grpc_method=\"{method}\"");
    cluster.metric(member, "grpc_server_started_total", &label)
}

/// How many it has served.
pub fn served(cluster: &Cluster, member: usize, method: &str) -> f64 {
    let label = format!("grpc_method=\"{method}\"");
    cluster.metric(member, "grpc_server_handled_total", &label)
}
