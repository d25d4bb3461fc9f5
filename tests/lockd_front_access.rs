//! The rights of callers, and TLS.

mod lockd_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use lockd_support::support::{eventually, on_tmpfs, role};
use lockd_support::{Answer, Daemon, NIL, call};
use lockkeeper::lockd::{Server, ServerError, ServerOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tracing_subscriber::util::SubscriberInitExt;

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// What a program says; it must succeed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: run tests/setup.sh"));
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {wrong}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A token, made as the documentation says, and its hash.
fn token() -> (String, String) {
    let token = run("openssl", &["rand", "-hex", "32"]);
    let sha256 = run("sh", &["-c", &format!("printf %s {token} | sha256sum")]);
    (token, sha256.split_whitespace().next().unwrap().to_owned())
}

struct Known {
    _home: TempDir,
    file: PathBuf,
    web: String,
    ops: String,
    reader: String,
}

fn known() -> Known {
    let home = on_tmpfs();
    let [(web, web_hash), (ops, ops_hash), (reader, reader_hash)] = [token(), token(), token()];
    let file = home.path().join("tokens.json");
    let tokens = json!({ "tokens": [
        { "name": "web", "sha256": web_hash, "clients": ["web-*", "o'neil"] },
        { "name": "ops", "sha256": ops_hash.to_uppercase(), "clients": ["*"], "administrator": true },
        { "name": "reader", "sha256": reader_hash, "clients": ["reader"] },
    ] });
    fs::write(&file, tokens.to_string()).unwrap();
    Known { _home: home, file, web, ops, reader }
}

fn start(test: &str, settings: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    (directory, daemon)
}

fn request(daemon: &Daemon, verb: &str, path: &str, head: &[(&str, &str)], body: &str) -> Answer {
    let mut client = daemon.connect();
    let mut text = format!("{verb} {path} HTTP/1.1\r\n");
    if !head.iter().any(|(name, _)| *name == "Host") {
        text += "Host: 127.0.0.1\r\n";
    }
    for (name, value) in head {
        text += &format!("{name}: {value}\r\n");
    }
    client.send(format!("{text}Content-Length: {}\r\n\r\n{body}", body.len()));
    client.answer()
}

fn error(answer: &Answer) -> (u16, String) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    (answer.status, body["error"].as_str().unwrap_or_default().to_owned())
}

fn base64(text: &str) -> String {
    run("sh", &["-c", &format!("printf %s '{text}' | base64 -w0")])
}

#[test]
fn without_a_token_nothing_is_told() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let known = known();
    let settings = format!("tokens={}", known.file.display());
    let (directory, daemon) = start("without_a_token_nothing_is_told", &settings);
    let body = json!({ "client": "web-1" }).to_string();
    let lock = call("lock", &["r", "web-1"]);
    for (verb, path, body) in [
        ("GET", "/v1/locks", ""),
        ("GET", "/v1/events", ""),
        ("GET", "/metrics", ""),
        ("GET", "/nothing", ""),
        ("POST", "/v1/locks/r/acquire", &*body),
        ("POST", "/v1/nothing", &*body),
        ("POST", "/RPC2", &*lock),
        ("POST", "/", &*lock),
    ] {
        let answer = request(&daemon, verb, path, &[JSON], body);
        assert_eq!(error(&answer), (401, "credentials_needed".to_owned()), "{verb} {path}");
        assert!(answer.head.contains_key("www-authenticate"));
        for wrong in ["Bearer x", "Bearer ", "Basic !", "Digest x", "bearer", &known.web] {
            let head = [JSON, ("Authorization", wrong)];
            assert_eq!(request(&daemon, verb, path, &head, body).status / 100, 4, "{wrong}");
        }
    }
    assert_eq!(request(&daemon, "GET", "/", &[], "").status, 200);
    assert_eq!(request(&daemon, "GET", "/healthz", &[], "").text(), "ok\n");
    let names = lockd_support::support::names_in(directory.path());
    assert!(!names.iter().any(|name| name.ends_with(".resource.lock")), "{names:?}");
}

#[test]
fn a_token_is_good_for_its_clients() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let known = known();
    let settings = format!("tokens={}", known.file.display());
    let (_directory, daemon) = start("a_token_is_good_for_its_clients", &settings);
    let post = |token: &str, path: &str, body: &Value| {
        let bearer = format!("Bearer {token}");
        let head = [JSON, ("Authorization", bearer.as_str())];
        error(&request(&daemon, "POST", path, &head, &body.to_string()))
    };
    let refused = (403, "forbidden".to_owned());
    let done = (200, String::new());
    let (web_1, db_1) = (json!({ "client": "web-1" }), json!({ "client": "db-1" }));
    assert_eq!(post(&known.web, "/v1/locks/r/acquire", &db_1), refused);
    assert_eq!(post(&known.web, "/v1/locks/r/acquire", &web_1), done);
    assert_eq!(post(&known.reader, "/v1/locks/r/release", &web_1), refused);
    let renewal = json!({ "client": "web-1", "token": "1" });
    assert_eq!(post(&known.reader, "/v1/locks/r/renew", &renewal), refused);
    for token in [&known.web, &known.reader] {
        assert_eq!(post(token, "/v1/locks/r/force-release", &json!({})), refused);
    }
    assert_eq!(post(&known.ops, "/v1/locks/r/force-release", &json!({})), done);
    assert_eq!(post(&known.ops, "/v1/locks/r/acquire", &db_1), done);
}

#[test]
fn calls_bring_a_token_as_bearer_or_as_password() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let known = known();
    let settings = format!("tokens={}", known.file.display());
    let (_directory, daemon) = start("calls_bring_a_token_as_bearer_or_as_password", &settings);
    let call = |authorization: &str, method: &str, client: &str| {
        let head = [("Content-Type", "text/xml"), ("Authorization", authorization)];
        request(&daemon, "POST", "/RPC2", &head, &call(method, &["r", client])).text()
    };
    let basic = format!("Basic {}", base64(&format!("anybody:{}", known.web)));
    assert_eq!(call(&basic, "lock", "web-1"), NIL);
    assert!(call(&basic, "unlock", "db-1").contains("these credentials are not for"));
    assert_eq!(call(&format!("bearer {}", known.web), "unlock", "web-1"), NIL);
    // What the engine takes for the same client is the same here.
    assert!(call(&basic, "lock", " db-1 ").contains("these credentials are not for"));
    assert_eq!(call(&basic, "lock", " web-1 "), NIL);

    let program = "import sys, xmlrpc.client\n\
        server = xmlrpc.client.ServerProxy(sys.argv[1], allow_none=True)\n\
        server.unlock('r', 'web-1')\n\
        try: xmlrpc.client.ServerProxy(sys.argv[2]).unlock('r', 'web-1')\n\
        except xmlrpc.client.ProtocolError as error: print(error.errcode)\n";
    let (with, without) = (
        format!("http://u:{}@{}/", known.web, daemon.address),
        format!("http://{}/", daemon.address),
    );
    assert_eq!(run("python3", &["-c", program, &with, &without]), "401");
}

#[test]
fn a_peer_that_guesses_locks_nobody_out() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let known = known();
    let settings = format!("tokens={}", known.file.display());
    let (_directory, daemon) = start("a_peer_that_guesses_locks_nobody_out", &settings);
    let list = |token: &str| {
        let bearer = format!("Bearer {token}");
        error(&request(&daemon, "GET", "/v1/locks", &[("Authorization", &bearer)], ""))
    };
    let wrong = "f".repeat(64);
    let answers: Vec<_> = (0..30).map(|_| list(&wrong)).collect();
    assert_eq!(answers[0], (401, "wrong_credentials".to_owned()));
    assert_eq!(answers[29], (429, "too_many_failures".to_owned()));
    assert_eq!(list(&known.reader), (200, String::new()));
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn failures_are_logged_without_secrets() {
    let (directory, known, log) = (on_tmpfs(), known(), Log::default());
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _logged = subscriber.set_default();
    let options = ServerOptions::new(directory.path()).listen(([127, 0, 0, 1], 0).into());
    let options = options.tokens(&known.file).sync(false);
    // All on this thread, which is the one that is logged.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Server::bind(options)).unwrap();
    let address = server.address();
    let wrong = "0123456789abcdef0123456789abcdef";
    let (good, basic) = (known.web.clone(), base64(&format!("u:{wrong}")));
    let asking = std::thread::spawn(move || {
        let ask = |credentials: &str| {
            let mut client = lockd_support::Client::connect(address);
            client.send(format!(
                "GET /v1/locks HTTP/1.1\r\nHost: localhost\r\nAuthorization: {credentials}\r\n\r\n"
            ));
            client.answer().status
        };
        let wrong = [format!("Bearer {wrong}"), format!("Basic {basic}"), wrong.to_owned()];
        (wrong.map(|wrong| ask(&wrong)), ask(&format!("Bearer {good}")))
    });
    let stop = tokio_util::sync::CancellationToken::new();
    let stopper = stop.clone();
    let answers = std::thread::spawn(move || {
        let answers = asking.join();
        stopper.cancel();
        answers
    });
    runtime.block_on(server.serve(stop)).unwrap();
    assert_eq!(answers.join().unwrap().unwrap(), ([401, 401, 401], 200));
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("wrong credentials").count(), 2, "{log}");
    assert!(log.contains("WARN") && log.contains("peer=127.0.0.1:"), "{log}");
    for secret in [wrong, &base64(&format!("u:{wrong}"))[..40], &known.web] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// Requests that a page can make a browser send.
#[test]
fn a_page_from_elsewhere_is_refused() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (directory, daemon) = start("a_page_from_elsewhere_is_refused", "host=locks.example");
    let own = format!("http://{}", daemon.address);
    let here = daemon.address.to_string();
    let lock = call("lock", &["r", "evil"]);
    let text = ("Content-Type", "text/plain");
    let json = json!({ "client": "evil" }).to_string();
    for foreign in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://localhost:1"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        for (verb, path, kind, body) in [
            ("POST", "/RPC2", text, &lock),
            ("POST", "/", ("Content-Type", "application/x-www-form-urlencoded"), &lock),
            ("POST", "/v1/locks/r/acquire", text, &json),
            ("POST", "/v1/locks/r/acquire", JSON, &json),
            ("OPTIONS", "/v1/locks/r/acquire", JSON, &String::new()),
            ("GET", "/v1/locks", text, &String::new()),
            ("GET", "/metrics", text, &String::new()),
        ] {
            let answer = request(&daemon, verb, path, &[("Host", &here), kind, foreign], body);
            assert_eq!(
                error(&answer),
                (403, "foreign_origin".to_owned()),
                "{verb} {path} {foreign:?}"
            );
            assert!(!answer.head.keys().any(|name| name.starts_with("access-control")));
        }
    }
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.1"] {
        for (verb, path) in [("POST", "/RPC2"), ("GET", "/"), ("GET", "/v1/locks")] {
            let answer = request(&daemon, verb, path, &[("Host", host)], &lock);
            assert_eq!(error(&answer), (421, "foreign_host".to_owned()), "{host} {verb} {path}");
        }
    }
    let names = lockd_support::support::names_in(directory.path());
    assert!(!names.iter().any(|name| name.ends_with(".resource.lock")), "{names:?}");

    let mine = [
        ("Host", here.as_str()),
        JSON,
        ("Origin", own.as_str()),
        ("Sec-Fetch-Site", "same-origin"),
    ];
    assert_eq!(request(&daemon, "POST", "/v1/locks/r/acquire", &mine, &json).status, 200);
    assert_eq!(
        request(&daemon, "GET", "/v1/locks", &[("Host", "locks.example:9")], "").status,
        200
    );
}

fn certificate(home: &Path) -> (String, String) {
    let (certificate, key) = (home.join("cert.pem"), home.join("key.pem"));
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &certificate,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ],
    );
    (certificate, key)
}

#[test]
fn strangers_speak_tls() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let known = known();
    let home = on_tmpfs();
    let (certificate, key) = certificate(home.path());
    let settings =
        format!("tls={certificate},{key} tokens={} listen=0.0.0.0:0", known.file.display());
    let (_directory, daemon) = start("strangers_speak_tls", &settings);
    let url = format!("https://127.0.0.1:{}", daemon.address.port());
    let bearer = format!("Authorization: Bearer {}", known.web);
    let body = json!({ "client": "web-1" }).to_string();
    let to = format!("{url}/v1/locks/r/acquire");
    let curl = ["-sS", "--cacert", &certificate, "-H", &bearer, "--json", &body, &to];
    let held: Value = serde_json::from_str(&run("curl", &curl)).unwrap();
    assert_eq!(held["client"], "web-1");

    // A client that is gone waits no more, also over TLS.
    let waits = json!({ "client": "web-2", "wait_ms": null }).to_string();
    let mut waits = Command::new("curl")
        .args(["-sS", "--cacert", &certificate, "-H", &bearer, "--json", &waits, &to])
        .spawn()
        .unwrap();
    let waiting = || {
        run("curl", &["-sS", "--cacert", &certificate, "-H", &bearer, &format!("{url}/v1/locks")])
    };
    eventually("it waits", || waiting().contains("\"web-2\""));
    waits.kill().unwrap();
    waits.wait().unwrap();
    eventually("it waits no more", || !waiting().contains("\"web-2\""));

    let program = "import ssl, sys, xmlrpc.client\n\
        context = ssl.create_default_context(cafile=sys.argv[2])\n\
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2\n\
        server = xmlrpc.client.ServerProxy(sys.argv[1], allow_none=True, context=context)\n\
        print(server.unlock('r', 'web-1'))\n";
    let with = format!("https://u:{}@127.0.0.1:{}/", known.web, daemon.address.port());
    assert_eq!(run("python3", &["-c", program, &with, &certificate]), "None");

    // A client without TLS gets nothing.
    let mut plain = lockd_support::Client::connect(([127, 0, 0, 1], daemon.address.port()).into());
    plain.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let heard = plain.try_answer();
    assert!(heard.is_none(), "{heard:?}");
}

fn bind(options: ServerOptions) -> Result<Server, ServerError> {
    tokio::runtime::Runtime::new().unwrap().block_on(Server::bind(options))
}

#[test]
fn other_addresses_need_tokens_and_tls_or_a_word() {
    let (directory, known) = (on_tmpfs(), known());
    let (certificate, key) = certificate(known.file.parent().unwrap());
    let everywhere = || ServerOptions::new(directory.path()).listen(([0, 0, 0, 0], 0).into());
    for options in
        [everywhere(), everywhere().tokens(&known.file), everywhere().tls(&certificate, &key)]
    {
        let refused = bind(options).err();
        assert!(matches!(refused, Some(ServerError::Insecure { .. })), "{refused:?}");
    }
    for options in [
        everywhere().insecure(true),
        everywhere().tokens(&known.file).tls(&certificate, &key),
        everywhere().listen("[::ffff:127.0.0.1]:0".parse().unwrap()),
    ] {
        bind(options).unwrap();
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let (directory, known) = (on_tmpfs(), known());
    let home = known.file.parent().unwrap();
    let (certificate, key) = certificate(home);
    let here = || ServerOptions::new(directory.path()).listen(([127, 0, 0, 1], 0).into());
    let none = home.join("none").display().to_string();
    let empty = home.join("empty");
    fs::write(&empty, "").unwrap();
    let other = home.join("other");
    fs::create_dir(&other).unwrap();
    let (_, other_key) = self::certificate(&other);
    let said = |options: ServerOptions| match bind(options).err() {
        Some(error @ ServerError::File { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(said(here().tokens(&none)).starts_with(&format!("{none} cannot be read")));
    assert!(said(here().tokens(&empty)).contains("is no list of tokens"));
    assert!(said(here().tls(&none, &key)).starts_with(&format!("{none} cannot be read")));
    assert!(said(here().tls(&empty, &key)).contains("has no certificate"));
    assert!(said(here().tls(&certificate, &certificate)).contains("has no private key"));
    assert!(said(here().tls(&certificate, &other_key)).contains("cannot be used with the key"));
}

/// Files that others could change, or a key that others could read.
#[test]
fn secrets_that_others_can_change_are_refused() {
    let (directory, known) = (on_tmpfs(), known());
    let (certificate, key) = certificate(known.file.parent().unwrap());
    let here = || ServerOptions::new(directory.path()).listen(([127, 0, 0, 1], 0).into());
    for (mode, is_refused) in [(0o666, true), (0o664, true), (0o602, true), (0o640, false)] {
        for file in [Path::new(&key), &known.file] {
            fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        }
        for options in [here().tokens(&known.file), here().tls(&certificate, &key)] {
            match bind(options).err() {
                Some(error @ ServerError::File { .. }) if is_refused => {
                    assert!(error.to_string().contains("chmod go-w"), "{error}");
                }
                None if !is_refused => {}
                other => panic!("{mode:o}: {other:?}"),
            }
        }
    }
}

#[test]
fn of_a_key_that_everybody_can_read_the_log_warns() {
    let (directory, home, log) = (on_tmpfs(), on_tmpfs(), Log::default());
    let (certificate, key) = certificate(home.path());
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logged = subscriber.set_default();
    let said = |mode| {
        log.0.lock().unwrap().clear();
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let options = ServerOptions::new(directory.path()).listen(([127, 0, 0, 1], 0).into());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Server::bind(options.tls(&certificate, &key))).unwrap();
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    };
    let warned = said(0o644);
    assert!(warned.contains("WARN") && warned.contains("everybody") && warned.contains(&key));
    assert!(!said(0o640).contains("WARN"));
}

/// A viewer does not see the path of the directory.
#[test]
fn paths_are_shown_to_administrators_only() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let known = known();
    let directory = on_tmpfs();
    fs::write(directory.path().join("torn.resource.lock"), "").unwrap();
    let settings = format!("tokens={}", known.file.display());
    let daemon =
        Daemon::start("paths_are_shown_to_administrators_only", &settings, directory.path());
    let path = directory.path().display().to_string();
    let ask = |token: &str, verb: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {token}");
        request(&daemon, verb, path, &[JSON, ("Authorization", &bearer)], body).text()
    };
    for to in ["/v1/locks", "/v1/locks/torn"] {
        let told = ask(&known.reader, "GET", to, "");
        assert!(told.contains("torn.resource.lock: it is empty"), "{told}");
        assert!(!told.contains(&path), "{told}");
        assert!(ask(&known.ops, "GET", to, "").contains(&path));
    }
    let body = json!({ "client": "reader" }).to_string();
    for verb in ["acquire", "release"] {
        let refused = ask(&known.reader, "POST", &format!("/v1/locks/torn/{verb}"), &body);
        assert!(refused.contains("torn.resource.lock") && !refused.contains(&path), "{refused}");
    }
    let fault = ask(&known.reader, "POST", "/RPC2", &call("lock", &["torn", "reader"]));
    assert!(fault.contains("torn.resource.lock") && !fault.contains(&path), "{fault}");
}

#[test]
fn each_token_waits_for_itself() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let known = known();
    // One waiter of each, and all come from one address.
    let settings = format!("waiting=100 tokens={}", known.file.display());
    let (_directory, daemon) = start("each_token_waits_for_itself", &settings);
    let bearer = |token: &str| format!("Bearer {token}");
    let ops = bearer(&known.ops);
    let held = json!({ "client": "holder" }).to_string();
    let acquire = "/v1/locks/r/acquire";
    let head = [JSON, ("Authorization", ops.as_str())];
    assert_eq!(request(&daemon, "POST", acquire, &head, &held).status, 200);
    let wait = |token: &str, client: &str| {
        let body = json!({ "client": client, "wait_ms": null }).to_string();
        let mut waiter = daemon.connect();
        waiter.send(format!(
            "POST {acquire} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.1\r\n\
             Authorization: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            bearer(token),
            body.len()
        ));
        waiter
    };
    let waiting = || request(&daemon, "GET", "/v1/locks", &head, "").text();
    let _web = wait(&known.web, "web-1");
    eventually("it waits", || waiting().contains("web-1"));
    assert_eq!(wait(&known.web, "web-2").answer().status, 429);
    let _reader = wait(&known.reader, "reader");
    eventually("it waits", || waiting().contains("\"reader\""));
}
