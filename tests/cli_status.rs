//! `lockkeeper status` and `lockkeeper break`: what they say, and what they leave alone.

#![cfg(feature = "cli")]

mod cli_support;
mod support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use cli_support::{code, holder, lockkeeper, output, run, stderr, stdout, waiter};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use support::{eventually, names_in, on_tmpfs};

fn status(paths: &[&Path]) -> Command {
    let mut command = lockkeeper();
    command.arg("status").args(paths);
    command
}

/// The exit code and the objects of `status --json`.
fn json(paths: &[&Path]) -> (i32, Vec<Value>) {
    let output = output(status(paths).arg("--json"));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code().expect("a code"), value.as_array().expect("an array").clone())
}

fn break_lock(path: &Path) -> Command {
    let mut command = lockkeeper();
    command.arg("break").arg(path);
    command
}

/// A lock file whose holder was killed, and that holder's process id.
fn stale(path: &Path) -> u32 {
    let mut dead = holder(&["--close", "--note", "nightly import"], path);
    dead.kill();
    dead.id()
}

/// The number of a process that is gone.
fn gone() -> u32 {
    let mut child = Command::new("true").spawn().expect("a process");
    child.wait().expect("it ends");
    child.id()
}

fn is_free(path: &Path) -> bool {
    code(&mut status(&[path])) == 0
}

#[test]
fn a_free_lock_is_free_and_stays_unmade() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let output = output(&mut status(&[&lock]));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), format!("{}: free\n", lock.display()));
    let (code, reports) = json(&[&lock]);
    assert_eq!((code, &reports[0]["state"]), (0, &Value::from("free")));
    assert_eq!(reports[0]["error"], Value::Null);
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn a_held_lock_shows_who_has_it_and_how_that_is_known() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let holder = holder(&["--note", "nightly import"], &lock);
    let output = output(&mut status(&[&lock]));
    assert_eq!(output.status.code(), Some(1));
    let line = stdout(&output);
    for part in ["held by sh (pid ", "since 2", "nightly import", "(it keeps the file locked)"] {
        assert!(line.contains(part), "{part:?} in {line:?}");
    }
    let (code, reports) = json(&[&lock]);
    let report = &reports[0];
    assert_eq!(code, 1);
    assert_eq!(report["path"], lock.to_str().unwrap());
    assert_eq!(report["state"], "held");
    assert_eq!(report["foreign"], false);
    assert_eq!(report["pid"], holder.id());
    assert_eq!(report["name"], "sh");
    assert_eq!(report["note"], "nightly import");
    assert_eq!(report["evidence"], "it keeps the file locked");
    assert_eq!(report["hold_id"].as_str().map(str::len), Some(32));
    assert!(report["host"].is_string() && report["since"].is_string());
    assert_eq!(report["error"], Value::Null);
}

#[test]
fn a_relative_path_is_shown_as_an_absolute_one() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock").display().to_string();
    let mut command = status(&[Path::new("a.lock")]);
    command.current_dir(directory.path());
    assert_eq!(stdout(&output(&mut command)), format!("{path}: free\n"));
    let reports: Value = serde_json::from_slice(&output(command.arg("--json")).stdout).unwrap();
    assert_eq!(reports[0]["path"], path);
}

#[test]
fn a_stale_lock_is_nobodys_but_is_told_from_a_free_one() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let dead = stale(&lock);
    eventually("the script of the dead is gone, and with it the lock", || is_free(&lock));
    let output = output(&mut status(&[&lock]));
    assert!(stdout(&output).contains(": stale, left by sh (pid "), "{}", stdout(&output));
    let (code, reports) = json(&[&lock]);
    assert_eq!(
        (code, &reports[0]["state"], &reports[0]["pid"]),
        (0, &"stale".into(), &dead.into())
    );
}

#[test]
fn foreign_files_are_marked_whether_held_or_stale() {
    let directory = on_tmpfs();
    let [held, left] = ["held", "left"].map(|name| directory.path().join(name));
    let program = std::env::current_exe().unwrap();
    let name = program.file_stem().and_then(OsStr::to_str).unwrap();
    fs::write(&held, format!("{}\n{name}\n", std::process::id())).unwrap();
    fs::write(&left, format!("{}\n{name}\n", gone())).unwrap();
    let (code, reports) = json(&[&held, &left]);
    assert_eq!(code, 1);
    assert_eq!((&reports[0]["state"], &reports[0]["foreign"]), (&"held".into(), &true.into()));
    assert_eq!((&reports[1]["state"], &reports[1]["foreign"]), (&"stale".into(), &true.into()));
    assert!(stdout(&output(&mut status(&[&held]))).contains("foreign file; its process runs"));
    assert!(stdout(&output(&mut status(&[&left]))).contains("foreign file; its process is gone"));
}

#[test]
fn what_is_not_a_lock_file_is_named_so_and_not_touched() {
    let directory = on_tmpfs();
    let data = directory.path().join("data.db");
    fs::write(&data, "precious").unwrap();
    let said = output(&mut status(&[&data]));
    assert_eq!(said.status.code(), Some(65));
    assert!(stdout(&said).contains(": not a lock file: "), "{}", stdout(&said));
    let (code, reports) = json(&[&data]);
    assert_eq!((code, &reports[0]["state"]), (65, &"not-a-lock-file".into()));
    assert!(reports[0]["error"].as_str().unwrap().contains("is not a lock file"));
    assert_eq!(output(&mut break_lock(&data)).status.code(), Some(65));
    assert_eq!(fs::read(&data).unwrap(), b"precious");
}

#[test]
fn what_could_not_be_found_out_outweighs_what_could() {
    let directory = on_tmpfs();
    let [free, held, data] = ["free", "held", "data"].map(|name| directory.path().join(name));
    let nowhere = directory.path().join("missing/a.lock");
    fs::write(&data, "precious").unwrap();
    let _holder = holder(&[], &held);
    assert_eq!(code(&mut status(&[&free, &held])), 1);
    assert_eq!(code(&mut status(&[&free, &data, &held])), 65);
    assert_eq!(code(&mut status(&[&held, &data, &nowhere, &free])), 69);
    assert_eq!(code(&mut status(&[&held, &directory.path().join("slash/")])), 64);
    let (_, reports) = json(&[&nowhere]);
    assert_eq!(reports[0]["state"], "error");
}

#[test]
fn what_a_lock_file_says_does_not_reach_the_terminal_raw() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let id = std::process::id();
    let record =
        format!("{id}\nx\ntoken: {}\npin: flock\nnote: \x1b]0;owned\x07\n", "0".repeat(32));
    fs::write(&lock, record).unwrap();
    let output = output(&mut status(&[&lock]));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("owned"), "{said:?}");
    assert!(!said.trim_end().chars().any(char::is_control), "{said:?}");
}

#[test]
fn break_removes_what_the_dead_left_and_says_who_that_was() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let dead = stale(&lock);
    eventually("the dead are gone", || is_free(&lock));
    let output = output(&mut break_lock(&lock));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains(&format!("removed, left by sh (pid {dead} ")));
    assert!(names_in(directory.path()).is_empty());
    assert_eq!(code(&mut break_lock(&lock)), 0, "nothing to remove is no failure");
}

#[test]
fn break_refuses_a_living_holder_with_the_evidence() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let _holder = holder(&[], &lock);
    let before = fs::read(&lock).unwrap();
    let output = output(&mut break_lock(&lock));
    assert_eq!(output.status.code(), Some(1));
    let refusal = format!("refused: {} is held by sh (pid ", lock.display());
    assert!(stderr(&output).contains(&refusal), "{}", stderr(&output));
    assert!(stderr(&output).contains("(it keeps the file locked)"), "{}", stderr(&output));
    assert_eq!(fs::read(&lock).unwrap(), before);
    assert!(!is_free(&lock));
}

#[test]
fn break_refuses_when_only_the_command_of_a_killed_wrapper_lives() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut wrapper = holder(&[], &lock);
    wrapper.kill();
    let output = output(&mut break_lock(&lock));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a child keeps the file locked"), "{}", stderr(&output));
    wrapper.hang_up();
    eventually("the command is gone, and with it the lock", || is_free(&lock));
}

#[test]
fn revoke_makes_a_run_end_and_the_next_one_enter() {
    let directory = on_tmpfs();
    let (lock, log) = (directory.path().join("a.lock"), directory.path().join("log"));
    let mut holder = support::Process::start(run(&[], &lock, "echo @inside; exec cat"));
    holder.expect("inside");
    let next = waiter(&[], &lock, "echo @next", &log);
    let output = output(break_lock(&lock).arg("--revoke"));
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains(&format!("asked sh (pid {} ", holder.id())));
    next.expect("next");
    assert_eq!(holder.wait().code(), Some(74));
    eventually("no request is left", || names_in(directory.path()) == ["log"]);
}

#[test]
fn revoke_asks_nobody_where_nobody_holds_and_cannot_ask_a_foreign_program() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let asked = output(break_lock(&lock).arg("--revoke"));
    assert_eq!((asked.status.code(), names_in(directory.path()).len()), (Some(0), 0));
    fs::write(&lock, format!("{}\n", std::process::id())).unwrap();
    let asked = output(break_lock(&lock).arg("--revoke"));
    assert_eq!(asked.status.code(), Some(1), "{}", stderr(&asked));
    assert_eq!(names_in(directory.path()), ["a.lock"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    drop(reader);
    let mut command = status(&[&lock]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer).stdin(Stdio::null());
    assert_eq!(command.status().unwrap().code(), Some(0));
}

#[test]
fn states_of_several_locks_stand_below_one_another() {
    let directory = on_tmpfs();
    let [short, long] = ["a.lock", "much-longer.lock"].map(|name| directory.path().join(name));
    let _holder = holder(&[], &long);
    let shown = stdout(&output(&mut status(&[&short, &long])));
    let places: Vec<_> =
        shown.lines().map(|line| line.find(" free").or(line.find(" held"))).collect();
    assert!(places.len() == 2 && places[0].is_some() && places[0] == places[1], "{shown}");
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let program = env!("CARGO_BIN_EXE_lockkeeper");
    let shown = |set: &[(&str, &str)]| {
        // A terminal of its own.
        let mut script = Command::new("script");
        let command = format!("{program} status {}", lock.display());
        script.args(["-qec", &command, "/dev/null"]).env_remove("NO_COLOR").env("TERM", "xterm");
        stdout(&output(script.envs(set.iter().copied())))
    };
    assert!(shown(&[]).contains("\u{1b}[32mfree\u{1b}[0m"), "{:?}", shown(&[]));
    for set in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        assert!(!shown(&[set]).contains('\u{1b}'), "{set:?}");
    }
    assert!(!stdout(&output(&mut status(&[&lock]))).contains('\u{1b}'), "to a pipe");
}
