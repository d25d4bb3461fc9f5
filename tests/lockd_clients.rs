//! Clients that others wrote.

mod lockd_support;

use std::path::Path;
use std::process::Command;

use lockd_support::support::{names_in, on_tmpfs, role};
use lockd_support::{Daemon, NIL, call, fault};

/// Run a client program, which says at its end that all passed.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("all passed\n"), "{said}\n{wrong}");
}

fn program(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lockd").join(name)
}

#[test]
fn pythons_client_is_served() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    // A body of twenty megabytes takes its time.
    let daemon = Daemon::start("pythons_client_is_served", "body=60", directory.path());
    let url = format!("http://{}", daemon.address);
    run(Command::new("python3").arg(program("python_client.py")).arg(url));
    let left: Vec<_> = names_in(directory.path());
    assert!(!left.iter().any(|name| name.ends_with(".resource.lock")), "{left:?}");
}

#[test]
fn nodes_client_is_served() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node");
    let is_there = package.join("node_modules/xmlrpc/package.json").exists();
    assert!(is_there, "Node's xmlrpc is not in {}: run tests/setup.sh", package.display());
    let directory = on_tmpfs();
    let daemon = Daemon::start("nodes_client_is_served", "", directory.path());
    let port = daemon.address.port().to_string();
    run(Command::new("node").arg(program("node_client.js")).arg(package).arg(port));
}

#[test]
fn faults_can_be_those_of_python_2() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    let daemon = Daemon::start("faults_can_be_those_of_python_2", "py2=yes", directory.path());
    assert_eq!(daemon.call(&call("lock", &["r", "c"])), NIL);
    let answered = daemon.call(&call("lock", &["r", "d"]));
    let expected = "<type 'exceptions.Exception'>:Resource already locked by 'c'";
    assert_eq!(fault(&answered).as_deref(), Some(expected));
}

/// What clients with little may send, byte for byte.
#[test]
fn odd_but_correct_requests_are_served() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    let daemon = Daemon::start("odd_but_correct_requests_are_served", "", directory.path());
    let (lock, unlock) = (call("lock", &["r", "c"]), call("unlock", &["r", "c"]));
    let length = lock.len();

    // HTTP/1.0, which ends the connection.
    let mut client = daemon.connect();
    client.send(format!("POST /any HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{lock}"));
    assert_eq!(client.answer().text(), NIL);
    assert!(client.is_closed());

    // Chunks, with two requests in one connection, the second before the first's answer.
    let mut client = daemon.connect();
    let (first, rest) = unlock.split_at(20);
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(format!("14\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len()));
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{lock}"
    ));
    assert_eq!(client.answer().text(), NIL);
    assert_eq!(client.answer().text(), NIL);

    // A client that asks first.
    let mut client = daemon.connect();
    client.send(format!(
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        unlock.len()
    ));
    assert_eq!(client.answer().status, 100);
    client.send(&unlock);
    assert_eq!(client.answer().text(), NIL);

    // A byte order mark, UTF-16, comments, processing instructions, CDATA, references, blanks.
    let pieces = "<!-- who --><methodCall ><methodName>l&#111;c<![CDATA[k]]></methodName><?ours x?>\
        <params>\n<param> <value>\n<string>r</string> </value></param>\
        <param><value>&#x63;</value></param></params></methodCall>\n<!-- end -->\n";
    let marked = format!("\u{feff}<?xml version='1.0' encoding='UTF-8'?>\n{pieces}");
    assert_eq!(daemon.call(&marked), NIL);
    let wide: Vec<u8> =
        format!("\u{feff}{unlock}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(daemon.connect().post("/", &[], &wide).text(), NIL);

    for verb in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let mut client = daemon.connect();
        client
            .send(format!("{verb} /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(client.answer().status, 405, "{verb}");
    }
}
