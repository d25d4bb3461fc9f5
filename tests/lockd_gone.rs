//! Clients that are gone, or only say that they send no more.

mod lockd_support;

use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockd_support::support::{QUIET, eventually, on_tmpfs, role};
use lockd_support::{Client, Daemon, NIL, call};
use nix::sys::signal::Signal;
use rustix::net::sockopt;
use serde_json::{Value, json};
use tempfile::TempDir;

fn start(test: &str, settings: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    (directory, daemon)
}

fn request(resource: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST /v1/locks/{resource}/acquire HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn ask(daemon: &Daemon, resource: &str, verb: &str, body: &Value) -> (u16, Value) {
    let mut client = daemon.connect();
    let request = request(resource, body).replace("/acquire ", &format!("/{verb} "));
    client.send(request);
    let answer = client.answer();
    (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
}

fn hold(daemon: &Daemon, resource: &str) {
    assert_eq!(ask(daemon, resource, "acquire", &json!({ "client": "holder" })).0, 200);
}

fn release(daemon: &Daemon, resource: &str, client: &str) {
    assert_eq!(ask(daemon, resource, "release", &json!({ "client": client })).0, 200);
}

/// The holder and the waiters of a resource.
fn shown(daemon: &Daemon, resource: &str) -> Option<(String, Vec<String>)> {
    let mut client = daemon.connect();
    client.send(format!("GET /v1/locks/{resource} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let answer = client.answer();
    let lock: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let name = |of: &Value| of["client"].as_str().expect("a name").to_owned();
    let waiting = || lock["waiting"].as_array().expect("a list").iter().map(name).collect();
    (answer.status == 200).then(|| (name(&lock), waiting()))
}

fn waiting(daemon: &Daemon, resource: &str) -> Vec<String> {
    shown(daemon, resource).map_or_else(Vec::new, |(_, waiting)| waiting)
}

/// Begin to wait, with more behind the request.
fn wait(daemon: &Daemon, resource: &str, body: &Value, behind: &str) -> Client {
    let name = body["client"].as_str().expect("a name").to_owned();
    let mut waiter = daemon.connect();
    waiter.send(request(resource, body) + behind);
    eventually("it waits", || waiting(daemon, resource).contains(&name));
    waiter
}

#[test]
fn a_waiter_that_is_gone_is_gone_whatever_it_sent_before() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "a_waiter_that_is_gone_is_gone_whatever_it_sent_before";
    let (_directory, daemon) = start(test, "");
    let much = HEALTH.repeat(1000);
    for (number, behind) in ["", "\r\n", HEALTH, &much, "\0\0"].into_iter().enumerate() {
        let resource = number.to_string();
        hold(&daemon, &resource);
        let body = json!({ "client": "dead", "wait_ms": null });
        drop(wait(&daemon, &resource, &body, behind));
        eventually("it waits no more", || waiting(&daemon, &resource).is_empty());
        release(&daemon, &resource, "holder");
        hold(&daemon, &resource);
    }
}

fn certificate(home: &TempDir) -> (String, String) {
    let [certificate, key] =
        ["cert.pem", "key.pem"].map(|name| home.path().join(name).display().to_string());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", &key])
        .args(["-out", &certificate])
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl: run tests/setup.sh").success());
    (certificate, key)
}

/// Sends what it is told over TLS, and stays until it is killed.
const OVER_TLS: &str = "\
import socket, ssl, sys, time
plain = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
tls = ssl._create_unverified_context().wrap_socket(plain)
tls.sendall(sys.argv[2].encode())
time.sleep(3600)
";

#[test]
fn a_waiter_over_tls_that_is_gone_is_gone() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let home = on_tmpfs();
    let (certificate, key) = certificate(&home);
    let settings = format!("tls={certificate},{key}");
    let (_directory, daemon) = start("a_waiter_over_tls_that_is_gone_is_gone", &settings);
    let curl = |rest: &[&str]| {
        let url = format!("https://127.0.0.1:{}/v1/locks/r", daemon.address.port());
        let url = format!("{url}{}", rest[0]);
        let output = Command::new("curl").args(["-sk", &url]).args(&rest[1..]).output();
        let output = output.expect("curl: run tests/setup.sh");
        String::from_utf8(output.stdout).expect("JSON")
    };
    for behind in ["", "\r\n", HEALTH] {
        assert!(curl(&["/acquire", "--json", r#"{"client":"holder"}"#]).contains("token"));
        let body = json!({ "client": "dead", "wait_ms": null });
        let sent = request("r", &body) + behind;
        let mut waiter = Command::new("python3")
            .args(["-c", OVER_TLS, &daemon.address.port().to_string(), &sent])
            .spawn()
            .expect("python3");
        eventually("it waits", || curl(&[""]).contains(r#""client":"dead""#));
        waiter.kill().expect("it can be killed");
        waiter.wait().expect("it ends");
        eventually("it waits no more", || !curl(&[""]).contains("dead"));
        assert!(!curl(&["/release", "--json", r#"{"client":"holder"}"#]).contains("error"));
    }
    // A client that closed its side after it read the answer is not one of them.
    assert!(curl(&["/acquire", "--json", r#"{"client":"holder"}"#]).contains("token"));
    std::thread::sleep(QUIET);
    assert!(curl(&[""]).contains(r#""client":"holder""#));
}

#[test]
fn a_client_that_sends_no_more_gets_its_answer() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_client_that_sends_no_more_gets_its_answer", "");
    let lock = call("lock", &["r1", "c"]);
    let call = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{lock}",
        lock.len()
    );
    for (sent, expected) in [
        (HEALTH.to_owned(), "ok\n"),
        ("GET /v1/locks HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), r#""locks":[]"#),
        (call, NIL),
        (request("r2", &json!({ "client": "c" })), r#""token""#),
        (request("r3", &json!({ "client": "c", "wait_ms": null })), r#""token""#),
        ("GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), r#""resource":"r3""#),
    ] {
        let mut client = daemon.connect();
        client.send(&sent);
        client.stream.shutdown(Shutdown::Write).expect("it can be shut down");
        let answer = client.answer().text();
        assert!(answer.contains(expected), "{sent}: {answer}");
        assert!(client.is_closed());
    }
    // They heard, so they hold.
    std::thread::sleep(QUIET);
    for resource in ["r1", "r2", "r3"] {
        assert!(shown(&daemon, resource).is_some(), "{resource}");
    }
}

#[test]
fn a_waiter_that_sends_no_more_is_told_that_its_wait_is_over() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "a_waiter_that_sends_no_more_is_told_that_its_wait_is_over";
    let (_directory, daemon) = start(test, "");
    hold(&daemon, "r");
    let body = json!({ "client": "first", "wait_ms": null, "request_id": "1" });
    let mut first = wait(&daemon, "r", &body, "");
    let other = json!({ "client": "second", "wait_ms": null });
    let _second = wait(&daemon, "r", &other, "");
    first.stream.shutdown(Shutdown::Write).expect("it can be shut down");
    let answer = first.answer();
    let refused: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((answer.status, &refused["error"]), (409, &json!("timeout")));
    assert_eq!(refused["holder"]["client"], "holder");
    assert!(first.is_closed());
    drop(first);
    assert_eq!(waiting(&daemon, "r"), ["second"]);
    // It gave up: no place was kept. The daemon learns a moment later that it was told.
    eventually("it is behind", || {
        let _again = wait(&daemon, "r", &body, "");
        waiting(&daemon, "r") == ["second", "first"]
    });
}

#[test]
fn a_waiter_whose_connection_breaks_has_its_place_again() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "a_waiter_whose_connection_breaks_has_its_place_again";
    let (_directory, daemon) = start(test, "");
    hold(&daemon, "r");
    let body = json!({ "client": "first", "wait_ms": null, "request_id": "1" });
    let first = wait(&daemon, "r", &body, "");
    let mut second = wait(&daemon, "r", &json!({ "client": "second", "wait_ms": null }), "");
    let _third = wait(&daemon, "r", &json!({ "client": "third", "wait_ms": null }), "");
    // A proxy that gives up closes the connection as a client does that dies.
    drop(first);
    eventually("it is away", || waiting(&daemon, "r") == ["second", "third"]);
    // Its turn comes meanwhile, and passes.
    release(&daemon, "r", "holder");
    assert_eq!(second.answer().status, 200);
    let mut first = wait(&daemon, "r", &body, "");
    assert_eq!(waiting(&daemon, "r"), ["first", "third"]);
    release(&daemon, "r", "second");
    assert_eq!(first.answer().status, 200);
}

#[test]
fn a_grant_that_its_client_never_got_is_taken_back() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_grant_that_its_client_never_got_is_taken_back", "");
    let lock = call("lock", &["rpc", "dead"]);
    let call = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{lock}",
        lock.len()
    );
    let dead = json!({ "client": "dead" });
    let named = json!({ "client": "dead", "request_id": "1" });
    let waits = json!({ "client": "dead", "wait_ms": null });
    let lost = [
        ("rpc", call),
        ("try", request("try", &dead)),
        ("named", request("named", &named)),
        ("wait", request("wait", &waits)),
        ("more", request("more", &dead) + HEALTH),
    ];
    // The daemon looks when all of them are gone.
    daemon.process.stop();
    for (_, sent) in &lost {
        daemon.connect().send(sent);
    }
    daemon.process.signal(Signal::SIGCONT);
    // Each was connected to before this, and is read before it is answered.
    eventually("all were granted", || granted(&daemon) == lost.len());
    for (resource, _) in &lost {
        eventually(resource, || shown(&daemon, resource).is_none());
        hold(&daemon, resource);
    }
}

/// How many grants there were.
fn granted(daemon: &Daemon) -> usize {
    let mut client = daemon.connect();
    client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let text = client.answer().text();
    let count = text.lines().find_map(|line| line.strip_prefix("lockkeeper_granted_total "));
    count.expect("a count").parse().expect("a number")
}

/// Proxies end connections by a reset, and clients die after they read.
#[test]
fn a_grant_that_its_client_may_have_read_is_kept() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("a_grant_that_its_client_may_have_read_is_kept", "");
    let mut reset = daemon.connect();
    reset.send(request("reset", &json!({ "client": "c" })));
    assert_eq!(reset.answer().status, 200);
    sockopt::set_socket_linger(&reset.stream, Some(Duration::ZERO)).expect("a setting");
    drop(reset);
    // Closed, and then reset: some machines in between do both.
    let mut both = daemon.connect();
    both.send(request("both", &json!({ "client": "c" })));
    assert_eq!(both.answer().status, 200);
    daemon.process.stop();
    both.stream.shutdown(Shutdown::Write).expect("it can be shut down");
    sockopt::set_socket_linger(&both.stream, Some(Duration::ZERO)).expect("a setting");
    drop(both);
    daemon.process.signal(Signal::SIGCONT);
    let mut closed = daemon.connect();
    closed.send(request("closed", &json!({ "client": "c" })));
    assert_eq!(closed.answer().status, 200);
    drop(closed);
    std::thread::sleep(QUIET);
    for resource in ["reset", "both", "closed"] {
        assert!(shown(&daemon, resource).is_some(), "{resource}");
    }
}
