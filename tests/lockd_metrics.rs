//! The figures for Prometheus.

mod lockd_support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockd_support::support::{eventually, on_tmpfs, role};
use lockd_support::{Client, Daemon};
use serde_json::{Value, json};
use tempfile::TempDir;

fn start(test: &str, settings: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    (directory, daemon)
}

fn metrics(daemon: &Daemon, head: &str) -> String {
    let mut client = daemon.connect();
    client.send(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{head}\r\n"));
    client.answer().text()
}

#[track_caller]
fn figure(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("lockkeeper_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

fn post(daemon: &Daemon, path: &str, body: &Value) -> u16 {
    let head = [("Content-Type", "application/json")];
    daemon.connect().post(path, &head, body.to_string().as_bytes()).status
}

fn send(daemon: &Daemon, path: &str, body: &Value) -> Client {
    let mut client = daemon.connect();
    let body = body.to_string();
    client.send(format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    client
}

/// Long enough to be told from nothing.
const A_WHILE: Duration = Duration::from_millis(1100);

#[test]
fn waits_and_holds_are_counted_by_how_long_they_were() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "waits_and_holds_are_counted_by_how_long_they_were";
    let (directory, daemon) = start(test, "");
    let (first, second) = (
        json!({ "resource": "r", "client": "first" }),
        json!({ "resource": "r", "client": "second", "wait_ms": null }),
    );
    assert_eq!(post(&daemon, "/v1/acquire", &first), 200);
    let mut waits = send(&daemon, "/v1/acquire", &second);
    eventually("it waits", || figure(&metrics(&daemon, ""), "waiting") == 1.0);
    std::thread::sleep(A_WHILE);
    assert_eq!(post(&daemon, "/v1/release", &first), 200);
    assert_eq!(waits.answer().status, 200);
    let text = metrics(&daemon, "");
    for (name, count) in [("wait_seconds", 2.0), ("hold_seconds", 1.0)] {
        let figure = |end: &str| figure(&text, &format!("{name}{end}"));
        assert_eq!(figure("_count"), count, "{text}");
        assert!(figure("_sum") >= A_WHILE.as_secs_f64(), "{text}");
        assert_eq!(figure("_bucket{le=\"86400\"}"), count, "{text}");
        // The long one is in none of the first buckets.
        assert!(figure("_bucket{le=\"1\"}") < count, "{text}");
    }
    assert_eq!(figure(&text, "waiting"), 0.0);
    // What another daemon gave lasts since then.
    let body = json!({ "resource": "r", "client": "second" });
    std::thread::sleep(A_WHILE);
    drop(daemon);
    let daemon = Daemon::start(test, "", directory.path());
    assert_eq!(post(&daemon, "/v1/release", &body), 200);
    let text = metrics(&daemon, "");
    assert_eq!(figure(&text, "hold_seconds_count"), 1.0);
    assert!(figure(&text, "hold_seconds_sum") >= A_WHILE.as_secs_f64(), "{text}");
}

#[test]
fn connections_are_counted_while_they_are_open() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("connections_are_counted_while_they_are_open", "");
    let mut asks = daemon.connect();
    let mut open = || {
        asks.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        figure(&asks.answer().text(), "connections")
    };
    eventually("one is open", || open() == 1.0);
    let others: Vec<Client> = (0..7).map(|_| daemon.connect()).collect();
    eventually("eight are open", || open() == 8.0);
    drop(others);
    eventually("one is open", || open() == 1.0);
}

#[test]
fn wrong_tokens_and_foreign_requests_are_counted() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let home = on_tmpfs();
    let file = home.path().join("tokens.json");
    // Of 32 zeros.
    let hash = "84e0c0eafaa95a34c293f278ac52e45ce537bab5e752a00e6959a13ae103b65a";
    let token = json!({ "name": "a", "sha256": hash, "clients": ["*"] });
    std::fs::write(&file, json!({ "tokens": [token] }).to_string()).expect("a file");
    let settings = format!("tokens={}", file.display());
    let (_directory, daemon) = start("wrong_tokens_and_foreign_requests_are_counted", &settings);
    // More than are logged, and than are answered with 401.
    for _ in 0..25 {
        let head = format!("Authorization: Bearer {}\r\n", "1".repeat(32));
        assert!(metrics(&daemon, &head).contains("\"error\""));
    }
    let mut foreign = daemon.connect();
    foreign.send("GET /v1/ HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert_eq!(foreign.answer().status, 421);
    let text = metrics(&daemon, &format!("Authorization: Bearer {}\r\n", "0".repeat(32)));
    assert_eq!(figure(&text, "failed_logins_total"), 25.0);
    assert_eq!(figure(&text, "foreign_requests_total"), 1.0);
}

#[test]
fn files_that_name_nobody_are_counted() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    std::fs::write(directory.path().join("torn.resource.lock"), "").expect("a file");
    let daemon = Daemon::start("files_that_name_nobody_are_counted", "", directory.path());
    assert_eq!(figure(&metrics(&daemon, ""), "problems"), 1.0);
    assert_eq!(post(&daemon, "/v1/force-release", &json!({ "resource": "torn" })), 200);
    assert_eq!(figure(&metrics(&daemon, ""), "problems"), 0.0);
}

#[test]
fn prometheus_own_client_reads_the_figures() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("prometheus_own_client_reads_the_figures", "sync=yes");
    assert_eq!(post(&daemon, "/v1/acquire", &json!({ "resource": "r", "client": "c" })), 200);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/python/schemathesis/bin/python");
    let mut reader = Command::new(python)
        .arg(root.join("tests/lockd/parsed_metrics.py"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python with prometheus_client: run tests/setup.sh");
    let text = metrics(&daemon, "");
    let mut input = reader.stdin.take().expect("its input");
    input.write_all(text.as_bytes()).expect("it reads");
    drop(input);
    let read = reader.wait_with_output().expect("it ends");
    assert!(read.status.success(), "{}{text}", String::from_utf8_lossy(&read.stderr));
}
