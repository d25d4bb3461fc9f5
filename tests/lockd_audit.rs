//! The daemon's log of each lock: the client, its address, and its right.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;
mod serve_support;

// What `cli_support` calls so.
use lockd_support::support;

use cli_support::lockkeeper;
use lockd_support::{Client, call, with_last_words};
use rustix::process::Signal;
use serde_json::{Value, json};
use serve_support::{Serve, output, token, write_tokens};
use support::{eventually, on_tmpfs};

/// What breaks lines, or turns them around, and what JSON escapes.
const HOSTILE: &str = "a\nevent=\"forced\" \u{1b}[2J\u{202e} \"\\";

/// A daemon with two tokens, that logs all it can.
struct Logged {
    daemon: Serve,
    web: String,
    ops: String,
    look: String,
    _home: tempfile::TempDir,
}

fn start(format: &str) -> Logged {
    let home = on_tmpfs();
    let file = home.path().join("tokens.json");
    let [(web, web_hash), (ops, ops_hash), (look, look_hash)] = [token(), token(), token()];
    write_tokens(
        &file,
        &[
            json!({ "name": "web", "sha256": web_hash, "clients": ["*"] }),
            json!({ "name": "ops", "sha256": ops_hash, "administrator": true }),
            json!({ "name": "look", "sha256": look_hash, "viewer": true }),
        ],
    );
    let mut command = lockkeeper();
    command.env("LOCKKEEPER_LOG", "trace");
    command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0", "--log-format", format]);
    command.arg("--tokens").arg(&file);
    Logged { daemon: Serve::run(command, on_tmpfs()), web, ops, look, _home: home }
}

fn utc() -> String {
    output("date", &["-u", "+%FT%T.%3NZ"]).trim().to_owned()
}

/// All that was logged, an object for each line.
fn lines(daemon: &Serve) -> Vec<Value> {
    let log = daemon.log();
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(value.is_object(), "{line}");
        value
    };
    // The last line may be half written.
    log.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parse).collect()
}

/// Waits for a line that has these fields with these values.
#[track_caller]
fn expect(daemon: &Serve, fields: &Value) -> Value {
    let mut found = None;
    let wanted = fields.as_object().expect("fields");
    eventually(&format!("a line with {fields}"), || {
        let has_all = |line: &Value| wanted.iter().all(|(name, value)| line[name] == *value);
        found = lines(daemon).into_iter().find(has_all);
        found.is_some()
    });
    found.expect("a line")
}

fn post(daemon: &Serve, path: &str, token: &str, head: &str, body: &str) -> u16 {
    let mut client = Client::connect(daemon.address);
    client.send(format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         {head}Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.answer().status
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn every_line_of_a_busy_run_is_an_object_and_names_who_asked() {
    let before = utc();
    let Logged { mut daemon, web, ops, look: _, _home } = start("json");
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (daemon, web) = (&daemon, &web);
            scope.spawn(move || {
                for round in 0..25 {
                    let (name, client) =
                        (format!("{HOSTILE}{number} {round}"), format!("c{number}"));
                    let body = json!({ "resource": name, "client": client }).to_string();
                    post(daemon, "/v1/acquire", web, JSON, &body);
                    post(daemon, "/v1/release", web, JSON, &body);
                }
            });
        }
    });
    // Grant and refusal.
    assert_eq!(daemon.acquire("r", "one", &web).status, 200);
    assert_eq!(daemon.acquire("r", "two", &web).status, 409);
    let web_asked = json!({ "resource": "r", "client": "one", "credential": "token:web" });
    let with = |more: Value| {
        let mut fields = web_asked.clone();
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    let granted = expect(&daemon, &with(json!({ "event": "granted" })));
    assert!(granted["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{granted}");
    assert!(granted["token"].as_str().unwrap().parse::<u64>().unwrap() > 0, "{granted}");
    assert!(granted.get("forwarded_for").is_none(), "{granted}");
    let refused = json!({ "event": "refused", "verb": "acquire", "client": "two",
        "error": "locked", "credential": "token:web" });
    let refused = expect(&daemon, &refused);
    assert!(refused["reason"].as_str().unwrap().contains("one"), "{refused}");
    // Callers without the right, and one with it.
    assert_eq!(daemon.ask("POST", "/v1/locks/r/force-release", &web, &json!({})).status, 403);
    expect(
        &daemon,
        &json!({ "event": "refused", "verb": "force-release", "resource": "r",
        "error": "forbidden", "credential": "token:web" }),
    );
    assert_eq!(daemon.release("r", "one", &ops).status, 403);
    expect(
        &daemon,
        &json!({ "event": "refused", "verb": "release", "error": "forbidden",
        "client": "one", "credential": "token:ops" }),
    );
    assert_eq!(daemon.ask("POST", "/v1/locks/r/force-release", &ops, &json!({})).status, 200);
    let forced = json!({ "event": "forced", "client": "one", "credential": "token:ops" });
    expect(&daemon, &forced);
    let renew = json!({ "client": "one", "token": "1" });
    assert_eq!(daemon.ask("POST", "/v1/locks/r/renew", &web, &renew).status, 404);
    expect(&daemon, &json!({ "event": "refused", "verb": "renew", "error": "not_held" }));
    // A lease that runs out, of a request that a proxy passed on.
    let leased = json!({ "client": "leased", "lease_ms": 1 }).to_string();
    let proxied = format!("{JSON}X-Forwarded-For: 192.0.2.7\r\n");
    assert_eq!(post(&daemon, "/v1/locks/l/acquire", &web, &proxied, &leased), 200);
    let expired = expect(
        &daemon,
        &json!({ "event": "expired", "client": "leased",
        "forwarded_for": "192.0.2.7", "credential": "token:web" }),
    );
    assert!(expired["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{expired}");
    // XML-RPC.
    for (method, client) in [("lock", "x"), ("lock", "y"), ("unlock", "y"), ("unlock", "x")] {
        let call = call(method, &["x", client]);
        assert_eq!(post(&daemon, "/RPC2", &web, "Content-Type: text/xml\r\n", &call), 200);
    }
    expect(
        &daemon,
        &json!({ "event": "refused", "verb": "acquire", "client": "y",
        "resource": "x", "error": "locked", "credential": "token:web" }),
    );
    expect(
        &daemon,
        &json!({ "event": "refused", "verb": "release", "client": "y",
        "error": "not_yours" }),
    );
    expect(&daemon, &json!({ "event": "released", "client": "x", "credential": "token:web" }));
    // Strangers.
    let wrong = "f".repeat(64);
    assert_eq!(daemon.get("/v1/locks", &wrong).status, 401);
    assert_eq!(daemon.get("/v1/locks", "").status, 401);
    expect(
        &daemon,
        &json!({ "event": "refused", "error": "wrong_credentials",
        "credential": "unknown", "level": "WARN" }),
    );
    expect(
        &daemon,
        &json!({ "event": "refused", "error": "credentials_needed",
        "credential": "none", "level": "INFO" }),
    );
    // Lines of other kinds.
    daemon.reload("tokens read again");
    daemon.signal(Signal::USR1);
    expect(&daemon, &json!({ "message": of_a_signal(), "level": "INFO" }));
    daemon.stop();

    let (lines, after) = (lines(&daemon), utc());
    let mut hostile = 0;
    for line in &lines {
        let time = line["timestamp"].as_str().expect("a time");
        assert!(time.len() == after.len() && *before <= *time && *time <= *after, "{line}");
        assert!(line["level"].is_string() && line["target"].is_string(), "{line}");
        if line["target"] == "lockkeeper::audit" {
            assert!(line["event"].is_string() && line["peer"].is_string(), "{line}");
            assert!(line["credential"].is_string(), "{line}");
        }
        hostile += usize::from(line["resource"] == format!("{HOSTILE}1 7"));
    }
    assert!(lines.len() > 200 && hostile == 2, "{}", lines.len());
    let log = daemon.log();
    for secret in [&web, &ops, &wrong] {
        assert!(!log.contains(secret.as_str()));
    }
}

/// What is said of SIGUSR1. Of what is said at its end a busy daemon may lose some.
fn of_a_signal() -> String {
    format!("signal {} means nothing to a daemon", Signal::USR1.as_raw())
}

#[test]
fn a_line_of_text_has_its_time_and_stays_one_line() {
    let before = utc();
    let Logged { mut daemon, web, ops: _, look: _, _home } = start("text");
    let body = json!({ "resource": HOSTILE, "client": HOSTILE }).to_string();
    for path in ["/v1/acquire", "/v1/acquire", "/v1/release"] {
        post(&daemon, path, &web, JSON, &body);
    }
    daemon.expect_log("audit: event=\"released\"");
    daemon.signal(Signal::USR1);
    daemon.expect_log(&format!("Z lockkeeper: {}\n", of_a_signal()));
    daemon.stop();
    let (log, after) = (daemon.log(), utc());
    for line in log.lines() {
        let (time, _) = line.split_once(' ').expect("a time");
        assert!(time.len() == after.len() && *before <= *time && *time <= *after, "{line}");
    }
    for (word, count) in [("granted", 1), ("refused", 1), ("released", 1), ("forced", 0)] {
        assert_eq!(log.matches(&format!("audit: event=\"{word}\"")).count(), count, "{log}");
    }
    assert!(!log.contains(['\u{1b}', '\u{202e}']), "{log}");
}

#[test]
fn without_tokens_the_log_says_whether_it_was_this_machine() {
    let home = on_tmpfs();
    let mut command = lockkeeper();
    command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    let daemon = Serve::run(command, home);
    assert_eq!(daemon.acquire("r", "c", "").status, 200);
    expect(&daemon, &json!({ "event": "granted", "credential": "this machine" }));
    let proxied = format!("{JSON}X-Forwarded-For: 192.0.2.7\r\n");
    let body = json!({ "client": "c" }).to_string();
    assert_eq!(post(&daemon, "/v1/locks/r/release", "", &proxied, &body), 200);
    expect(
        &daemon,
        &json!({ "event": "released", "credential": "none",
        "forwarded_for": "192.0.2.7" }),
    );
}

/// Before it serves, and with what the environment has wrong.
#[test]
fn what_keeps_it_from_serving_is_an_object_too() {
    let home = on_tmpfs();
    let mut command = lockkeeper();
    command.args(["serve", "--log-format", "json", "--dir"]).arg(home.path().join("none"));
    command.env("LOCKKEEPER_LOG", "nonsense");
    with_last_words(|| {
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(69));
        let said = String::from_utf8(output.stderr).expect("text");
        let levels: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("an object")["level"].clone())
            .collect();
        if levels == ["WARN", "ERROR"] { Ok(()) } else { Err(said) }
    });
}

/// How many refusals of one caller are logged in a minute.
const REFUSALS: usize = 100;

/// The lines of refusals of a token of this name.
fn refusals(daemon: &Serve, name: &str) -> Vec<Value> {
    let mut lines = lines(daemon);
    let credential = format!("token:{name}");
    lines.retain(|line| line["event"] == "refused" && line["credential"] == *credential);
    lines
}

#[test]
fn one_caller_does_not_fill_the_log_with_refusals() {
    let Logged { daemon, web, ops, look, _home } = start("json");
    let body = json!({ "resource": "r", "client": "c" }).to_string();
    let calls = (JSON, body, 403);
    let xml = call("unlock", &["r", "c"]);
    let calls = [("/v1/release", calls.0, &calls.1, calls.2), ("/RPC2", "", &xml, 200)];
    for (path, head, body, status) in std::iter::repeat_n(calls, REFUSALS).flatten() {
        assert_eq!(post(&daemon, path, &look, head, body), status);
    }
    // Others at the same address are logged as ever.
    assert_eq!(daemon.acquire("r", "holder", &web).status, 200);
    assert_eq!(daemon.acquire("r", "other", &web).status, 409);
    assert_eq!(daemon.release("r", "holder", &ops).status, 403);
    expect(&daemon, &json!({ "event": "granted", "client": "holder" }));
    expect(&daemon, &json!({ "event": "refused", "credential": "token:web" }));
    expect(&daemon, &json!({ "event": "refused", "credential": "token:ops" }));
    let refusals = refusals(&daemon, "look");
    assert_eq!(refusals.len(), REFUSALS);
    // The last one says so.
    let reasons = refusals.iter().map(|line| line["reason"].as_str().expect("a reason"));
    let last: Vec<bool> = reasons.map(|reason| reason.contains("no more of this")).collect();
    assert_eq!(last.iter().position(|is_last| *is_last), Some(REFUSALS - 1), "{refusals:?}");
}

/// Names and texts of any length, of the refused and of others.
#[test]
fn a_long_text_is_logged_in_part() {
    let Logged { daemon, web, ops: _, look, _home } = start("json");
    let long = |start: &str, length: usize| format!("{start}{}", "é".repeat(length));
    let huge = long("huge ", 200_000);
    let body = json!({ "resource": huge, "client": huge }).to_string();
    assert_eq!(post(&daemon, "/v1/acquire", &look, JSON, &body), 403);
    // The longest that is granted.
    let holder = long("holder ", 4000);
    assert_eq!(daemon.acquire("r", &holder, &web).status, 200);
    assert_eq!(daemon.acquire("r", "c", &web).status, 409);
    let granted = expect(&daemon, &json!({ "event": "granted" }));
    let locked = expect(&daemon, &json!({ "error": "locked" }));
    let forbidden = expect(&daemon, &json!({ "error": "forbidden" }));
    for (line, field, start, bytes) in [
        (&granted, "client", "holder é", holder.len()),
        (&locked, "reason", "", 0),
        (&forbidden, "resource", "huge é", huge.len()),
        (&forbidden, "client", "huge é", huge.len()),
    ] {
        let text = line[field].as_str().expect("a text");
        assert!(text.starts_with(start) && text.len() < 600, "{text}");
        let of = if bytes > 0 { format!("… of {bytes} bytes") } else { " bytes".to_owned() };
        assert!(text.ends_with(&of), "{text}");
    }
    // What is not long is whole.
    assert_eq!(locked["client"], "c");
    let fits = long("fits ", 253);
    assert_eq!(daemon.acquire("s", &fits, &web).status, 200);
    expect(&daemon, &json!({ "event": "granted", "client": fits }));
}
