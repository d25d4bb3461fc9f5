//! A waiter for etcd's lock: it is woken, it never enters without a key, and it takes turns
//! with other programs.

mod etcd_locks;
mod etcd_support;
mod server_support;
mod support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcd_locks::{
    LONG, Waiter, acquire, begun, lock, options, queue, release, served, stand, warm,
};
use etcd_support::{Cluster, To, Version, is_there};
use lockkeeper::{AsyncEtcdLock, Error, EtcdGuard, Lock, Wait};
use nix::sys::signal::Signal;
use support::{Process, block_on, eventually};

#[test]
fn a_release_between_the_look_and_the_watch_wakes_the_waiter() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let lock = lock(&proxy.endpoint(), LONG);
    warm(&lock);
    let holder = acquire(&direct(&cluster));
    proxy.stall_to(To::Client);
    let waiter = Waiter::of(&lock);
    stand(&cluster, 2);
    release(holder);
    proxy.go_on();
    release(waiter.guard());
}

#[test]
fn a_release_that_is_compacted_before_the_watch_wakes_the_waiter() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let lock = lock(&proxy.endpoint(), LONG);
    warm(&lock);
    let holder = acquire(&direct(&cluster));
    proxy.stall_to(To::Client);
    let waiter = Waiter::of(&lock);
    stand(&cluster, 2);
    release(holder);
    cluster.etcdctl(&["put", "other", ""]);
    let revision = cluster.keys("other")[0].mod_revision;
    cluster.etcdctl(&["compact", &revision.to_string()]);
    proxy.go_on();
    release(waiter.guard());
}

/// A session of its own, at the member itself.
fn direct(cluster: &Cluster) -> AsyncEtcdLock {
    lock(&cluster.endpoint(0), LONG)
}

/// Its key went with its lease, and the way is free: the Lock RPC of etcd 3.4 says that it
/// holds the lock then.
#[test]
fn a_waiter_whose_lease_was_revoked_does_not_enter_without_a_key() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    // Told by its watch, and found when it looks as that broke off.
    for breaks in [false, true] {
        let proxy = cluster.proxy(0);
        let lock = lock(&proxy.endpoint(), LONG);
        let holder = acquire(&direct(&cluster));
        let waiter = Waiter::of(&lock);
        stand(&cluster, 2);
        let lease = queue(&cluster)[1].lease;
        proxy.stall_to(To::Client);
        cluster.etcdctl(&["lease", "revoke", &format!("{lease:x}")]);
        release(holder);
        if breaks {
            let connections = proxy.accepted();
            proxy.drop_all();
            eventually("it connects again", || proxy.accepted() > connections);
        }
        proxy.go_on();
        let guard = waiter.guard();
        let keys: Vec<String> = queue(&cluster).into_iter().map(|entry| entry.key).collect();
        assert_eq!(keys, [guard.key().name()], "it holds the lock without a key");
        assert_ne!(guard.key().lease(), lease);
        release(guard);
    }
}

/// The answer to its put was lost, and another stands behind it by now.
#[test]
fn a_waiter_that_asks_again_keeps_its_place() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let first = lock(&proxy.endpoint(), LONG);
    warm(&first);
    let holder = acquire(&direct(&cluster));
    proxy.stall_to(To::Client);
    let waiter = Waiter::of(&first);
    stand(&cluster, 2);
    let behind = Waiter::of(&lock(&cluster.endpoint(0), LONG + 1));
    stand(&cluster, 3);
    let (asked, connections) = (served(&cluster, 0, "Txn"), proxy.accepted());
    proxy.drop_all();
    eventually("it connects again", || proxy.accepted() > connections);
    proxy.go_on();
    eventually("it has asked again", || served(&cluster, 0, "Txn") > asked);
    release(holder);
    let guard = waiter.guard();
    behind.expect_waiting();
    assert_eq!(guard.key().create_revision(), queue(&cluster)[0].create_revision);
    release(guard);
    release(behind.guard());
}

/// Its key would be one more that those behind it wait for.
#[test]
fn one_try_never_puts_a_key_behind_another() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let holder = acquire(&direct(&cluster));
    let other = lock(&cluster.endpoint(0), LONG + 1);
    let revision = || cluster.status(0).expect("it answers").revision;
    block_on(async {
        assert!(other.try_acquire().await.expect("an answer").is_none());
        let before = revision();
        for _ in 0..10 {
            let tried = other.acquire_timeout(Duration::ZERO).await;
            assert!(tried.is_err_and(|error| error.is_timeout()));
            assert!(other.try_acquire().await.expect("an answer").is_none());
            let tried = Lock::acquire_within(&other, Wait::No).await;
            assert!(tried.expect("an answer").held().is_none());
        }
        other.flush().await;
        assert_eq!(revision(), before);
    });
    release(holder);
}

/// The next lower key is that of a waiter, so its delete is no grant.
#[test]
fn a_waiter_behind_one_that_leaves_waits_for_the_holder() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let holder = acquire(&direct(&cluster));
    let lease = Lease::grant(&cluster);
    let between = format!("jobs/a/{}", lease.0);
    cluster.etcdctl(&["put", &format!("--lease={}", lease.0), &between, ""]);
    let waiter = Waiter::of(&lock(&cluster.endpoint(0), LONG + 1));
    stand(&cluster, 3);
    eventually("it watches", || begun(&cluster, 0, "Watch") >= 2.0);
    let looks = served(&cluster, 0, "Txn");
    cluster.etcdctl(&["del", &between]);
    eventually("it has looked", || {
        waiter.expect_waiting();
        served(&cluster, 0, "Txn") > looks
    });
    assert!(!holder.is_lost());
    release(holder);
    release(waiter.guard());
}

#[test]
fn a_waiter_whose_key_was_deleted_stands_again() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let holder = acquire(&direct(&cluster));
    let waiter = Waiter::of(&lock(&cluster.endpoint(0), LONG + 1));
    stand(&cluster, 2);
    let first = queue(&cluster).pop().expect("the waiter");
    cluster.etcdctl(&["del", &first.key]);
    eventually("it stands again", || {
        queue(&cluster).last().is_some_and(|last| queue(&cluster).len() == 2 && *last != first)
    });
    waiter.expect_waiting();
    release(holder);
    release(waiter.guard());
}

#[track_caller]
fn expect_foreign(outcome: Result<EtcdGuard, Error>, key: &str) {
    match outcome {
        Err(Error::Foreign { key: found, .. }) => assert_eq!(found, key),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_without_a_lease_and_a_deeper_one_are_told_at_once() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let [other, third] = [1, 2].map(|more| lock(&cluster.endpoint(0), LONG + more));
    let lock = direct(&cluster);
    let lease = Lease::grant(&cluster);
    let with_lease = format!("--lease={}", lease.0);
    for put in [&["put", "jobs/a/stays", ""][..], &["put", &with_lease, "jobs/a/b/c", ""]] {
        let key = put[put.len() - 2];
        // First.
        cluster.etcdctl(put);
        expect_foreign(Waiter::of(&lock).outcome(), key);
        expect_foreign(block_on(lock.acquire_timeout(Duration::ZERO)), key);
        block_on(lock.flush());
        cluster.etcdctl(&["del", key]);
        // Behind the holder: before those that ask later, and behind one that waits.
        let holder = acquire(&lock);
        let waiter = Waiter::of(&other);
        stand(&cluster, 2);
        cluster.etcdctl(put);
        expect_foreign(Waiter::of(&third).outcome(), key);
        block_on(third.flush());
        waiter.expect_waiting();
        cluster.etcdctl(&["del", key]);
        release(holder);
        release(waiter.guard());
    }
    assert_eq!(queue(&cluster), []);
}

/// An operator writes to the key, which has no lease then.
#[test]
fn a_holders_key_that_loses_its_lease_is_told_to_those_who_ask() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let lease = Lease::grant(&cluster);
    let (first, with_lease) = ("jobs/a/first", format!("--lease={}", lease.0));
    cluster.etcdctl(&["put", &with_lease, first, ""]);
    let waiter = Waiter::of(&direct(&cluster));
    stand(&cluster, 2);
    // One that waits comes to know it when it looks.
    cluster.etcdctl(&["put", "--ignore-value", first]);
    let other = lock(&cluster.endpoint(0), LONG + 1);
    expect_foreign(Waiter::of(&other).outcome(), first);
    waiter.expect_waiting();
    cluster.etcdctl(&["del", first]);
    release(waiter.guard());
}

/// The release comes before the limit, and word of it after that.
#[test]
fn a_waiter_looks_once_more_at_its_limit() {
    if !is_there(Version::V3_4) {
        return;
    }
    const LIMIT: Duration = Duration::from_secs(3);
    /// Less than an answer may take.
    const LATE: Duration = Duration::from_secs(1);
    /// From the release to the limit: less than that.
    const LEFT: Duration = Duration::from_millis(600);
    let cluster = Cluster::start(1);
    let proxy = cluster.proxy(0);
    let (direct, late) = (direct(&cluster), lock(&proxy.endpoint(), LONG));
    warm(&late);
    proxy.delay(To::Client, LATE);
    // A busy machine may release too late, or get the answer too late.
    eventually("the last look finds it free", || {
        let holder = acquire(&direct);
        let begun = Instant::now();
        let waiting = late.acquire_timeout(LIMIT);
        let waiting = std::thread::spawn(move || block_on(waiting));
        std::thread::sleep((LIMIT - LEFT).saturating_sub(begun.elapsed()));
        release(holder);
        match waiting.join().expect("no panic") {
            Ok(guard) => {
                release(guard);
                true
            }
            Err(error) => {
                assert!(error.is_timeout(), "{error}");
                block_on(late.flush());
                false
            }
        }
    });
}

/// Of a put, which no watch of a waiter tells, it comes to know by its look, which is due
/// once in a lease.
#[test]
fn a_waiter_looks_now_and_then_though_nothing_is_told() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let lease = Lease::grant(&cluster);
    let (first, with_lease) = ("jobs/a/first", format!("--lease={}", lease.0));
    cluster.etcdctl(&["put", &with_lease, first, ""]);
    let waiter = Waiter::of(&lock(&cluster.endpoint(0), 5));
    stand(&cluster, 2);
    cluster.etcdctl(&["put", "--ignore-value", first]);
    expect_foreign(waiter.outcome(), first);
}

/// A lease for a key as another program puts it.
struct Lease(String);

impl Lease {
    fn grant(cluster: &Cluster) -> Self {
        let said = cluster.etcdctl(&["lease", "grant", "3600"]);
        Self(said.split_whitespace().nth(1).expect("lease ID granted").to_owned())
    }
}

/// `etcdctl lock`: says `a/…`, its key, when it holds the lock, until it is interrupted.
struct Etcdctl(Process);

impl Etcdctl {
    /// It takes the lock `a` of [`marked`].
    fn lock(cluster: &Cluster) -> Self {
        Self(Process::start(cluster.etcdctl_command(&["lock", "@/a"])))
    }

    #[track_caller]
    fn expect_holds(&self) {
        let key = self.0.next();
        assert!(key.starts_with("/a/"), "{key}");
    }

    fn end(mut self) {
        self.0.signal(Signal::SIGINT);
        self.0.wait();
    }
}

/// The lock `a` with a prefix that begins what etcdctl prints: the lines that
/// [`Process`] hears begin so.
fn marked(cluster: &Cluster, ttl: u64) -> AsyncEtcdLock {
    let options = options(ttl).prefix("@");
    AsyncEtcdLock::with_options(cluster.endpoint(0), "a", options).expect("options")
}

#[track_caller]
fn stand_marked(cluster: &Cluster, keys: usize) {
    eventually("so many keys are in the queue", || cluster.keys("@/a/").len() == keys);
}

fn turns_are_taken(version: Version) {
    if !is_there(version) {
        return;
    }
    let cluster = Cluster::builder(1).version(version).start();
    let (one, two) = (marked(&cluster, LONG), marked(&cluster, LONG + 1));
    let first = acquire(&one);
    let etcdctl = Etcdctl::lock(&cluster);
    stand_marked(&cluster, 2);
    let second = Waiter::of(&two);
    stand_marked(&cluster, 3);
    // As the mutex of the client for Go puts it, which is the one of etcdctl.
    let lease = Lease::grant(&cluster);
    let go = format!("@/a/{}", lease.0);
    cluster.etcdctl(&["put", &format!("--lease={}", lease.0), &go, ""]);
    // Behind the holder in the queue of its own process.
    let last = Waiter::of(&one);
    etcdctl.0.expect_quiet();
    assert_eq!(block_on(one.waiters()).expect("they are known").len(), 3);

    let before = first.fencing_token();
    release(first);
    etcdctl.expect_holds();
    assert!(block_on(two.try_acquire()).expect("it answers").is_none());
    second.expect_waiting();
    let held_by_etcdctl = cluster.status(0).expect("it answers").revision;
    etcdctl.end();

    let guard = second.guard();
    let token = guard.fencing_token().number();
    assert!(i64::try_from(token).expect("a revision") > held_by_etcdctl);
    assert!(guard.fencing_token() > before);
    last.expect_waiting();
    stand_marked(&cluster, 3);
    let etcdctl = Etcdctl::lock(&cluster);
    stand_marked(&cluster, 4);
    release(guard);
    last.expect_waiting();
    etcdctl.0.expect_quiet();
    cluster.etcdctl(&["del", &go]);
    let guard = last.guard();
    assert!(guard.fencing_token().number() > token);
    etcdctl.0.expect_quiet();
    release(guard);
    etcdctl.expect_holds();
    etcdctl.end();
    release(acquire(&two));
    assert_eq!(cluster.keys("@/a/"), []);
}

#[test]
fn turns_are_taken_with_etcdctl_3_4_and_with_go() {
    turns_are_taken(Version::V3_4);
}

#[test]
fn turns_are_taken_with_etcdctl_3_5_and_with_go() {
    turns_are_taken(Version::V3_5);
}

/// The revision at which a key was put says nothing of when its owner came to hold the lock:
/// a client for Go that asked earlier takes a later one for its token.
#[test]
fn tokens_grow_though_the_keys_were_put_long_before() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let lease = Lease::grant(&cluster);
    let go = format!("jobs/a/{}", lease.0);
    cluster.etcdctl(&["put", &format!("--lease={}", lease.0), &go, ""]);
    let waiter = Waiter::of(&direct(&cluster));
    stand(&cluster, 2);
    (0..10).for_each(|_| _ = cluster.etcdctl(&["put", "other", ""]));
    // Where the client for Go would see that it holds the lock.
    let theirs = cluster.status(0).expect("it answers").revision;
    cluster.etcdctl(&["del", &go]);
    let guard = waiter.guard();
    let ours = i64::try_from(guard.fencing_token().number()).expect("a revision");
    assert!(guard.key().create_revision() < theirs);
    assert!(ours > theirs, "the token {ours} after {theirs}");
    release(guard);
}

/// The user gets the password that it has, which ends its tokens.
fn end_tokens(cluster: &Cluster) {
    let mut command = cluster.etcdctl_command(&["user", "passwd", "worker", "--interactive=false"]);
    let mut etcdctl = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("etcdctl");
    etcdctl.stdin.take().expect("its input").write_all(b"secret\n").expect("it reads");
    assert!(etcdctl.wait().expect("it ends").success());
}

fn as_worker(endpoint: &str, ttl: u64) -> AsyncEtcdLock {
    let options = options(ttl).user("worker", "secret");
    AsyncEtcdLock::with_options(endpoint, "a", options).expect("options")
}

fn users_change_and_tokens_end(cluster: &mut Cluster) {
    cluster.enable_auth("jobs/", "worker", "secret");
    let proxy = cluster.proxy(0);
    let (one, two) = (as_worker(&proxy.endpoint(), LONG), as_worker(&cluster.endpoint(0), LONG));
    warm(&one);
    warm(&two);
    // While one holds and another waits.
    let holder = acquire(&one);
    let waiter = Waiter::of(&two);
    stand(cluster, 2);
    cluster.etcdctl(&["user", "add", "another:secret"]);
    end_tokens(cluster);
    release(holder);
    let holder = waiter.guard();
    // Between the look and the watch: the answer that begins the watch is a refusal.
    proxy.stall_to(To::Client);
    let waiter = Waiter::of(&one);
    stand(cluster, 2);
    cluster.etcdctl(&["user", "add", "one_more:secret"]);
    end_tokens(cluster);
    let streams = begun(cluster, 0, "Watch");
    proxy.go_on();
    // Over the old stream every further watch would be refused.
    let is_anew = || begun(cluster, 0, "Watch") > streams;
    eventually("a stream is begun with another token", is_anew);
    waiter.expect_waiting();
    assert!(!holder.is_lost());
    release(holder);
    release(waiter.guard());
    assert_eq!(queue(cluster), []);
}

#[test]
fn tokens_that_end_and_users_that_change_are_ridden_out() {
    if !is_there(Version::V3_4) {
        return;
    }
    users_change_and_tokens_end(&mut Cluster::start(1));
}

/// The answer that refuses a watch has another number there.
#[test]
fn tokens_that_end_and_users_that_change_are_ridden_out_with_3_5() {
    if !is_there(Version::V3_5) {
        return;
    }
    users_change_and_tokens_end(&mut Cluster::builder(1).version(Version::V3_5).start());
}

/// These tokens are those of a state of the users.
#[test]
fn users_that_change_are_ridden_out_with_signed_tokens() {
    if !is_there(Version::V3_4) {
        return;
    }
    let directory = support::on_tmpfs();
    let [key, public] = ["key.pem", "public.pem"].map(|name| directory.path().join(name));
    for arguments in [
        [&["genrsa", "-out"][..], &[key.to_str().expect("a path"), "2048"]].concat(),
        [&["rsa", "-pubout", "-in"][..], &[key.to_str().expect("a path"), "-out"]].concat(),
    ] {
        let mut openssl = Command::new("openssl");
        openssl.args(&arguments).stderr(Stdio::null());
        if arguments.last() == Some(&"-out") {
            openssl.arg(&public);
        }
        assert!(openssl.status().expect("openssl: run tests/setup.sh").success());
    }
    let files = format!("pub-key={},priv-key={}", public.display(), key.display());
    let flag = format!("--auth-token=jwt,{files},sign-method=RS256,ttl=10m");
    users_change_and_tokens_end(&mut Cluster::builder(1).flag(&flag).start());
}

#[test]
fn tokens_that_are_over_are_ridden_out_by_a_holder_and_a_waiter() {
    if !is_there(Version::V3_4) {
        return;
    }
    /// In seconds. Shorter, and on a busy machine a token is over before its first use.
    const TTL: u64 = 3;
    /// Longer than the tokens last, by the second in which etcd looks at them.
    const OVER: Duration = Duration::from_secs(TTL + 2);
    let flag = format!("--auth-token-ttl={TTL}");
    let mut cluster = Cluster::builder(1).flag(&flag).start();
    cluster.enable_auth("jobs/", "worker", "secret");
    let endpoint = cluster.endpoint(0);
    let (holder, two) = (acquire(&as_worker(&endpoint, LONG)), as_worker(&endpoint, LONG + 1));
    let waiter = Waiter::of(&two);
    stand(&cluster, 2);
    std::thread::sleep(OVER);
    waiter.expect_waiting();
    release(holder);
    let guard = waiter.guard();
    std::thread::sleep(OVER);
    release(guard);
    release(acquire(&two));
}

#[test]
fn rights_that_are_withdrawn_are_told_at_once_and_nothing_is_left_when_they_are_back() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.enable_auth("jobs/", "worker", "secret");
    let (one, two) =
        (as_worker(&cluster.endpoint(0), LONG), as_worker(&cluster.endpoint(0), LONG + 1));
    warm(&two);
    let guard = acquire(&one);
    cluster.etcdctl(&["role", "revoke-permission", "locks", "--prefix", "jobs/"]);
    let refused =
        |outcome: Result<EtcdGuard, Error>| matches!(outcome, Err(Error::Forbidden { .. }));
    let outcome = Waiter::of(&two).outcome();
    assert!(refused(outcome), "an acquisition without rights");
    let released = block_on(guard.release());
    assert!(matches!(released, Err(Error::Forbidden { .. })), "{released:?}");
    assert_eq!(queue(&cluster).len(), 1);
    let grant = ["role", "grant-permission", "locks", "--prefix=true", "readwrite", "jobs/"];
    cluster.etcdctl(&grant);
    stand(&cluster, 0);
    release(acquire(&two));
}
