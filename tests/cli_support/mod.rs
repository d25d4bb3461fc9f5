//! What the tests of the command line share.

#![allow(dead_code, unreachable_pub)]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Process, eventually};

/// As a user has it, whatever lock the tests run under, and though a background
/// job starts with SIGINT and SIGQUIT ignored.
pub fn lockkeeper() -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_lockkeeper")]);
    for name in ["AT", "PATH", "TOKEN", "RECOVERED_FROM", "RECOVERED_PID", "LOG"] {
        command.env_remove(format!("LOCKKEEPER_{name}"));
    }
    command.env_remove("RUST_LOG");
    command
}

/// `lockkeeper run FLAGS… lock -- sh -c script`.
pub fn run(flags: &[&str], lock: &Path, script: &str) -> Command {
    let mut command = lockkeeper();
    command.arg("run").args(flags).arg(lock).args(["--", "sh", "-c", script]);
    command
}

/// A script that says `@inside` and stays until its standard input is closed.
pub const STAY: &str = "echo @inside; read line; exit 0";

/// `lockkeeper run` that holds `lock` until its standard input is closed.
pub fn holder(flags: &[&str], lock: &Path) -> Process {
    let holder = Process::start(run(flags, lock, STAY));
    holder.expect("inside");
    holder
}

/// `lockkeeper run` with standard error in `log`, once it says that it waits.
pub fn waiter(flags: &[&str], lock: &Path, script: &str, log: &Path) -> Process {
    let mut command = run(flags, lock, script);
    command.stderr(File::create(log).expect("a log"));
    let waiter = Process::start(command);
    eventually("it says that it waits", || text(log).contains("waiting for"));
    waiter
}

pub fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command.output().expect("lockkeeper runs")
}

#[track_caller]
pub fn code(command: &mut Command) -> i32 {
    output(command).status.code().expect("lockkeeper ends by itself")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
