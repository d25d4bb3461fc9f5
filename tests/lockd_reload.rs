//! SIGHUP has the daemon read its certificate, its key and its tokens again.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;
mod serve_support;

// What `cli_support` calls so.
use lockd_support::support;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cli_support::lockkeeper;
use lockd_support::Client;
use lockkeeper::{AsyncRemoteLock, Error, RemoteOptions};
use rustix::process::Signal;
use serde_json::{Value, json};
use serve_support::{
    Serve, let_read, make_unread, output, parsed, refused, token, write_certificate, write_tokens,
};
use support::{eventually, on_tmpfs};
use tempfile::TempDir;

const NEW_TOKENS: &str = "tokens read again";
const OLD_TOKENS: &str = "the old tokens stay in force";
const NEW_CERTIFICATE: &str = "certificate and key read again";
const OLD_CERTIFICATE: &str = "the old certificate and its key stay in force";

/// A daemon with TLS, and its files.
struct Secured {
    daemon: Serve,
    certificate: PathBuf,
    key: PathBuf,
    home: TempDir,
}

fn secured() -> Secured {
    let home = on_tmpfs();
    let (certificate, key) = (home.path().join("cert.pem"), home.path().join("key.pem"));
    write_certificate(&certificate, &key, "first");
    let (cert_flag, key_flag) = (certificate.display().to_string(), key.display().to_string());
    let daemon = Serve::start(&["--tls-cert", &cert_flag, "--tls-key", &key_flag]);
    Secured { daemon, certificate, key, home }
}

impl Secured {
    /// Keeps what a client trusts, which is about to be replaced.
    fn copy_of_certificate(&self, name: &str) -> PathBuf {
        let copy = self.home.path().join(name);
        std::fs::copy(&self.certificate, &copy).expect("a copy");
        copy
    }

    /// The name in the certificate that a new connection gets.
    fn served_name(&self) -> String {
        let address = self.daemon.address;
        let ask = format!("openssl s_client -connect {address} </dev/null 2>/dev/null");
        output("sh", &["-c", &format!("{ask} | openssl x509 -noout -subject")])
    }

    fn lock(&self, resource: &str, trusted: &Path) -> AsyncRemoteLock {
        let options = RemoteOptions::default().ca_file(trusted);
        AsyncRemoteLock::with_options(&self.daemon.url, resource, "c", options).expect("a lock")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_get_the_new_certificate_and_open_ones_stay() {
    let secured = secured();
    let old = secured.copy_of_certificate("old.pem");
    let held = secured.lock("r", &old).acquire().await.expect("it is free");
    // Waits for it over TLS.
    let url = format!("{}/v1/locks/r/acquire", secured.daemon.url);
    let waits = json!({ "client": "curl", "wait_ms": null }).to_string();
    let trusted = old.to_str().expect("a path");
    let waiter = Command::new("curl")
        .args(["-sS", "--cacert", trusted, "--json", &waits, &url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl: run tests/setup.sh");
    let list = format!("{}/v1/locks", secured.daemon.url);
    let listed = |trusted: &str| output("curl", &["-sS", "--cacert", trusted, &list]);
    eventually("it waits", || listed(trusted).contains("\"curl\""));

    write_certificate(&secured.certificate, &secured.key, "second");
    assert!(secured.served_name().contains("first"), "files are read when asked to");
    secured.daemon.reload(NEW_CERTIFICATE);
    assert!(secured.served_name().contains("second"));
    let fresh = secured.lock("other", &secured.certificate).acquire().await;
    fresh.expect("the new certificate is trusted").release().await.expect("it was held");
    let refused = secured.lock("other", &old).acquire().await;
    assert!(matches!(refused, Err(Error::Untrusted { .. })), "{refused:?}");

    // Both go on over the connections that they have.
    held.release().await.expect("it was held");
    let granted = waiter.wait_with_output().expect("curl ends").stdout;
    let granted: Value = serde_json::from_slice(&granted).expect("an answer");
    assert_eq!(granted["client"], "curl", "{granted}");
}

#[test]
fn a_certificate_that_cannot_be_used_changes_nothing() {
    let secured = secured();
    let (other, other_key) = (secured.home.path().join("c"), secured.home.path().join("k"));
    write_certificate(&other, &other_key, "other");
    let [certificate, key] =
        [&secured.certificate, &secured.key].map(|it| std::fs::read(it).unwrap());
    let good = || {
        std::fs::write(&secured.certificate, &certificate).unwrap();
        std::fs::write(&secured.key, &key).unwrap();
        let only_mine = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&secured.key, only_mine).unwrap();
    };
    type Spoil<'a> = (&'a str, &'a dyn Fn());
    let spoils: [Spoil<'_>; 5] = [
        ("cannot be used with the key", &|| drop(std::fs::copy(&other, &secured.certificate))),
        ("has no certificate", &|| std::fs::write(&secured.certificate, "").unwrap()),
        ("cannot be read", &|| std::fs::remove_file(&secured.certificate).unwrap()),
        ("has no private key", &|| std::fs::write(&secured.key, "x").unwrap()),
        ("chmod go-w", &|| {
            let open = std::fs::Permissions::from_mode(0o660);
            std::fs::set_permissions(&secured.key, open).unwrap();
        }),
    ];
    for (why, spoil) in spoils {
        good();
        spoil();
        let before = secured.daemon.log().len();
        secured.daemon.reload(OLD_CERTIFICATE);
        let said = secured.daemon.log()[before..].to_owned();
        assert!(said.contains(why), "{said}");
        assert!(secured.served_name().contains("first"), "{why}");
    }
    good();
    secured.daemon.reload(NEW_CERTIFICATE);
}

/// A daemon with tokens, and their file.
struct Guarded {
    daemon: Serve,
    file: PathBuf,
    web: (String, String),
    ops: (String, String),
    _home: TempDir,
}

fn guarded() -> Guarded {
    let home = on_tmpfs();
    let file = home.path().join("tokens.json");
    let (web, ops) = (token(), token());
    write_tokens(&file, &[line("web", &web, &["web-*"]), line("ops", &ops, &["*"])]);
    let daemon = Serve::start(&["--tokens", &file.display().to_string()]);
    Guarded { daemon, file, web, ops, _home: home }
}

fn line(name: &str, (_, sha256): &(String, String), clients: &[&str]) -> Value {
    json!({ "name": name, "sha256": sha256, "clients": clients, "administrator": name == "ops" })
}

#[test]
fn a_token_that_is_gone_is_refused_at_once_also_where_it_waits() {
    let Guarded { daemon, file, web, ops, _home } = guarded();
    assert_eq!(daemon.acquire("r", "holder", &ops.0).status, 200);
    assert_eq!(daemon.acquire("mine", "web-1", &web.0).status, 200);
    let mut waiter = daemon.wait_for("r", "web-1", &web.0);
    let mut other = daemon.wait_for("r", "web-2", &ops.0);
    let mut viewer = daemon.send("GET", "/v1/events", &web.0, &Value::Null);
    viewer.read_until("event: locks");
    let mut other_viewer = daemon.send("GET", "/v1/events", &ops.0, &Value::Null);
    other_viewer.read_until("event: locks");

    write_tokens(&file, &[line("ops", &ops, &["*"])]);
    assert_eq!(daemon.get("/v1/locks", &web.0).status, 200, "the file is read when asked to");
    daemon.reload(NEW_TOKENS);
    let unknown = (401, "wrong_credentials".to_owned());
    assert_eq!(refused(&waiter.answer()), unknown);
    viewer.read_until("\r\n0\r\n\r\n");
    assert_eq!(refused(&daemon.get("/v1/locks", &web.0)), unknown);
    assert_eq!(refused(&daemon.acquire("free", "web-1", &web.0)), unknown);
    // What it holds stays held, and the others go on.
    let mine = daemon.get("/v1/locks/mine", &ops.0);
    assert_eq!(parsed(&mine)["client"], "web-1");
    assert_eq!(daemon.release("r", "holder", &ops.0).status, 200);
    assert_eq!(parsed(&other.answer())["client"], "web-2");
    other_viewer.read_until("web-2");
}

#[test]
fn a_wait_ends_when_its_token_is_not_for_its_client_any_more() {
    let Guarded { daemon, file, web, ops, _home } = guarded();
    assert_eq!(daemon.acquire("r", "holder", &ops.0).status, 200);
    let mut one = daemon.wait_for("r", "web-1", &web.0);
    let mut two = daemon.wait_for("r", "web-2", &web.0);
    write_tokens(&file, &[line("web", &web, &["web-2", "db-1"]), line("ops", &ops, &["*"])]);
    daemon.reload(NEW_TOKENS);
    let forbidden = (403, "forbidden".to_owned());
    assert_eq!(refused(&one.answer()), forbidden);
    assert_eq!(refused(&daemon.acquire("r", "web-1", &web.0)), forbidden);
    assert_eq!(daemon.acquire("s", "db-1", &web.0).status, 200);
    assert_eq!(daemon.release("r", "holder", &ops.0).status, 200);
    assert_eq!(parsed(&two.answer())["client"], "web-2");
}

#[test]
fn an_administrator_is_none_any_more_as_soon_as_the_file_says_so() {
    let Guarded { daemon, file, web, ops, _home } = guarded();
    let force = || daemon.ask("POST", "/v1/locks/r/force-release", &ops.0, &json!({})).status;
    assert_eq!(daemon.acquire("r", "web-1", &web.0).status, 200);
    let mut viewer = daemon.send("GET", "/v1/events", &ops.0, &Value::Null);
    viewer.read_until("event: locks");
    let demoted = json!({ "name": "ops", "sha256": ops.1, "clients": ["*"] });
    write_tokens(&file, &[line("web", &web, &["web-*"]), demoted]);
    daemon.reload(NEW_TOKENS);
    // It was shown file paths.
    viewer.read_until("\r\n0\r\n\r\n");
    assert_eq!(force(), 403);
    write_tokens(&file, &[line("web", &web, &["web-*"]), line("ops", &ops, &["*"])]);
    daemon.reload(NEW_TOKENS);
    assert_eq!(force(), 200);
}

#[test]
fn tokens_that_cannot_be_used_change_nothing() {
    let Guarded { daemon, file, web, ops: _, _home } = guarded();
    type Spoil<'a> = (&'a str, &'a dyn Fn());
    let spoils: [Spoil<'_>; 4] = [
        ("chmod go-w", &|| {
            write_tokens(&file, &[]);
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o622)).unwrap();
        }),
        ("is no list of tokens", &|| {
            write_tokens(&file, &[]);
            std::fs::write(&file, "{").unwrap();
        }),
        ("do nothing", &|| write_tokens(&file, &[line("web", &web, &[])])),
        ("cannot be read", &|| std::fs::remove_file(&file).unwrap()),
    ];
    for (why, spoil) in spoils {
        spoil();
        let before = daemon.log().len();
        daemon.reload(OLD_TOKENS);
        let said = daemon.log()[before..].to_owned();
        assert!(said.contains(why) && said.contains(&file.display().to_string()), "{said}");
        assert_eq!(daemon.get("/v1/locks", &web.0).status, 200, "{why}");
    }
}

#[test]
fn one_bad_file_does_not_keep_the_other_from_being_read() {
    let home = on_tmpfs();
    let path = |name: &str| home.path().join(name);
    let (certificate, key, file) = (path("cert.pem"), path("key.pem"), path("tokens.json"));
    write_certificate(&certificate, &key, "first");
    write_tokens(&file, &[line("web", &token(), &["*"])]);
    let [cert_flag, key_flag, file_flag] =
        [&certificate, &key, &file].map(|path| path.display().to_string());
    let flags = ["--tls-cert", &cert_flag, "--tls-key", &key_flag, "--tokens", &file_flag];
    let daemon = Serve::start(&flags);
    std::fs::write(&certificate, "").unwrap();
    daemon.reload(NEW_TOKENS);
    daemon.expect_log(OLD_CERTIFICATE);
}

#[test]
fn without_files_a_hangup_ends_nothing() {
    let mut daemon = Serve::start(&[]);
    assert_eq!(daemon.acquire("r", "c", "").status, 200);
    daemon.reload("nothing to read again");
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.release("r", "c", "").status, 200);
    assert_eq!(daemon.stop().code(), Some(0));
}

/// What stands in the file where it does not belong may be a token.
#[test]
fn a_token_in_the_wrong_place_is_not_logged() {
    let Guarded { daemon, file, web, ops: _, _home } = guarded();
    let (raw, sha256) = &web;
    let wrong = [
        json!({ "tokens": [raw] }),
        json!({ "tokens": raw }),
        json!({ raw: [] }),
        json!({ "tokens": [{ "name": "n", "sha256": sha256, "clients": raw }] }),
        json!({ "tokens": [{ "name": "n", "sha256": sha256, "administrator": raw }] }),
        json!({ "tokens": [{ "name": "n", "sha256": sha256, raw: true }] }),
        json!({ "tokens": [{ "name": "n", "sha256": format!("{raw}0"), "clients": ["*"] }] }),
    ];
    for contents in wrong {
        std::fs::write(&file, contents.to_string()).unwrap();
        daemon.reload(OLD_TOKENS);
        let started = lockkeeper()
            .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
            .arg(file.parent().expect("a directory"))
            .arg("--tokens")
            .arg(&file)
            .output()
            .expect("it runs");
        assert_eq!(started.status.code(), Some(69));
        let said = String::from_utf8(started.stderr).expect("text") + &daemon.log();
        assert!(!said.contains(raw.as_str()), "{said}");
    }
    // It says where to look.
    std::fs::write(&file, format!("{{\"tokens\": [\n  {{ \"name\": {raw:?} }}]}}")).unwrap();
    daemon.reload(OLD_TOKENS);
    daemon.expect_log("is no list of tokens: at line 2, column ");
}

/// What still comes of an answer, up to its end or that of its connection.
fn rest(reader: &mut Client) -> Vec<u8> {
    let (mut rest, mut bytes) = (Vec::new(), [0; 64 * 1024]);
    while !rest.ends_with(b"\r\n0\r\n\r\n") {
        match reader.stream.read(&mut bytes) {
            Ok(length) if length > 0 => rest.extend_from_slice(&bytes[..length]),
            _ => break,
        }
    }
    rest
}

/// The list is made while it is sent: a slow reader is shown what is new.
#[test]
fn a_list_on_its_way_ends_when_its_token_does() {
    let Guarded { daemon, file, web, ops, _home } = guarded();
    // JSON has six bytes for each of these: in all more than sockets take.
    let client = format!("web-{}", "\u{1}".repeat(8000));
    for number in 0..300 {
        assert_eq!(daemon.acquire(&format!("r{number}"), &client, &web.0).status, 200);
    }
    let whole = daemon.get("/v1/locks", &web.0).body.len();
    assert!(whole > 12 << 20, "{whole}");
    let ask = |token: &str| {
        ["/v1/locks", "/v1/events"].map(|path| {
            let mut reader = daemon.send("GET", path, token, &Value::Null);
            reader.read_until("{\"locks\":[");
            reader
        })
    };
    let (web_reads, ops_reads) = (ask(&web.0), ask(&ops.0));
    let demoted = json!({ "name": "ops", "sha256": ops.1, "clients": ["*"] });
    write_tokens(&file, &[demoted]);
    daemon.reload(NEW_TOKENS);
    for [mut list, mut events] in [web_reads, ops_reads] {
        let [list, events] = [rest(&mut list), rest(&mut events)];
        assert!(list.len().max(events.len()) < whole / 2, "{} {}", list.len(), events.len());
        // Half a list is not taken for a whole one.
        assert!(!list.ends_with(b"\r\n0\r\n\r\n"));
    }
    assert!(daemon.get("/v1/locks", &ops.0).body.len() > 12 << 20);
}

#[test]
fn hangups_while_files_are_read_have_them_read_once_more() {
    let Guarded { daemon, file, web, ops, _home } = guarded();
    make_unread(&file);
    for number in 1..=8 {
        daemon.signal(Signal::HUP);
        eventually("they are read", || daemon.threads("lockkeeper-relo") > 0);
        // Answered after it.
        daemon.signal(Signal::USR1);
        let answer = format!("signal {} means nothing", Signal::USR1.as_raw());
        eventually("it is answered", || daemon.log().matches(&answer).count() == number);
        // A list of threads may miss some while one of them ends.
        eventually("one thread reads", || daemon.threads("lockkeeper-relo") == 1);
    }
    let_read(&file, &[line("web", &web, &["web-*"])]);
    daemon.expect_log(NEW_TOKENS);
    assert_eq!(daemon.get("/v1/locks", &ops.0).status, 401);
    // What was asked for meanwhile is not lost, and one reading does for all of it.
    let_read(&file, &[line("ops", &ops, &["*"])]);
    eventually("nothing reads", || daemon.threads("lockkeeper-relo") == 0);
    // A log is written in its own time.
    eventually("both are told", || daemon.log().matches(NEW_TOKENS).count() == 2);
    assert_eq!(daemon.get("/v1/locks", &ops.0).status, 200);
    // And it goes on.
    std::fs::remove_file(&file).unwrap();
    write_tokens(&file, &[line("web", &web, &["web-*"])]);
    daemon.reload(NEW_TOKENS);
    assert_eq!(daemon.get("/v1/locks", &web.0).status, 200);
}

#[test]
fn a_hangup_that_is_ignored_is_said_at_the_start() {
    const IGNORED: &str = "SIGHUP is ignored";
    let home = on_tmpfs();
    let file = home.path().join("tokens.json");
    let web = token();
    write_tokens(&file, &[line("web", &web, &["*"])]);
    let start = |tokens: Option<&Path>| {
        let mut command = Command::new("nohup");
        command.arg(env!("CARGO_BIN_EXE_lockkeeper"));
        command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0"]);
        if let Some(file) = tokens {
            command.arg("--tokens").arg(file);
        }
        Serve::run(command, on_tmpfs())
    };
    let mut daemon = start(Some(&file));
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.get("/v1/locks", &web.0).status, 200);
    daemon.expect_log(IGNORED);
    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(daemon.log().matches(IGNORED).count(), 1, "{}", daemon.log());
    // There is nothing to read again.
    let mut daemon = start(None);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!daemon.log().contains(IGNORED));
}
