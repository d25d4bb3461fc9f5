//! What one client may take of the daemon, and tokens that may only look.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;
mod serve_support;

// What `cli_support` calls so.
use lockd_support::support;

use cli_support::lockkeeper;
use lockd_support::Client;
use lockkeeper::{AsyncRemoteLock, Error};
use serde_json::{Value, json};
use serve_support::{Serve, parsed, refused, token, write_tokens};
use support::{eventually, on_tmpfs};

const TOO_MANY_LOCKS: &str = "locks_per_client";
const TOO_MANY_WAITERS: &str = "waiters_per_client";

fn command(quotas: &[&str]) -> std::process::Command {
    let mut command = lockkeeper();
    command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0"]).args(quotas);
    command
}

#[tokio::test]
async fn a_refusal_names_the_limit() {
    let daemon = Serve::start(&["--locks-per-client", "2", "--waiters-per-client", "1"]);
    for resource in ["a", "b"] {
        assert_eq!(daemon.acquire(resource, "c", "").status, 200);
    }
    let answer = daemon.acquire("d", "c", "");
    assert_eq!(refused(&answer), (409, TOO_MANY_LOCKS.to_owned()));
    let text = parsed(&answer)["message"].to_string();
    assert!(text.contains("--locks-per-client 2") && text.contains("release one"), "{text}");
    assert!(answer.head.keys().all(|name| name != "retry-after"), "{answer:?}");

    let _waiter = daemon.wait_for("a", "w", "");
    let body = json!({ "client": "w", "wait_ms": null });
    let answer = daemon.ask("POST", "/v1/locks/b/acquire", "", &body);
    assert_eq!(refused(&answer), (409, TOO_MANY_WAITERS.to_owned()));
    assert!(parsed(&answer)["message"].to_string().contains("--waiters-per-client 1"));

    // Clients have the same text, and do not wait for better times.
    let lock = AsyncRemoteLock::new(&daemon.url, "d", "c").expect("a lock");
    match lock.acquire().await {
        Err(Error::Refused { code, message, .. }) => {
            assert_eq!(code, TOO_MANY_LOCKS);
            assert!(message.contains("--locks-per-client 2"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    let call = lockd_support::call("lock", &["d", "c"]);
    let mut client = Client::connect(daemon.address);
    let answer = client.post("/RPC2", &[("Content-Type", "text/xml")], call.as_bytes());
    let fault = lockd_support::fault(&answer.text()).expect("a fault");
    assert!(fault.contains("--locks-per-client 2"), "{fault}");
    daemon.expect_log("error=\"locks_per_client\"");
}

#[test]
fn what_was_held_before_a_kill_counts() {
    let quotas = ["--locks-per-client", "2"];
    let daemon = Serve::run(command(&quotas), on_tmpfs());
    for resource in ["a", "b"] {
        assert_eq!(daemon.acquire(resource, "c", "").status, 200);
    }
    let home = daemon.kill();
    let daemon = Serve::run(command(&quotas), home);
    let too_many = (409, TOO_MANY_LOCKS.to_owned());
    assert_eq!(refused(&daemon.acquire("d", "c", "")), too_many);
    assert_eq!(daemon.release("a", "c", "").status, 200);
    assert_eq!(daemon.acquire("d", "c", "").status, 200);
    assert_eq!(refused(&daemon.acquire("e", "c", "")), too_many);
}

#[test]
fn a_client_that_is_gone_takes_nothing() {
    let daemon = Serve::start(&["--locks-per-client", "1", "--waiters-per-client", "1"]);
    assert_eq!(daemon.acquire("r", "holder", "").status, 200);
    let waiter = daemon.wait_for("r", "c", "");
    drop(waiter);
    eventually("it waits no more", || {
        parsed(&daemon.get("/v1/locks/r", ""))["waiting"] == json!([])
    });
    let mut waiter = daemon.wait_for("r", "c", "");
    assert_eq!(daemon.release("r", "holder", "").status, 200);
    assert_eq!(waiter.answer().status, 200);
    assert_eq!(refused(&daemon.acquire("s", "c", "")), (409, TOO_MANY_LOCKS.to_owned()));
    // A lease that is over takes nothing either.
    assert_eq!(daemon.release("r", "c", "").status, 200);
    let leased = json!({ "client": "c", "lease_ms": 1 });
    assert_eq!(daemon.ask("POST", "/v1/locks/l/acquire", "", &leased).status, 200);
    eventually("the lease is over", || daemon.acquire("m", "c", "").status == 200);
}

#[test]
fn a_limit_of_nothing_is_refused() {
    for flag in ["--locks-per-client", "--waiters-per-client"] {
        let output = command(&[flag, "0", "--dir", "/"]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&output.stderr).contains(flag));
    }
}

#[test]
fn a_viewer_sees_and_changes_nothing() {
    let home = on_tmpfs();
    let file = home.path().join("tokens.json");
    let ((viewer, viewer_hash), (web, web_hash)) = (token(), token());
    write_tokens(
        &file,
        &[
            json!({ "name": "prometheus", "sha256": viewer_hash, "viewer": true }),
            json!({ "name": "web", "sha256": web_hash, "clients": ["*"] }),
        ],
    );
    let daemon = Serve::start(&["--tokens", &file.display().to_string()]);
    let granted = daemon.acquire("r", "c", &web);
    let token = parsed(&granted)["token"].clone();
    for path in ["/metrics", "/v1/locks", "/v1/locks/r", "/"] {
        assert_eq!(daemon.get(path, &viewer).status, 200, "{path}");
    }
    let mut events = daemon.send("GET", "/v1/events", &viewer, &Value::Null);
    events.read_until("\"resource\":\"r\"");

    let asked = json!({ "client": "c" });
    let renewed = json!({ "client": "c", "token": token });
    for (verb, body) in [
        ("acquire", &asked),
        ("release", &asked),
        ("renew", &renewed),
        ("force-release", &json!({})),
    ] {
        let answer = daemon.ask("POST", &format!("/v1/locks/r/{verb}"), &viewer, body);
        assert_eq!(refused(&answer), (403, "forbidden".to_owned()), "{verb}");
    }
    let bearer = format!("Bearer {viewer}");
    for method in ["lock", "unlock"] {
        let head = [("Content-Type", "text/xml"), ("Authorization", bearer.as_str())];
        let call = lockd_support::call(method, &["r", "c"]);
        let answer = Client::connect(daemon.address).post("/RPC2", &head, call.as_bytes());
        let fault = lockd_support::fault(&answer.text()).expect("a fault");
        assert!(fault.ends_with("this token may only look"), "{fault}");
    }
    assert_eq!(parsed(&daemon.get("/v1/locks/r", &viewer))["client"], "c");
}
