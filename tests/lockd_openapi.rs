//! The description of the API, against the daemon that serves it.

mod lockd_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lockd_support::support::{eventually, on_tmpfs, role};
use lockd_support::{Answer, Client, Daemon};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Of an administrator that may use all names.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// `printf %s "$TOKEN" | sha256sum`
const SHA256: &str = "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9";

fn start(test: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let file = directory.path().join("tokens.json");
    let token = json!({
        "name": "ops", "sha256": SHA256, "clients": ["*"], "administrator": true,
    });
    std::fs::write(&file, json!({ "tokens": [token] }).to_string()).expect("a file");
    let locks = directory.path().join("locks");
    std::fs::create_dir(&locks).expect("a directory");
    let daemon = Daemon::start(test, &format!("tokens={}", file.display()), &locks);
    (directory, daemon)
}

/// A program of the Python environment that tests/setup.sh makes.
fn python(program: &str) -> PathBuf {
    let program =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/schemathesis/bin").join(program);
    assert!(program.exists(), "{} is missing: run tests/setup.sh", program.display());
    program
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lockd").join(name)
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn acquire(daemon: &Daemon, body: &Value) {
    let bearer = format!("Bearer {TOKEN}");
    let head = [("Content-Type", "application/json"), ("Authorization", &bearer)];
    let answer = daemon.connect().post("/v1/acquire", &head, body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

const BEARER: &str = "Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n";

fn document(daemon: &Daemon, head: &str) -> Value {
    let mut client = daemon.connect();
    client.send(format!("GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n{head}\r\n"));
    let answer = client.answer();
    assert_eq!((answer.status, answer.head["content-type"].as_str()), (200, "application/json"));
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// Requests as the document describes them, and others, to each route: no answer is
/// a fault, and each is as described. Excluded are streams, which have no end, and
/// calls of XML-RPC, whose arguments OpenAPI has no words for.
#[test]
fn the_daemon_is_as_it_describes_itself() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (directory, daemon) = start("the_daemon_is_as_it_describes_itself");
    let output = Command::new(python("schemathesis"))
        .current_dir(directory.path())
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("PYTHONPATH", script(""))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["--no-color", "run", "--checks", "all", "--continue-on-failure"])
        .args(["--max-examples", "20", "--seed", "1", "--suppress-health-check", "all"])
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--exclude-path", "/v1/events", "--exclude-tag", "xml-rpc"])
        .arg(format!("http://{}/v1/openapi.json", daemon.address))
        .output()
        .expect("schemathesis");
    let said = said(&output);
    println!("{said}");
    assert!(output.status.success(), "{said}");
    let document = document(&daemon, BEARER);
    let methods = document["paths"].as_object().expect("paths").values();
    let methods = methods.flat_map(|methods| methods.as_object().expect("methods").values());
    let tried = methods.filter(|method| method["tags"] != json!(["xml-rpc"])).count();
    // The document itself is not tried either.
    let expected = format!("Tested: {}\n", tried - 2);
    assert!(said.contains(&expected), "{expected}{said}");
}

#[test]
fn events_are_as_described() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("events_are_as_described");
    acquire(&daemon, &json!({ "resource": "a", "client": "c", "lease_ms": 600_000 }));
    acquire(&daemon, &json!({ "resource": "b", "client": "c" }));
    let output = Command::new(python("python"))
        .arg(script("described_events.py"))
        .args([&format!("http://{}", daemon.address), TOKEN])
        .output()
        .expect("a script");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_document_says_whether_tokens_are_needed() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "the_document_says_whether_tokens_are_needed";
    let (_directory, secured) = start(test);
    let said = document(&secured, BEARER);
    assert_eq!(said["security"], json!([{ "bearer": [] }, { "basic": [] }]));
    assert_eq!(said["paths"]["/healthz"]["get"]["security"], json!([]));
    assert!(said["paths"]["/v1/locks"]["get"]["responses"]["401"].is_object());
    assert_eq!(said["info"]["version"], env!("CARGO_PKG_VERSION"));

    let directory = on_tmpfs();
    let open = Daemon::start(test, "public=http://localhost/team/locks", directory.path());
    let said = document(&open, "");
    assert!(said["security"].is_null());
    assert!(said["paths"]["/v1/locks"]["get"]["responses"]["401"].is_null());
    assert_eq!(said["servers"][0]["url"], "/team/locks");
}

/// A call of XML-RPC that is sent so, and what it is answered with.
fn called(daemon: &Daemon, head: &str, body: &[u8]) -> Answer {
    let mut client = daemon.connect();
    let head = format!("POST /RPC2 HTTP/1.1\r\nHost: localhost\r\n{BEARER}{head}\r\n");
    client.send([head.as_bytes(), body].concat());
    client.answer()
}

/// schemathesis does not try these.
#[test]
fn calls_of_xml_rpc_are_as_described() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    let file = directory.path().join("tokens.json");
    let token = json!({ "name": "ops", "sha256": SHA256, "clients": ["*"] });
    std::fs::write(&file, json!({ "tokens": [token] }).to_string()).expect("a file");
    let locks = directory.path().join("locks");
    std::fs::create_dir(&locks).expect("a directory");
    let settings = format!("body=5 tokens={}", file.display());
    let daemon = Daemon::start("calls_of_xml_rpc_are_as_described", &settings, &locks);
    let document = document(&daemon, BEARER);

    let sized = |length: usize| format!("Content-Length: {length}\r\n");
    let call = lockd_support::call("system.listMethods", &[]);
    let mut answers = vec![
        (200, called(&daemon, &sized(call.len()), call.as_bytes())),
        (400, called(&daemon, &(sized(1) + "Content-Encoding: gzip\r\n"), b"x")),
        (413, called(&daemon, &sized(1 << 30), b"")),
        (415, called(&daemon, &(sized(1) + "Content-Encoding: br\r\n"), b"x")),
        (408, called(&daemon, &sized(10), b"x")),
    ];
    // As many long ones as are read at a time.
    let begin = || {
        let mut client = daemon.connect();
        let head = sized(1 << 20);
        client.send(format!("POST /RPC2 HTTP/1.1\r\nHost: localhost\r\n{BEARER}{head}\r\n"));
        client.send([b' '; 16 * 1024]);
        client
    };
    let mut long: Vec<Client> = Vec::new();
    eventually("there are too many", || {
        long.clear();
        long.extend((0..40).map(|_| begin()));
        let refused = long.iter_mut().filter_map(Client::try_answer);
        let busy = refused.into_iter().find(|answer| answer.status == 503);
        answers.extend(busy.map(|answer| (503, answer)));
        answers.len() == 6
    });
    let described = &document["paths"]["/RPC2"]["post"];
    for (status, answer) in answers {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.head["content-type"], "text/xml", "{status}");
        let described = &described["responses"][status.to_string()]["content"]["text/xml"];
        assert!(described.is_object(), "{status}");
    }
    assert_eq!(described["requestBody"]["required"], true);
    assert!(described["requestBody"]["content"]["text/xml"]["schema"].is_object());
    // No operation of the document is the wrong method: it is said of all.
    let about = document["info"]["description"].as_str().expect("a text");
    assert!(about.contains("405"), "{about}");
}
