//! Whether a daemon's lock is held, asked once and watched: what the daemon says, over
//! restarts, without rights, and when it is away.

#[path = "cli_support/mod.rs"]
mod cli_support;
#[path = "remote_support/mod.rs"]
mod remote_support;
#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use lockkeeper::{
    AsyncRemoteLock, Error, Evidence, Holder, RemoteGuard, RemoteOptions, Status, StatusChanges,
};
use remote_support::{Daemon, Network, Scripted, Weather, http, sha256};
use serde_json::json;
use support::{QUIET, VERY_LONG, block_on, eventually_async, on_tmpfs};
use tokio::time::{sleep, timeout};

const RESOURCE: &str = "a lock/with ünusual name?&%";

fn lock(url: &str, client: &str) -> AsyncRemoteLock {
    with(url, client, RemoteOptions::default().lease(None).reconnect(VERY_LONG))
}

fn with(url: &str, client: &str, options: RemoteOptions) -> AsyncRemoteLock {
    AsyncRemoteLock::with_options(url, RESOURCE, client, options).expect("a lock")
}

async fn acquired(lock: &AsyncRemoteLock) -> RemoteGuard {
    timeout(VERY_LONG, lock.acquire()).await.expect("in time").expect("the lock")
}

async fn next(changes: &mut StatusChanges) -> Option<Result<Status, Error>> {
    timeout(VERY_LONG, changes.next()).await.expect("in time")
}

async fn status(changes: &mut StatusChanges) -> Status {
    next(changes).await.expect("it goes on").expect("a status")
}

fn holder(status: Status) -> Holder {
    let Status::Held(holder) = status else { panic!("{status:?}") };
    holder
}

#[tokio::test]
async fn the_status_names_the_holder() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let (lock, before) = (lock(&daemon.url, "the holder"), SystemTime::now());
    assert_eq!(lock.status().await.expect("an answer"), Status::Free);
    assert_eq!(lock.holder().await.expect("an answer"), None);
    assert!(!lock.is_locked().await.expect("an answer"));
    let guard = acquired(&lock).await;
    let held = holder(lock.status().await.expect("an answer"));
    assert_eq!(held.name.as_deref(), Some("the holder"));
    assert_eq!(held.evidence, Evidence::Server);
    assert_eq!(held.hold_id, Some(guard.fencing_token().to_string()));
    // In whole milliseconds.
    let (since, millisecond) = (held.since.expect("a time"), Duration::from_millis(1));
    assert!(since + millisecond >= before && since <= SystemTime::now(), "{since:?}");
    assert_eq!(lock.holder().await.expect("an answer"), Some(held.clone()));
    assert!(lock.is_locked().await.expect("an answer"));
    let refused = lock.acquire_timeout(Duration::from_millis(1)).await;
    let Err(Error::Timeout { holder: Some(named), .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((named.name, named.since), (held.name, held.since));
    guard.release().await.expect("it was held");
    assert_eq!(lock.status().await.expect("an answer"), Status::Free);
}

#[tokio::test]
async fn a_file_that_names_nobody_counts_as_held() {
    let directory = on_tmpfs();
    std::fs::write(directory.path().join("torn.resource.lock"), "").expect("a file");
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = AsyncRemoteLock::new(&daemon.url, "torn", "one").expect("a lock");
    let held = holder(lock.status().await.expect("an answer"));
    assert!(matches!(&held.evidence, Evidence::Unknown(why) if !why.is_empty()), "{held:?}");
    assert_eq!(held.name, None);
}

#[test]
fn a_thread_without_a_runtime_waits() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url, "one");
    let guard = lock.blocking_acquire().expect("it is free");
    let waiting = std::thread::spawn({
        let lock = lock.clone();
        move || lock.blocking_acquire()
    });
    daemon.expect_waiting("a%20lock%2Fwith%20%C3%BCnusual%20name%3F%26%25", 1);
    drop(guard);
    drop(waiting.join().expect("no panic").expect("the lock"));
    block_on(lock.flush());
    assert!(!block_on(lock.is_locked()).expect("an answer"));
}

#[tokio::test]
async fn a_question_outlives_a_restart() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url, "one");
    assert_eq!(lock.status().await.expect("an answer"), Status::Free);
    daemon.kill();
    let asking = tokio::spawn(lock.status());
    sleep(QUIET).await;
    assert!(!asking.is_finished());
    daemon.restart();
    let answer = timeout(VERY_LONG, asking).await.expect("in time").expect("no panic");
    assert_eq!(answer.expect("an answer"), Status::Free);
}

#[tokio::test]
async fn what_keeps_a_question_from_an_answer_is_told() {
    let impatient = |url: &str| with(url, "one", RemoteOptions::default().reconnect(QUIET / 4));
    let away = impatient("http://127.0.0.1:1").status().await;
    assert!(matches!(away, Err(Error::Unreachable { .. })), "{away:?}");
    let page = Scripted::start(|_| Some(http("200 OK", "<html>")));
    let wrong = impatient(&page.url).status().await;
    assert!(matches!(wrong, Err(Error::NotAServer { .. })), "{wrong:?}");
    let mut changes = impatient(&page.url).watch();
    let wrong = next(&mut changes).await.expect("an item");
    assert!(matches!(wrong, Err(Error::NotAServer { .. })), "{wrong:?}");
    assert!(next(&mut changes).await.is_none(), "it would be no better");
}

#[tokio::test]
async fn every_token_may_look_and_a_viewers_may_not_lock() {
    let directory = on_tmpfs();
    let locks = directory.path().join("locks");
    std::fs::create_dir(&locks).expect("a directory");
    let file = directory.path().join("tokens.json");
    let (viewer, web) = ("0123456789abcdef".repeat(2), "fedcba9876543210".repeat(2));
    let (viewer_hash, web_hash) = (sha256(&viewer), sha256(&web));
    let tokens = |with_viewer: bool| {
        let mut tokens = vec![json!({ "name": "web", "sha256": web_hash, "clients": ["web"] })];
        if with_viewer {
            tokens.push(json!({ "name": "look", "sha256": viewer_hash, "viewer": true }));
        }
        std::fs::write(&file, json!({ "tokens": tokens }).to_string()).expect("a file");
    };
    tokens(true);
    let daemon = Daemon::start(&locks, &["--tokens", file.to_str().expect("a path")]);
    let options = || RemoteOptions::default().lease(None);
    let viewing = with(&daemon.url, "viewer", options().bearer_token(&viewer));
    let web = with(&daemon.url, "web", options().bearer_token(&web));
    let other = with(&daemon.url, "nobody", options());

    let guard = acquired(&web).await;
    let mut changes = viewing.watch();
    for status in [viewing.status().await.expect("an answer"), status(&mut changes).await] {
        assert_eq!(holder(status).name.as_deref(), Some("web"));
    }
    let refused = viewing.acquire().await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    let refused = other.status().await.expect_err("without a token");
    assert!(matches!(refused, Error::Forbidden { .. }), "{refused:?}");
    let text = format!("looking at {RESOURCE:?} at {}: the server refused", daemon.url);
    assert!(refused.to_string().starts_with(&text), "{refused}");
    let mut refused = other.watch();
    let item = next(&mut refused).await.expect("an item");
    assert!(matches!(item, Err(Error::Forbidden { .. })), "{item:?}");
    assert!(next(&mut refused).await.is_none());

    // The stream of a token that is withdrawn ends.
    tokens(false);
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let item = next(&mut changes).await.expect("an item");
    assert!(matches!(item, Err(Error::Forbidden { .. })), "{item:?}");
    assert!(next(&mut changes).await.is_none());
    guard.release().await.expect("it was held");
}

#[tokio::test]
async fn each_change_is_an_item() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let (one, other) = (lock(&daemon.url, "one"), lock(&daemon.url, "other"));
    let mut changes = one.watch();
    assert_eq!(status(&mut changes).await, Status::Free);
    for lock in [&one, &other] {
        let guard = acquired(lock).await;
        let held = holder(status(&mut changes).await);
        assert_eq!(held.name.as_deref(), Some(lock.client()));
        assert_eq!(held.hold_id, Some(guard.fencing_token().to_string()));
        guard.release().await.expect("it was held");
        assert_eq!(status(&mut changes).await, Status::Free);
    }
}

#[tokio::test]
async fn what_becomes_of_other_locks_is_no_item() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = |resource: &str| {
        let options = RemoteOptions::default().lease(None);
        AsyncRemoteLock::with_options(&daemon.url, resource, "r", options).expect("a lock")
    };
    let (mut changes, mut others) = (lock("r").watch(), lock("other r").watch());
    assert_eq!(status(&mut changes).await, Status::Free);
    assert_eq!(status(&mut others).await, Status::Free);
    for resource in ["other r", "R", "r2"] {
        std::mem::forget(acquired(&lock(resource)).await);
    }
    holder(status(&mut others).await);
    assert!(timeout(QUIET, changes.next()).await.is_err(), "it is free all the while");
    let guard = acquired(&lock("r")).await;
    holder(status(&mut changes).await);
    guard.release().await.expect("it was held");
}

/// While nobody reads, only the last state is kept.
#[tokio::test]
async fn no_item_equals_the_one_before() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url, "one");
    let (mut slow, mut quick) = (lock.watch(), lock.watch());
    assert_eq!(status(&mut slow).await, Status::Free);
    assert_eq!(status(&mut quick).await, Status::Free);
    for _ in 0..3 {
        let guard = acquired(&lock).await;
        holder(status(&mut quick).await);
        guard.release().await.expect("it was held");
        assert_eq!(status(&mut quick).await, Status::Free);
    }
    let guard = acquired(&lock).await;
    let last = status(&mut quick).await;
    let mut before = Status::Free;
    let mut items = 0;
    while before != last {
        let item = status(&mut slow).await;
        assert_ne!(item, before);
        (before, items) = (item, items + 1);
    }
    assert!(items < 7, "each of seven changes was told");
    guard.release().await.expect("it was held");
}

#[tokio::test]
async fn a_watch_outlives_a_restart_without_an_item() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url, "one");
    let guard = acquired(&lock).await;
    let mut changes = lock.watch();
    let held = holder(status(&mut changes).await);
    daemon.kill();
    sleep(QUIET).await;
    daemon.restart();
    assert!(timeout(QUIET, changes.next()).await.is_err(), "it was held all the while");
    let before = lock.holder().await.expect("an answer").expect("it is held");
    assert_eq!(before, held, "a restart changes nothing of a hold");
    guard.release().await.expect("it was held");
    assert_eq!(status(&mut changes).await, Status::Free);
}

#[tokio::test]
async fn a_daemon_that_is_away_is_one_item_and_its_return_another() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let lock = with(&daemon.url, "one", RemoteOptions::default().reconnect(QUIET / 4));
    let mut changes = lock.watch();
    assert_eq!(status(&mut changes).await, Status::Free);
    daemon.kill();
    let away = next(&mut changes).await.expect("it goes on");
    assert!(matches!(away, Err(Error::Unreachable { .. })), "{away:?}");
    assert!(timeout(QUIET * 4, changes.next()).await.is_err(), "it is away as before");
    daemon.restart();
    assert_eq!(status(&mut changes).await, Status::Free);
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let network = Network::to(daemon.address);
    let lock = lock(&network.url, "one");
    let mut changes = lock.watch();
    assert_eq!(status(&mut changes).await, Status::Free);
    network.turn(Weather::LosesOneAnswer);
    // The next event is lost, and with it the connection.
    let other = self::lock(&daemon.url, "other");
    let guard = acquired(&other).await;
    assert_eq!(holder(status(&mut changes).await).name.as_deref(), Some("other"));
    network.expect_fair();
    guard.release().await.expect("it was held");
    assert_eq!(status(&mut changes).await, Status::Free);
}

/// The machine of the daemon is gone, and nobody says so.
#[tokio::test]
async fn a_stream_that_is_silent_is_made_again() {
    let daemon = Scripted::start(|number| {
        let lock = json!({
            "client": "one", "lease": null, "may_be_forced": true, "problem": null,
            "resource": RESOURCE, "since_ms": 1000, "token": "7", "waiting": [],
            "waiting_in_all": 0,
        });
        let locks = if number == 0 { vec![] } else { vec![lock] };
        let list = json!({
            "locks": locks, "administrator": false, "held": locks.len(), "matching": locks.len(),
            "now_ms": 1000, "problems": 0, "waiting": 0,
        });
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        Some(format!("{head}event: locks\ndata: {list}\n\n"))
    });
    let mut changes = lock(&daemon.url, "one").watch();
    assert_eq!(status(&mut changes).await, Status::Free);
    assert_eq!(holder(status(&mut changes).await).hold_id.as_deref(), Some("7"));
    let asked = daemon.requests();
    assert_eq!(asked.len(), 2, "{asked:?}");
}

#[tokio::test]
async fn a_dropped_stream_closes_its_connection() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url, "one");
    let mut changes = lock.watch();
    assert_eq!(status(&mut changes).await, Status::Free);
    let port = daemon.address.port();
    // The table may miss some while others come and go.
    eventually_async("there is one", || connections_to(port) == 1).await;
    drop(changes);
    eventually_async("it is closed", || connections_to(port) == 0).await;
}

/// Of this machine; each test has a daemon of its own.
fn connections_to(port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table");
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&format!(":{port:04X}")) && fields[3] == ESTABLISHED
    };
    table.lines().skip(1).filter(is_one).count()
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_stands_until_the_daemon_answers() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let lock = lock(&daemon.url, "one");
    let limit = Duration::from_millis(1);
    let answer = timeout(limit, lock.status()).await.expect("no time passed");
    assert_eq!(answer.expect("an answer"), Status::Free);
    let mut changes = lock.watch();
    let first = timeout(limit, changes.next()).await.expect("no time passed");
    assert_eq!(first.expect("an item").expect("a status"), Status::Free);
}
