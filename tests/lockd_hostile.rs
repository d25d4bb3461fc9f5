//! Clients that mean no good, or are broken: the others are served.

mod lockd_support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use lockd_support::support::{eventually, names_in, on_tmpfs, role};
use lockd_support::{Client, Daemon, NIL, call, fault};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

const MEGABYTE: u64 = 1024 * 1024;

fn start(test: &str, settings: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    (directory, daemon)
}

/// Another client acquires and releases a lock.
fn others_are_served(daemon: &Daemon) {
    let mut client = daemon.connect();
    for method in ["lock", "unlock"] {
        let body = call(method, &["of others", "c"]);
        assert_eq!(client.post("/RPC2", &[], body.as_bytes()).text(), NIL);
    }
}

fn is_unlocked(directory: &TempDir) -> bool {
    !names_in(directory.path()).iter().any(|name| name.ends_with(".resource.lock"))
}

fn head(length: usize) -> String {
    format!("POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")
}

#[test]
fn a_request_that_is_half_sent_locks_nothing() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (directory, daemon) = start("a_request_that_is_half_sent_locks_nothing", "");
    let lock = call("lock", &["r", "c"]);

    // The sender says that it has sent all.
    let mut client = daemon.connect();
    client.send(head(lock.len() + 1) + &lock);
    client.stream.shutdown(Shutdown::Write).expect("it can be shut down");
    if let Some(answer) = client.try_answer() {
        assert_eq!(answer.status, 400);
    }
    // The sender is gone: in its head, in its body, in a chunk.
    let requests = [head(10)[..30].to_owned(), head(lock.len() + 1) + &lock, {
        let head = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{:x}\r\n{lock}", lock.len() + 1)
    }];
    for request in requests {
        daemon.connect().send(request);
    }
    others_are_served(&daemon);
    assert!(is_unlocked(&directory));
}

#[test]
fn a_request_that_is_too_slow_is_given_up() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (directory, daemon) = start("a_request_that_is_too_slow_is_given_up", "head=3 body=3");
    let lock = call("lock", &["r", "c"]);

    let mut silent = daemon.connect();
    let mut in_head = daemon.connect();
    in_head.send("POST /RPC2 HTT");
    let mut in_body = daemon.connect();
    in_body.send(head(lock.len() + 1) + &lock);
    let mut dripping = daemon.connect();
    dripping.send(head(10_000));
    others_are_served(&daemon);

    let answer = in_body.answer();
    assert_eq!(answer.status, 408);
    let text = fault(&answer.text()).expect("a fault");
    assert_eq!(text, "<class 'Exception'>:the request was not sent in time");
    assert!(silent.is_closed() && in_head.is_closed() && in_body.is_closed());
    // A byte now and then does not help.
    let mut sent = 0;
    eventually("the connection is closed", || {
        std::thread::sleep(Duration::from_millis(20));
        sent += 1;
        dripping.stream.write_all(b"x").is_err()
    });
    assert!(sent < 9_000, "it was let go on");
    assert!(is_unlocked(&directory));
}

#[test]
fn a_request_that_is_too_long_is_refused_and_costs_no_memory() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) =
        start("a_request_that_is_too_long_is_refused_and_costs_no_memory", "");
    others_are_served(&daemon);
    let before = daemon.memory();
    let length = usize::try_from(200 * MEGABYTE).expect("a length");

    // It says so: it is answered before it sends anything.
    let mut client = daemon.connect();
    client.send(head(length));
    let answer = client.answer();
    assert_eq!(answer.status, 413);
    let text = fault(&answer.text()).expect("a fault");
    assert_eq!(text, "<class 'Exception'>:the request is longer than 1048576 bytes");

    // It does not say so, and sends all that it can.
    let mut client = daemon.connect();
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut most = 0;
    for _ in 0..length / 0x10000 {
        if client.stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
        most = most.max(daemon.memory());
    }
    if let Some(answer) = client.try_answer() {
        assert_eq!(answer.status, 413);
    }
    // Small in a packed form.
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..200 {
        packer.write_all(&vec![b' '; 1024 * 1024]).expect("memory");
    }
    let packed = packer.finish().expect("memory");
    let mut client = daemon.connect();
    assert_eq!(client.post("/", &[("Content-Encoding", "gzip")], &packed).status, 413);
    most = most.max(daemon.memory());
    println!("memory before: {before}, most: {most}");
    assert!(most < before + 16 * MEGABYTE, "memory went from {before} to {most}");
    others_are_served(&daemon);
}

#[test]
fn memory_is_bounded_however_many_send_long_requests() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("memory_is_bounded_however_many_send_long_requests", "");
    others_are_served(&daemon);
    let before = daemon.memory();
    let nearly_all = vec![b' '; 1024 * 1024 - 1];
    let mut senders: Vec<Client> = Vec::new();
    for _ in 0..200 {
        let mut client = daemon.connect();
        client.send(head(nearly_all.len() + 1));
        // It is not read to the end where it is refused.
        let _ = client.stream.write_all(&nearly_all);
        senders.push(client);
    }
    let after = daemon.memory();
    println!("memory before: {before}, with {} senders: {after}", senders.len());
    assert!(after < before + 64 * MEGABYTE, "memory went from {before} to {after}");
    others_are_served(&daemon);
}

#[test]
fn a_document_that_would_grow_is_refused() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (directory, daemon) = start("a_document_that_would_grow_is_refused", "");
    others_are_served(&daemon);
    let before = daemon.memory();
    let mut laughs = "<!DOCTYPE lolz [<!ENTITY lol0 'lol'>".to_owned();
    for level in 1..=10 {
        let entities = format!("&lol{};", level - 1).repeat(10);
        laughs += &format!("<!ENTITY lol{level} '{entities}'>");
    }
    laughs += "]>";
    let outside = "<!DOCTYPE r [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>";
    for (document, said) in [
        (format!("{laughs}{}", call("lock", &["r", "&lol10;"])), "DOCTYPE"),
        (format!("{outside}{}", call("lock", &["r", "&x;"])), "DOCTYPE"),
        (call("lock", &["r", "c"]).replace("<string>c", "<string>&lol10;"), "entity"),
        (
            call("lock", &[]).replace("</params>", &"<param><value><array><data>".repeat(9000)),
            "misplaced",
        ),
        ("<methodCall>".repeat(9000), "misplaced"),
        (format!("<methodCall><params><param>{}", "<value><array><data>".repeat(9000)), "deeper"),
        (
            call("lock", &["r", "c"]).replace(
                "<params>",
                &format!("<params>{}", "<param><value/></param>".repeat(9000)),
            ),
            "more than 1024",
        ),
        (call("lock", &["r", &"x".repeat(100_000)]), "longer than 65536"),
    ] {
        let text = fault(&daemon.call(&document)).expect("a fault");
        let said = if said == "misplaced" { "does not belong" } else { said };
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(is_unlocked(&directory));
    let after = daemon.memory();
    assert!(after < before + 16 * MEGABYTE, "memory went from {before} to {after}");
    others_are_served(&daemon);
}

#[test]
fn what_is_not_http_is_refused() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = start("what_is_not_http_is_refused", "");
    let long = format!("POST /{} HTTP/1.1\r\n", "x".repeat(100_000));
    let many = format!("POST / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    for (request, statuses) in [
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n", [400, 400]),
        ("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", [400, 400]),
        ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", [400, 400]),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", [400, 400]),
        (long.as_str(), [414, 431]),
        (many.as_str(), [431, 431]),
    ] {
        let mut client = daemon.connect();
        // It may be refused before all is sent.
        let _ = client.stream.write_all(request.as_bytes());
        if let Some(answer) = client.try_answer() {
            let shown: String = request.chars().take(60).collect();
            assert!(statuses.contains(&answer.status), "{shown:?}: {}", answer.status);
        }
        assert!(client.is_closed());
    }
    let mut client = daemon.connect();
    assert_eq!(client.post("/", &[("Content-Encoding", "br")], b"x").status, 415);
    assert_eq!(client.post("/", &[("Content-Encoding", "gzip")], b"x").status, 400);
    others_are_served(&daemon);
}

/// As many open files as this user may have.
fn open_many_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let more = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, more).expect("as many files as this user may have");
    limit.maximum.unwrap_or(u64::MAX)
}

#[test]
fn ten_thousand_idle_connections_leave_the_others_served() {
    let files = open_many_files();
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    const IDLE_MAX: usize = 10_000;
    let idle_max = IDLE_MAX.min(files.saturating_sub(500) as usize);
    assert!(idle_max >= 100, "this user may have {files} files open: ulimit -n 20000");
    if idle_max < IDLE_MAX {
        println!("only {idle_max} connections: this user may have {files} files open");
    }
    let (_directory, daemon) =
        start("ten_thousand_idle_connections_leave_the_others_served", "head=600 body=600");
    others_are_served(&daemon);
    let before = daemon.memory();
    // Some say nothing, some are idle after a call, some are in a head, some in a body.
    let list = call("system.listMethods", &[]);
    let mut idle: Vec<Client> = Vec::new();
    for number in 0..idle_max {
        let mut client = daemon.connect();
        match number % 4 {
            0 => {}
            1 => assert_eq!(client.post("/", &[], list.as_bytes()).status, 200),
            2 => client.send("POST / HTTP/1.1\r\nHost: localhost\r\nA: "),
            _ => client.send(head(5000) + &" ".repeat(1000)),
        }
        idle.push(client);
    }
    others_are_served(&daemon);
    let after = daemon.memory();

    let mut client = daemon.connect();
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..1000 {
        let body = call(if round % 2 == 0 { "lock" } else { "unlock" }, &["r", "c"]);
        let start = Instant::now();
        assert_eq!(client.post("/RPC2", &[], body.as_bytes()).text(), NIL);
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "{idle_max} connections: memory from {} to {} KiB; a call takes {:?}, p99 {:?}, longest {:?}",
        before / 1024,
        after / 1024,
        times[500],
        times[990],
        times[999]
    );
    // Less than 32 KiB for each, in a build without optimization too.
    assert!(after < before + idle_max as u64 * 32 * 1024, "memory went from {before} to {after}");
    // They are still there: none was closed to make room.
    for client in idle.iter_mut().skip(1).step_by(400) {
        assert_eq!(client.post("/", &[], list.as_bytes()).status, 200);
    }
}

#[test]
fn the_connection_that_is_idle_longest_makes_room() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) =
        start("the_connection_that_is_idle_longest_makes_room", "head=600 body=600 connections=8");
    let list = call("system.listMethods", &[]);
    let mut oldest = daemon.connect();
    assert_eq!(oldest.post("/", &[], list.as_bytes()).status, 200);
    // The daemon asks for the body when it has seen the head.
    let mut sending = daemon.connect();
    sending.send(head(list.len()).replace("Content-L", "Expect: 100-continue\r\nContent-L"));
    assert_eq!(sending.answer().status, 100);
    let mut used = daemon.connect();
    let mut crowd: Vec<Client> = Vec::new();
    for _ in 0..50 {
        assert_eq!(used.post("/", &[], list.as_bytes()).status, 200);
        let mut client = daemon.connect();
        assert_eq!(client.post("/", &[], list.as_bytes()).status, 200);
        crowd.push(client);
    }
    assert!(oldest.is_closed());
    assert!(crowd[0].is_closed());
    // One that is sending goes after the idle ones.
    sending.send(&list);
    assert_eq!(sending.answer().status, 200);
}

#[test]
fn a_stop_ends_idle_connections_and_lets_requests_be_answered() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, mut daemon) =
        start("a_stop_ends_idle_connections_and_lets_requests_be_answered", "head=600 body=600");
    let list = call("system.listMethods", &[]);
    let mut silent = daemon.connect();
    let mut idle = daemon.connect();
    assert_eq!(idle.post("/", &[], list.as_bytes()).status, 200);
    let mut sending = daemon.connect();
    sending.send(head(list.len()));
    // The daemon asks for the body when it has seen the head.
    let mut asking = daemon.connect();
    asking.send(head(list.len()).replace("Content-L", "Expect: 100-continue\r\nContent-L"));
    assert_eq!(asking.answer().status, 100);

    daemon.process.hang_up();
    assert!(silent.is_closed() && idle.is_closed());
    asking.send(&list);
    assert_eq!(asking.answer().status, 200);
    // It is answered or cut off, by how far it had got.
    let _ = sending.stream.write_all(list.as_bytes());
    sending.try_answer();
    daemon.process.expect("stopped");
    assert!(daemon.process.wait().success());
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, mut daemon) =
        start("a_stop_does_not_wait_for_ever", "head=600 body=600 grace=0.5");
    let mut asking = daemon.connect();
    asking.send(head(10).replace("Content-L", "Expect: 100-continue\r\nContent-L"));
    assert_eq!(asking.answer().status, 100);
    daemon.process.hang_up();
    daemon.process.expect("stopped");
    assert!(asking.is_closed());
}

/// Python's client keeps its connection. It asks again where that was closed in
/// an orderly way, and raises where it was reset or cut.
const PAUSING: &str = "\
import socket, ssl, sys, time, xmlrpc.client
server = xmlrpc.client.ServerProxy(sys.argv[1], allow_none=True, context=ssl._create_unverified_context())
for pause in (2.9, 2.99, 3.0, 3.01, 3.1, 5):
    server.lock('r', 'c')
    time.sleep(pause)
    server.unlock('r', 'c')
print('all unlocked')
host, port = sys.argv[1].split('/')[2].split(':')
# An end that TLS itself does not tell of is an error here.
tls = ssl._create_unverified_context().wrap_socket(
    socket.create_connection((host, int(port))), suppress_ragged_eofs=False)
tls.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')
while tls.recv(4096): pass
print('and told of the end')
";

#[test]
fn a_client_over_tls_that_pauses_loses_no_unlock() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let home = on_tmpfs();
    let [certificate, key] =
        ["cert.pem", "key.pem"].map(|name| home.path().join(name).display().to_string());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", &key])
        .args(["-out", &certificate])
        .output();
    assert!(made.expect("openssl: run tests/setup.sh").status.success());
    let settings = format!("tls={certificate},{key} head=3");
    let (directory, daemon) = start("a_client_over_tls_that_pauses_loses_no_unlock", &settings);
    let url = format!("https://127.0.0.1:{}/", daemon.address.port());
    let output = Command::new("python3").args(["-c", PAUSING, &url]).output().expect("python3");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        said,
        "all unlocked\nand told of the end\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(is_unlocked(&directory));
}

/// A request that was on its way when its connection was closed for being idle
/// meets no reset: its sender reads an end, and knows that nothing was done.
#[test]
fn a_request_that_comes_too_late_meets_no_reset() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "a_request_that_comes_too_late_meets_no_reset";
    let (directory, daemon) = start(test, "head=1 connections=2");
    let lock = call("lock", &["r", "c"]);
    let list = call("system.listMethods", &[]);
    // On a busy machine a connection may be closed for silence before its request comes.
    let connect = || {
        let mut connected = None;
        eventually("a request is in time", || {
            let mut client = daemon.connect();
            let sent = client.stream.write_all((head(list.len()) + &list).as_bytes());
            let answer = sent.ok().and_then(|()| client.try_answer());
            connected = answer.map(|answer| {
                assert_eq!(answer.status, 200);
                client
            });
            connected.is_some()
        });
        connected.expect("one")
    };
    let mut idle = connect();
    // The end is there to be read, and is not read yet.
    let is_ended = |client: &Client| {
        client.stream.set_nonblocking(true).expect("a setting");
        let peeked = client.stream.peek(&mut [0]);
        client.stream.set_nonblocking(false).expect("a setting");
        matches!(peeked, Ok(0))
    };
    eventually("it is closed", || is_ended(&idle));
    idle.send(head(lock.len()) + &lock);
    assert_eq!(idle.stream.read(&mut [0]).expect("an end, and no reset"), 0);
    // The same where the connection had to make room.
    let mut oldest = connect();
    let others = [connect(), connect()];
    eventually("it made room", || is_ended(&oldest));
    oldest.send(head(lock.len()) + &lock);
    assert_eq!(oldest.stream.read(&mut [0]).expect("an end, and no reset"), 0);
    drop(others);
    assert!(is_unlocked(&directory));
}
