//! Daemons that are restarted, away, silent, behind a proxy, or no daemons: how long
//! the client asks, and what it says.

#[path = "cli_support/mod.rs"]
mod cli_support;
#[path = "remote_support/mod.rs"]
mod remote_support;
#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use cli_support::{STAY, lockkeeper, output, stderr};
use lockkeeper::{AsyncRemoteLock, Error, RemoteOptions};
use nix::sys::signal::Signal;
use remote_support::{Daemon, Scripted, certificate, certificate_with, http, stalled};
use support::{Process, QUIET, VERY_LONG, on_tmpfs};
use tempfile::TempDir;
use tokio::time::timeout;

const RESOURCE: &str = "r";

/// A daemon is back sooner, though the machine is busy.
const PATIENCE: Duration = Duration::from_secs(8);

const SILENCE: &str = "no answer came";

const GRANTED: &str = r#"{"client":"one","lease_ms":null,"resource":"r","token":"1"}"#;

const RELEASED: &str = r#"{"client":"one","resource":"r"}"#;

fn impatient(url: &str) -> AsyncRemoteLock {
    let options = RemoteOptions::default().lease(None).reconnect(Duration::ZERO);
    AsyncRemoteLock::with_options(url, RESOURCE, "one", options).expect("a lock")
}

#[test]
fn a_wait_outlives_restarts_further_apart_than_its_patience() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let seconds = PATIENCE.as_secs().to_string();
    let run = |script: &str| {
        let mut command = lockkeeper();
        command.args(["run", "--server", &daemon.url, "--reconnect", &seconds]);
        command.args([RESOURCE, "--", "sh", "-c", script]);
        Process::start(command)
    };
    let mut holder = run(STAY);
    holder.expect("inside");
    let mut waiter = run("echo @second");
    daemon.expect_waiting(RESOURCE, 1);
    for _ in 0..2 {
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.wait().success());
        daemon.restart();
        daemon.expect_waiting(RESOURCE, 1);
        std::thread::sleep(PATIENCE + QUIET);
    }
    assert_eq!(holder.wait().code(), Some(0));
    waiter.expect("second");
    assert!(waiter.wait().success());
}

/// A proxy gives up after longer than the client's patience, and says so.
#[tokio::test]
async fn every_answer_renews_the_patience_of_a_wait() {
    let patience = Duration::from_secs(1);
    let statuses = [
        "504 Gateway Timeout",
        "408 Request Timeout",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ];
    let proxy = Scripted::start(move |number| {
        std::thread::sleep(patience + QUIET);
        Some(statuses.get(number).map_or(http("200 OK", GRANTED), |status| http(status, "late")))
    });
    let options = RemoteOptions::default().lease(None).reconnect(patience);
    let lock = AsyncRemoteLock::with_options(&proxy.url, RESOURCE, "one", options).expect("a lock");
    let guard = timeout(VERY_LONG, lock.acquire()).await.expect("in time").expect("the lock");
    assert_eq!(proxy.requests().len(), statuses.len() + 1);
    std::mem::forget(guard);
}

/// One that was kept for later and closed meanwhile says nothing of the daemon.
#[tokio::test]
async fn a_connection_that_was_closed_between_two_calls_costs_nothing() {
    let daemon = Scripted::start(|number| match number {
        0 => Some(http("200 OK", GRANTED)),
        1 => None,
        _ => Some(http("200 OK", RELEASED)),
    });
    let guard = impatient(&daemon.url).acquire().await.expect("the lock");
    guard.release().await.expect("it was held");
    let verbs: Vec<String> = daemon.requests();
    assert_eq!(verbs.len(), 3, "{verbs:?}");
    assert!(verbs[1..].iter().all(|line| line.contains("/release ")), "{verbs:?}");
}

/// What is no daemon, and what to say of it: a name for it, its URL, and more options.
struct Away {
    what: &'static str,
    url: String,
    flags: Vec<String>,
    text: &'static str,
    _kept: Box<dyn std::any::Any>,
}

impl Away {
    fn all() -> Vec<Self> {
        let away = |what, url: &str, text, kept: Box<dyn std::any::Any>| Self {
            what,
            url: url.to_owned(),
            flags: Vec::new(),
            text,
            _kept: kept,
        };
        let nobody = stalled().1;
        let (listener, silent) = stalled();
        let (directory, cert, key) = tls_files();
        let locks = directory.path().join("locks");
        fs::create_dir(&locks).expect("a directory");
        let secret = Daemon::start(&locks, &["--tls-cert", &cert, "--tls-key", &key]);
        let plain_url = secret.url.replacen("https", "http", 1);
        let open_directory = on_tmpfs();
        let open = Daemon::start(open_directory.path(), &[]);
        let tls_url = open.url.replacen("http", "https", 1);
        let proxy = Scripted::start(|_| Some(http("502 Bad Gateway", "<html>")));
        let proxy_url = proxy.url.clone();
        let mut to_open =
            away("TLS to HTTP", &tls_url, "speaks no TLS", Box::new((open, open_directory)));
        to_open.flags = vec!["--ca".to_owned(), cert];
        vec![
            away("nobody", &nobody, "refused", Box::new(())),
            away("no such host", "http://locks.invalid:8000", "lookup", Box::new(())),
            away("silence", &silent, SILENCE, Box::new(listener)),
            away("HTTP to TLS", &plain_url, "speaks no HTTP", Box::new((secret, directory))),
            to_open,
            away("a proxy alone", &proxy_url, "502", Box::new(proxy)),
        ]
    }
}

fn tls_files() -> (TempDir, String, String) {
    let directory = on_tmpfs();
    let (cert, key) = certificate(directory.path());
    let text = |path: std::path::PathBuf| path.to_str().expect("a path").to_owned();
    (directory, text(cert), text(key))
}

#[test]
fn unreachable_is_not_held() {
    for away in &Away::all() {
        // A busy machine hears of nothing within a short limit. Silence ends by that alone.
        let limit = if away.text == SILENCE { "1s" } else { "1m" };
        for (flags, is_told) in [
            (&["--try"][..], false),
            (&["--timeout", "1s"][..], false),
            (&["--timeout", limit, "--reconnect", "0"][..], true),
        ] {
            let mut command = lockkeeper();
            command.args(["run", "--server", &away.url]).args(&away.flags).args(flags);
            let output = output(command.args([RESOURCE, "--", "true"]));
            let (what, said) = (away.what, stderr(&output));
            assert_eq!(output.status.code(), Some(69), "{what}, {flags:?}: {said}");
            assert!(!is_told || said.contains(away.text), "{what}, {flags:?}: {said}");
            assert!(!said.contains("held by"), "{what}, {flags:?}: {said}");
        }
    }
}

#[tokio::test]
async fn a_limit_without_an_answer_is_no_timeout() {
    for away in &Away::all() {
        let mut options = RemoteOptions::default().reconnect(VERY_LONG);
        if let [_, ca] = &away.flags[..] {
            options = options.ca_file(ca);
        }
        let lock = AsyncRemoteLock::with_options(&away.url, RESOURCE, "one", options);
        let lock = lock.expect("a lock");
        let fail = async |limit: Duration| {
            let acquiring = timeout(VERY_LONG, lock.acquire_timeout(limit)).await;
            acquiring.expect("in time").expect_err("there is no daemon")
        };
        let answers = away.text.starts_with("speaks no ");
        for limit in [Duration::ZERO, QUIET] {
            let error = fail(limit).await;
            let is_right = match error {
                Error::Unreachable { .. } => true,
                // A busy machine may hear it too late.
                Error::NotAServer { .. } => answers,
                _ => false,
            };
            assert!(is_right, "{}: {error:?}", away.what);
        }
        if answers {
            let error = fail(VERY_LONG).await;
            assert!(matches!(error, Error::NotAServer { .. }), "{}: {error:?}", away.what);
        }
    }
}

#[test]
fn lock_and_unlock_wait_for_a_daemon_that_is_started_later() {
    let directory = on_tmpfs();
    let url = stalled().1;
    let call = |verb: &str, flags: &[&str]| {
        let mut command = lockkeeper();
        command.args([verb, RESOURCE, "me", "--server", &url]).args(flags);
        command
    };
    for verb in ["lock", "unlock"] {
        assert_eq!(cli_support::code(&mut call(verb, &[])), 69, "one try by default");
        let mut patient = Process::start(call(verb, &["--reconnect", "1h"]));
        std::thread::sleep(QUIET);
        let daemon = Daemon::start_at(directory.path(), &url);
        assert_eq!(patient.wait().code(), Some(0), "{verb}");
        assert_eq!(daemon.shown(RESOURCE).is_some(), verb == "lock");
    }
}

/// The answer to the first call is lost, the second says what it came to.
#[test]
fn a_call_whose_answer_was_lost_is_made_again_and_says_what_is_known() {
    let fault = |text: &str| {
        format!(
            "<methodResponse><fault><value><struct><member><name>faultString</name><value>\
             <string>&lt;class 'Exception'&gt;:{text}</string></value></member></struct></value>\
             </fault></methodResponse>"
        )
    };
    for (verb, text, code) in
        [("unlock", "Resource not locked", 0), ("lock", "Resource already locked by 'me'", 1)]
    {
        let answer = http("200 OK", &fault(text));
        let daemon = Scripted::start(move |number| (number > 0).then(|| answer.clone()));
        let mut command = lockkeeper();
        command.args([verb, RESOURCE, "me", "--server", &daemon.url, "--reconnect", "1m"]);
        let output = output(&mut command);
        assert_eq!(output.status.code(), Some(code), "{verb}: {}", stderr(&output));
        assert_eq!(stderr(&output).contains("answer was lost"), verb == "lock");
    }
}

#[test]
fn everything_stays_below_the_path_of_the_url() {
    let done = "<methodResponse><params></params></methodResponse>";
    for path in ["/locks", "/locks/", "/locks/RPC2"] {
        let daemon = Scripted::start(move |_| Some(http("200 OK", done)));
        for verb in ["lock", "unlock"] {
            let url = format!("{}{path}", daemon.url);
            let mut command = lockkeeper();
            assert_eq!(cli_support::code(command.args([verb, "r", "c", "--server", &url])), 0);
        }
        assert_eq!(daemon.requests(), ["POST /locks/RPC2 HTTP/1.1"; 2]);
    }
    let daemon = Scripted::start(|_| Some(http("200 OK", GRANTED)));
    let mut command = lockkeeper();
    let url = format!("{}/locks/", daemon.url);
    command.args(["run", "--server", &url, "r", "--", "true"]);
    assert_eq!(cli_support::code(&mut command), 0);
    let requests = daemon.requests();
    let is_below = |line: &String| line.starts_with("POST /locks/v1/locks/r/");
    assert!(requests.len() == 2 && requests.iter().all(is_below), "{requests:?}");
}

/// A listener whose queue is full: connections to it are swallowed.
fn hole(address: &str) -> (TcpListener, Vec<TcpStream>) {
    let hole = TcpListener::bind(address).expect("an address");
    rustix::net::listen(&hole, 0).expect("a short queue");
    let address = hole.local_addr().expect("its address");
    let connect = || TcpStream::connect_timeout(&address, QUIET);
    let full = std::iter::repeat_with(connect).map_while(Result::ok).collect();
    (hole, full)
}

/// The daemon's name has several addresses, and only the last is not a hole. In which
/// order they are tried is the resolver's choice, so each is the last once.
#[test]
fn an_address_that_is_silent_does_not_hide_the_next() {
    let directory = on_tmpfs();
    let hosts = directory.path().join("hosts");
    let addresses = ["127.0.0.3", "127.0.0.2"];
    let lines = addresses.map(|address| format!("{address} locks.test\n"));
    fs::write(&hosts, lines.concat()).expect("a file");
    for (number, address) in addresses.into_iter().enumerate() {
        let locks = directory.path().join(address);
        fs::create_dir(&locks).expect("a directory");
        let flags = ["--host".to_owned(), "locks.test".to_owned(), "--insecure".to_owned()];
        let daemon = Daemon::start_with(&locks, &flags, &format!("http://{address}:0"));
        let port = daemon.address.port();
        let _hole = hole(&format!("{}:{port}", addresses[1 - number]));
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$1\" /etc/hosts || exit 100; shift; exec \"$@\"";
        command.args(["-m", "sh", "-c", script, "-"]).arg(&hosts);
        command.arg(lockkeeper().get_program()).args(lockkeeper().get_args());
        let url = format!("http://locks.test:{port}");
        command.args(["run", "--server", &url, "--timeout", "8s", "r", "--", "true"]);
        let output = output(&mut command);
        if output.status.code() == Some(100) || stderr(&output).contains("unshare") {
            return eprintln!("SKIPPED: no mount namespace may be made (unshare -m)");
        }
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}

#[test]
fn the_usual_certificate_of_openssl_can_be_named() {
    let run = |names: &str, ca: &str| {
        let directory = on_tmpfs();
        let locks = directory.path().join("locks");
        fs::create_dir(&locks).expect("a directory");
        // It may sign others, as is usual.
        let (cert, key) = certificate_with(directory.path(), &[names]);
        let [cert, key] = [cert, key].map(|path| path.to_str().expect("a path").to_owned());
        let daemon = Daemon::start(&locks, &["--tls-cert", &cert, "--tls-key", &key]);
        let mut command = lockkeeper();
        command.args(["run", "--server", &daemon.url, "--ca"]);
        command.arg(if ca.is_empty() { &cert } else { ca });
        // On a busy machine a try gives up, and a wait that is not quiet tells of itself.
        let output = output(command.args(["--quiet", "--timeout", "1m", "r", "--", "true"]));
        (output.status.code(), stderr(&output))
    };
    let (_other, other, _) = tls_files();
    let names = "subjectAltName=IP:127.0.0.1";
    assert_eq!(run(names, ""), (Some(0), String::new()));
    let (code, said) = run("subjectAltName=DNS:elsewhere", "");
    assert!(code == Some(69) && said.contains("subjectAltName"), "{said}");
    let (code, said) = run(names, &other);
    assert!(code == Some(69) && said.contains("CA:FALSE"), "{said}");
}

#[test]
fn a_password_in_a_url_is_not_repeated() {
    for url in [
        "http://me:5ecret@locks:8000",
        "http://me:5ecret@locks:x",
        "me:5ecret@locks",
        "ftp://me:5ecret@locks",
        "http://locks:8000/?token=5ecret",
        "http://me:5ecret",
    ] {
        for verb in [["run", "r", "--", "true"].as_slice(), &["lock", "r", "c"]] {
            let mut command = lockkeeper();
            command.arg(verb[0]).args(["--server", url]).args(&verb[1..]);
            let output = output(&mut command);
            assert_eq!(output.status.code(), Some(64), "{url}");
            assert!(!stderr(&output).contains("5ecret"), "{}", stderr(&output));
        }
        let refused = AsyncRemoteLock::new(url, RESOURCE, "one").expect_err("this is no daemon");
        assert!(!format!("{refused} {refused:?}").contains("5ecret"));
    }
}

/// A daemon of a later version: with fields and codes that this client does not know.
#[tokio::test]
async fn a_newer_daemon_is_understood() {
    let granted = GRANTED.replace('{', r#"{"added":[1],"#);
    let daemon = Scripted::start(move |number| match number {
        0 => Some(http("200 OK", &granted)),
        1 => Some(http("200 OK", &RELEASED.replace('{', r#"{"added":[1],"#))),
        _ => {
            let body = r#"{"added":1,"error":"not_on_sundays","message":"it is closed"}"#;
            Some(http("409 Conflict", body))
        }
    });
    let lock = impatient(&daemon.url);
    lock.acquire().await.expect("the lock").release().await.expect("it was held");
    match lock.acquire().await {
        Err(Error::Refused { code, message, .. }) => {
            assert_eq!((code.as_str(), message.as_str()), ("not_on_sundays", "it is closed"));
        }
        other => panic!("{other:?}"),
    }
}

/// The storage behind the lock could take no later token.
#[tokio::test]
async fn a_token_that_is_too_large_is_not_taken() {
    let granted = GRANTED.replace(r#""1""#, r#""18446744073709551616""#);
    let daemon = Scripted::start(move |_| Some(http("200 OK", &granted)));
    let refused = impatient(&daemon.url).acquire().await;
    assert!(matches!(refused, Err(Error::NotAServer { .. })), "{refused:?}");
}
