//! Other locks in etcd, in three situations that each lock there has to survive. Real members,
//! of etcd 3.4 and 3.5, and a lease of three seconds. Prints `peer | situation | result`:
//!
//!     tests/peers/etcd.sh
//!
//! The lock is held by a key like those of etcdctl and of Go's mutex, put by hand. Beside it:
//!
//! 1. *A wait is cancelled*: by dropping the future, or by ^C. Does its key stay? The same at
//!    the moment of the hand-over, some tens of times: a key that stays is granted to nobody,
//!    for as long as the lease is kept alive for the other locks of the process.
//! 2. *The lease of a waiter is revoked.* Does it hear, or does it take the lock without a key,
//!    beside the next?
//! 3. *The member is killed at which it waits*, one of three. Does the wait go on?

#[path = "../../etcd_support/mod.rs"]
mod etcd_support;
#[path = "../../server_support/mod.rs"]
mod server_support;
#[path = "../../support/mod.rs"]
mod support;

mod etcdctl;
mod lock_rpc;
mod ours;

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use etcd_support::{Cluster, Entry, Version, is_there};
use support::eventually;
use tokio::runtime::Runtime;

/// A way to lock that is compared.
trait Peer {
    fn name(&self) -> &'static str;
    /// How often the hand-over is tried.
    fn rounds(&self) -> u32;
    /// The method of etcd whose call stays open while a contender waits.
    fn waits_in(&self) -> &'static str;
    /// Begins to acquire this lock.
    fn ask(&self, cluster: &Cluster, lock: &str) -> Box<dyn Contender>;
}

/// Each is run in all situations.
fn peers() -> [Box<dyn Peer>; 3] {
    [Box::new(ours::Ours), Box::new(lock_rpc::LockRpc), Box::new(etcdctl::EtcdCtl)]
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"))
}

trait Contender {
    fn state(&mut self) -> State;
    /// Gives the wait up as a user would, and returns once that is done.
    fn cancel(&mut self);
    fn release(&mut self);
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waits,
    /// It says so.
    Holds,
    Failed(String),
}

impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            State::Waits => write!(f, "waits"),
            State::Holds => write!(f, "holds"),
            State::Failed(error) => write!(f, "fails: {error}"),
        }
    }
}

/// The lease of contenders, in seconds.
const TTL: i64 = 3;

/// What is to come has come within this time: the lease of a waiter that is gone has ended, and
/// another leader was elected.
const LONG: Duration = Duration::from_secs(4 * TTL as u64);

/// What a peer does by itself, it has done within this time, also on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// Whether this comes true within the time.
fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

const LOCK: &str = "lock";

fn keys(cluster: &Cluster) -> Vec<Entry> {
    cluster.keys(&format!("{LOCK}/"))
}

/// Takes the lock, which must be free; the key.
fn hold(cluster: &Cluster) -> String {
    let lease = cluster.etcdctl(&["lease", "grant", "3600"]);
    let lease = lease.split(' ').nth(1).expect("an id");
    let key = format!("{LOCK}/{lease}");
    cluster.etcdctl(&["put", &key, "", "--lease", lease]);
    key
}

fn delete(cluster: &Cluster, key: &str) {
    cluster.etcdctl(&["del", key]);
}

/// A contender, once its key waits behind all others.
fn wait(peer: &dyn Peer, cluster: &Cluster) -> (Box<dyn Contender>, Entry) {
    let before = keys(cluster).len();
    let mut contender = peer.ask(cluster, LOCK);
    eventually("it has a key", || {
        assert_eq!(contender.state(), State::Waits);
        keys(cluster).len() > before
    });
    (contender, keys(cluster).pop().expect("its key"))
}

fn cancelled_wait(peer: &dyn Peer, version: Version) -> String {
    let cluster = Cluster::builder(1).version(version).start();
    let held = hold(&cluster);
    let (mut waiter, key) = wait(peer, &cluster);
    waiter.cancel();
    let stays = || keys(&cluster).iter().any(|entry| entry.key == key.key);
    if within(SOON, || !stays()) {
        return "no key stays".to_owned();
    }
    delete(&cluster, &held);
    let until = if within(LONG, || !stays()) { "its lease ends" } else { "the process ends" };
    format!("its key stays, granted to nobody, until {until}")
}

fn cancelled_at_the_hand_over(peer: &dyn Peer, version: Version) -> String {
    let cluster = Cluster::builder(1).version(version).start();
    let (mut held, mut left) = (0, 0);
    for round in 0..peer.rounds() {
        let key = hold(&cluster);
        let (mut waiter, _) = wait(peer, &cluster);
        let mut delete = cluster.etcdctl_command(&["del", &key]);
        let mut deleting = delete.stdout(Stdio::null()).spawn().expect("etcdctl");
        // From before the request is sent to after the lock was handed over.
        std::thread::sleep(Duration::from_micros(1500) * (round % 30));
        waiter.cancel();
        deleting.wait().expect("it ends");
        if waiter.state() == State::Holds {
            held += 1;
            waiter.release();
        }
        if !within(SOON, || keys(&cluster).is_empty()) {
            left += 1;
            cluster.etcdctl(&["del", "--prefix", &format!("{LOCK}/")]);
        }
    }
    let rounds = peer.rounds();
    format!("a key stays, granted to nobody: {left} of {rounds} times ({held} were not cancelled)")
}

fn lease_revoked(peer: &dyn Peer, version: Version) -> String {
    let cluster = Cluster::builder(1).version(version).start();
    let held = hold(&cluster);
    let (mut first, key) = wait(peer, &cluster);
    cluster.etcdctl(&["lease", "revoke", &format!("{:016x}", key.lease)]);
    let told = within(SOON, || first.state() != State::Waits);
    let at_once = if told { "at once" } else { "when its turn came" };
    let (mut next, _) = wait(peer, &cluster);
    delete(&cluster, &held);
    within(LONG, || first.state() != State::Waits);
    match first.state() {
        State::Waits => "waits for ever".to_owned(),
        State::Failed(error) => format!("an error {at_once}: {error}"),
        State::Holds if within(LONG, || next.state() == State::Holds) => {
            "says that it holds, without a key; so does the next at the same time".to_owned()
        }
        State::Holds => "has asked anew and holds; the next waits".to_owned(),
    }
}

fn member_killed(peer: &dyn Peer, version: Version) -> String {
    const TIMES: usize = 3;
    let mut results = BTreeMap::<String, usize>::new();
    for _ in 0..TIMES {
        *results.entry(one_member_killed(peer, version)).or_default() += 1;
    }
    let results =
        results.into_iter().map(|(result, times)| format!("{times} of {TIMES}: {result}"));
    results.collect::<Vec<_>>().join("; ")
}

fn one_member_killed(peer: &dyn Peer, version: Version) -> String {
    let mut cluster = Cluster::builder(3).version(version).start();
    let held = hold(&cluster);
    let (mut waiter, key) = wait(peer, &cluster);
    let member = waits_at(&cluster, peer.waits_in());
    cluster.kill(member);
    if within(LONG, || waiter.state() != State::Waits) {
        let stays = !within(LONG, || !keys(&cluster).iter().any(|entry| entry.key == key.key));
        let key = if stays { "its key stays, granted to nobody" } else { "its key goes" };
        return format!("{}; {key}", waiter.state());
    }
    delete(&cluster, &held);
    if within(LONG, || waiter.state() != State::Waits) {
        return format!("the wait goes on, then it {}", waiter.state());
    }
    "waits for ever".to_owned()
}

/// The member that has this call open.
fn waits_at(cluster: &Cluster, method: &str) -> usize {
    let label = format!("grpc_method=\"{method}\"");
    let sum = |member, name: &str| cluster.metric(member, name, &label);
    let is_open = |&member: &usize| {
        sum(member, "grpc_server_started_total") > sum(member, "grpc_server_handled_total")
    };
    let mut member = None;
    eventually("a member has the call", || {
        member = (0..cluster.len()).find(is_open);
        member.is_some()
    });
    member.expect("found")
}

type Situation = fn(&dyn Peer, Version) -> String;

const SITUATIONS: [(&str, Situation); 4] = [
    ("wait cancelled", cancelled_wait),
    ("wait cancelled at the hand-over", cancelled_at_the_hand_over),
    ("lease revoked while it waits", lease_revoked),
    ("member killed under the wait", member_killed),
];

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    for (version, number) in [(Version::V3_4, "3.4"), (Version::V3_5, "3.5")] {
        if !is_there(version) {
            continue;
        }
        for peer in peers().iter().filter(|peer| peer.name().contains(&wanted)) {
            for (situation, run) in SITUATIONS {
                let result = run(&**peer, version);
                println!("{}, etcd {number} | {situation} | {result}", peer.name());
            }
        }
    }
}
