//! A holder of etcd's lock: what it is told, and when; what its process leaves.

// A raw fork is what is tested, by a process that plays a role.
#![allow(unsafe_code)]

mod etcd_locks;
mod etcd_support;
mod server_support;
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_locks::{LONG, Waiter, acquire, begun, lock, locks, lost, queue, release, stand, warm};
use etcd_support::{Cluster, Proxy, To, Version, is_there};
use lockkeeper::{AsyncEtcdLock, EtcdGuard, LostReason};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use support::{Process, block_on, eventually};

/// How long an exit waits for what is not answered: a busy machine may take longer.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// What may be relied on of a lease. (E4)
fn relied_on(ttl: u64) -> Duration {
    Duration::from_secs(ttl) * 10 / 11 - Duration::from_millis(250)
}

#[test]
fn a_guard_is_lost_before_the_cluster_gives_its_lock_to_another() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    for ttl in [2, 5] {
        let proxy = Proxy::to(cluster.address(0));
        let guard = acquire(&lock(&proxy.endpoint(), ttl));
        let left = guard.valid_until().saturating_duration_since(Instant::now());
        assert!(left <= relied_on(ttl), "{left:?} of {ttl} s");
        proxy.stall();
        let next = acquire(&lock(&cluster.endpoint(0), LONG));
        assert!(guard.is_lost(), "two hold it, with a lease of {ttl} s");
        assert_eq!(lost(&guard).reason, LostReason::Expired);
        assert!(next.fencing_token() > guard.fencing_token());
        assert_eq!(guard.valid_until().saturating_duration_since(Instant::now()), Duration::ZERO);
        release(next);
    }
}

/// The cluster may have counted from when it was asked.
#[test]
fn a_lease_is_relied_on_from_before_it_was_asked_for() {
    if !is_there(Version::V3_4) {
        return;
    }
    const DELAY: Duration = Duration::from_millis(500);
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    proxy.delay(To::Client, DELAY);
    let guard = acquire(&lock(&proxy.endpoint(), LONG));
    let left = guard.valid_until().saturating_duration_since(Instant::now());
    // The lease, the key of the session and that of the lock: three answers.
    assert!(left <= relied_on(LONG) - 3 * DELAY, "{:?} less", relied_on(LONG) - left);
    release(guard);
}

/// Here from when it was renewed.
#[test]
fn a_lease_is_relied_on_from_before_its_renewal_was_asked_for() {
    if !is_there(Version::V3_4) {
        return;
    }
    const TTL: u64 = 9;
    /// Twice that, and with it the answer to a new connection, is less than a renewal of
    /// this lease may take.
    const DELAY: Duration = Duration::from_millis(300);
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    proxy.delay(To::Client, DELAY);
    let guard = acquire(&lock(&proxy.endpoint(), TTL));
    let (first, mut renewals) = (guard.valid_until(), Vec::new());
    eventually("it is renewed twice", || {
        let (until, now) = (guard.valid_until(), Instant::now());
        let left = until.saturating_duration_since(now);
        assert!(left <= relied_on(TTL) - DELAY, "{:?} less", relied_on(TTL) - left);
        assert!(!guard.is_lost(), "{:?}", lost(&guard));
        // By more than two clocks differ that are read one after the other.
        if until > *renewals.last().unwrap_or(&first) + DELAY {
            renewals.push(until);
        }
        renewals.len() >= 2
    });
    release(guard);
}

/// Answers carry no number: a late one, taken for that to a later request, would have the
/// lease counted from when that was sent.
#[test]
fn an_answer_to_an_earlier_renewal_renews_from_no_later_one() {
    if !is_there(Version::V3_4) {
        return;
    }
    const TTL: u64 = 6;
    /// More than a renewal of this lease may take, and than is kept back of it.
    const LATE: Duration = Duration::from_millis(2500);
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let guard = acquire(&lock(&proxy.endpoint(), TTL));
    let label = "grpc_method=\"LeaseKeepAlive\"";
    let asked = || cluster.metric(0, "grpc_server_msg_received_total", label);
    let before = asked();
    proxy.delay(To::Client, LATE);
    // One request at a time: so many only over a stream that goes on without an answer.
    eventually("it is lost, or asked for", || guard.is_lost() || asked() >= before + 3.0);
    // Answers arrive, and no more requests.
    proxy.stall_to(To::Server);
    let next = acquire(&lock(&cluster.endpoint(0), LONG));
    assert!(guard.is_lost(), "two hold it");
    release(next);
}

#[test]
fn an_answer_that_comes_after_the_lease_is_over_is_no_hold() {
    if !is_there(Version::V3_4) {
        return;
    }
    const TTL: u64 = 2;
    /// Longer than this lease is relied on, and less than an answer may take.
    const LATE: Duration = Duration::from_millis(1800);
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let lock = lock(&proxy.endpoint(), TTL);
    let guard = acquire(&lock);
    let lease = guard.key().lease();
    release(guard);
    let revision = || cluster.status(0).expect("it answers").revision;
    let before = revision();
    proxy.delay(To::Client, LATE);
    let waiter = Waiter::of(&lock);
    eventually("its key was put", || revision() > before);
    // The answer is on its way, and no renewal arrives any more.
    proxy.stall_to(To::Server);
    stand(&cluster, 0);
    proxy.delay(To::Client, Duration::ZERO);
    proxy.go_on();
    let guard = waiter.guard();
    assert_ne!(guard.key().lease(), lease, "a hold by a lease that is over");
    drop(guard);
}

/// No runtime runs here: the thread of the crate tells it.
#[test]
fn a_holder_whose_runtime_does_not_run_is_told_while_the_member_is_stopped() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    let guard = acquire(&lock(&cluster.endpoint(0), 2));
    let token = guard.lost_token();
    cluster.stop(0);
    eventually("it is told", || token.is_cancelled());
    assert!(guard.is_lost());
    cluster.resume(0);
    let next = acquire(&lock(&cluster.endpoint(0), LONG));
    assert!(next.fencing_token() > guard.fencing_token());
}

/// A renewal goes to each endpoint in turn: so many that it takes longer than the lease.
#[test]
fn a_renewal_that_hangs_delays_no_word_of_the_loss() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let endpoints = vec![proxy.endpoint(); 12].join(",");
    let guard = acquire(&lock(&endpoints, 10));
    let token = guard.lost_token();
    proxy.stall();
    let next = acquire(&lock(&cluster.endpoint(0), LONG));
    // Not by the clock, which the guard itself would read.
    assert!(token.is_cancelled(), "another holds it, and it was not told");
    release(next);
}

#[test]
fn a_holder_whose_key_an_operator_deletes_is_told() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let guard = acquire(&lock(&cluster.endpoint(0), LONG));
    cluster.etcdctl(&["del", guard.key().name()]);
    assert_eq!(lost(&guard).reason, LostReason::Ended);
    let released = block_on(guard.release());
    assert!(released.is_err_and(|error| error.to_string().contains("lost")));
}

/// The cluster has its key still, for as much as is kept back of the lease.
#[test]
fn a_release_behind_the_deadline_says_that_it_was_lost() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let guard = acquire(&lock(&proxy.endpoint(), 6));
    proxy.stall();
    eventually("it is lost", || guard.is_lost());
    proxy.go_on();
    let released = block_on(guard.release());
    assert!(released.is_err_and(|error| error.to_string().contains("lost")));
}

/// Nothing but the answer to the release tells it: the watch broke off, and is begun again
/// after a moment.
#[test]
fn a_holder_that_releases_before_it_is_told_of_the_loss_hears_of_it() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let guard = acquire(&lock(&proxy.endpoint(), LONG));
    eventually("it is watched", || begun(&cluster, 0, "Watch") > 0.0);
    let looks = begun(&cluster, 0, "Range");
    proxy.drop_all();
    // etcdctl's own is no look.
    eventually("it looks", || begun(&cluster, 0, "Range") > looks);
    cluster.etcdctl(&["del", guard.key().name()]);
    let released = block_on(guard.release());
    assert!(released.is_err_and(|error| error.to_string().contains("lost")));
}

#[test]
fn a_holder_whose_lease_an_operator_revokes_is_told_and_can_acquire_again() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let lock = lock(&cluster.endpoint(0), LONG);
    let guard = acquire(&lock);
    cluster.etcdctl(&["lease", "revoke", &format!("{:x}", guard.key().lease())]);
    assert_eq!(lost(&guard).reason, LostReason::Ended);
    let (lease, token) = (guard.key().lease(), guard.fencing_token());
    // Until then the place of this process is the guard's.
    drop(guard);
    let next = acquire(&lock);
    assert_ne!(next.key().lease(), lease);
    assert!(next.fencing_token() > token);
    release(next);
    assert_eq!(queue(&cluster), []);
}

#[test]
fn a_holder_whose_session_key_alone_is_deleted_goes_on() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let lock = lock(&cluster.endpoint(0), 5);
    let guard = acquire(&lock);
    cluster.etcdctl(&["del", "--prefix", "jobs/.lockkeeper/"]);
    let renewals = begun(&cluster, 0, "LeaseKeepAlive");
    let is_renewed = || begun(&cluster, 0, "LeaseKeepAlive") >= renewals + 2.0;
    eventually("it is renewed twice", is_renewed);
    assert!(!guard.is_lost(), "{:?}", lost(&guard));
    release(guard);
    warm(&lock);
    assert_eq!(cluster.keys("jobs/.lockkeeper/").len(), 1, "an acquisition puts it again");
}

/// A member that does not know a lease yet says that it is over. So does one after this: the
/// keys are taken from the lease, which is revoked and granted again.
#[test]
fn a_member_that_does_not_know_the_lease_ends_no_hold_while_its_session_key_is_there() {
    if !is_there(Version::V3_4) {
        return;
    }
    const TTL: u64 = 15;
    let cluster = Cluster::start(1);
    let guard = acquire(&lock(&cluster.endpoint(0), TTL));
    let lease = guard.key().lease();
    let keys = cluster.keys("jobs/");
    assert_eq!(keys.len(), 2);
    for entry in keys {
        cluster.etcdctl(&["put", "--ignore-value", &entry.key]);
    }
    cluster.etcdctl(&["lease", "revoke", &format!("{lease:x}")]);
    let renewals = begun(&cluster, 0, "LeaseKeepAlive");
    let is_asked = || begun(&cluster, 0, "LeaseKeepAlive") >= renewals + 2.0;
    eventually("the member says twice that it is over", || is_asked() || guard.is_lost());
    assert!(!guard.is_lost(), "{:?}", lost(&guard));
    grant(&cluster, lease, TTL);
    let renewals = begun(&cluster, 0, "LeaseKeepAlive");
    let is_asked = || begun(&cluster, 0, "LeaseKeepAlive") >= renewals + 2.0;
    eventually("it is renewed again", || is_asked() || guard.is_lost());
    assert!(!guard.is_lost(), "{:?}", lost(&guard));
    release(guard);
}

/// A lease with this number, which etcdctl cannot ask for.
fn grant(cluster: &Cluster, lease: i64, ttl: u64) {
    let url = format!("http://{}/v3/lease/grant", cluster.endpoint(0));
    let body = format!("{{\"ID\": {lease}, \"TTL\": {ttl}}}");
    let output = Command::new("curl").args(["-sS", "--fail", &url, "-d", &body]).output();
    let output = output.expect("curl: run tests/setup.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_dead_holder_is_named_and_one_that_released_is_not() {
    const TEST: &str = "a_dead_holder_is_named_and_one_that_released_is_not";
    if let Some((role, endpoints)) = support::role() {
        let ttl = if role == "dies" { 5 } else { LONG };
        let guard = acquire(&lock(endpoints.to_str().expect("endpoints"), ttl));
        support::tell("held");
        support::told();
        return release(guard);
    }
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let lock = lock(&cluster.endpoint(0), LONG);
    for role in ["dies", "releases"] {
        let mut process = Process::play(TEST, role, Path::new(&cluster.endpoint(0)));
        process.expect("held");
        let waiter = Waiter::of(&lock);
        stand(&cluster, 2);
        // A death is told of a wait of a second: shorter, and the rule would not be tried.
        std::thread::sleep(Duration::from_millis(1200));
        if role == "dies" {
            process.kill();
        } else {
            process.tell("release");
        }
        let guard = waiter.guard();
        let dead = guard.recovered_from().and_then(|holder| holder.pid);
        assert_eq!(dead, (role == "dies").then_some(process.id()));
        release(guard);
    }
}

/// Acquire and fork: the child does this and exits, the parent goes on when it is gone.
fn fork_holding(endpoints: &Path, act: impl FnOnce(EtcdGuard, &AsyncEtcdLock)) {
    let lock = lock(endpoints.to_str().expect("endpoints"), LONG);
    let guard = acquire(&lock);
    // SAFETY: the other threads of this process wait, and the child waits for none of them.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            act(guard, &lock);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            support::tell(&format!("lost here: {}", guard.is_lost()));
            support::told();
            block_on(guard.release()).expect("the hold is as it was");
            support::tell("released");
        }
    }
}

#[test]
fn a_forked_child_has_lost_the_lock_and_leaves_its_parents() {
    const TEST: &str = "a_forked_child_has_lost_the_lock_and_leaves_its_parents";
    if let Some((role, endpoints)) = support::role() {
        return fork_holding(&endpoints, |guard, lock| {
            let is_told = guard.is_lost() && guard.lost_token().is_cancelled();
            let reason = lost(&guard).reason;
            support::tell(&format!("lost in the child: {is_told} {reason:?}"));
            match role.as_str() {
                "drops" => {
                    drop(guard);
                    // What it would delete is deleted then.
                    block_on(lock.flush());
                }
                "releases" => support::tell(&format!("{}", block_on(guard.release()).is_err())),
                "acquires" => {
                    let locks = locks(endpoints.to_str().expect("endpoints"), LONG);
                    let own = acquire(&locks.lock("b").expect("a name"));
                    let is_apart = own.key().lease() != guard.key().lease();
                    support::tell(&format!("a session of its own: {is_apart}"));
                    release(own);
                }
                _ => std::mem::forget(guard),
            }
        });
    }
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    for role in ["drops", "releases", "acquires", "exits"] {
        let mut parent = Process::play(TEST, role, Path::new(&cluster.endpoint(0)));
        parent.expect("lost in the child: true Forked");
        match role {
            "releases" => parent.expect("true"),
            "acquires" => parent.expect("a session of its own: true"),
            _ => {}
        }
        parent.expect("lost here: false");
        assert_eq!(queue(&cluster).len(), 1, "its key, after the child {role}");
        parent.tell("release");
        parent.expect("released");
        assert_eq!(queue(&cluster), []);
    }
}

#[test]
fn a_guard_that_is_dropped_as_the_last_thing_leaves_no_key() {
    const TEST: &str = "a_guard_that_is_dropped_as_the_last_thing_leaves_no_key";
    if let Some((_, endpoints)) = support::role() {
        let guard = acquire(&lock(endpoints.to_str().expect("endpoints"), LONG));
        support::tell("held");
        support::told();
        drop(guard);
        // As the return from `main` does.
        std::process::exit(0);
    }
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    for round in 1..=10 {
        eventually("an exit is in time", || {
            let mut process = Process::play(TEST, "drops", Path::new(&cluster.endpoint(0)));
            process.expect("held");
            let begun = Instant::now();
            assert!(process.wait().success());
            let is_cut_short = begun.elapsed() >= EXIT_LIMIT;
            let left = queue(&cluster);
            assert!(left.is_empty() || is_cut_short, "in round {round}: {left:?}");
            for entry in &left {
                cluster.etcdctl(&["del", &entry.key]);
            }
            left.is_empty()
        });
    }
}

#[test]
fn a_provider_is_used_from_several_runtimes() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let locks = locks(&cluster.endpoint(0), LONG);
    let lock = locks.lock("a").expect("a name");
    // Each of these has a runtime that ends with it.
    let first = acquire(&lock);
    let waiters = [(); 3].map(|()| Waiter::of(&lock));
    release(first);
    // In the order in which they came, which is not known.
    let acquire_and_release = |waiter: Waiter| std::thread::spawn(move || release(waiter.guard()));
    for thread in waiters.map(acquire_and_release) {
        thread.join().expect("it is acquired and released");
    }
    assert_eq!(queue(&cluster), []);
}

/// Else a long hold on a cluster that is compacted would ask all the time.
#[test]
fn a_hold_is_watched_again_though_its_first_revisions_are_compacted() {
    if !is_there(Version::V3_4) {
        return;
    }
    // Longer than between two looks without a watch.
    const QUIET: Duration = Duration::from_secs(2);
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let guard = acquire(&lock(&proxy.endpoint(), LONG));
    let watches = || begun(&cluster, 0, "Watch");
    eventually("it is watched", || watches() > 0.0);
    for value in ["one", "two"] {
        cluster.etcdctl(&["put", "another", value]);
    }
    let revision = cluster.status(0).expect("a status").revision;
    cluster.etcdctl(&["compact", &revision.to_string()]);
    let before = watches();
    proxy.drop_all();
    eventually("it is watched again", || watches() > before);
    eventually("it is not asked for any more", || {
        let before = begun(&cluster, 0, "Range");
        std::thread::sleep(QUIET);
        begun(&cluster, 0, "Range") == before
    });
    cluster.etcdctl(&["del", "--prefix", "jobs/"]);
    assert_eq!(lost(&guard).reason, LostReason::Ended);
}
