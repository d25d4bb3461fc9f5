//! The command on Windows. `tests/wine/run.sh` runs it under wine elsewhere.

#![cfg(windows)]
#![allow(unsafe_code, reason = "nothing in std sends an event of the console")]

use std::io::{BufRead, BufReader, Write};
use std::os::windows::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What must happen, happens within this time, even on a machine that is busy.
const VERY_LONG: Duration = Duration::from_secs(60);

/// What must not happen would have happened within this time.
const QUIET: Duration = Duration::from_millis(400);

/// What CMD does: see [`roles`].
const ROLE: &str = "LOCKKEEPER_TEST_ROLE";

/// A file that CMD writes, line by line.
const LOG: &str = "LOCKKEEPER_TEST_LOG";

/// A file that says that all are to end.
const END: &str = "end";

/// Not a test: this program as CMD.
#[test]
#[allow(clippy::zombie_processes, reason = "one is to be left behind")]
fn roles() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.split_once(' ').unwrap_or((&role, "")) {
        ("console", _) => send_events(),
        ("exit", "at-break") => exit_at_break(),
        ("exit", code) => std::process::exit(code.parse::<u32>().unwrap() as i32),
        ("environment", name) => log(&std::env::var(name).unwrap_or_default()),
        ("stay", _) => stay(),
        ("leave", _) => {
            let mut background = player("stay", &log_path());
            background.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            background.spawn().unwrap();
        }
        other => panic!("{other:?} is no role"),
    }
}

fn log_path() -> PathBuf {
    std::env::var_os(LOG).unwrap().into()
}

fn log(line: &str) {
    let mut file = std::fs::OpenOptions::new();
    let mut file = file.create(true).append(true).open(log_path()).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Until its place is given up: a line now and then says that it is there.
fn stay() {
    let (since, end) = (Instant::now(), log_path().with_file_name(END));
    while !end.exists() && since.elapsed() < 2 * VERY_LONG {
        log("here");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// This program in a role.
fn player(role: &str, log: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(player_words()).env(ROLE, role).env(LOG, log);
    command
}

fn player_words() -> [&'static str; 4] {
    ["roles", "--exact", "--nocapture", "--test-threads=1"]
}

/// A directory for a lock and for the log of CMD.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn lock(&self) -> PathBuf {
        self.0.path().join("a.lock")
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// `lockkeeper WORDS… LOCK`.
    fn command(&self, words: &[&str]) -> Command {
        let deps = std::env::current_exe().unwrap();
        let program = deps.parent().unwrap().parent().unwrap().join("lockkeeper.exe");
        let mut command = Command::new(program);
        command.args(words).arg(self.lock());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env(LOG, self.log());
        command
    }

    /// `lockkeeper run OPTIONS… LOCK -- CMD`, where CMD is this program in a role.
    fn run(&self, options: &[&str], role: &str) -> Command {
        let mut command = self.command(&[&["run"], options].concat());
        command.arg("--").arg(std::env::current_exe().unwrap()).args(player_words());
        command.env(ROLE, role);
        command
    }

    /// `run` whose CMD is there.
    fn running(&self, options: &[&str]) -> Running {
        let child = self.run(options, "stay").stdout(Stdio::null()).spawn().unwrap();
        let running = Running(child);
        until(|| !self.lines().is_empty());
        running
    }

    /// CMD still writes lines.
    fn is_written_to(&self) -> bool {
        let before = self.lines().len();
        let since = Instant::now();
        while since.elapsed() < QUIET {
            if self.lines().len() > before {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn status(&self) -> (Option<i32>, String) {
        said(self.command(&["status"]).output().unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The directory cannot be removed while CMD has its log open.
        let _ = std::fs::write(self.0.path().join(END), "");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A process, ended when dropped.
struct Running(Child);

impl Running {
    fn end(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < VERY_LONG, "it never happened");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn said(output: Output) -> (Option<i32>, String) {
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_exit_code_of_the_command_is_passed_on_whole() {
    let place = Place::new();
    for code in [0, 3, 255, 300, 0xC000_0005_u32] {
        let (found, text) = said(place.run(&[], &format!("exit {code}")).output().unwrap());
        assert_eq!(found, Some(code as i32), "{text}");
    }
    let mut missing = place.command(&["run"]);
    missing.args(["--", "there-is-no-such-program"]);
    let (code, text) = said(missing.output().unwrap());
    assert_eq!(code, Some(127), "{text}");
    assert_eq!(place.status().0, Some(0));
}

#[test]
fn the_command_knows_its_lock() {
    let place = Place::new();
    let ran = place.run(&[], "environment LOCKKEEPER_PATH").status().unwrap();
    assert!(ran.success());
    assert_eq!(place.lines(), [place.lock().to_string_lossy()]);
}

#[test]
fn one_command_runs_at_a_time_and_its_holder_is_shown() {
    let place = Place::new();
    let mut running = place.running(&["--note", "the first"]);
    let (code, text) = place.status();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("held") && text.contains("the first"), "{text}");
    let (code, text) = said(place.run(&["--try"], "exit 0").output().unwrap());
    assert_eq!(code, Some(73), "{text}");
    assert!(text.contains(&running.0.id().to_string()), "{text}");
    let (code, text) = said(place.command(&["break"]).output().unwrap());
    assert_eq!(code, Some(1), "{text}");
    running.end();
}

#[test]
fn a_command_does_not_outlive_the_lock_that_a_kill_ended() {
    let place = Place::new();
    let mut running = place.running(&[]);
    running.end();
    until(|| !place.is_written_to());
    let (code, text) = place.status();
    assert!(code == Some(0) && text.contains("stale"), "{text}");
    std::fs::remove_file(place.log()).unwrap();
    let ran = place.run(&[], "environment LOCKKEEPER_RECOVERED_PID").status().unwrap();
    assert!(ran.success());
    assert_eq!(place.lines(), [running.0.id().to_string()]);
}

#[test]
fn with_close_a_command_outlives_it() {
    let place = Place::new();
    let mut running = place.running(&["--close"]);
    running.end();
    assert!(place.is_written_to());
    let (code, text) = said(place.command(&["break"]).output().unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert!(place.status().1.contains("free"));
}

#[test]
fn what_the_command_left_running_goes_on_without_the_lock() {
    let place = Place::new();
    assert!(place.run(&[], "leave").stdout(Stdio::null()).status().unwrap().success());
    assert!(place.status().1.contains("free"));
    until(|| place.is_written_to());
}

#[test]
fn a_lock_that_is_given_up_ends_the_command() {
    let place = Place::new();
    let mut running = place.running(&[]);
    let (code, text) = said(place.command(&["break", "--revoke"]).output().unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(running.0.wait().unwrap().code(), Some(74));
    assert!(!place.is_written_to());
    assert!(place.status().1.contains("free"));
}

#[test]
fn a_waiter_is_next_when_the_command_ends() {
    let place = Place::new();
    let mut first = place.running(&[]);
    let waiting = place.run(&["--quiet", "--retry-period", "1h"], "exit 5").spawn().unwrap();
    std::thread::sleep(QUIET);
    first.end();
    assert_eq!(waiting.wait_with_output().unwrap().status.code(), Some(5));
}

#[test]
fn each_change_is_printed_as_it_comes() {
    let place = Place::new();
    let watching = place.command(&["status", "--watch"]).stderr(Stdio::null()).spawn().unwrap();
    let mut watching = Running(watching);
    let lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.next().unwrap().contains("free"));
    let mut running = place.running(&[]);
    assert!(lines.any(|line| line.contains("held")));
    running.end();
    assert!(lines.any(|line| line.contains("stale")));
}

/// In a process with a console of its own: the events would reach all of this one's.
#[test]
fn ctrl_break_ends_the_wait_and_not_a_command() {
    const NO_WINDOW: u32 = 0x0800_0000;
    let place = Place::new();
    let output = player("console", &place.log()).creation_flags(NO_WINDOW).output().unwrap();
    let (code, text) = said(output);
    if std::env::var_os(WINE).is_some() && text.contains(NO_EVENTS) {
        println!("skipped: this wine sends no events of a console");
        return;
    }
    assert_eq!(code, Some(0), "{text}");
}

/// Set by `tests/wine/run.sh`.
const WINE: &str = "LOCKKEEPER_WINE";

const NO_EVENTS: &str = "the event could not be sent";

/// `lockkeeper` waits, is sent an event, and ends by it. Another goes on until its CMD,
/// which the event reaches as well, has ended.
fn send_events() {
    let place = Place::new();
    let mut holder = place.running(&[]);
    let mut waiting = Running(place.run(&[], "exit 0").creation_flags(NEW_GROUP).spawn().unwrap());
    let told = BufReader::new(waiting.0.stderr.take().unwrap()).lines().next();
    assert!(told.unwrap().unwrap().contains("waiting for"));
    send_break(&waiting);
    assert_eq!(waiting.0.wait().unwrap().code(), Some(128 + 21));
    assert_eq!(place.status().0, Some(1));
    holder.end();

    let place = Place::new();
    let mut running = place.run(&[], "exit at-break");
    let mut running = Running(running.creation_flags(NEW_GROUP).spawn().unwrap());
    until(|| !place.lines().is_empty());
    send_break(&running);
    assert_eq!(running.0.wait().unwrap().code(), Some(7));
}

const NEW_GROUP: u32 = 0x200;

fn send_break(to: &Running) {
    const CTRL_BREAK: u32 = 1;
    unsafe extern "system" {
        fn GenerateConsoleCtrlEvent(event: u32, group: u32) -> i32;
    }
    // SAFETY: it takes no pointer.
    let sent = unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK, to.0.id()) };
    assert!(sent != 0, "{NO_EVENTS}: {}", std::io::Error::last_os_error());
}

/// Log a line, and end with 7 when the console's event comes.
fn exit_at_break() {
    unsafe extern "system" {
        fn SetConsoleCtrlHandler(handler: extern "system" fn(u32) -> i32, add: i32) -> i32;
    }
    extern "system" fn end(_: u32) -> i32 {
        std::process::exit(7)
    }
    // SAFETY: the handler is there as long as this process is.
    assert!(unsafe { SetConsoleCtrlHandler(end, 1) } != 0);
    stay();
}

#[test]
fn what_windows_cannot_do_is_refused() {
    let place = Place::new();
    for (options, code, why) in [
        (["--openlock-compat"].as_slice(), 69, "on Windows a program is called as its file is"),
        (&["--kernel", "ofd"], 64, "choose Primitive::Flock"),
    ] {
        let (found, text) = said(place.run(options, "exit 0").output().unwrap());
        assert_eq!(found, Some(code), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn a_kernel_lock_excludes_as_well() {
    let place = Place::new();
    let mut running = place.running(&["--kernel", "flock"]);
    let try_it = ["--try", "--kernel", "flock"];
    assert_eq!(place.run(&try_it, "exit 0").output().unwrap().status.code(), Some(73));
    running.end();
    until(|| !place.is_written_to());
    assert_eq!(place.run(&try_it, "exit 0").output().unwrap().status.code(), Some(0));
}
