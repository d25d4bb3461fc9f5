//! What a contender for etcd's lock leaves behind that put no key.

mod etcd_locks;
mod etcd_support;
mod server_support;
mod support;

use etcd_locks::{LONG, acquire, lock, options, release, served, stand, warm};
use etcd_support::{Cluster, Version, is_there};
use lockkeeper::{AsyncEtcdLock, Error};
use support::{QUIET, block_on};

#[test]
fn one_try_leaves_nothing_to_be_deleted() {
    const TRIES: u8 = 10;
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let (one, other) = (lock(&cluster.endpoint(0), LONG), lock(&cluster.endpoint(0), LONG + 1));
    warm(&other);
    block_on(other.flush());
    let guard = acquire(&one);
    let before = served(&cluster, 0, "Txn");
    for _ in 0..TRIES {
        assert!(block_on(other.try_acquire()).expect("an answer").is_none());
    }
    block_on(other.flush());
    assert_eq!(served(&cluster, 0, "Txn") - before, f64::from(TRIES));
    release(guard);
}

/// The turn in this process does not stay with a key that was never put.
#[test]
fn each_acquisition_is_told_that_it_has_no_rights() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.enable_auth("jobs/", "worker", "secret");
    let options = options(LONG).user("worker", "secret");
    let lock = AsyncEtcdLock::with_options(cluster.endpoint(0), "a", options).expect("options");
    warm(&lock);
    block_on(lock.flush());
    cluster.etcdctl(&["role", "revoke-permission", "locks", "--prefix", "jobs/"]);
    for _ in 0..3 {
        for limit in [None, Some(QUIET)] {
            let refused = block_on(lock.acquire_timeout(limit)).expect_err("it has no rights");
            assert!(matches!(refused, Error::Forbidden { .. }), "{refused:?}");
        }
        let refused = block_on(lock.try_acquire()).expect_err("it has no rights");
        assert!(matches!(refused, Error::Forbidden { .. }), "{refused:?}");
        block_on(lock.flush());
    }
    let grant = ["role", "grant-permission", "locks", "--prefix=true", "readwrite", "jobs/"];
    cluster.etcdctl(&grant);
    release(acquire(&lock));
    stand(&cluster, 0);
}
