//! What probes are told, and what runs.

mod lockd_support;
mod strace_support;

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lockd_support::support::{self, Process, eventually, on_tmpfs, role};
use lockd_support::{Answer, Client, Daemon};
use serde_json::{Value, json};
use strace_support::Faults;

fn get(daemon: &Daemon, path: &str, head: &str) -> Answer {
    let mut client = daemon.connect();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n"));
    client.answer()
}

fn said(daemon: &Daemon, path: &str) -> (u16, String) {
    let answer = get(daemon, path, "");
    (answer.status, answer.text())
}

const OK: &str = "ok\n";

#[test]
fn a_daemon_on_a_full_disk_is_alive_and_not_ready() {
    const TEST: &str = "a_daemon_on_a_full_disk_is_alive_and_not_ready";
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let may_mount = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    if !may_mount.is_ok_and(|status| status.success()) {
        return println!("skipped: this process may not make a mount namespace");
    }
    let mount = on_tmpfs();
    let played = support::player(TEST, "daemon", mount.path());
    let script = "mount -t tmpfs -o size=4m none \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(mount.path());
    command.arg(played.get_program()).args(played.get_args());
    command.envs(played.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let process = Process::start(command);
    let address = process.next().parse().expect("an address");
    let daemon = Daemon { process, address };
    assert_eq!(said(&daemon, "/readyz"), (200, OK.to_owned()));

    let seen = format!("/proc/{}/root", daemon.process.id());
    let filler = PathBuf::from(seen).join(mount.path().strip_prefix("/").unwrap()).join("filler");
    let filled = std::fs::write(&filler, vec![0; 8 << 20]);
    assert!(filled.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
    assert_eq!(said(&daemon, "/readyz"), (503, "storage\n".to_owned()));
    assert_eq!(said(&daemon, "/healthz"), (200, OK.to_owned()));
    let body = br#"{"client":"c","resource":"r"}"#;
    let json = [("Content-Type", "application/json")];
    assert_eq!(daemon.connect().post("/v1/acquire", &json, body).status, 500);
    let errors = "\nlockkeeper_disk_errors_total 1\n";
    assert!(said(&daemon, "/metrics").1.contains(errors));

    std::fs::remove_file(&filler).expect("a file");
    assert_eq!(daemon.connect().post("/v1/acquire", &json, body).status, 200);
    assert_eq!(said(&daemon, "/readyz"), (200, OK.to_owned()));
}

/// A probe of a daemon that still answers what was asked before gets no connection.
#[test]
fn a_daemon_that_ends_is_not_ready() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    let mut daemon = Daemon::start("a_daemon_that_ends_is_not_ready", "", directory.path());
    assert_eq!(said(&daemon, "/readyz"), (200, OK.to_owned()));
    // A body that takes its time.
    let body = br#"{"client":"c","resource":"r"}"#;
    let mut slow = daemon.connect();
    slow.send(format!(
        "POST /v1/acquire HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    ));
    // It is being read.
    slow.read_until("100 Continue\r\n\r\n");
    daemon.process.hang_up();
    eventually("no probe is answered", || TcpStream::connect(daemon.address).is_err());
    slow.send(body);
    assert_eq!(slow.answer().status, 200);
    daemon.process.expect("stopped");
}

/// Whether it is let in or not, and what it is told of the version then.
#[test]
fn the_version_is_told_to_those_who_are_let_in() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "the_version_is_told_to_those_who_are_let_in";
    let version = env!("CARGO_PKG_VERSION");
    let directory = on_tmpfs();
    let open = Daemon::start(test, "", directory.path());
    let answer = get(&open, "/v1/", "");
    let about: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let expected = json!({ "name": "lockkeeper", "openapi": "openapi.json", "version": version });
    assert_eq!((answer.status, about), (200, expected));
    let server = format!("lockkeeper/{version}");
    for path in ["/v1/", "/v1/locks", "/metrics", "/v1/nothing"] {
        assert_eq!(get(&open, path, "").head["server"], server, "{path}");
    }
    let metrics = get(&open, "/metrics", "").text();
    assert!(metrics.contains(&format!("\nlockkeeper_build_info{{version=\"{version}\"}} 1\n")));

    let (home, directory) = (on_tmpfs(), on_tmpfs());
    let file = home.path().join("tokens.json");
    let token = json!({ "name": "a", "sha256": "0".repeat(64), "clients": ["*"] });
    std::fs::write(&file, json!({ "tokens": [token] }).to_string()).expect("a file");
    let settings = format!("tokens={}", file.display());
    let secured = Daemon::start(test, &settings, directory.path());
    for path in ["/", "/healthz", "/readyz", "/v1/", "/metrics"] {
        let answer = get(&secured, path, "");
        let is_open = matches!(path, "/" | "/healthz" | "/readyz");
        assert_eq!(answer.status, if is_open { 200 } else { 401 }, "{path}");
        assert!(!answer.head.contains_key("server"), "{path}: {answer:?}");
        assert!(!answer.text().contains(version), "{path}");
    }
    let mut foreign: Client = open.connect();
    foreign.send("GET /v1/ HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert!(!foreign.answer().head.contains_key("server"));
}

/// A file system that takes some names only says nothing of those that it takes.
#[test]
fn a_name_that_the_file_system_refuses_is_no_full_disk() {
    const TEST: &str = "a_name_that_the_file_system_refuses_is_no_full_disk";
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    if !strace_support::is_there() {
        return;
    }
    let (home, directory) = (on_tmpfs(), on_tmpfs());
    let daemon = Daemon::start(TEST, "", directory.path());
    let acquire = |resource: &str| {
        let body = json!({ "client": "c", "resource": resource }).to_string();
        let json = [("Content-Type", "application/json")];
        daemon.connect().post("/v1/acquire", &json, body.as_bytes()).status
    };
    for (error, expected) in [
        ("EINVAL", (200, OK)),
        ("ENAMETOOLONG", (200, OK)),
        ("EILSEQ", (200, OK)),
        ("ENOSPC", (503, "storage\n")),
        ("EROFS", (503, "storage\n")),
        ("EACCES", (503, "storage\n")),
    ] {
        // What makes a file have its name.
        let calls = "linkat,renameat2";
        let fault = format!("error={error}");
        let trace = home.path().join("trace");
        let faults = Faults::of(daemon.process.id(), &trace, calls, &fault);
        assert_eq!(acquire(&format!("not {error}")), 500, "{error}");
        drop(faults);
        let (status, word) = said(&daemon, "/readyz");
        assert_eq!((status, &*word), expected, "{error}");
        assert_eq!(acquire(&format!("after {error}")), 200);
        assert_eq!(said(&daemon, "/readyz"), (200, OK.to_owned()));
    }
}
