//! The daemon behind a proxy: the real nginx, with the configuration that the
//! documentation gives, and headers as other proxies send them.

mod lockd_support;
mod server_support;

// What `server_support` calls so.
use lockd_support::support;

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use lockd_support::{Answer, Client, Daemon, NIL, call};
use serde_json::{Value, json};
use server_support::Claim;
use support::{eventually, on_tmpfs, role};
use tempfile::TempDir;

const DOCUMENT: &str = include_str!("../src/docs/behind_a_proxy.md");

fn start(test: &str, settings: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    (directory, daemon)
}

/// nginx with one server; ended when dropped.
struct Nginx {
    process: Child,
    address: SocketAddr,
    _home: TempDir,
    _claim: Claim,
}

impl Nginx {
    /// With this in its server.
    fn start(server: &str) -> Self {
        let (home, claim) = (on_tmpfs(), Claim::new());
        let address = claim.at(0);
        let path = home.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {path}/{kind};"))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/errors;\n\
             events {{}}\nhttp {{ access_log off; {temporary}\n\
             server {{ listen {address};\n{server}\n}} }}"
        );
        let file = home.path().join("nginx.conf");
        std::fs::write(&file, configuration).expect("a file");
        let process = Command::new("/usr/sbin/nginx")
            .args(["-e", &format!("{path}/errors"), "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx: run tests/setup.sh");
        let nginx = Self { process, address, _home: home, _claim: claim };
        eventually("nginx listens", || TcpStream::connect(address).is_ok());
        nginx
    }

    /// As the documentation has it, for this daemon.
    fn documented(daemon: &Daemon) -> Self {
        let (_, rest) = DOCUMENT.split_once("```nginx\n").expect("a configuration");
        let (server, _) = rest.split_once("```").expect("its end");
        assert_eq!(server.matches("127.0.0.1:8000").count(), 1);
        Self::start(&server.replace("127.0.0.1:8000", &daemon.address.to_string()))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn request(to: SocketAddr, verb: &str, path: &str, head: &[(&str, &str)], body: &str) -> Answer {
    let mut client = Client::connect(to);
    let mut text = format!("{verb} {path} HTTP/1.1\r\n");
    if !head.iter().any(|(name, _)| *name == "Host") {
        text += "Host: localhost\r\n";
    }
    for (name, value) in head {
        text += &format!("{name}: {value}\r\n");
    }
    client.send(format!("{text}Content-Length: {}\r\n\r\n{body}", body.len()));
    client.answer()
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn post(to: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    let answer = request(to, "POST", path, &[JSON], &body.to_string());
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

fn waiting(to: SocketAddr, path: &str) -> Vec<String> {
    let answer = request(to, "GET", path, &[], "");
    let lock: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let waiting = lock["waiting"].as_array().cloned().unwrap_or_default();
    waiting.iter().map(|it| it["client"].as_str().expect("a name").to_owned()).collect()
}

fn wait(to: SocketAddr, path: &str, body: &Value) -> Client {
    let mut client = Client::connect(to);
    let body = body.to_string();
    client.send(format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    client
}

#[test]
fn everything_works_below_a_path_of_nginx() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let settings = "public=https://example.org/locks";
    let (_directory, daemon) = start("everything_works_below_a_path_of_nginx", settings);
    let nginx = Nginx::documented(&daemon);
    let to = nginx.address;
    // The page, which asks for nothing but what is below its own path.
    let page = request(to, "GET", "/locks/", &[], "");
    assert_eq!((page.status, &*page.head["content-type"]), (200, "text/html; charset=utf-8"));
    let text = page.text();
    assert!(!text.contains("\"/v1") && !text.contains("`/v1") && !text.contains("=\"/"), "{text}");

    // A browser at the public URL.
    let own = [
        ("Host", "example.org"),
        ("Origin", "https://example.org"),
        ("Sec-Fetch-Site", "same-origin"),
        JSON,
    ];
    let body = json!({ "client": "c" }).to_string();
    let held = request(to, "POST", "/locks/v1/locks/r/acquire", &own, &body);
    assert_eq!(held.status, 200, "{}", held.text());
    let foreign = [("Host", "example.org"), ("Origin", "https://evil.example"), JSON];
    let refused = request(to, "POST", "/locks/v1/locks/s/acquire", &foreign, &body);
    assert_eq!(refused.status, 403);
    // A request from this machine is no administrator's for that.
    let force = request(to, "POST", "/locks/v1/locks/r/force-release", &own, "{}");
    assert_eq!(force.status, 403, "{}", force.text());
    let list = request(to, "GET", "/locks/v1/locks", &[], "").text();
    assert!(list.contains(r#""administrator":false"#), "{list}");

    let xml = [("Content-Type", "text/xml")];
    let answer = request(to, "POST", "/locks/", &xml, &call("unlock", &["r", "c"])).text();
    assert_eq!(answer, NIL);
    assert_eq!(request(to, "GET", "/locks/healthz", &[], "").text(), "ok\n");
    // A proxy that passes the path on as it is.
    let server = format!("location /locks/ {{ proxy_pass http://{}; }}", daemon.address);
    let nginx = Nginx::start(&server);
    let whole = nginx.address;
    assert_eq!(request(whole, "GET", "/locks/healthz", &[], "").text(), "ok\n");
    assert_eq!(request(whole, "GET", "/locks/", &[], "").text(), text);
    let (status, _) = post(whole, "/locks/v1/locks/r/acquire", &json!({ "client": "c" }));
    assert_eq!(status, 200);
    let answer = request(whole, "POST", "/locks/RPC2", &xml, &call("unlock", &["r", "c"])).text();
    assert_eq!(answer, NIL);
}

#[test]
fn events_come_through_nginx_at_once() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("events_come_through_nginx_at_once", "");
    // With nothing set for it.
    let server = format!("location / {{ proxy_pass http://{}; }}", daemon.address);
    let nginx = Nginx::start(&server);
    let mut viewer = Client::connect(nginx.address);
    viewer.send("GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    viewer.read_until(r#""locks":[]"#);
    post(daemon.address, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    viewer.read_until(r#""resource":"r""#);
    // A sign of life, though nothing changes.
    viewer.read_until("\n:\n\n");
}

#[test]
fn a_waiter_that_nginx_gives_up_has_its_place_again() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "a_waiter_that_nginx_gives_up_has_its_place_again";
    let (_directory, daemon) = start(test, "");
    let here = daemon.address;
    let server = format!("location / {{ proxy_pass http://{here}; proxy_read_timeout 5s; }}");
    let nginx = Nginx::start(&server);
    let resource = "/v1/locks/r";
    post(here, "/v1/locks/r/acquire", &json!({ "client": "holder" }));
    let first = json!({ "client": "first", "wait_ms": null, "request_id": "1" });
    let mut through = wait(nginx.address, "/v1/locks/r/acquire", &first);
    eventually("it waits", || waiting(here, resource) == ["first"]);
    let second = json!({ "client": "second", "wait_ms": null });
    let _second = wait(here, "/v1/locks/r/acquire", &second);
    eventually("two wait", || waiting(here, resource) == ["first", "second"]);
    assert_eq!(through.answer().status, 504);
    eventually("it is away", || waiting(here, resource) == ["second"]);
    through = wait(nginx.address, "/v1/locks/r/acquire", &first);
    eventually("it is back", || waiting(here, resource) == ["first", "second"]);
    // Its client is gone, and so it is.
    drop(through);
    eventually("it is gone", || waiting(here, resource) == ["second"]);
    let through = wait(nginx.address, "/v1/locks/r/acquire", &first);
    eventually("it is back", || waiting(here, resource) == ["first", "second"]);
    post(here, "/v1/locks/r/release", &json!({ "client": "holder" }));
    let mut through = through;
    assert_eq!(through.answer().status, 200);
}

#[test]
fn nobody_is_an_administrator_through_a_proxy() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("nobody_is_an_administrator_through_a_proxy", "");
    let to = daemon.address;
    post(to, "/v1/locks/r/acquire", &json!({ "client": "c" }));
    for header in [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Host", "example.org"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("Via", "1.1 proxy"),
    ] {
        let path = "/v1/locks/r/force-release";
        let refused = request(to, "POST", path, &[JSON, header], "{}");
        assert_eq!(refused.status, 403, "{header:?}");
        let list = request(to, "GET", "/v1/locks", &[header], "").text();
        assert!(list.contains(r#""administrator":false"#), "{header:?}");
    }
    assert_eq!(post(to, "/v1/locks/r/force-release", &json!({})).0, 200);
}

#[test]
fn clients_of_a_proxy_here_are_counted_one_by_one() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    // At most one waiter of each address.
    let test = "clients_of_a_proxy_here_are_counted_one_by_one";
    let (_directory, daemon) = start(test, "waiting=100");
    let to = daemon.address;
    post(to, "/v1/locks/r/acquire", &json!({ "client": "holder" }));
    let wait_for = |address: &str, client: &str| {
        let body = json!({ "client": client, "wait_ms": null }).to_string();
        let mut waiter = Client::connect(to);
        waiter.send(format!(
            "POST /v1/locks/r/acquire HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {address}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        waiter
    };
    let _one = wait_for("192.0.2.1", "one");
    eventually("one waits", || waiting(to, "/v1/locks/r") == ["one"]);
    // What a client wrote there itself does not count.
    assert_eq!(wait_for("198.51.100.9, 192.0.2.1", "more").answer().status, 429);
    let _two = wait_for("192.0.2.2", "two");
    eventually("two wait", || waiting(to, "/v1/locks/r") == ["one", "two"]);
    // This machine's own are not limited.
    for client in ["three", "four"] {
        let _ =
            wait(to, "/v1/locks/r/acquire", &json!({ "client": client, "wait_ms": 1 })).answer();
    }
}

fn refused(arguments: &[&str]) -> String {
    let directory = on_tmpfs();
    let output = Command::new(env!("CARGO_BIN_EXE_lockkeeper"))
        .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
        .arg(directory.path())
        .args(arguments)
        .output()
        .expect("a command");
    assert_eq!(output.status.code(), Some(64), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_host_that_can_never_match_is_refused() {
    for (host, advice) in [
        ("locks.test:8000", "leave the port away"),
        ("http://locks.test", "public URL"),
        ("*", "name each host"),
    ] {
        let said = refused(&["--host", host]);
        assert!(said.contains(host) && said.contains(advice), "{said}");
    }
    let said = refused(&["--public-url", "https://user:secret@locks.test"]);
    assert!(said.contains("no user and no password") && !said.contains("secret"), "{said}");
}
