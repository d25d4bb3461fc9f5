use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::task::Poll;
use std::time::Instant;

use futures::FutureExt;
use tempfile::TempDir;

use super::super::opening::DAEMON_LOCK;
use super::super::resource::*;
use super::*;

/// Longer than anything here takes that does not hang.
const LONG: Duration = Duration::from_secs(60);

/// Long enough to see that nothing happens.
const QUIET: Duration = Duration::from_millis(50);

fn directory() -> TempDir {
    TempDir::new().unwrap()
}

async fn open(directory: &Path, sync: bool) -> LockTable {
    LockTable::open(directory, LockTableOptions { sync, ..LockTableOptions::default() })
        .await
        .unwrap()
}

/// A try.
fn request(resource: &str, client: &str) -> LockRequest {
    LockRequest {
        resource: resource.into(),
        client: client.into(),
        wait: WaitLimit::No,
        lease: None,
        request_id: None,
    }
}

fn waiting(resource: &str, client: &str) -> LockRequest {
    LockRequest { wait: WaitLimit::Until(LONG), ..request(resource, client) }
}

fn leased(resource: &str, client: &str, lease: Duration) -> LockRequest {
    LockRequest { lease: Some(lease), ..request(resource, client) }
}

fn named(request_id: &str, request: LockRequest) -> LockRequest {
    LockRequest { request_id: Some(request_id.into()), ..request }
}

fn locked_by<T>(client: &str) -> Result<T, Refusal> {
    Err(Refusal::LockedBy { client: client.to_owned() })
}

/// The lock files and what they contain. One that goes meanwhile is gone.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let locks = names.filter(|name| name.ends_with(".resource.lock"));
    let read = |name: String| match fs::read(directory.join(&name)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        contents => Some((name, contents.unwrap())),
    };
    locks.filter_map(read).collect()
}

fn file(name: &str, contents: &str) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([(format!("{name}.resource.lock"), contents.as_bytes().to_vec())])
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "{what} did not come about");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Every promise holds with and without syncing.
const BOTH: [bool; 2] = [true, false];

#[tokio::test]
async fn a_lock_is_a_file_with_the_name_of_its_client() {
    for sync in BOTH {
        let directory = directory();
        let path = directory.path();
        let locks = open(path, sync).await;
        let first = locks.lock(request("r1", "client1")).await.unwrap();
        assert_eq!(files(path), file("r1", "client1"));
        assert_eq!(locks.lock(request("r1", "client2")).await, locked_by("client1"));
        assert_eq!(locks.lock(request("r1", "client1")).await, locked_by("client1"));
        let (holder, client) = ("client1".to_owned(), "client2".to_owned());
        let not_yours = Err(Refusal::NotYours { holder, client });
        assert_eq!(locks.unlock("r1", "client2", None).await, not_yours);
        assert_eq!(files(path), file("r1", "client1"));
        let wrong = Some(first.token + 1);
        assert_eq!(locks.unlock("r1", "client1", wrong).await, Err(Refusal::WrongToken));
        locks.unlock("r1", "client1", None).await.unwrap();
        assert_eq!(files(path), BTreeMap::new());
        assert_eq!(locks.unlock("r1", "client1", None).await, Err(Refusal::NotLocked));
        let second = locks.lock(request("r1", "client2")).await.unwrap();
        assert!(second.token > first.token);
        // The answer to an unlock was lost, and it is asked for again.
        locks.unlock("r1", "client1", Some(first.token)).await.unwrap();
        assert_eq!(files(path), file("r1", "client2"));
        let figures = locks.figures();
        let counted = (figures.held, figures.granted, figures.released, figures.refused);
        assert_eq!(counted, (1, 2, 1, 2));
        locks.close().await;
    }
}

#[tokio::test]
async fn clients_are_told_apart_without_white_space_around() {
    let directory = directory();
    let locks = open(directory.path(), false).await;
    locks.lock(request("q", " lead")).await.unwrap();
    assert_eq!(files(directory.path()), file("q", " lead"));
    assert_eq!(locks.lock(request("q", "other")).await, locked_by("lead"));
    locks.unlock("q", " lead", None).await.unwrap();
    for client in ["", "o'neil", "a\"b", "tab\there", "nl\nmid", "clïent-日本"] {
        locks.lock(request("q", client)).await.unwrap();
        assert_eq!(files(directory.path()), file("q", client));
        assert_eq!(locks.lock(request("q", "x")).await, locked_by(client));
        locks.unlock("q", client, None).await.unwrap();
    }
    locks.close().await;
}

#[tokio::test]
async fn no_name_leads_out_of_the_directory() {
    let outer = directory();
    let inner = outer.path().join("locks");
    fs::create_dir(&inner).unwrap();
    let locks = open(&inner, false).await;
    let victim = outer.path().join("victim.resource.lock");
    fs::write(&victim, "c").unwrap();
    for name in ["../victim", "../new", "/etc/x", "a/../../new", "..", ".", ""] {
        assert_eq!(locks.unlock(name, "c", None).await, Err(Refusal::NotLocked));
        locks.lock(request(name, "c")).await.unwrap();
    }
    assert_eq!(files(&inner).len(), 7);
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    for bad in
        [request(&"x".repeat(300), "c"), request("r", "a\0b"), request("r", &"c".repeat(9000))]
    {
        assert!(matches!(locks.lock(bad).await, Err(Refusal::BadName { .. })));
    }
    let no_lease = locks.lock(leased("r", "c", Duration::ZERO)).await;
    assert!(matches!(no_lease, Err(Refusal::Invalid { .. })));
    for held in locks.list() {
        locks.unlock(&held.resource, "c", Some(held.token)).await.unwrap();
    }
    assert!(victim.exists());
    assert_eq!(files(&inner).len(), 0);
    locks.close().await;
    assert_eq!(
        own_files(&inner),
        [".lockkeeper-journal-a", ".lockkeeper-journal-b", ".lockkeeper-tokens"]
    );
}

/// What is left in a directory but the locks.
fn own_files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.ends_with(".resource.lock")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn who_waits_is_served_in_turn() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        locks.lock(request("r", "first")).await.unwrap();
        let (order, mut served) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..20_u64 {
            let (asking, order) = (locks.clone(), order.clone());
            let waiting_before = locks.figures().waiting;
            tokio::spawn(async move {
                let client = format!("c{number}");
                let grant = asking.lock(waiting("r", &client)).await.unwrap();
                order.send((number, grant.token)).unwrap();
                asking.unlock("r", &client, Some(grant.token)).await.unwrap();
            });
            eventually("the wait", || locks.figures().waiting > waiting_before).await;
        }
        let shown = locks.show("r").unwrap();
        let clients: Vec<_> = shown.waiting.iter().map(|waiter| waiter.client.clone()).collect();
        assert_eq!(clients, (0..20).map(|number| format!("c{number}")).collect::<Vec<_>>());
        assert_eq!(locks.lock(request("r", "barger")).await, locked_by("first"));
        locks.unlock("r", "first", None).await.unwrap();
        let mut last = 0;
        for expected in 0..20 {
            let (number, token) = served.recv().await.unwrap();
            assert_eq!(number, expected);
            assert!(token > last);
            last = token;
        }
        eventually("the end", || locks.figures().held == 0).await;
        locks.close().await;
    }
}

#[tokio::test]
async fn a_limit_is_kept_and_names_the_holder() {
    let directory = directory();
    let locks = open(directory.path(), true).await;
    locks.lock(request("r", "holder")).await.unwrap();
    let short = LockRequest { wait: WaitLimit::Until(QUIET), ..request("r", "late") };
    let timed_out = Err(Refusal::TimedOut { holder: "holder".to_owned() });
    assert_eq!(locks.lock(short.clone()).await, timed_out);
    assert_eq!(locks.figures().waiting, 0);
    assert_eq!(locks.show("r").unwrap().waiting, []);
    locks.unlock("r", "holder", None).await.unwrap();
    locks.lock(short).await.unwrap();
    locks.close().await;
}

#[tokio::test]
async fn a_dropped_wait_leaves_no_place_in_the_queue() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        locks.lock(request("r", "holder")).await.unwrap();
        for _ in 0..50 {
            let wait = locks.lock(waiting("r", "gone"));
            assert!(tokio::time::timeout(Duration::from_micros(100), wait).await.is_err());
        }
        assert_eq!(locks.figures().waiting, 0);
        locks.unlock("r", "holder", None).await.unwrap();
        locks.lock(request("r", "next")).await.unwrap();
        locks.close().await;
    }
}

/// I4: dropped when it was polled once, or when it was served but did not look.
#[tokio::test]
async fn a_grant_that_nobody_heard_of_is_undone() {
    let directory = directory();
    let path = directory.path();
    let locks = open(path, true).await;
    let mut unheard = 0;
    for round in 0.. {
        if unheard == 100 {
            break;
        }
        let mut ask = Box::pin(locks.lock(request("r", "gone")));
        if let Poll::Ready(told) = futures::poll!(&mut ask) {
            // The store was quicker than the poll: the client heard of this one.
            told.unwrap();
            locks.unlock("r", "gone", None).await.unwrap();
            continue;
        }
        unheard += 1;
        if round % 2 == 0 {
            eventually("the grant", || locks.figures().held == 1).await;
        }
        drop(ask);
        locks.lock(waiting("r", "next")).await.unwrap();
        assert_eq!(files(path), file("r", "next"));
        locks.unlock("r", "next", None).await.unwrap();
        assert_eq!(files(path), BTreeMap::new());
    }
    locks.lock(request("r", "holder")).await.unwrap();
    let mut ask = Box::pin(locks.lock(waiting("r", "gone")));
    assert!(futures::poll!(&mut ask).is_pending());
    locks.unlock("r", "holder", None).await.unwrap();
    eventually("its turn", || files(path) == file("r", "gone")).await;
    drop(ask);
    eventually("the end", || files(path).is_empty()).await;
    locks.close().await;
    assert_eq!(open(path, true).await.list(), []);
}

#[tokio::test]
async fn a_lease_ends_by_itself_and_the_next_gets_it() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        // It is not over before it is looked at, however busy the machine is.
        let hour = Duration::from_secs(3600);
        locks.lock(leased("r", "shown", hour)).await.unwrap();
        let shown = locks.show("r").unwrap().lease.unwrap();
        assert!(shown.length == hour && shown.remaining <= hour && !shown.remaining.is_zero());
        locks.unlock("r", "shown", None).await.unwrap();
        let lease = Duration::from_millis(200);
        let start = Instant::now();
        let grant = locks.lock(leased("r", "holder", lease)).await.unwrap();
        assert_eq!(grant.lease, Some(lease));
        let next = locks.lock(waiting("r", "next")).await.unwrap();
        assert!(start.elapsed() >= lease);
        assert!(next.token > grant.token);
        assert_eq!(files(directory.path()), file("r", "next"));
        let renewed = locks.renew("r", "holder", grant.token).await;
        assert!(matches!(renewed, Err(Refusal::NotYours { .. })));
        assert_eq!(locks.renew("r", "next", next.token).await, Ok(Duration::MAX));
        assert_eq!(locks.renew("r", "next", grant.token).await, Err(Refusal::WrongToken));
        assert_eq!(locks.figures().expired, 1);
        locks.unlock("r", "next", None).await.unwrap();
        // Without a waiter the lease ends all the same.
        locks.lock(leased("r", "last", QUIET)).await.unwrap();
        eventually("the end", || files(directory.path()).is_empty()).await;
        locks.close().await;
    }
}

#[tokio::test]
async fn a_renewed_lease_goes_on() {
    let directory = directory();
    let locks = open(directory.path(), false).await;
    let lease = Duration::from_secs(2);
    let grant = locks.lock(leased("r", "holder", lease)).await.unwrap();
    let start = Instant::now();
    while start.elapsed() < lease + lease / 4 {
        assert_eq!(locks.renew("r", "holder", grant.token).await, Ok(lease));
        sleep(QUIET).await;
    }
    assert_eq!(locks.lock(request("r", "other")).await, locked_by("holder"));
    // Long leases and short ones do not disturb each other.
    locks.lock(leased("long", "c", Duration::MAX)).await.unwrap();
    locks.lock(leased("short", "c", QUIET)).await.unwrap();
    eventually("the short one's end", || locks.show("short").is_none()).await;
    assert!(locks.show("long").is_some());
    locks.close().await;
}

#[tokio::test]
async fn a_request_that_is_repeated_is_one_request() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        let lease = Some(Duration::from_secs(3600));
        let ask = named("id", LockRequest { lease, ..request("r", "c") });
        let grant = locks.lock(ask.clone()).await.unwrap();
        assert_eq!(locks.lock(ask.clone()).await, Ok(grant));
        assert_eq!(locks.figures().granted, 1);
        // The same id means nothing elsewhere.
        assert_eq!(locks.lock(named("id", request("r", "d"))).await, locked_by("c"));
        locks.lock(named("id", request("other", "c"))).await.unwrap();
        locks.unlock("r", "c", Some(grant.token)).await.unwrap();
        assert_eq!(locks.lock(ask.clone()).await, Err(Refusal::RequestOver));
        assert!(locks.lock(named("id2", ask)).await.unwrap().token > grant.token);
        locks.close().await;
    }
}

#[tokio::test]
async fn a_repeated_wait_keeps_its_place_while_anybody_waits() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        locks.lock(request("r", "holder")).await.unwrap();
        let ask = named("id", waiting("r", "c"));
        let mut first = Box::pin(locks.lock(ask.clone()));
        assert!(futures::poll!(&mut first).is_pending());
        let mut behind = Box::pin(locks.lock(waiting("r", "behind")));
        assert!(futures::poll!(&mut behind).is_pending());
        let mut again = Box::pin(locks.lock(ask.clone()));
        assert!(futures::poll!(&mut again).is_pending());
        assert_eq!(locks.figures().waiting, 2);
        assert_eq!(locks.lock(named("id", request("r", "c"))).await, locked_by("holder"));
        drop(first);
        assert_eq!(locks.figures().waiting, 2);
        locks.unlock("r", "holder", None).await.unwrap();
        let grant = again.await.unwrap();
        assert_eq!(locks.lock(ask).await, Ok(grant));
        locks.unlock("r", "c", Some(grant.token)).await.unwrap();
        behind.await.unwrap();
        locks.close().await;
    }
}

/// I5: a waiter that is away is passed over, and comes back to its place.
#[tokio::test]
async fn a_wait_that_broke_off_has_its_place_again() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        locks.lock(request("r", "holder")).await.unwrap();
        let ask = named("id", waiting("r", "first"));
        let mut first = Box::pin(locks.lock(ask.clone()));
        assert!(futures::poll!(&mut first).is_pending());
        let since = locks.show("r").unwrap().waiting[0].since;
        let mut second = Box::pin(locks.lock(waiting("r", "second")));
        assert!(futures::poll!(&mut second).is_pending());
        let mut third = Box::pin(locks.lock(waiting("r", "third")));
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        assert_eq!((locks.figures().waiting, locks.show("r").unwrap().waiting.len()), (2, 2));

        // Its turn comes while it is away: it is not granted anything.
        locks.unlock("r", "holder", None).await.unwrap();
        second.await.unwrap();
        let mut first = Box::pin(locks.lock(ask));
        assert!(futures::poll!(&mut first).is_pending());
        let waiting = locks.show("r").unwrap().waiting;
        let waiting: Vec<_> = waiting.iter().map(|it| (&*it.client, it.since)).collect();
        assert_eq!((waiting[0], waiting[1].0), (("first", since), "third"));
        locks.unlock("r", "second", None).await.unwrap();
        first.await.unwrap();
        assert!(futures::poll!(&mut third).is_pending());
        drop(third);
        locks.close().await;
    }
}

#[tokio::test]
async fn a_place_is_kept_for_nobody_who_gave_up() {
    let directory = directory();
    let locks = open(directory.path(), false).await;
    locks.lock(request("r", "holder")).await.unwrap();
    let ask = named("id", waiting("r", "c"));
    let mut behind = Box::pin(locks.lock(waiting("r", "behind")));
    // Each way to give up, and then the request is made as if for the first time.
    for way in ["limit", "told", "try"] {
        let gone = std::future::ready(());
        let refused = match way {
            "limit" => {
                let short = WaitLimit::Until(Duration::from_millis(1));
                locks.lock(LockRequest { wait: short, ..ask.clone() }).await
            }
            _ => locks.lock_for(ask.clone(), gone).await,
        };
        assert_eq!(refused, Err(Refusal::TimedOut { holder: "holder".to_owned() }));
        match way {
            "told" => locks.leave("r", "c", "id"),
            "try" => {
                let refused = locks.lock(named("id", request("r", "c"))).await;
                assert_eq!(refused, locked_by("holder"));
            }
            _ => {}
        }
        assert!(futures::poll!(&mut behind).is_pending());
        let mut again = Box::pin(locks.lock(ask.clone()));
        assert!(futures::poll!(&mut again).is_pending());
        let waiting = locks.show("r").unwrap().waiting;
        assert_eq!(waiting.last().unwrap().client, "c", "{way}");
        let refused = locks.lock(named("id", request("r", "c"))).await;
        assert_eq!(refused, locked_by("holder"));
        drop(again);
        locks.leave("r", "c", "id");
    }
    // With no place kept, a free lock goes to the next request.
    drop(behind);
    locks.unlock("r", "holder", None).await.unwrap();
    locks.lock(request("r", "other")).await.unwrap();
    locks.close().await;
}

/// I4, where the answer was made but did not come.
#[tokio::test]
async fn a_grant_whose_every_answer_was_lost_is_undone() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        let ask = named("id", request("r", "c"));
        let grant = locks.lock(ask.clone()).await.unwrap();
        assert_eq!(locks.lock(ask.clone()).await, Ok(grant));
        locks.lose_answer("r", grant.token);
        assert_eq!(locks.lock(request("r", "other")).await, locked_by("c"));
        // The other answer did not come either.
        locks.lose_answer("r", grant.token);
        let other = locks.lock(waiting("r", "other")).await.unwrap();
        locks.lose_answer("r", grant.token);
        assert_eq!(locks.lock(ask.clone()).await, locked_by("other"));
        locks.unlock("r", "other", Some(other.token)).await.unwrap();

        // A client that renews has the token from an answer.
        let kept = locks.lock(ask).await.unwrap();
        locks.renew("r", "c", kept.token).await.unwrap();
        locks.lose_answer("r", kept.token);
        assert_eq!(locks.lock(request("r", "other")).await, locked_by("c"));
        locks.close().await;
    }
}

/// What an earlier daemon answered is not counted again by the next.
#[tokio::test]
async fn a_grant_of_an_earlier_daemon_is_not_undone() {
    let directory = directory();
    let ask = named("id", request("r", "c"));
    let locks = open(directory.path(), true).await;
    let grant = locks.lock(ask.clone()).await.unwrap();
    locks.close().await;
    let locks = open(directory.path(), true).await;
    assert_eq!(locks.lock(ask).await, Ok(grant));
    locks.lose_answer("r", grant.token);
    assert_eq!(locks.lock(request("r", "other")).await, locked_by("c"));
    locks.close().await;
}

#[tokio::test]
async fn held_locks_survive_a_restart() {
    for (sync, is_closed) in [(true, true), (true, false), (false, true), (false, false)] {
        let directory = directory();
        let path = directory.path();
        let locks = open(path, sync).await;
        let lease = Some(Duration::from_secs(3600));
        let ask = named("id", LockRequest { lease, ..request("a/b", " c") });
        let grant = locks.lock(ask.clone()).await.unwrap();
        locks.lock(request("plain", "")).await.unwrap();
        let gone = locks.lock(request("gone", "d")).await.unwrap();
        locks.unlock("gone", "d", None).await.unwrap();
        let before: Vec<_> =
            locks.list().into_iter().map(|held| (held.resource, held.token, held.since)).collect();
        if is_closed {
            locks.close().await;
        } else {
            drop(locks);
        }
        let locks = open(path, sync).await;
        let after: Vec<_> =
            locks.list().into_iter().map(|held| (held.resource, held.token, held.since)).collect();
        assert_eq!(before, after);
        assert_eq!(locks.figures().held, 2);
        assert_eq!(locks.lock(ask).await, Ok(grant));
        assert_eq!(locks.lock(request("plain", "x")).await, locked_by(""));
        let next = locks.lock(request("gone", "d")).await.unwrap();
        // What a killed daemon gave last could be missing from its journal. (T2)
        assert!(next.token > gone.token);
        assert_eq!(next.token == gone.token + 1, is_closed);
        locks.unlock("a/b", "c", Some(grant.token)).await.unwrap();
        locks.unlock("plain", "", None).await.unwrap();
        locks.close().await;
    }
}

#[tokio::test]
async fn locks_of_another_program_are_taken_over() {
    let directory = directory();
    let path = directory.path();
    for (name, client) in [("r1", "client1"), (".hidden", "h"), ("50%", "p"), ("%2F", "s")] {
        fs::write(path.join(format!("{name}.resource.lock")), client).unwrap();
    }
    fs::write(path.join("notes.txt"), "mine").unwrap();
    let locks = open(path, true).await;
    for (name, client) in [("r1", "client1"), (".hidden", "h"), ("50%", "p"), ("/", "s")] {
        assert_eq!(locks.lock(request(name, "x")).await, locked_by(client), "{name}");
        locks.unlock(name, client, None).await.unwrap();
        locks.lock(request(name, "y")).await.unwrap();
    }
    let names: Vec<String> = files(path).into_keys().collect();
    assert_eq!(
        names,
        ["%2Ehidden", "%2F", "50%25", "r1"].map(|name| format!("{name}.resource.lock"))
    );
    // One that is made while the daemon runs, and one that is removed.
    fs::write(path.join("new.resource.lock"), "by hand").unwrap();
    assert_eq!(locks.lock(request("new", "x")).await, locked_by("by hand"));
    fs::remove_file(path.join("r1.resource.lock")).unwrap();
    locks.lock(request("r1", "z")).await.unwrap();
    fs::remove_file(path.join("r1.resource.lock")).unwrap();
    assert_eq!(locks.unlock("r1", "z", None).await, Err(Refusal::NotLocked));
    assert_eq!(fs::read(path.join("notes.txt")).unwrap(), b"mine");
    // And while it does not run.
    fs::write(path.join("new.resource.lock"), "by another hand").unwrap();
    fs::remove_file(path.join("50%25.resource.lock")).unwrap();
    drop(locks);
    let locks = open(path, true).await;
    locks.lock(request("50%", "x")).await.unwrap();
    assert_eq!(locks.lock(request("new", "x")).await, locked_by("by another hand"));
    locks.close().await;
}

#[tokio::test]
async fn files_that_name_nobody_are_reported() {
    let directory = directory();
    let path = directory.path();
    let at = |name: &str| path.join(format!("{name}.resource.lock"));
    for (name, contents) in
        [("empty", &b""[..]), ("blank", b" \n"), ("zeros", b"\0\0"), ("odd", b"\xff")]
    {
        fs::write(at(name), contents).unwrap();
    }
    fs::write(path.join("target"), "client").unwrap();
    std::os::unix::fs::symlink(path.join("target"), at("link")).unwrap();
    std::os::unix::fs::symlink(path.join("nowhere"), at("dangling")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at(".two"), "one").unwrap();
    fs::write(at("%2Etwo"), "other").unwrap();
    let locks = open(path, false).await;
    let names = ["empty", "blank", "zeros", "odd", "link", "dangling", "dir", ".two"];
    for name in names {
        for client in ["", "client", "one"] {
            let refused = locks.lock(request(name, client)).await;
            assert!(matches!(refused, Err(Refusal::Poisoned { .. })), "{name}: {refused:?}");
            let refused = locks.unlock(name, client, None).await;
            assert!(matches!(refused, Err(Refusal::Poisoned { .. })), "{name}: {refused:?}");
        }
        assert!(locks.show(name).unwrap().problem.is_some());
    }
    assert_eq!(locks.list().len(), names.len());
    for name in ["empty", "zeros"] {
        locks.force_unlock(name, None).await.unwrap();
        assert!(!at(name).exists());
        locks.lock(request(name, "c")).await.unwrap();
    }
    for name in ["link", "dangling", "dir", ".two"] {
        let refused = locks.force_unlock(name, None).await;
        assert!(matches!(refused, Err(Refusal::Poisoned { .. })), "{name}: {refused:?}");
    }
    assert!(at("link").is_symlink() && at("dangling").is_symlink() && at("dir").is_dir());
    assert!(!path.join("nowhere").exists());
    // Put right by hand, while the daemon runs.
    fs::write(at("blank"), "by hand").unwrap();
    assert_eq!(locks.lock(request("blank", "x")).await, locked_by("by hand"));
    fs::remove_file(at("odd")).unwrap();
    fs::remove_file(at(".two")).unwrap();
    locks.lock(request("odd", "x")).await.unwrap();
    assert_eq!(locks.lock(request(".two", "x")).await, locked_by("other"));
    // And one that comes while it runs.
    fs::write(at("late"), "").unwrap();
    let refused = locks.lock(waiting("late", "x")).await;
    assert!(matches!(refused, Err(Refusal::Poisoned { .. })), "{refused:?}");
    locks.close().await;
}

#[tokio::test]
async fn an_administrator_ends_what_is_held() {
    let directory = directory();
    let locks = open(directory.path(), true).await;
    let grant = locks.lock(request("r", "c")).await.unwrap();
    let mut changes = locks.changes();
    changes.mark_unchanged();
    let held = locks.force_unlock("r", None).await.unwrap();
    assert_eq!((held.client.as_str(), held.token), ("c", grant.token));
    assert_eq!(locks.force_unlock("r", None).await, Err(Refusal::NotLocked));
    assert_eq!(locks.unlock("r", "c", Some(grant.token)).await, Err(Refusal::NotLocked));
    tokio::time::timeout(LONG, changes.changed()).await.unwrap().unwrap();
    assert_eq!(locks.figures().forced, 1);
    locks.close().await;
}

#[tokio::test]
async fn a_second_daemon_is_told_who_serves() {
    let directory = directory();
    let locks = open(directory.path(), true).await;
    let second = LockTable::open(directory.path(), LockTableOptions::default()).await;
    let Err(error @ OpenError::InUse { .. }) = second else {
        panic!("two daemons");
    };
    let message = error.to_string();
    assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    locks.close().await;
    open(directory.path(), true).await.close().await;
}

#[tokio::test]
async fn a_daemon_that_lost_its_directory_gives_nothing() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        locks.lock(request("r", "c")).await.unwrap();
        let mut waiting = Box::pin(locks.lock(waiting("r", "d")));
        assert!(futures::poll!(&mut waiting).is_pending());
        fs::remove_file(directory.path().join(DAEMON_LOCK)).unwrap();
        // At once: another daemon may have the directory by now.
        let refused = locks.lock(request("new", "c")).await;
        assert!(matches!(refused, Err(Refusal::Storage { .. } | Refusal::ShuttingDown)));
        assert_eq!(files(directory.path()), file("r", "c"));
        let why = tokio::time::timeout(LONG, locks.failed()).await.unwrap();
        assert!(why.contains(DAEMON_LOCK), "{why}");
        assert_eq!(waiting.await, Err(Refusal::ShuttingDown));
        assert_eq!(locks.lock(request("new", "c")).await, Err(Refusal::ShuttingDown));
        assert_eq!(locks.unlock("r", "c", None).await, Err(Refusal::ShuttingDown));
        assert_eq!(files(directory.path()), file("r", "c"));
        locks.close().await;
    }
}

/// A request that came while another request was the writer, and is not written yet.
fn left_over(locks: &LockTable) -> futures::future::BoxFuture<'_, Result<GrantReply, Refusal>> {
    locks.0.books().has_writer = true;
    let mut asked = locks.lock(request("left over", "c")).boxed();
    assert!((&mut asked).now_or_never().is_none());
    asked
}

#[tokio::test]
async fn the_writer_does_what_was_asked_for_while_it_wrote() {
    let directory = directory();
    let locks = open(directory.path(), false).await;
    let mut first = left_over(&locks);
    assert!(futures::poll!(&mut first).is_pending(), "there are two writers");
    assert!(!locks.0.write_batch());
    assert!(matches!(futures::poll!(&mut first), std::task::Poll::Ready(Ok(_))));
    drop(first);
    locks.lock(request("second", "c")).await.unwrap();
    locks.close().await;
}

#[tokio::test]
async fn what_was_asked_for_is_refused_when_the_directory_is_lost() {
    let directory = directory();
    let locks = open(directory.path(), false).await;
    let asked = left_over(&locks);
    fs::remove_file(directory.path().join(DAEMON_LOCK)).unwrap();
    locks.clone().close().await;
    let refused = tokio::time::timeout(LONG, asked).await.unwrap();
    assert!(matches!(refused, Err(Refusal::Storage { .. } | Refusal::ShuttingDown)));
    assert!(files(directory.path()).is_empty());
}

#[tokio::test]
async fn a_close_tells_those_who_wait() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        locks.lock(request("r", "c")).await.unwrap();
        let waiter = locks.clone();
        let wait = tokio::spawn(async move { waiter.lock(waiting("r", "d")).await });
        eventually("the wait", || locks.figures().waiting == 1).await;
        locks.clone().close().await;
        assert_eq!(wait.await.unwrap(), Err(Refusal::ShuttingDown));
        assert_eq!(locks.unlock("r", "c", None).await, Err(Refusal::ShuttingDown));
        locks.close().await;
        assert_eq!(files(directory.path()), file("r", "c"));
    }
}

#[tokio::test]
async fn bad_directories_are_refused() {
    let directory = directory();
    let open = async |path: &Path| match LockTable::open(path, LockTableOptions::default()).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    };
    let missing = directory.path().join("missing");
    assert!(open(&missing).await.contains("make it"));
    fs::write(&missing, "").unwrap();
    assert!(open(&missing).await.contains("name a directory"));
    let journal = directory.path().join(".lockkeeper-journal-a");
    fs::write(&journal, "my notes").unwrap();
    assert!(open(directory.path()).await.contains("is damaged at byte 0"));
    assert_eq!(fs::read(&journal).unwrap(), b"my notes");
}

/// I1, I2 under load, with waits that are dropped at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_ever_holds_with_another() {
    for sync in BOTH {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        let inside: Arc<[std::sync::atomic::AtomicU64; 3]> = Arc::default();
        let last_token = Arc::new(Mutex::new([0; 3]));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..16_u64 {
            let (locks, inside) = (locks.clone(), Arc::clone(&inside));
            let last_token = Arc::clone(&last_token);
            tasks.spawn(async move {
                let client = format!("c{number}");
                for round in 0..60 {
                    let place = ((number + round) % 3) as usize;
                    let resource = format!("r{place}");
                    let limit = Duration::from_micros((number * 37 + round * 101) % 900);
                    let wait = locks.lock(waiting(&resource, &client));
                    let asked = if round % 3 == 0 {
                        tokio::time::timeout(LONG, wait).await
                    } else {
                        tokio::time::timeout(limit, wait).await
                    };
                    let Ok(grant) = asked else { continue };
                    let grant = grant.unwrap();
                    assert_eq!(
                        inside[place].swap(number + 1, std::sync::atomic::Ordering::SeqCst),
                        0
                    );
                    let before = std::mem::replace(&mut last_token.lock()[place], grant.token);
                    assert!(grant.token > before);
                    tokio::task::yield_now().await;
                    inside[place].store(0, std::sync::atomic::Ordering::SeqCst);
                    locks.unlock(&resource, &client, Some(grant.token)).await.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        eventually("the end of what was undone", || locks.figures().held == 0).await;
        assert_eq!(locks.figures().waiting, 0);
        assert_eq!(files(directory.path()), BTreeMap::new());
        locks.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_a_sync() {
    let directory = directory();
    let locks = open(directory.path(), true).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        let locks = locks.clone();
        tasks.spawn(async move {
            let name = format!("r{number}");
            for _ in 0..5 {
                locks.lock(request(&name, "c")).await.unwrap();
                locks.unlock(&name, "c", None).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let before = locks.figures();
    assert_eq!(before.granted, 320);
    for mut asked in ask_all_at_once(&locks) {
        asked.outcome().await.unwrap();
    }
    let figures = locks.figures();
    // Those that the store found first, and all the others.
    let syncs = figures.syncs.count - before.syncs.count;
    assert!((1..=2).contains(&syncs), "{syncs} syncs for 64 grants");
    locks.close().await;
}

/// The store does not begin while the books are locked.
fn ask_all_at_once(locks: &LockTable) -> Vec<OutcomeListener<'_>> {
    let mut all = Vec::new();
    let mut books = locks.0.books();
    for number in 0..64 {
        let Ok(Admission::Waiting(turn, receiver)) =
            books.ask(request(&format!("s{number}"), "c"), &None)
        else {
            panic!("it does not wait for the store");
        };
        all.push(OutcomeListener {
            inner: &locks.0,
            turn,
            receiver,
            end: ListenerEnd::Disconnected,
        });
    }
    all
}

async fn open_with_quotas(directory: &Path, locks: usize, waiters: usize) -> LockTable {
    let quotas = LockTableOptions {
        sync: false,
        locks_per_client: Some(locks),
        waiters_per_client: Some(waiters),
        ..LockTableOptions::default()
    };
    LockTable::open(directory, quotas).await.unwrap()
}

fn too_many_locks<T>(client: &str, limit: usize) -> Result<T, Refusal> {
    Err(Refusal::LocksPerClient { client: client.to_owned(), limit })
}

#[track_caller]
fn assert_counted(locks: &LockTable) {
    let [is, must_be] = locks.0.books().counted();
    assert_eq!(is, must_be);
}

#[tokio::test]
async fn a_client_holds_as_many_locks_as_it_may() {
    let directory = directory();
    let locks = open_with_quotas(directory.path(), 2, 9).await;
    locks.lock(named("id", request("a", "c"))).await.unwrap();
    locks.lock(request("b", " c")).await.unwrap();
    for name in ["c", "c ", "\tc"] {
        assert_eq!(locks.lock(request("d", name)).await, too_many_locks("c", 2));
        assert_eq!(locks.lock(waiting("d", name)).await, too_many_locks("c", 2));
    }
    // What it has already is no more; and each client has its own.
    locks.lock(named("id", request("a", "c"))).await.unwrap();
    assert_eq!(locks.lock(request("a", "c")).await, locked_by("c"));
    locks.lock(request("d", "other")).await.unwrap();

    locks.unlock("a", "c", None).await.unwrap();
    locks.lock(leased("a", "c", QUIET)).await.unwrap();
    // Over, though its end is still to come: it cannot while the books are open.
    let mut books = locks.0.books();
    std::thread::sleep(2 * QUIET);
    let Ok(Admission::Waiting(turn, receiver)) = books.ask(request("e", "c"), &None) else {
        panic!("a lease that is over counts");
    };
    drop(books);
    let end = ListenerEnd::Disconnected;
    OutcomeListener { inner: &locks.0, turn, receiver, end }.outcome().await.unwrap();
    locks.force_unlock("b", None).await.unwrap();
    locks.lock(request("f", "c")).await.unwrap();
    assert_eq!(locks.lock(request("g", "c")).await, too_many_locks("c", 2));
    assert_counted(&locks);

    // After a restart it is as before; a lease would run its whole length again.
    eventually("the lease ends", || locks.show("a").is_none()).await;
    locks.close().await;
    let locks = open_with_quotas(directory.path(), 2, 9).await;
    assert_eq!(locks.lock(request("g", "c")).await, too_many_locks("c", 2));
    locks.unlock("e", "c", None).await.unwrap();
    locks.lock(request("g", "c")).await.unwrap();
    assert_counted(&locks);
    locks.close().await;
}

#[tokio::test]
async fn as_many_requests_of_a_client_wait_as_may() {
    let directory = directory();
    let locks = open_with_quotas(directory.path(), 9, 1).await;
    locks.lock(request("r", "holder")).await.unwrap();
    let first = tokio::spawn({
        let locks = locks.clone();
        async move { locks.lock(waiting("r", "c")).await }
    });
    eventually("it is so", || locks.figures().waiting == 1).await;
    let refused = Err(Refusal::WaitersPerClient { client: "c".to_owned(), limit: 1 });
    assert_eq!(locks.lock(waiting("r", " c")).await, refused);
    // A try waits for nothing, nor does another client.
    assert_eq!(locks.lock(request("r", "c")).await, locked_by("holder"));
    let short = LockRequest { wait: WaitLimit::Until(QUIET), ..request("r", "d") };
    assert!(matches!(locks.lock(short).await, Err(Refusal::TimedOut { .. })));
    // One that is gone waits no more.
    first.abort();
    eventually("it is so", || locks.figures().waiting == 0).await;
    let second = tokio::spawn({
        let locks = locks.clone();
        async move { locks.lock(waiting("r", "c")).await }
    });
    eventually("it is so", || locks.figures().waiting == 1).await;
    locks.unlock("r", "holder", None).await.unwrap();
    second.await.unwrap().unwrap();
    assert_counted(&locks);
    locks.close().await;
}

#[tokio::test]
async fn a_waiter_whose_client_has_enough_when_its_turn_comes_is_refused() {
    let directory = directory();
    let locks = open_with_quotas(directory.path(), 1, 9).await;
    locks.lock(request("a", "one")).await.unwrap();
    locks.lock(request("b", "two")).await.unwrap();
    let wait = |resource: &'static str, client: &'static str| {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock(waiting(resource, client)).await })
    };
    let mut waiters = Vec::new();
    for (resource, client) in [("a", "c"), ("b", "c"), ("b", "d")] {
        waiters.push(wait(resource, client));
        eventually("it is so", || locks.figures().waiting == waiters.len() as u64).await;
    }
    locks.unlock("a", "one", None).await.unwrap();
    let [first, second, third] = waiters.try_into().unwrap();
    first.await.unwrap().unwrap();
    locks.unlock("b", "two", None).await.unwrap();
    assert_eq!(second.await.unwrap(), too_many_locks("c", 1));
    third.await.unwrap().unwrap();
    assert_counted(&locks);
    locks.close().await;
}

/// Holds and waits that end in every way, many at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_holds_and_waits_end_they_are_counted_right() {
    for sync in [false, true] {
        let directory = directory();
        let locks = open(directory.path(), sync).await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..8_usize {
            let (locks, path) = (locks.clone(), directory.path().to_owned());
            tasks.spawn(async move {
                for round in 0..60_usize {
                    let kind = number * 7 + round * 5;
                    let name = format!("r{}", kind % 3);
                    let mut ask = waiting(&name, &format!("c{}", kind % 4));
                    ask.lease = (kind % 5 == 0).then_some(Duration::from_millis(1));
                    ask.request_id = (kind % 2 == 0).then(|| format!("{number}-{round}").into());
                    let client = ask.client.clone();
                    let patience = Duration::from_micros(300 * (kind % 11) as u64);
                    // Often it is gone before it hears.
                    let _ = tokio::time::timeout(patience, locks.lock(ask)).await;
                    match kind % 7 {
                        0 => drop(locks.force_unlock(&name, None).await),
                        1 => drop(fs::remove_file(path.join(format!("{name}.resource.lock")))),
                        _ => drop(locks.unlock(&name, &client, None).await),
                    }
                    assert_counted(&locks);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        for name in ["r0", "r1", "r2"] {
            let _ = locks.force_unlock(name, None).await;
        }
        // Grants may be on their way, and are undone.
        eventually("nothing is left", || locks.0.books().counted() == [vec![], vec![]]).await;
        locks.close().await;
    }
}

/// The same test of this binary, as another process.
fn again(test: &str, directory: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let name = format!("lockd::state::lock_table::tests::{test}");
    command.args([&name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env("LOCKKEEPER_TEST_DIRECTORY", directory);
    command
}

fn role() -> Option<PathBuf> {
    std::env::var_os("LOCKKEEPER_TEST_DIRECTORY").map(PathBuf::from)
}

/// One line that another process reads, whatever becomes of this one.
fn say(line: &str) {
    use std::io::Write as _;
    std::io::stdout().lock().write_all(format!("@{line}\n").as_bytes()).unwrap();
}

/// Lock and unlock until it is killed, and say what was answered.
async fn serve_until_killed(path: &Path, sync: bool) {
    // The test harness has begun a line.
    println!();
    let locks = open(path, sync).await;
    for held in locks.list() {
        say(&format!("has {} {} {}", held.resource, held.client, held.token));
    }
    for held in locks.list() {
        say(&format!("ending {} {} {}", held.resource, held.client, held.token));
        locks.unlock(&held.resource, &held.client, Some(held.token)).await.unwrap();
        say(&format!("ended {} {} {}", held.resource, held.client, held.token));
    }
    let tasks = (0..6).map(|number| {
        let locks = locks.clone();
        async move {
            let (resource, client) = (format!("r{}", number % 4), format!("c{number}"));
            loop {
                let grant = locks.lock(waiting(&resource, &client)).await.unwrap();
                say(&format!("granted {resource} {client} {}", grant.token));
                tokio::task::yield_now().await;
                say(&format!("ending {resource} {client} {}", grant.token));
                locks.unlock(&resource, &client, Some(grant.token)).await.unwrap();
                say(&format!("ended {resource} {client} {}", grant.token));
            }
        }
    });
    futures::future::join_all(tasks).await;
}

/// What is known of a lock of a daemon that was killed.
#[derive(Default)]
struct KnownHold {
    /// Granted, and no end was asked for.
    held: BTreeMap<u64, String>,
    ended: std::collections::HashSet<u64>,
    /// The last token of each resource; those of two may be told out of order.
    last: BTreeMap<String, u64>,
    /// The last token of all before the daemon was killed.
    floor: u64,
    granted: usize,
}

impl KnownHold {
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let (who, token) = (words[1..3].join(" "), words[3].parse().unwrap());
        match words[0] {
            "granted" => {
                let last = self.last.get(words[1]).copied().unwrap_or(0).max(self.floor);
                assert!(token > last, "{line}: a token went back");
                let same = |other: &&String| other.split(' ').next() == who.split(' ').next();
                assert_eq!(self.held.values().find(same), None, "{line}: two holders");
                self.held.insert(token, who);
                self.granted += 1;
            }
            "has" => {
                assert!(!self.ended.contains(&token), "{line}: it was ended");
                assert_eq!(self.held.remove(&token).unwrap_or_else(|| who.clone()), who);
            }
            "ending" => drop(self.held.remove(&token)),
            "ended" => drop(self.ended.insert(token)),
            other => panic!("{other}"),
        }
        let last = self.last.entry(words[1].to_owned()).or_default();
        *last = token.max(*last);
    }
}

fn killed_again_and_again(test: &str) {
    use std::io::{BufRead, BufReader};
    let directory = directory();
    let mut known = KnownHold::default();
    for round in 0..12_u32 {
        let mut command = again(test, directory.path());
        let mut daemon = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
        let mut said = 0;
        let mut expected = known.held.clone();
        known.floor = known.last.values().copied().max().unwrap_or(0);
        for line in lines.map_while(Result::ok) {
            let Some(line) = line.strip_prefix('@') else { continue };
            if let Some(it) = line.strip_prefix("has ") {
                expected.remove(&it.rsplit(' ').next().unwrap().parse().unwrap());
            } else {
                assert_eq!(expected, BTreeMap::new(), "locks were lost");
            }
            known.read(line);
            said += 1;
            if said == 20 + 37 * round {
                daemon.kill().unwrap();
            }
        }
        daemon.wait().unwrap();
        assert!(said >= 20 + 37 * round, "the daemon of round {round} ended by itself");
    }
    assert!(known.granted > 100);
}

#[test]
fn a_killed_daemon_loses_nothing() {
    run_or_kill("a_killed_daemon_loses_nothing", true);
}

#[test]
fn a_killed_daemon_that_does_not_sync_loses_nothing() {
    run_or_kill("a_killed_daemon_that_does_not_sync_loses_nothing", false);
}

fn run_or_kill(test: &str, sync: bool) {
    let Some(path) = role() else {
        return killed_again_and_again(test);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(serve_until_killed(&path, sync));
}

/// On a disk of one megabyte, in a mount namespace of its own.
#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() {
    let test = "a_full_disk_is_told_and_leaves_nothing_behind";
    if let Some(path) = role() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return BOTH.into_iter().for_each(|sync| runtime.block_on(fill_the_disk(&path, sync)));
    }
    let directory = directory();
    let command = again(test, directory.path());
    let mut mounted = std::process::Command::new("unshare");
    let script = r#"mount -t tmpfs -o size=1m tmpfs "$LOCKKEEPER_TEST_DIRECTORY" && exec "$@""#;
    mounted.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    mounted.arg(command.get_program()).args(command.get_args());
    let status = mounted.env("LOCKKEEPER_TEST_DIRECTORY", directory.path()).status().unwrap();
    assert!(status.success());
}

async fn fill_the_disk(path: &Path, sync: bool) {
    let locks = open(path, sync).await;
    // Before the first request for a lock, the file system says it.
    let ballast = path.join("ballast");
    assert!(locks.has_storage());
    assert!(fs::write(&ballast, vec![1; 2 << 20]).is_err());
    assert!(!locks.has_storage());
    fs::remove_file(&ballast).unwrap();
    assert!(locks.has_storage());
    let mut held = Vec::new();
    let client = "c".repeat(3000);
    let refusal = loop {
        let name = format!("r{}", held.len());
        match locks.lock(request(&name, &client)).await {
            Ok(grant) => held.push((name, grant.token)),
            Err(refusal) => break refusal,
        }
    };
    assert!(held.len() > 50);
    let enospc = rustix::io::Errno::NOSPC.raw_os_error();
    assert!(matches!(&refusal, Refusal::Storage { errno, .. } if *errno == enospc), "{refusal:?}");
    assert!(refusal.to_string().contains("free some space"), "{refusal}");
    // Fuller than the daemon can make it.
    let _ = fs::write(&ballast, vec![1; 1 << 20]);
    let name = format!("r{}", held.len());
    for _ in 0..3 {
        let refused = locks.lock(request(&name, "c")).await;
        assert!(matches!(refused, Err(Refusal::Storage { .. })), "{refused:?}");
    }
    assert_eq!(files(path).len(), held.len());
    assert_eq!(locks.list().len(), held.len());
    assert!(files(path).values().all(|contents| *contents == client.as_bytes()));
    // All can be unlocked, and each only once.
    for (name, token) in &held {
        locks.unlock(name, &client, Some(*token)).await.unwrap();
        let _ = fs::OpenOptions::new()
            .append(true)
            .open(&ballast)
            .map(|mut file| std::io::Write::write_all(&mut file, &[1; 8192]));
    }
    assert_eq!(files(path), BTreeMap::new());
    fs::remove_file(&ballast).unwrap();
    // The last that was asked for was refused.
    assert!(!locks.has_storage());
    let grant = locks.lock(request("r0", "c")).await.unwrap();
    assert!(locks.has_storage());
    assert!(grant.token > held.last().unwrap().1);
    locks.unlock("r0", "c", None).await.unwrap();
    locks.close().await;
}
