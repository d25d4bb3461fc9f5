//! `lockkeeper status --watch`: a line for each change, until it is interrupted.

#![cfg(feature = "cli")]

mod cli_support;
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use cli_support::{code, holder, lockkeeper, output, stderr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{VERY_LONG, eventually, on_tmpfs};

fn watch(flags: &[&str], locks: &[&Path]) -> Command {
    let mut command = lockkeeper();
    command.args(["status", "--watch"]).args(flags).args(locks);
    command
}

/// Killed when dropped.
struct Watcher {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watcher {
    fn start(flags: &[&str], locks: &[&Path]) -> Self {
        let mut child = watch(flags, locks).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(VERY_LONG).expect("a line")
    }

    #[track_caller]
    fn expect(&self, part: &str) {
        let line = self.next();
        assert!(line.contains(part), "{part:?} in {line:?}");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    #[track_caller]
    fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + VERY_LONG;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        panic!("it does not end");
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn each_change_is_a_line_and_a_signal_ends_it() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let directory = on_tmpfs();
        let lock = directory.path().join("a.lock");
        let mut watcher = Watcher::start(&[], &[&lock]);
        watcher.expect(": free");
        let mut one = holder(&["--close", "--note", "nightly import"], &lock);
        watcher.expect("nightly import");
        one.kill();
        watcher.expect(": stale, left by ");
        let mut other = holder(&[], &lock);
        watcher.expect(": held by ");
        other.hang_up();
        watcher.expect(": free");
        watcher.signal(signal);
        assert_eq!(watcher.code(), Some(0));
        assert!(watcher.lines.recv_timeout(VERY_LONG).is_err(), "there was one line more");
    }
}

#[test]
fn with_json_each_line_is_an_object() {
    let directory = on_tmpfs();
    let [lock, other] = ["a.lock", "b.lock"].map(|name| directory.path().join(name));
    let watcher = Watcher::start(&["--json"], &[&lock, &other]);
    let next = || serde_json::from_str::<Value>(&watcher.next()).expect("JSON");
    let mut paths = [next(), next()].map(|report| {
        assert_eq!(report["state"], "free");
        report["path"].as_str().unwrap().to_owned()
    });
    paths.sort();
    assert_eq!(paths, [lock.to_str().unwrap(), other.to_str().unwrap()]);
    let mut one = holder(&[], &other);
    let report = next();
    assert_eq!((&report["state"], report["path"].as_str()), (&"held".into(), other.to_str()));
    one.hang_up();
    assert_eq!(next()["state"], "free");
}

#[test]
fn a_reader_that_goes_away_ends_it_though_nothing_changes() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut child = watch(&[], &[&lock]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut line).unwrap();
    assert!(line.ends_with(": free\n"), "{line:?}");
    drop(reader);
    eventually("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_signal_ends_it_though_nobody_reads() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    // More than a pipe has room for.
    let locks = vec![lock.as_path(); 4000];
    let child = watch(&["--json"], &locks).stdout(Stdio::piped()).spawn().unwrap();
    let mut watcher = Watcher { child, lines: mpsc::channel().1 };
    let waits = format!("/proc/{}/task", watcher.child.id());
    let is_in_write = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at.contains("pipe"))
    };
    eventually("a thread of it writes in vain", || {
        std::fs::read_dir(&waits).unwrap().flatten().any(is_in_write)
    });
    watcher.signal(Signal::SIGTERM);
    assert_eq!(watcher.code(), Some(0));
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let directory = on_tmpfs();
    let slash = directory.path().join("slash/");
    let said = output(watch(&[], &[&slash]).stdin(Stdio::null()));
    assert_eq!(said.status.code(), Some(64), "{}", stderr(&said));
    assert!(stderr(&said).contains("slash"), "{}", stderr(&said));
    assert_eq!(code(&mut watch(&["--kernel", "flock"], &[&directory.path().join("a")])), 64);
}

#[test]
fn an_error_is_said_and_watching_goes_on() {
    let top = on_tmpfs();
    let directory = top.path().join("later");
    let lock = directory.join("a.lock");
    let watcher = Watcher::start(&["--json"], &[&lock]);
    watcher.expect(r#""state":"error""#);
    std::fs::create_dir(&directory).unwrap();
    watcher.expect(r#""state":"free""#);
}
