//! Members of etcd that are cut off, killed, stopped or restored: nothing is lost that need
//! not be, and what is lost is told.

mod etcd_locks;
mod etcd_support;
mod server_support;
mod support;

use etcd_locks::{LONG, Waiter, acquire, begun, lock, locks, lost, queue, release, stand, warm};
use etcd_support::{Cluster, Version, is_there};
use lockkeeper::{EtcdGuard, LostReason};
use support::{block_on, eventually};

/// The default: no election is so long.
const TTL: u64 = 15;

/// All endpoints, those of this member first.
fn first(cluster: &Cluster, member: usize) -> String {
    let others = (0..cluster.len()).filter(|&other| other != member);
    let all: Vec<String> =
        std::iter::once(member).chain(others).map(|member| cluster.endpoint(member)).collect();
    all.join(",")
}

#[test]
fn a_member_that_is_cut_off_says_so_and_is_given_no_request_to_hang_in() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(3).fast_elections().partitions().start();
    let cut = cluster.leader();
    let (before, after) =
        (lock(&first(&cluster, cut), LONG), lock(&first(&cluster, cut), LONG + 1));
    warm(&before);
    cluster.partition(cut);
    eventually("it knows no leader", || cluster.status(cut).is_some_and(|it| it.leader == 0));
    let taken = |method: &str| begun(&cluster, cut, method);
    let methods = ["LeaseGrant", "Txn", "Range"];
    let had = methods.map(taken);
    // One that had a session, one without.
    let guard = acquire(&before);
    let waiter = Waiter::of(&after);
    let others = || block_on(before.waiters()).expect("a member answers").len();
    eventually("it waits", || others() == 1);
    release(guard);
    release(waiter.guard());
    assert_eq!(methods.map(taken), had, "requests to {methods:?} that hang in the member");
}

/// A holder and a waiter with sessions of their own.
fn pair(cluster: &Cluster, member: usize) -> (EtcdGuard, Waiter) {
    let endpoints = first(cluster, member);
    let guard = acquire(&lock(&endpoints, TTL));
    let waiter = Waiter::of(&lock(&endpoints, TTL + 1));
    stand(cluster, 2);
    (guard, waiter)
}

fn expect_handed_over(cluster: &Cluster, (guard, waiter): (EtcdGuard, Waiter)) {
    assert!(!guard.is_lost(), "{:?}", lost(&guard));
    waiter.expect_waiting();
    let token = guard.fencing_token();
    release(guard);
    let next = waiter.guard();
    assert!(next.fencing_token() > token);
    assert!(!next.is_lost());
    release(next);
    assert_eq!(queue(cluster), []);
}

#[test]
fn a_leader_or_another_member_that_is_killed_costs_no_hold_and_no_wait() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::builder(3).fast_elections().start();
    for is_leader in [true, false] {
        let leader = cluster.leader();
        let victim = if is_leader { leader } else { (leader + 1) % 3 };
        let pair = pair(&cluster, victim);
        cluster.kill(victim);
        expect_handed_over(&cluster, pair);
        cluster.restart(victim);
    }
}

#[test]
fn a_leader_that_is_stopped_costs_no_hold_and_no_wait() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::builder(3).fast_elections().start();
    let leader = cluster.leader();
    let held = pair(&cluster, leader);
    cluster.stop(leader);
    expect_handed_over(&cluster, held);
    cluster.resume(leader);
    let held = pair(&cluster, leader);
    expect_handed_over(&cluster, held);
}

/// The release is on its way when the member that has it is killed.
#[test]
fn a_member_that_is_killed_under_a_release_costs_no_hold() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::builder(3).fast_elections().start();
    let leader = cluster.leader();
    let (guard, waiter) = pair(&cluster, leader);
    cluster.stop(leader);
    let releasing = std::thread::spawn(|| block_on(guard.release()));
    cluster.kill(leader);
    releasing.join().expect("no panic").expect("it is released");
    release(waiter.guard());
    assert_eq!(queue(&cluster), []);
}

/// With the leases and the keys of that time: nothing but the revision says that it is one.
#[test]
fn a_holder_is_told_of_an_older_state_of_the_same_cluster() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    let locks = locks(&cluster.endpoint(0), LONG);
    let lock = locks.lock("a").expect("a name");
    let guard = acquire(&lock);
    let snapshot = cluster.snapshot("snapshot");
    release(acquire(&locks.lock("b").expect("a name")));
    cluster.restore(&snapshot, None);
    assert_eq!(queue(&cluster).len(), 1, "its key is there");
    assert_eq!(lost(&guard).reason, LostReason::Ended);
    drop(guard);
    // The key of that time is in the way for as long as its lease.
    cluster.etcdctl(&["del", "--prefix", "jobs/"]);
    release(acquire(&lock));
}

#[test]
fn a_holder_is_told_of_a_state_that_was_restored_as_a_new_cluster() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    let lock = lock(&cluster.endpoint(0), TTL);
    let guard = acquire(&lock);
    let snapshot = cluster.snapshot("snapshot");
    cluster.restore(&snapshot, Some("another"));
    assert_eq!(lost(&guard).reason, LostReason::Ended);
    let token = guard.fencing_token();
    drop(guard);
    cluster.etcdctl(&["del", "--prefix", "jobs/"]);
    let next = acquire(&lock);
    assert_eq!(next.fencing_token().partial_cmp(&token), None, "they do not compare");
    release(next);
}
