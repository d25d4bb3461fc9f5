//! Clients that do not read what they asked for.

mod lockd_support;

use std::io::Read;
use std::net::TcpStream;

use lockd_support::support::{eventually, on_tmpfs, role};
use lockd_support::{Client, Daemon};
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde_json::{Value, json};
use tempfile::TempDir;

const MEGABYTE: u64 = 1024 * 1024;

/// Locks with the longest names for their clients: more than fits between two
/// machines, and a list of 8 MB.
const LOCKS: usize = 1000;
const NAME_BYTES: usize = 8192;

fn full(test: &str, settings: &str) -> (TempDir, Daemon) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    let mut client = daemon.connect();
    let json = [("Content-Type", "application/json")];
    let body = json!({ "client": "c".repeat(NAME_BYTES) }).to_string();
    for number in 0..LOCKS {
        let path = format!("/v1/locks/{number:04}/acquire");
        assert_eq!(client.post(&path, &json, body.as_bytes()).status, 200);
    }
    (directory, daemon)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// A client with a receive buffer as small as can be.
fn small(daemon: &Daemon) -> Client {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
    let socket = socket.expect("a socket");
    sockopt::set_socket_recv_buffer_size(&socket, 2048).expect("a setting");
    rustix::net::connect(&socket, &daemon.address).expect("a connection");
    Client::over(TcpStream::from(socket))
}

#[test]
fn a_long_list_is_whole() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = full("a_long_list_is_whole", "");
    let list = |path: &str| -> Value {
        let mut client = daemon.connect();
        client.send(get(path));
        let answer = client.answer();
        assert_eq!(answer.head["content-type"], "application/json");
        serde_json::from_slice(&answer.body).expect("JSON")
    };
    let all = list("/v1/locks");
    let names = all["locks"].as_array().expect("a list").iter();
    let names: Vec<_> = names.map(|lock| lock["resource"].as_str().expect("a name")).collect();
    let expected: Vec<_> = (0..LOCKS).map(|number| format!("{number:04}")).collect();
    assert_eq!(names, expected);
    assert_eq!((&all["held"], &all["matching"]), (&json!(LOCKS), &json!(LOCKS)));
    let some = list("/v1/locks?search=00&limit=7");
    assert_eq!(some["locks"].as_array().expect("a list").len(), 7);
    // 000 to 009 of each thousand, and 100, 200 … 900.
    let matching = expected.iter().filter(|name| name.contains("00")).count();
    assert_eq!(some["matching"], json!(matching));
    assert_eq!(list("/v1/locks?limit=0")["matching"], json!(LOCKS));
}

#[test]
fn readers_that_do_not_read_cost_little_and_are_cut_off() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "readers_that_do_not_read_cost_little_and_are_cut_off";
    let (_directory, daemon) = full(test, "write=3");
    let before = daemon.memory();
    let mut readers = Vec::new();
    for number in 0..40 {
        let mut reader = small(&daemon);
        // As many viewers as one peer may have, were it another machine.
        reader.send(get(if number % 2 == 0 { "/v1/locks" } else { "/v1/events" }));
        readers.push(reader);
    }
    // Another client is served meanwhile.
    let mut other = daemon.connect();
    let mut most = 0;
    eventually("they are cut off", || {
        other.send(get("/healthz"));
        assert_eq!(other.answer().text(), "ok\n");
        most = most.max(daemon.memory());
        connections(&daemon) == 1
    });
    println!("memory before: {before}, most: {most}");
    assert!(most < before + 32 * MEGABYTE, "memory went from {before} to {most}");
    // What came before is there, and then a reset.
    let mut bytes = Vec::new();
    let read = readers[0].stream.read_to_end(&mut bytes);
    assert!(read.is_err() || bytes.len() < LOCKS * NAME_BYTES);
}

/// How many connections the daemon has: state 1 is that of an open one.
fn connections(daemon: &Daemon) -> usize {
    let here = format!(":{:04X}", daemon.address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the connections");
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|fields| fields[1].ends_with(&here) && fields[3] == "01").count()
}

#[test]
fn a_slow_reader_gets_all() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon) = full("a_slow_reader_gets_all", "write=15");
    let mut reader = small(&daemon);
    reader.send(get("/v1/locks"));
    // For longer than a reader may take nothing.
    for _ in 0..160 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        reader.read_more();
    }
    let answer = reader.answer();
    let list: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(list["matching"], json!(LOCKS));
}
