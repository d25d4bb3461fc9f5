//! The JSON API.

mod lockd_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lockd_support::support::{QUIET, VERY_LONG, eventually, on_tmpfs, role};
use lockd_support::{Answer, Daemon, NIL, call};
use serde_json::{Value, json};
use tempfile::TempDir;

fn start(test: &str, settings: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    (directory, daemon)
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn post(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    daemon.connect().post(path, &[JSON], body.to_string().as_bytes())
}

/// The status and the body.
fn ask(daemon: &Daemon, path: &str, body: &Value) -> (u16, Value) {
    read(&post(daemon, path, body))
}

fn get(daemon: &Daemon, path: &str) -> (u16, Value) {
    let mut client = daemon.connect();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    read(&client.answer())
}

fn read(answer: &Answer) -> (u16, Value) {
    assert_eq!(answer.head["content-type"], "application/json", "{answer:?}");
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    if answer.status >= 400 {
        assert!(body["error"].is_string() && body["message"].is_string(), "{body}");
    }
    (answer.status, body)
}

/// Begin to wait, in a connection of its own.
fn wait(daemon: &Daemon, resource: &str, client: &str) -> TcpStream {
    let body = json!({ "client": client, "wait_ms": null }).to_string();
    let mut stream = TcpStream::connect(daemon.address).expect("a connection");
    stream.set_read_timeout(Some(VERY_LONG)).expect("a setting");
    write!(
        stream,
        "POST /v1/locks/{resource}/acquire HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it listens");
    stream
}

/// What comes first over a connection.
fn heard(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let length = stream.read(&mut bytes).expect("an answer");
    assert!(length > 0, "the connection was closed");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn waiting(daemon: &Daemon, resource: &str) -> Vec<String> {
    let (_, shown) = get(daemon, &format!("/v1/locks/{resource}"));
    let waiting = shown["waiting"].as_array().cloned().unwrap_or_default();
    waiting.iter().map(|waiter| waiter["client"].as_str().unwrap().to_owned()).collect()
}

fn number(token: &Value) -> u64 {
    token.as_str().expect("a string").parse().expect("a number")
}

#[test]
fn a_lock_is_had_and_given_back() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_lock_is_had_and_given_back", "");
    let (status, first) = ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    assert_eq!(status, 200);
    assert_eq!((&first["resource"], &first["client"]), (&json!("r"), &json!("c")));
    assert_eq!(first["lease_ms"], Value::Null);

    let (status, refused) = ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "d" }));
    assert_eq!((status, &refused["error"]), (409, &json!("locked")));
    assert_eq!(refused["holder"]["client"], "c");
    assert!(refused["holder"]["since_ms"].as_u64().unwrap() > 1_600_000_000_000);

    let (status, refused) = ask(&daemon, "/v1/locks/r/release", &json!({ "client": "d" }));
    assert_eq!((status, &refused["error"]), (409, &json!("not_yours")));
    assert_eq!(refused["holder"]["client"], "c");
    let other = json!({ "client": "c", "token": (number(&first["token"]) + 1).to_string() });
    let (status, refused) = ask(&daemon, "/v1/locks/r/release", &other);
    assert_eq!((status, &refused["error"]), (409, &json!("wrong_token")));

    let mine = json!({ "client": "c", "token": first["token"] });
    assert_eq!(ask(&daemon, "/v1/locks/r/release", &mine).0, 200);
    let (status, refused) = ask(&daemon, "/v1/locks/r/release", &json!({ "client": "c" }));
    assert_eq!((status, &refused["error"]), (404, &json!("not_locked")));
    let (_, second) = ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "d" }));
    assert!(number(&second["token"]) > number(&first["token"]));
}

#[test]
fn a_lease_runs_and_is_renewed() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_lease_runs_and_is_renewed", "");
    let long = json!({ "client": "c", "lease_ms": 600_000 });
    let (_, held) = ask(&daemon, "/v1/locks/long/acquire", &long);
    assert_eq!(held["lease_ms"], 600_000);
    let renewal = json!({ "client": "c", "token": held["token"] });
    let (status, renewed) = ask(&daemon, "/v1/locks/long/renew", &renewal);
    assert_eq!((status, &renewed["lease_ms"]), (200, &json!(600_000)));
    let (_, shown) = get(&daemon, "/v1/locks/long");
    assert_eq!(shown["lease"]["length_ms"], 600_000);
    assert!(shown["lease"]["remaining_ms"].as_u64().unwrap() > 1000);

    let short = json!({ "client": "c", "lease_ms": 50 });
    let (_, over) = ask(&daemon, "/v1/locks/short/acquire", &short);
    eventually("the lease ends", || get(&daemon, "/v1/locks/short").0 == 404);
    let renewal = json!({ "client": "c", "token": over["token"] });
    let (status, refused) = ask(&daemon, "/v1/locks/short/renew", &renewal);
    assert_eq!((status, &refused["error"]), (404, &json!("not_held")));
    ask(&daemon, "/v1/locks/short/acquire", &json!({ "client": "d" }));
    let (status, refused) = ask(&daemon, "/v1/locks/short/renew", &renewal);
    assert_eq!((status, &refused["error"]), (409, &json!("not_held")));
}

#[test]
fn who_waits_is_served_in_turn_or_told_that_it_took_too_long() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "who_waits_is_served_in_turn_or_told_that_it_took_too_long";
    let (_directory, daemon) = start(test, "");
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    let soon = json!({ "client": "d", "wait_ms": 30 });
    let (status, refused) = ask(&daemon, "/v1/locks/r/acquire", &soon);
    assert_eq!((status, &refused["error"]), (409, &json!("timeout")));
    assert_eq!(refused["holder"]["client"], "c");

    let mut first = wait(&daemon, "r", "first");
    eventually("one waits", || waiting(&daemon, "r") == ["first"]);
    let mut second = wait(&daemon, "r", "second");
    eventually("two wait", || waiting(&daemon, "r") == ["first", "second"]);
    ask(&daemon, "/v1/locks/r/release", &json!({ "client": "c" }));
    assert!(heard(&mut first).contains(r#""client":"first""#));
    second.set_read_timeout(Some(QUIET)).unwrap();
    assert!(second.read(&mut [0]).is_err());
    second.set_read_timeout(Some(VERY_LONG)).unwrap();
    ask(&daemon, "/v1/locks/r/release", &json!({ "client": "first" }));
    assert!(heard(&mut second).contains(r#""client":"second""#));
}

#[test]
fn who_hangs_up_waits_no_more() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("who_hangs_up_waits_no_more", "");
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    let gone = wait(&daemon, "r", "gone");
    eventually("one waits", || waiting(&daemon, "r") == ["gone"]);
    let mut stays = wait(&daemon, "r", "stays");
    eventually("two wait", || waiting(&daemon, "r") == ["gone", "stays"]);
    drop(gone);
    eventually("one is gone", || waiting(&daemon, "r") == ["stays"]);
    ask(&daemon, "/v1/locks/r/release", &json!({ "client": "c" }));
    assert!(heard(&mut stays).contains(r#""client":"stays""#));
}

#[test]
fn a_peer_may_not_wait_as_often_as_it_likes() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_peer_may_not_wait_as_often_as_it_likes", "waiting=2");
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    let one = wait(&daemon, "r", "1");
    let _two = wait(&daemon, "r", "2");
    eventually("two wait", || waiting(&daemon, "r").len() == 2);
    let more = json!({ "client": "3", "wait_ms": 60_000 });
    let refused = post(&daemon, "/v1/locks/r/acquire", &more);
    assert_eq!(read(&refused).1["error"], "too_many_waiting");
    assert_eq!((refused.status, &*refused.head["retry-after"]), (429, "1"));
    // A try costs no place.
    assert_eq!(ask(&daemon, "/v1/locks/free/acquire", &json!({ "client": "3" })).0, 200);
    drop(one);
    eventually("one is gone", || waiting(&daemon, "r") == ["2"]);
    // The place is free a moment after the list shows it.
    let soon = json!({ "client": "3", "wait_ms": 1 });
    let waited = || ask(&daemon, "/v1/locks/r/acquire", &soon).1["error"] == "timeout";
    eventually("there is a place", waited);
}

#[test]
fn who_waits_is_told_of_the_end() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    // Longer than any wait here.
    let (_directory, mut daemon) = start("who_waits_is_told_of_the_end", "grace=600");
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    let mut waits = wait(&daemon, "r", "waits");
    let mut watches = TcpStream::connect(daemon.address).unwrap();
    watches.write_all(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(heard(&mut watches).contains("text/event-stream"));
    eventually("one waits", || waiting(&daemon, "r") == ["waits"]);
    daemon.process.hang_up();
    let told = heard(&mut waits);
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("shutting_down"), "{told}");
    daemon.process.expect("stopped");
}

#[test]
fn a_request_that_is_repeated_is_one() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_request_that_is_repeated_is_one", "");
    let request = json!({ "client": "c", "request_id": "one" });
    let (_, first) = ask(&daemon, "/v1/locks/r/acquire", &request);
    let (status, again) = ask(&daemon, "/v1/locks/r/acquire", &request);
    assert_eq!((status, &again["token"]), (200, &first["token"]));
    ask(&daemon, "/v1/locks/r/release", &json!({ "client": "c" }));
    let (status, late) = ask(&daemon, "/v1/locks/r/acquire", &request);
    assert_eq!((status, &late["error"]), (409, &json!("request_over")));
}

/// Names that a path, JSON or a file system could take for something else.
#[test]
fn every_name_is_a_name() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (directory, daemon) = start("every_name_is_a_name", "");
    let names = [
        ("..%2F..%2Fetc%2Fpasswd", "../../etc/passwd"),
        ("a%20b%25", "a b%"),
        ("acquire", "acquire"),
        ("%F0%9F%94%92%22%5C%0A", "🔒\"\\\n"),
        ("%2525", "%25"),
    ];
    for (path, name) in names {
        let path = format!("/v1/locks/{path}");
        let (status, held) = ask(&daemon, &format!("{path}/acquire"), &json!({ "client": "c" }));
        assert_eq!((status, &held["resource"]), (200, &json!(name)));
        assert_eq!(get(&daemon, &path).1["resource"], name);
    }
    for name in ["..", ".", "", "in the body"] {
        let body = json!({ "resource": name, "client": "c" });
        assert_eq!(ask(&daemon, "/v1/acquire", &body).1["resource"], name);
    }
    let (_, list) = get(&daemon, "/v1/locks");
    assert_eq!(list["held"], names.len() + 4);
    for held in list["locks"].as_array().unwrap() {
        let body = json!({ "resource": held["resource"], "client": "c", "token": held["token"] });
        assert_eq!(ask(&daemon, "/v1/release", &body).0, 200);
    }
    let (_, list) = get(&daemon, "/v1/locks");
    assert_eq!(list["held"], 0);
    assert!(!directory.path().join("../../etc/passwd.resource.lock").exists());
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("what_is_wrong_with_a_request_is_said", "");
    let to = |path: &str, body: &str| read(&daemon.connect().post(path, &[JSON], body.as_bytes()));
    let acquire = "/v1/locks/r/acquire";
    for (path, body, status, error) in [
        (acquire, "", 400, "invalid"),
        (acquire, "{}", 400, "invalid"),
        (acquire, "[1]", 400, "invalid"),
        (acquire, r#"{"client": 3}"#, 400, "invalid"),
        (acquire, r#"{"client": null}"#, 400, "invalid"),
        // A lease that was written wrong would last for ever.
        (acquire, r#"{"client": "c", "lease": 5}"#, 400, "invalid"),
        (acquire, r#"{"client": "c", "wait_ms": -1}"#, 400, "invalid"),
        (acquire, r#"{"client": "c", "resource": "s"}"#, 400, "invalid"),
        (acquire, r#"{"client": "c\u0000"}"#, 400, "bad_name"),
        ("/v1/acquire", r#"{"client": "c"}"#, 400, "invalid"),
        ("/v1/locks/%FF/acquire", r#"{"client": "c"}"#, 400, "invalid"),
        ("/v1/locks/r/renew", r#"{"client": "c", "token": 7}"#, 400, "invalid"),
        ("/v1/locks/r/renew", r#"{"client": "c", "token": "+7"}"#, 400, "invalid"),
        ("/v1/locks/r", "", 405, "wrong_method"),
        ("/v1/nothing", "", 404, "no_such_path"),
        ("/v1/locks/r/s/acquire", "", 404, "no_such_path"),
    ] {
        let (answered, body) = to(path, body);
        assert_eq!((answered, &body["error"]), (status, &json!(error)), "{path} {body}");
    }
    let long = format!("/v1/locks/{}/acquire", "x".repeat(300));
    assert_eq!(to(&long, r#"{"client": "c"}"#).1["error"], "bad_name");
    let huge = format!(r#"{{"client": "{}"}}"#, "x".repeat(2 * 1024 * 1024));
    assert_eq!(to(acquire, &huge).0, 413);
    let text = daemon.connect().post(acquire, &[("Content-Type", "text/plain")], b"{}");
    assert_eq!((text.status, &read(&text).1["error"]), (415, &json!("not_json")));
    assert_eq!(get(&daemon, "/v1/locks?limit=x").1["error"], "invalid");
    assert_eq!(get(&daemon, "/v1/locks?lim=1").1["error"], "invalid");
    assert_eq!(get(&daemon, "/v1/locks").1["held"], 0);
}

#[test]
fn both_apis_have_the_same_locks() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("both_apis_have_the_same_locks", "");
    assert_eq!(daemon.call(&call("lock", &["r", "c"])), NIL);
    let refused = ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "d" })).1;
    assert_eq!(refused["holder"]["client"], "c");
    assert_eq!(ask(&daemon, "/v1/locks/r/release", &json!({ "client": "c" })).0, 200);
    assert_eq!(ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "d" })).0, 200);
    let document = call("lock", &["r", "c"]);
    for path in ["/", "/metrics", "/healthz", "/v2"] {
        let answered = daemon.connect().post(path, &[], document.as_bytes()).text();
        assert!(answered.contains("Resource already locked by 'd'"), "{path}: {answered}");
    }
}

#[test]
fn what_is_wrong_with_a_request_is_called_so() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("what_is_wrong_with_a_request_is_called_so", "");
    let acquire = "/v1/locks/r/acquire";
    for (body, error) in [
        (json!(["r", "c", null, null, null]), "invalid"),
        (json!([null, "c"]), "invalid"),
        (json!("c"), "invalid"),
        (json!({ "client": "c", "lease_ms": 0 }), "invalid"),
        (json!({ "client": "c", "request_id": "" }), "invalid"),
        (json!({ "client": "a\u{0}b" }), "bad_name"),
    ] {
        let (status, refused) = ask(&daemon, acquire, &body);
        assert_eq!((status, &refused["error"]), (400, &json!(error)), "{body}");
    }
    for (path, body) in [
        ("/v1/locks/r/renew", json!([null, "c", "1"])),
        ("/v1/locks/r/release", json!([null, "c", null])),
        ("/v1/locks/r/force-release", json!([])),
    ] {
        assert_eq!(ask(&daemon, path, &body).1["error"], "invalid", "{path}");
    }
    assert_eq!(get(&daemon, "/v1/locks/r").0, 404);
}

/// Of many waiters the first are named, and how many there are.
#[test]
fn a_long_queue_says_how_long_it_is() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_long_queue_says_how_long_it_is", "");
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    let mut waiters: Vec<_> =
        (0..100).map(|number| wait(&daemon, "r", &format!("w{number:03}"))).collect();
    let in_all = || get(&daemon, "/v1/locks/r").1["waiting_in_all"].clone();
    eventually("all wait", || in_all() == 100);
    waiters.push(wait(&daemon, "r", "last"));
    eventually("one more waits", || in_all() == 101);
    assert_eq!(waiting(&daemon, "r").len(), 100);
    // What is not named is found all the same.
    assert_eq!(get(&daemon, "/v1/locks?search=last").1["matching"], 1);
}

/// Times are numbers that a browser's `Date`, and every reader of JSON, can have.
#[test]
fn no_time_is_longer_than_can_be_told() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("no_time_is_longer_than_can_be_told", "");
    let long = json!({ "client": "c", "lease_ms": u64::MAX });
    let (_, held) = ask(&daemon, "/v1/locks/r/acquire", &long);
    const LONGEST: u64 = (1 << 53) - 1;
    assert_eq!(held["lease_ms"], LONGEST);
    let (_, shown) = get(&daemon, "/v1/locks/r");
    assert_eq!(shown["lease"]["length_ms"], LONGEST);
    assert!(shown["lease"]["remaining_ms"].as_u64().unwrap() <= LONGEST);
}

#[test]
fn the_list_is_searched_and_limited() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("the_list_is_searched_and_limited", "");
    for (resource, client) in [("Alpha", "one"), ("beta", "ONE"), ("gamma", "two")] {
        ask(&daemon, &format!("/v1/locks/{resource}/acquire"), &json!({ "client": client }));
    }
    let (_, list) = get(&daemon, "/v1/locks?limit=1&search=one");
    assert_eq!((&list["held"], &list["matching"]), (&json!(3), &json!(2)));
    assert_eq!(list["locks"].as_array().unwrap().len(), 1);
    assert_eq!(get(&daemon, "/v1/locks?search=ALPHA").1["matching"], 1);
    let only = |query: &str| {
        let (_, list) = get(&daemon, &format!("/v1/locks?{query}"));
        let names = list["locks"].as_array().unwrap().iter().map(|lock| lock["resource"].clone());
        (names.collect::<Vec<_>>(), list["matching"].clone(), list["held"].clone())
    };
    assert_eq!(only("resource=beta"), (vec![json!("beta")], json!(1), json!(3)));
    assert_eq!(only("resource=BETA"), (vec![], json!(0), json!(3)), "a name is itself");
    assert_eq!(only("resource=beta&search=two"), (vec![], json!(0), json!(3)));
    assert_eq!(only("resource=beta&limit=0"), (vec![], json!(1), json!(3)));
}

#[test]
fn what_changes_is_sent_to_who_watches() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("what_changes_is_sent_to_who_watches", "head=2");
    let mut watches = TcpStream::connect(daemon.address).unwrap();
    watches.set_read_timeout(Some(VERY_LONG)).unwrap();
    watches.write_all(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut seen = String::new();
    let mut until = |expected: &str| {
        while !seen.contains(expected) {
            seen.push_str(&heard(&mut watches));
        }
        seen.clear();
    };
    until(r#""locks":[]"#);
    // A viewer has nothing to send, and may be silent for longer than others.
    std::thread::sleep(Duration::from_secs(2) + QUIET);
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    until(r#""resource":"r""#);
    let _waits = wait(&daemon, "r", "waits");
    until(r#""client":"waits""#);
    ask(&daemon, "/v1/locks/r/force-release", &json!({}));
    until(r#""client":"waits","lease""#);
}

#[test]
fn a_lock_is_ended_by_force_only_as_it_was_seen() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_lock_is_ended_by_force_only_as_it_was_seen", "");
    let (_, seen) = ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    ask(&daemon, "/v1/locks/r/release", &json!({ "client": "c" }));
    let (_, now) = ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "d" }));
    let force = "/v1/locks/r/force-release";
    let (status, refused) = ask(&daemon, force, &json!({ "token": seen["token"] }));
    assert_eq!((status, &refused["error"]), (409, &json!("wrong_token")));
    assert_eq!(refused["holder"]["client"], "d");
    let (status, ended) = ask(&daemon, force, &json!({ "token": now["token"] }));
    assert_eq!((status, &ended["client"]), (200, &json!("d")));
    assert_eq!(ask(&daemon, force, &json!({})).1["error"], "not_locked");
}

#[test]
fn prometheus_is_told_the_figures() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("prometheus_is_told_the_figures", "sync=yes");
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "d" }));
    ask(&daemon, "/v1/locks/s/acquire", &json!({ "client": "d" }));
    ask(&daemon, "/v1/locks/s/force-release", &json!({}));
    ask(&daemon, "/v1/locks/t/acquire", &json!({ "client": "c", "lease_ms": 20 }));
    let _waits = wait(&daemon, "r", "waits");
    let text = || {
        let mut client = daemon.connect();
        client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = client.answer();
        assert!(answer.head["content-type"].starts_with("text/plain; version=0.0.4"));
        answer.text()
    };
    let expected = [
        "lockkeeper_held 1",
        "lockkeeper_waiting 1",
        "lockkeeper_granted_total 3",
        "lockkeeper_refused_total 1",
        "lockkeeper_expired_total 1",
        "lockkeeper_forced_total 1",
    ];
    eventually("all is counted", || {
        let text = text();
        expected.iter().all(|line| text.lines().any(|other| other == *line))
    });
    let text = text();
    let count = text.lines().find_map(|line| line.strip_prefix("lockkeeper_sync_seconds_count "));
    assert!(count.unwrap().parse::<u64>().unwrap() >= 5, "{text}");
    let buckets =
        text.lines().filter_map(|line| line.strip_prefix("lockkeeper_sync_seconds_bucket"));
    let buckets: Vec<u64> =
        buckets.map(|line| line.split_once(' ').unwrap().1.parse().unwrap()).collect();
    assert!(buckets.len() > 5 && buckets.is_sorted(), "{text}");
    assert_eq!(buckets.last().unwrap().to_string(), count.unwrap());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.split_once(' ').expect("a name and a value");
        assert!(name.starts_with("lockkeeper_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

/// Field `tr` of the connection in /proc/net/tcp is 2 while the kernel asks.
#[test]
fn whether_a_silent_peer_is_still_there_is_asked() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("whether_a_silent_peer_is_still_there_is_asked", "");
    ask(&daemon, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    let waits = wait(&daemon, "r", "waits");
    let (here, there) = (daemon.address.port(), waits.local_addr().unwrap().port());
    let (here, there) = (format!(":{here:04X}"), format!(":{there:04X}"));
    eventually("the kernel asks", || {
        let connections = std::fs::read_to_string("/proc/net/tcp").expect("the connections");
        connections.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1].ends_with(&here)
                && fields[2].ends_with(&there)
                && fields[5].starts_with("02:")
        })
    });
}
