//! `lockkeeper health`: whether locks can be had at a daemon, as an exit code.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;
mod serve_support;

// What `cli_support` calls so.
use lockd_support::support;

use std::io::{Read, Write};
use std::net::TcpListener;

use cli_support::{lockkeeper, output, stderr, stdout};
use serde_json::json;
use serve_support::{Serve, token, write_certificate, write_tokens};
use support::on_tmpfs;

/// The exit code, what is printed, and what is wrong.
fn health(server: &str, flags: &[&str]) -> (Option<i32>, String, String) {
    let output = output(lockkeeper().args(["health", "--server", server]).args(flags));
    (output.status.code(), stdout(&output), stderr(&output))
}

#[test]
fn a_daemon_that_serves_is_well_and_asks_for_no_token() {
    let home = on_tmpfs();
    let path = |name: &str| home.path().join(name).display().to_string();
    let (certificate, key, tokens) = (path("cert.pem"), path("key.pem"), path("tokens.json"));
    write_certificate(certificate.as_ref(), key.as_ref(), "daemon");
    let line = json!({ "name": "web", "sha256": token().1, "clients": ["*"] });
    write_tokens(tokens.as_ref(), &[line]);
    let flags = ["--tls-cert", &certificate, "--tls-key", &key, "--tokens", &tokens];
    let daemon = Serve::start(&flags);
    let (code, printed, wrong) = health(&daemon.url, &["--ca", &certificate]);
    assert_eq!((code, &*printed, &*wrong), (Some(0), "ok\n", ""));
    let (code, printed, wrong) = health(&daemon.url, &[]);
    assert_eq!((code, &*printed), (Some(69), ""), "{wrong}");
    assert!(wrong.contains(&daemon.url), "{wrong}");
}

#[test]
fn a_daemon_that_is_away_is_not_well() {
    let mut daemon = Serve::start(&[]);
    assert_eq!(health(&daemon.url, &[]).0, Some(0));
    daemon.stop();
    let (code, printed, wrong) = health(&daemon.url, &[]);
    assert_eq!((code, &*printed), (Some(69), ""), "{wrong}");
    assert_eq!(health("no URL", &[]).0, Some(64));
}

#[test]
fn what_a_daemon_says_is_wrong_is_printed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let url = format!("http://{}/locks", listener.local_addr().expect("its address"));
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = [0; 1024];
        let length = stream.read(&mut head).expect("a request");
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\nstorage\n";
        stream.write_all(answer.as_bytes()).expect("it listens");
        String::from_utf8_lossy(&head[..length]).into_owned()
    });
    let (code, printed, wrong) = health(&url, &[]);
    assert_eq!((code, &*printed, &*wrong), (Some(1), "storage\n", ""));
    let asked = daemon.join().expect("a request");
    assert!(asked.starts_with("GET /locks/readyz HTTP/1.1"), "{asked}");
}

/// Tells probes that it is alive, and can give no lock; as often as it is asked.
fn full() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 1024];
            let length = stream.read(&mut head).expect("a request");
            let answer: &[u8] = match head[..length].starts_with(b"GET /healthz ") {
                true => b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n",
                false => b"HTTP/1.1 503 Not Now\r\nContent-Length: 8\r\n\r\nstorage\n",
            };
            let _ = stream.write_all(answer);
        }
    });
    url
}

#[test]
fn a_daemon_that_can_give_no_lock_is_alive() {
    let url = full();
    assert_eq!(health(&url, &[]), (Some(1), "storage\n".to_owned(), String::new()));
    assert_eq!(health(&url, &["--alive"]), (Some(0), "ok\n".to_owned(), String::new()));
    let mut daemon = Serve::start(&[]);
    assert_eq!(health(&daemon.url, &["--alive"]).0, Some(0));
    daemon.stop();
    assert_eq!(health(&daemon.url, &["--alive"]).0, Some(69));
}

/// It still takes locks back: to start it anew would end that.
#[test]
fn a_container_is_well_while_its_disk_is_full() {
    let file = include_str!("../examples/Containerfile");
    let (_, check) = file.split_once("\nHEALTHCHECK ").expect("a check");
    let (_, check) = check.split_once("CMD ").expect("its command");
    let check: Vec<String> = serde_json::from_str(check.lines().next().expect("a line")).unwrap();
    let url = full();
    let flags = check.iter().skip(1).map(|flag| match flag.starts_with("http:") {
        true => url.as_str(),
        false => flag.as_str(),
    });
    let output = output(lockkeeper().args(flags));
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
}
