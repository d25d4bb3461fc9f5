//! Requests to etcd that arrive late, or whose answers are lost: no key is left, and none
//! of another hold is deleted.

mod etcd_locks;
mod etcd_support;
mod server_support;
mod support;

use std::pin::pin;
use std::time::Duration;

use etcd_locks::{LONG, Waiter, acquire, lock, queue, release, served, stand, warm};
use etcd_support::{Cluster, To, Version, is_there};
use lockkeeper::{AsyncEtcdLock, Error};
use support::{block_on, eventually, eventually_async};

/// A request that is so late was given up, and sent to the next endpoint: each may take two
/// seconds. Twice that, so that a busy machine is through with the other before it arrives.
const LATE: Duration = Duration::from_secs(4);

/// To a member by a slow way, and directly.
fn slow_and_quick(cluster: &Cluster) -> (etcd_support::Proxy, String) {
    let proxy = cluster.proxy(0);
    let endpoints = format!("{},{}", proxy.endpoint(), cluster.endpoint(0));
    (proxy, endpoints)
}

/// A put was sent twice, and the second was carried out first; the key was deleted since.
#[test]
fn a_put_that_arrives_after_the_release_leaves_no_key() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let (proxy, endpoints) = slow_and_quick(&cluster);
    let lock = lock(&endpoints, LONG);
    warm(&lock);
    let before = served(&cluster, 0, "Txn");
    proxy.delay(To::Server, LATE);
    release(acquire(&lock));
    assert_eq!(queue(&cluster), []);
    eventually("the late put arrives", || served(&cluster, 0, "Txn") >= before + 3.0);
    assert_eq!(queue(&cluster), [], "the late put was carried out");
    release(acquire(&lock));
}

#[test]
fn a_put_that_arrives_after_its_wait_was_dropped_leaves_no_key() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let (proxy, endpoints) = slow_and_quick(&cluster);
    let dropped = lock(&endpoints, LONG);
    warm(&dropped);
    let holder = acquire(&lock(&cluster.endpoint(0), LONG));
    let before = served(&cluster, 0, "Txn");
    proxy.delay(To::Server, LATE);
    let (acquiring, flushed) = (dropped.acquire(), dropped.flush());
    block_on(async {
        tokio::select! {
            acquired = acquiring => panic!("it is held: {acquired:?}"),
            () = eventually_async("it waits", || queue(&cluster).len() == 2) => {}
        }
        flushed.await;
    });
    eventually("the late put arrives", || served(&cluster, 0, "Txn") >= before + 3.0);
    let keys: Vec<String> = queue(&cluster).into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [holder.key().name()], "the late put was carried out");
    release(holder);
}

/// The put waits in the leader's socket while that is stopped.
#[test]
fn a_put_that_a_stopped_leader_carries_out_later_leaves_no_key() {
    leave_a_put_to_a_stopped_leader(|lock, is_sent| {
        let acquiring = Waiter::of(lock);
        is_sent();
        release(acquiring.guard());
    });
}

/// It is given up before it is known that it failed.
#[test]
fn a_put_that_is_under_way_when_its_future_is_dropped_leaves_no_key() {
    leave_a_put_to_a_stopped_leader(|lock, is_sent| {
        block_on(async {
            let mut acquiring = pin!(lock.acquire());
            assert!(futures::poll!(&mut acquiring).is_pending());
            is_sent();
        });
        block_on(lock.flush());
    });
}

/// `act` acquires, says that the put is sent, and leaves nothing behind.
fn leave_a_put_to_a_stopped_leader(act: impl FnOnce(&AsyncEtcdLock, &dyn Fn())) {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::builder(3).fast_elections().start();
    let leader = cluster.leader();
    let proxy = cluster.proxy(leader);
    let others = (0..3).filter(|&member| member != leader).map(|member| cluster.endpoint(member));
    let endpoints: Vec<String> = std::iter::once(proxy.endpoint()).chain(others).collect();
    let lock = lock(&endpoints.join(","), LONG);
    warm(&lock);
    let sent = proxy.bytes(To::Server);
    cluster.stop(leader);
    act(&lock, &|| {
        eventually("the put is sent", || proxy.bytes(To::Server) > sent + 200);
        // What says that it was given up does not arrive.
        proxy.stall_to(To::Server);
    });
    let received = proxy.bytes(To::Client);
    cluster.resume(leader);
    eventually("the put is answered", || proxy.bytes(To::Client) > received);
    assert_eq!(queue(&cluster), [], "the late put was carried out");
}

/// Until then its key may be there, and the next would wait behind that.
#[test]
fn the_next_task_puts_no_key_before_the_delete_of_the_last_is_confirmed() {
    if !is_there(Version::V3_4) {
        return;
    }
    const QUIET: Duration = Duration::from_secs(1);
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let lock = lock(&proxy.endpoint(), LONG);
    let guard = acquire(&lock);
    proxy.stall_to(To::Client);
    drop(guard);
    stand(&cluster, 0);
    let next = Waiter::of(&lock);
    std::thread::sleep(QUIET);
    assert_eq!(queue(&cluster), []);
    proxy.go_on();
    release(next.guard());
}

#[test]
fn a_release_whose_answer_is_lost_is_a_release() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let guard = acquire(&lock(&proxy.endpoint(), LONG));
    proxy.stall_to(To::Client);
    let releasing = std::thread::spawn(|| block_on(guard.release()));
    stand(&cluster, 0);
    proxy.drop_all();
    proxy.go_on();
    releasing.join().expect("no panic").expect("it is released");
}

/// Each acquisition has a key of its own, so what was meant for one does not meet another.
#[test]
fn a_delete_that_arrives_late_leaves_the_next_hold_alone() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let (proxy, endpoints) = slow_and_quick(&cluster);
    let lock = lock(&endpoints, LONG);
    let first = acquire(&lock);
    let before = served(&cluster, 0, "Txn");
    proxy.delay(To::Server, LATE);
    release(first);
    let next = acquire(&lock);
    eventually("the late delete arrives", || served(&cluster, 0, "Txn") >= before + 3.0);
    assert_eq!(queue(&cluster).len(), 1, "the late delete met the key of the next hold");
    assert!(!next.is_lost());
    release(next);
}

#[track_caller]
fn expect_no_space(lock: &AsyncEtcdLock) {
    match Waiter::of(lock).outcome() {
        Err(Error::Refused { code, message, .. }) => {
            assert_eq!(code, "no_space");
            assert!(message.contains("defragment"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    block_on(lock.flush());
}

#[test]
fn a_full_database_refuses_acquisitions_and_takes_releases() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(1).quota(1024 * 1024).start();
    let (proxy, endpoints) = slow_and_quick(&cluster);
    let (holding, other) = (lock(&endpoints, LONG), lock(&cluster.endpoint(0), LONG));
    warm(&holding);
    warm(&other);
    // The put is unclear, so the release needs its barrier.
    proxy.delay(To::Server, LATE);
    let guard = acquire(&holding);
    let much = "x".repeat(100_000);
    eventually("it is full", || {
        let put = cluster.try_etcdctl(&["put", "large", &much]);
        put.is_err_and(|error| error.contains("database space exceeded"))
    });
    expect_no_space(&other);
    expect_no_space(&lock(&cluster.endpoint(0), LONG + 1));
    assert_eq!(queue(&cluster).len(), 1);
    release(guard);
    assert_eq!(queue(&cluster), []);
    expect_no_space(&holding);
    assert_eq!(queue(&cluster), []);
    cluster.etcdctl(&["del", "large"]);
    let revision = cluster.status(0).expect("it answers").revision;
    // Physically: before it has freed pages there is nothing to defragment.
    cluster.etcdctl(&["compaction", "--physical", &revision.to_string()]);
    cluster.etcdctl(&["defrag"]);
    cluster.etcdctl(&["alarm", "disarm"]);
    for lock in [holding, other] {
        release(acquire(&lock));
    }
    assert_eq!(queue(&cluster), []);
}
