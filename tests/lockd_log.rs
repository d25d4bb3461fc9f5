//! The daemon's log on a standard error that is not read.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;

// What `cli_support` calls so.
use lockd_support::support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Stdio};

use cli_support::lockkeeper;
use lockd_support::with_last_words;
use support::{eventually, on_tmpfs};
use tempfile::TempDir;

struct Daemon {
    process: Child,
    address: String,
    errors: ChildStderr,
    _directory: TempDir,
}

/// A daemon whose standard error is a pipe that is full after 64 KiB.
fn start() -> Daemon {
    let directory = on_tmpfs();
    let mut command = lockkeeper();
    command.env_remove("LOCKKEEPER_LOG");
    command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0", "--dir"]).arg(directory.path());
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("a daemon");
    let mut url = String::new();
    let output = process.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut url).expect("its URL");
    let address = url.trim().trim_start_matches("http://").to_owned();
    let errors = process.stderr.take().expect("its errors");
    Daemon { process, address, errors, _directory: directory }
}

impl Daemon {
    /// Give and take back so many locks over one connection: two lines each.
    fn log(&self, pairs: usize) {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(support::VERY_LONG)).expect("a setting");
        // Names make the lines long.
        let client = "c".repeat(500);
        for _ in 0..pairs {
            for verb in ["acquire", "release"] {
                let body = format!(r#"{{"client":"{client}"}}"#);
                let head = "Host: localhost\r\nContent-Type: application/json";
                let request = format!(
                    "POST /v1/locks/r/{verb} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(request.as_bytes()).expect("it listens");
                let mut answer = [0; 4096];
                let length = stream.read(&mut answer).expect("an answer");
                assert!(answer[..length].starts_with(b"HTTP/1.1 200 "));
            }
        }
    }

    fn stop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it runs");
        eventually("it ends", || self.process.try_wait().expect("its status").is_some());
        let status = self.process.wait().expect("its status");
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// More lines than the pipe and the queue take together.
const PAIRS: usize = 1500;

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let mut daemon = start();
    daemon.log(PAIRS);
    daemon.stop();
}

#[test]
fn lines_that_were_dropped_are_told_when_the_log_flows_again() {
    let mut daemon = start();
    daemon.log(PAIRS);
    let mut lines = BufReader::new(&mut daemon.errors).lines();
    let mut seen = 0;
    let dropped: usize = loop {
        let line = lines.next().expect("a line").expect("text");
        if let Some((_, rest)) = line.split_once(" lockkeeper: ") {
            assert!(
                rest.ends_with("of the log dropped here: standard error was not read fast enough")
            );
            break rest.split(' ').next().expect("a number").parse().expect("a number");
        }
        // No line is torn.
        assert!(
            line.contains("event=\"granted\"") || line.contains("event=\"released\""),
            "{line}"
        );
        seen += 1;
        assert!(seen < 2 * PAIRS, "nothing was dropped");
    };
    assert_eq!(seen + dropped, 2 * PAIRS);
    // What comes then is whole again.
    drop(lines);
    daemon.log(1);
    let mut lines = BufReader::new(&mut daemon.errors).lines();
    assert!(lines.next().expect("a line").expect("text").contains("event=\"granted\""));
    drop(lines);
    daemon.stop();
}

#[test]
fn the_last_words_are_written() {
    with_last_words(|| {
        let mut daemon = start();
        daemon.stop();
        let mut said = String::new();
        daemon.errors.read_to_string(&mut said).expect("text");
        if said.ends_with("lockkeeper: stopping\n") { Ok(()) } else { Err(said) }
    });
}

/// The figure, and what the log says of itself, are the same.
#[test]
fn dropped_lines_are_a_figure() {
    let mut daemon = start();
    let figure = |daemon: &Daemon| -> u64 {
        let mut stream = TcpStream::connect(&daemon.address).expect("a connection");
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it listens");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let name = "lockkeeper_log_lines_dropped_total ";
        let line = answer.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a figure").parse().expect("a number")
    };
    assert_eq!(figure(&daemon), 0);
    // The pipe and the queue have room for less.
    daemon.log(1500);
    let dropped = figure(&daemon);
    assert!(dropped > 100, "{dropped}");
    let mut said = 0;
    for line in BufReader::new(&mut daemon.errors).lines() {
        let line = line.expect("text");
        let (Some(end), Some(start)) = (line.find(" lines of the log dropped"), line.find(": "))
        else {
            continue;
        };
        said += line[start + 2..end].parse::<u64>().expect("a number");
        break;
    }
    assert_eq!(said, dropped);
    daemon.process.kill().expect("it can be killed");
    daemon.process.wait().expect("it ends");
}
