//! Locks that a daemon keeps, asked for by programs: real daemons, killed and
//! restarted, and a network that fails.

#[path = "cli_support/mod.rs"]
mod cli_support;
#[path = "remote_support/mod.rs"]
mod remote_support;
#[path = "support/mod.rs"]
mod support;

use std::process::Stdio;
use std::time::Duration;

use lockkeeper::{
    AsyncRemoteLock, Error, Evidence, LockName, LostReason, RemoteGuard, RemoteOptions,
};
use nix::sys::signal::Signal;
use remote_support::{Daemon, Network, Weather, certificate, sha256};
use support::{Process, QUIET, VERY_LONG, eventually, on_tmpfs};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{sleep, timeout};

const RESOURCE: &str = "r";

/// Short, but no machine is so busy that it is not renewed in time.
const LEASE: Duration = Duration::from_secs(8);

/// A lock for one of several contenders, which ask again soon.
fn lock(url: &str, client: &str) -> AsyncRemoteLock {
    with(url, client, RemoteOptions::default())
}

fn with(url: &str, client: &str, options: RemoteOptions) -> AsyncRemoteLock {
    AsyncRemoteLock::with_options(url, RESOURCE, client, options.reconnect(VERY_LONG))
        .expect("a lock")
}

fn leased(url: &str, client: &str, lease: Duration) -> AsyncRemoteLock {
    with(url, client, RemoteOptions::default().lease(Some(lease)))
}

async fn acquired(lock: &AsyncRemoteLock) -> RemoteGuard {
    timeout(VERY_LONG, lock.acquire()).await.expect("in time").expect("the lock")
}

#[tokio::test]
async fn one_holds_at_a_time_and_tokens_grow() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let (one, other) = (lock(&daemon.url, "one"), lock(&daemon.url, "other"));
    let guard = one.acquire().await.expect("a free lock");
    let first = guard.fencing_token();
    assert!(other.try_acquire().await.expect("an answer").is_none());
    assert!(one.try_acquire().await.expect("an answer").is_none(), "one holds, by another guard");
    guard.release().await.expect("it was held");
    let guard = other.try_acquire().await.expect("an answer").expect("a free lock");
    assert!(guard.fencing_token() > first);
    guard.release().await.expect("it was held");
    assert!(daemon.shown(RESOURCE).is_none());
}

#[tokio::test]
async fn who_waits_is_served_in_order() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let guard = acquired(&lock(&daemon.url, "holder")).await;
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..5 {
        let (waiter, served) = (lock(&daemon.url, &format!("waiter {number}")), served.clone());
        tokio::spawn(async move {
            let guard = acquired(&waiter).await;
            served.send(number).expect("somebody who counts");
            guard.release().await.expect("it was held");
        });
        while daemon.waiting(RESOURCE) <= number {
            sleep(Duration::from_millis(2)).await;
        }
    }
    drop(guard);
    for number in 0..5 {
        assert_eq!(timeout(VERY_LONG, order.recv()).await.expect("in time"), Some(number));
    }
}

#[tokio::test]
async fn a_dropped_guard_gives_the_lock_back() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let one = lock(&daemon.url, "one");
    drop(acquired(&one).await);
    one.flush().await;
    assert!(daemon.shown(RESOURCE).is_none());
}

#[tokio::test]
async fn a_limit_names_the_holder() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let _guard = acquired(&lock(&daemon.url, "the holder")).await;
    let limit = Duration::from_millis(50);
    let refused = lock(&daemon.url, "other").acquire_timeout(limit).await;
    let Err(Error::Timeout { lock, waited, holder }) = refused else { panic!("{refused:?}") };
    assert_eq!(lock, LockName::at(RESOURCE, &daemon.url));
    let holder = holder.expect("the daemon names it");
    assert_eq!(holder.name.as_deref(), Some("the holder"));
    assert_eq!(holder.evidence, Evidence::Server);
    assert!(waited >= limit);
}

#[tokio::test]
async fn a_cancelled_acquire_leaves_no_queue_entry() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let holder = lock(&daemon.url, "holder");
    let guard = acquired(&holder).await;
    let waiter = lock(&daemon.url, "waiter");
    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.acquire().await }
    });
    while daemon.waiting(RESOURCE) != 1 {
        sleep(Duration::from_millis(2)).await;
    }
    waiting.abort();
    let _ = waiting.await;
    waiter.flush().await;
    assert_eq!(daemon.waiting(RESOURCE), 0);
    guard.release().await.expect("it was held");
    assert!(daemon.shown(RESOURCE).is_none(), "nobody has it");
}

/// The lock is free and the acquire is dropped at every moment of its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_on_its_way_to_nobody_is_given_back() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    // Without a lease nothing but its client ends a hold.
    let one = with(&daemon.url, "one", RemoteOptions::default().lease(None));
    let mut cancelled = 0;
    for round in 0..400_u64 {
        let acquiring = one.acquire();
        let limit = Duration::from_micros(round * 5);
        match timeout(limit, acquiring).await {
            Ok(guard) => drop(guard.expect("a free lock")),
            Err(_) => cancelled += 1,
        }
        one.flush().await;
        eventually("nobody holds it", || daemon.shown(RESOURCE).is_none());
    }
    assert!(cancelled > 0, "nothing was cancelled");
}

#[tokio::test]
async fn a_held_lock_survives_kill_9_of_the_daemon() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let leases = [Some(Duration::from_secs(60)), None];
    for (number, lease) in leases.into_iter().enumerate() {
        let holder = with(&daemon.url, "holder", RemoteOptions::default().lease(lease));
        let guard = acquired(&holder).await;
        daemon.kill();
        daemon.restart();
        assert!(lock(&daemon.url, "other").try_acquire().await.expect("an answer").is_none());
        assert!(!guard.is_lost(), "round {number}");
        guard.release().await.expect("it was held all the time");
    }
}

#[tokio::test]
async fn a_release_reaches_a_daemon_that_comes_back() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let guard = acquired(&lock(&daemon.url, "holder")).await;
    daemon.kill();
    let releasing = tokio::spawn(guard.release());
    sleep(QUIET).await;
    daemon.restart();
    let released = timeout(VERY_LONG, releasing).await.expect("in time").expect("no panic");
    released.expect("it was held");
    assert!(daemon.shown(RESOURCE).is_none());
}

#[tokio::test]
async fn a_waiter_survives_kill_9_of_the_daemon() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let guard = acquired(&lock(&daemon.url, "holder")).await;
    let waiter = lock(&daemon.url, "waiter");
    let waiting = tokio::spawn(async move { acquired(&waiter).await });
    while daemon.waiting(RESOURCE) != 1 {
        sleep(Duration::from_millis(2)).await;
    }
    daemon.kill();
    sleep(QUIET).await;
    daemon.restart();
    while daemon.waiting(RESOURCE) != 1 {
        sleep(Duration::from_millis(2)).await;
    }
    let token = guard.fencing_token();
    guard.release().await.expect("it was held all the time");
    let guard = timeout(VERY_LONG, waiting).await.expect("in time").expect("no panic");
    assert!(guard.fencing_token() > token);
    guard.release().await.expect("it was held");
}

#[tokio::test]
async fn a_grant_whose_answer_was_lost_is_asked_for_again() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let network = Network::to(daemon.address);
    network.turn(Weather::LosesOneAnswer);
    let one = with(&network.url, "one", RemoteOptions::default().lease(None));
    let guard = acquired(&one).await;
    network.expect_fair();
    let shown = daemon.shown(RESOURCE).expect("it is held");
    assert_eq!(shown["token"], guard.fencing_token().to_string(), "it was granted once");
    network.turn(Weather::LosesOneAnswer);
    guard.release().await.expect("it was held");
    assert!(daemon.shown(RESOURCE).is_none());
}

/// R3. The daemon granted it, the answer was lost, and then nobody wants it.
#[tokio::test]
async fn a_grant_whose_answer_was_lost_is_given_back_if_nobody_wants_it() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let network = Network::to(daemon.address);
    network.turn(Weather::Frozen);
    let one = with(&network.url, "one", RemoteOptions::default().lease(None));
    let acquiring = tokio::spawn({
        let one = one.clone();
        async move { one.acquire().await }
    });
    // Until it has been sent: then nothing goes on here.
    sleep(Duration::from_secs(2)).await;
    network.turn(Weather::LosesOneAnswer);
    network.expect_fair();
    acquiring.abort();
    let _ = acquiring.await;
    one.flush().await;
    assert!(daemon.shown(RESOURCE).is_none());
}

/// Plays a holder that is stopped and asked whether it still holds.
fn hold(url: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let guard = acquired(&leased(url, "stopped", LEASE)).await;
        support::tell("held");
        // On a thread, as a program that is busy.
        tokio::task::block_in_place(|| {
            while let Some(_question) = support::told() {
                support::tell(if guard.is_lost() { "lost" } else { "mine" });
            }
        });
        support::tell(&format!("{:?}", guard.lost().await.reason));
    });
}

#[tokio::test]
async fn a_stopped_client_has_lost_its_lock_before_another_gets_it() {
    const NAME: &str = "a_stopped_client_has_lost_its_lock_before_another_gets_it";
    if let Some((_, url)) = support::role() {
        return std::thread::spawn(move || hold(url.to_str().expect("a URL")))
            .join()
            .expect("it held");
    }
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let mut holder = Process::play(NAME, "holder", daemon.url.as_ref());
    holder.expect("held");
    let other = lock(&daemon.url, "other");
    sleep(LEASE + QUIET).await;
    holder.tell("?");
    holder.expect("mine");
    assert!(other.try_acquire().await.expect("an answer").is_none(), "it is renewed");
    holder.signal(Signal::SIGSTOP);
    let guard = acquired(&other).await;
    holder.tell("?");
    holder.signal(Signal::SIGCONT);
    holder.expect("lost");
    holder.hang_up();
    holder.expect("Expired");
    guard.release().await.expect("it was held");
}

#[tokio::test]
async fn who_is_cut_off_knows_before_another_gets_the_lock() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let network = Network::to(daemon.address);
    let guard = acquired(&leased(&network.url, "cut off", LEASE)).await;
    let lost = guard.lost_token();
    let other = lock(&daemon.url, "other");
    let waiting = tokio::spawn(async move { acquired(&other).await });
    sleep(LEASE + QUIET).await;
    assert!(!guard.is_lost(), "it is renewed");
    assert!(!waiting.is_finished());
    network.turn(Weather::Frozen);
    let next = timeout(VERY_LONG, waiting).await.expect("in time").expect("no panic");
    assert!(guard.is_lost(), "another has it");
    timeout(VERY_LONG, lost.cancelled()).await.expect("in time");
    let why = guard.lost().await;
    assert_eq!((why.reason, why.lock.name()), (LostReason::Expired, Some(RESOURCE)));
    assert!(matches!(guard.release().await, Err(Error::Lost(_))));
    assert!(!next.is_lost());
}

/// The answer to the request is older than the lease when it is read.
#[tokio::test]
async fn a_grant_that_was_waited_for_longer_than_its_lease_is_good() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let guard = acquired(&lock(&daemon.url, "holder")).await;
    let waiter = leased(&daemon.url, "waiter", LEASE);
    let waiting = tokio::spawn(async move { acquired(&waiter).await });
    sleep(LEASE + QUIET).await;
    guard.release().await.expect("it was held");
    let guard = timeout(VERY_LONG, waiting).await.expect("in time").expect("no panic");
    assert!(!guard.is_lost());
    guard.release().await.expect("it is held");
}

#[tokio::test]
async fn what_an_administrator_ends_is_lost() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let guard = acquired(&leased(&daemon.url, "holder", LEASE)).await;
    daemon.force(RESOURCE);
    let why = timeout(VERY_LONG, guard.lost()).await.expect("in time");
    assert_eq!(why.reason, LostReason::Ended);
    let Err(Error::Lost(why)) = guard.release().await else { panic!("it was held") };
    assert_eq!(why.reason, LostReason::Ended);
}

#[tokio::test]
async fn an_unreachable_daemon_is_named() {
    let options = RemoteOptions::default().reconnect(Duration::from_millis(100));
    let url = "http://127.0.0.1:1";
    let lock = AsyncRemoteLock::with_options(url, RESOURCE, "one", options).expect("a lock");
    for refused in [lock.acquire().await.map(drop), lock.try_acquire().await.map(drop)] {
        let error = refused.expect_err("nobody listens there");
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert_eq!(error.lock(), Some(&LockName::at(RESOURCE, url)));
        let text = format!("locking {RESOURCE:?} at {url}: the server could not be reached for ");
        assert!(error.to_string().starts_with(&text), "{error}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_url_is_said() {
    for url in ["", "locks", "ftp://locks", "http://", "http://a@locks", "http://locks?x=y"] {
        let error = AsyncRemoteLock::new(url, RESOURCE, "one").expect_err("this is no daemon");
        assert!(matches!(error, Error::InvalidOption { option: "server", .. }), "{error:?}");
    }
    let lease = RemoteOptions::default().lease(Some(Duration::from_millis(1)));
    let url = "http://127.0.0.1:1";
    assert!(AsyncRemoteLock::with_options(url, RESOURCE, "one", lease).is_err());
    assert!(AsyncRemoteLock::new(url, "", "one").is_err());
}

#[tokio::test]
async fn tls_and_credentials_are_needed_where_the_daemon_asks_for_them() {
    let directory = on_tmpfs();
    let locks = directory.path().join("locks");
    std::fs::create_dir(&locks).expect("a directory");
    let (cert, key) = certificate(directory.path());
    let secret = "0123456789abcdef0123456789abcdef";
    let tokens = directory.path().join("tokens.json");
    let hash = sha256(secret);
    let text = format!(r#"{{"tokens":[{{"name":"t","sha256":"{hash}","clients":["mine"]}}]}}"#);
    std::fs::write(&tokens, text).expect("a file");
    let paths = [&tokens, &cert, &key].map(|path| path.to_str().expect("a path").to_owned());
    let flags = ["--tokens", &paths[0], "--tls-cert", &paths[1], "--tls-key", &paths[2]];
    let daemon = Daemon::start(&locks, &flags);
    assert!(daemon.url.starts_with("https://"), "{}", daemon.url);

    let trusting = || RemoteOptions::default().ca_file(&cert);
    let untrusted = lock(&daemon.url, "mine").acquire().await;
    assert!(matches!(untrusted, Err(Error::Untrusted { .. })), "{untrusted:?}");
    let nobody = with(&daemon.url, "mine", trusting()).acquire().await;
    assert!(matches!(nobody, Err(Error::Forbidden { .. })), "{nobody:?}");
    let other = with(&daemon.url, "not mine", trusting().bearer_token(secret)).acquire().await;
    assert!(matches!(other, Err(Error::Forbidden { .. })), "{other:?}");
    let mine = with(&daemon.url, "mine", trusting().bearer_token(secret));
    acquired(&mine).await.release().await.expect("it was held");
    assert!(!format!("{mine:?}").contains(secret));
}

/// What wants a certificate of its clients, as a proxy may. With TLS 1.3 it says so after
/// the handshake (RFC 8446, 4.4.2.4).
const WANTS_CERTIFICATES: &str = "\
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:])
context.load_verify_locations(sys.argv[1])
context.verify_mode = ssl.CERT_REQUIRED
listener = socket.create_server(('127.0.0.1', 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection = listener.accept()[0]
    try:
        context.wrap_socket(connection, server_side=True)
    except OSError:
        connection.close()
";

#[tokio::test]
async fn a_certificate_of_the_client_that_is_asked_for_is_missed() {
    let directory = on_tmpfs();
    let (cert, key) = certificate(directory.path());
    let mut proxy = tokio::process::Command::new("python3")
        .args(["-c", WANTS_CERTIFICATES])
        .args([&cert, &key])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3");
    let mut port = String::new();
    BufReader::new(proxy.stdout.take().expect("its output")).read_line(&mut port).await.unwrap();
    let url = format!("https://127.0.0.1:{}", port.trim());
    let refused = with(&url, "mine", RemoteOptions::default().ca_file(&cert)).acquire().await;
    let Err(Error::Untrusted { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("CertificateRequired"), "{source}");
}
