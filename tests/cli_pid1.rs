//! `lockkeeper run` as process 1 of a container: it waits for orphans, has signals that
//! process 1 does not get by default, and ends as its command ends.

#![cfg(feature = "cli")]

mod cli_support;
mod support;

use cli_support::run;
use nix::sys::signal::Signal;
use support::{Process, eventually, in_a_pid_namespace, names_in, on_tmpfs};

/// Three orphans, and one that ends at the same time as the command.
const ORPHANS: &str = "for i in 1 2 3; do sh -c 'true & true & sleep 0.05 &'; done";

/// Says `@none` once nothing in this container is a zombie.
const NO_ZOMBIES: &str = "until ! grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; \
                          do sleep 0.02; done; echo @none";

#[test]
fn orphans_are_waited_for_while_the_command_runs_and_its_status_is_kept() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    for kind in [&[][..], &["--kernel", "flock"]] {
        let script = format!("{ORPHANS}; echo @orphans; read line; {NO_ZOMBIES}; exit 9");
        let Some(command) = in_a_pid_namespace(&run(kind, &lock, &script)) else { return };
        let mut wrapper = Process::start(command);
        wrapper.expect("orphans");
        wrapper.tell("look");
        wrapper.expect("none");
        assert_eq!(wrapper.wait().code(), Some(9), "{kind:?}");
        std::fs::remove_file(&lock).ok();
    }
}

#[test]
fn no_orphan_takes_the_commands_status_with_it() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    // Orphans end just before, at, and after the end of the command.
    let script = "for i in 1 2 3 4 5 6 7 8; do sh -c 'true & true &'; done; exit 42";
    for _ in 0..20 {
        let Some(command) = in_a_pid_namespace(&run(&[], &lock, script)) else { return };
        assert_eq!(Process::start(command).wait().code(), Some(42));
    }
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn orphans_that_a_shell_leaves_by_exec_are_waited_for_too() {
    let directory = on_tmpfs();
    let inner = run(&[], &directory.path().join("a.lock"), "echo @inside; read line");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "sleep 0.1 & exec \"$@\"", "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let mut wrapper = Process::start(command);
    wrapper.expect("inside");
    let children = format!("/proc/{0}/task/{0}/children", wrapper.id());
    eventually("only the command is its child", || {
        std::fs::read_to_string(&children).is_ok_and(|list| list.split_whitespace().count() == 1)
    });
    wrapper.hang_up();
    wrapper.wait();
}

#[test]
fn a_container_that_is_stopped_ends_by_its_command() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let script = "trap 'echo @stopping; exit 5' TERM; echo @inside; while :; do sleep 0.1; done";
    let Some(command) = in_a_pid_namespace(&run(&[], &lock, script)) else { return };
    let mut unshare = Process::start(command);
    unshare.expect("inside");
    let children = format!("/proc/{0}/task/{0}/children", unshare.id());
    let first = std::fs::read_to_string(children).expect("the first process of the container");
    let first = first.trim().parse().expect("one process");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), Signal::SIGTERM)
        .expect("it is there");
    unshare.expect("stopping");
    assert_eq!(unshare.wait().code(), Some(5));
    assert!(names_in(directory.path()).is_empty());
}
