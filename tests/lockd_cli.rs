//! `lockkeeper serve`, `lock`, `unlock` and `run --server`, as a user types them.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;
#[path = "remote_support/mod.rs"]
mod remote_support;

// What `cli_support` calls so.
use lockd_support::support;

use std::process::Command;

use cli_support::{STAY, lockkeeper, output, stderr, stdout};
use lockd_support::with_last_words;
use nix::sys::signal::Signal;
use remote_support::Daemon;
use support::{Process, eventually, on_tmpfs};

fn called(verb: &str, client: &str, daemon: &Daemon) -> (i32, String) {
    let mut command = lockkeeper();
    let output = output(command.args([verb, "resource1", client, "--server", &daemon.url]));
    assert_eq!(stdout(&output), "");
    (output.status.code().expect("it ends by itself"), stderr(&output))
}

/// `lockkeeper run --server … FLAGS… r -- sh -c script`.
fn run(daemon: &Daemon, flags: &[&str], script: &str) -> Command {
    let mut command = lockkeeper();
    command.args(["run", "--server", &daemon.url]).args(flags);
    command.args(["r", "--", "sh", "-c", script]);
    command
}

#[test]
fn lock_and_unlock_say_what_the_original_says() {
    for style in ["py3", "py2"] {
        let directory = on_tmpfs();
        let daemon = Daemon::start(directory.path(), &["--fault-style", style]);
        let said = |text: &str| (1, format!("lockkeeper: {text}\n"));
        let done = (0, String::new());
        assert_eq!(called("lock", "client1", &daemon), done);
        let path = directory.path().join("resource1.resource.lock");
        assert_eq!(std::fs::read_to_string(&path).expect("the lock"), "client1");
        let locked = said("Resource already locked by 'client1'");
        assert_eq!(called("lock", "client2", &daemon), locked);
        let locked = said("Resource locked by 'client1' cannot be unlocked by 'client2'");
        assert_eq!(called("unlock", "client2", &daemon), locked);
        assert_eq!(called("unlock", "client1", &daemon), done);
        assert!(!path.exists());
        assert_eq!(called("unlock", "client1", &daemon), said("Resource not locked"));
    }
}

#[test]
fn a_daemon_that_is_not_there_is_no_refusal() {
    let mut command = lockkeeper();
    let output = output(command.args(["lock", "r", "c", "--server", "http://127.0.0.1:1"]));
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains("http://127.0.0.1:1"), "{}", stderr(&output));
}

#[test]
fn run_passes_the_status_and_the_token_on() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let script = "echo $LOCKKEEPER_SERVER $LOCKKEEPER_RESOURCE $LOCKKEEPER_FENCING_TOKEN; exit 7";
    let output = output(&mut run(&daemon, &["--client", "me"], script));
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let said = stdout(&output);
    let said: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(said[..2], [daemon.url.as_str(), "r"]);
    assert!(said[2].parse::<u64>().expect("a number") > 0);
    assert!(daemon.shown("r").is_none());
    let output = cli_support::output(&mut run(&daemon, &[], "kill -KILL $$"));
    assert_eq!(output.status.code(), Some(128 + 9));
}

#[test]
fn run_keeps_others_out_and_passes_signals_on() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let script = "trap 'exit 5' USR1; echo @inside; while :; do sleep 0.1; done";
    let mut holder = Process::start(run(&daemon, &["--client", "the holder"], script));
    holder.expect("inside");
    let refused = output(&mut run(&daemon, &["--try"], "true"));
    assert_eq!(refused.status.code(), Some(73));
    assert!(stderr(&refused).contains("is held by the holder"), "{}", stderr(&refused));
    holder.signal(Signal::SIGUSR1);
    assert_eq!(holder.wait().code(), Some(5));
    assert!(daemon.shown("r").is_none());
}

#[test]
fn a_signal_ends_the_wait_and_leaves_no_queue_entry() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    let mut holder = Process::start(run(&daemon, &[], STAY));
    holder.expect("inside");
    let mut waiter = Process::start(run(&daemon, &[], "echo @never"));
    daemon.expect_waiting("r", 1);
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.wait().code(), Some(128 + 15));
    assert_eq!(daemon.waiting("r"), 0);
    assert_eq!(holder.wait().code(), Some(0));
    assert!(daemon.shown("r").is_none());
}

#[test]
fn the_command_is_ended_when_the_lock_is_lost() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let script = "trap 'echo @told; exit 0' TERM; echo @inside; while :; do sleep 0.1; done";
    let mut holder = Process::start(run(&daemon, &["--lease", "5s"], script));
    holder.expect("inside");
    daemon.kill();
    holder.expect("told");
    assert_eq!(holder.wait().code(), Some(74));
}

#[test]
fn a_run_outlives_a_restart_of_the_daemon() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let mut holder = Process::start(run(&daemon, &[], STAY));
    holder.expect("inside");
    let mut waiter = Process::start(run(&daemon, &[], "echo @second"));
    daemon.expect_waiting("r", 1);
    daemon.kill();
    daemon.restart();
    daemon.expect_waiting("r", 1);
    waiter.expect_quiet();
    assert_eq!(holder.wait().code(), Some(0));
    waiter.expect("second");
    assert_eq!(waiter.wait().code(), Some(0));
}

#[test]
fn options_of_a_file_and_of_a_daemon_do_not_mix() {
    let directory = on_tmpfs();
    let daemon = Daemon::start(directory.path(), &[]);
    for flags in [["--note", "x"], ["--tries", "3"], ["--pin", "never"]] {
        assert_eq!(cli_support::code(&mut run(&daemon, &flags, "true")), 64, "{flags:?}");
    }
    let file = directory.path().join("a.lock");
    assert_eq!(cli_support::code(&mut cli_support::run(&["--client", "me"], &file, "true")), 64);
    assert_eq!(cli_support::code(&mut cli_support::run(&["--lease", "1s"], &file, "true")), 64);
}

#[test]
fn sigterm_stops_the_daemon_though_somebody_waits() {
    let directory = on_tmpfs();
    let mut daemon = Daemon::start(directory.path(), &[]);
    let mut holder = Process::start(run(&daemon, &[], STAY));
    holder.expect("inside");
    let mut waiter = Process::start(run(&daemon, &[], "echo @second"));
    daemon.expect_waiting("r", 1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let path = directory.path().join("r.resource.lock");
    eventually("the lock is still held", || path.exists());
    daemon.restart();
    daemon.expect_waiting("r", 1);
    assert_eq!(holder.wait().code(), Some(0));
    waiter.expect("second");
    assert_eq!(waiter.wait().code(), Some(0));
}

#[test]
fn a_second_daemon_is_told_who_has_the_directory() {
    let directory = on_tmpfs();
    let _daemon = Daemon::start(directory.path(), &[]);
    let mut second = lockkeeper();
    second.args(["serve", "--listen", "127.0.0.1:0", "--dir"]).arg(directory.path());
    with_last_words(|| {
        let output = output(&mut second);
        assert_eq!(output.status.code(), Some(73), "{}", stderr(&output));
        let said = stderr(&output);
        if said.contains("is served by another daemon") { Ok(()) } else { Err(said) }
    });
}

#[test]
fn other_machines_are_not_served_by_accident() {
    let directory = on_tmpfs();
    let mut command = lockkeeper();
    command.args(["serve", "--listen", "0.0.0.0:0", "--dir"]).arg(directory.path());
    assert_eq!(output(&mut command).status.code(), Some(64));
}
