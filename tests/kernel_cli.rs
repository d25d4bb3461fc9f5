//! `lockkeeper run --kernel` beside flock(1), and `status --kernel`.

#![cfg(feature = "cli")]

mod cli_support;
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use cli_support::{code, holder, lockkeeper, output, run, stdout};
use support::{Process, names_in, on_tmpfs};

const FLOCK: [&str; 2] = ["--kernel", "flock"];

fn flock(flags: &[&str], lock: &Path, script: &str) -> Command {
    let mut command = Command::new("flock");
    command.args(flags).arg(lock).args(["sh", "-c", script]);
    command
}

fn with<'a>(kind: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    [&["--kernel", kind], flags].concat()
}

#[test]
fn the_command_runs_and_the_file_stays_as_it_was() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    fs::write(&lock, "the user's").unwrap();
    for kind in ["flock", "ofd"] {
        for status in [0, 1, 73, 255] {
            let script = format!("exit {status}");
            assert_eq!(code(&mut run(&with(kind, &[]), &lock, &script)), status);
        }
        assert_eq!(code(&mut run(&with(kind, &["-s"]), &lock, "kill -9 $$")), 137);
    }
    assert_eq!(names_in(directory.path()), ["a.lock"]);
    assert_eq!(fs::read_to_string(&lock).unwrap(), "the user's");
}

#[test]
fn we_and_flock_1_exclude_each_other() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let ours = holder(&FLOCK, &lock);
    assert_eq!(code(&mut flock(&["-n"], &lock, "true")), 1);
    assert_eq!(code(&mut flock(&["-w", "0.2", "-E", "5"], &lock, "true")), 5);
    drop(ours);
    let theirs = Process::start(flock(&[], &lock, cli_support::STAY));
    theirs.expect("inside");
    assert_eq!(code(&mut run(&with("flock", &["-n"]), &lock, "true")), 73);
    assert_eq!(code(&mut run(&with("flock", &["-n", "-E", "1"]), &lock, "true")), 1);
    assert_eq!(code(&mut run(&with("flock", &["-w", "0.2", "-E", "5"]), &lock, "true")), 5);
    assert_eq!(code(&mut run(&with("flock", &["-s", "-n"]), &lock, "true")), 73);
    let waiting = Process::start(run(&FLOCK, &lock, "echo @inside"));
    waiting.expect_quiet();
    drop(theirs);
    waiting.expect("inside");
}

#[test]
fn we_and_flock_1_share() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let ours = holder(&with("flock", &["--shared"]), &lock);
    assert_eq!(code(&mut flock(&["-n", "-s"], &lock, "true")), 0);
    assert_eq!(code(&mut flock(&["-n", "-x"], &lock, "true")), 1);
    let theirs = Process::start(flock(&["-s"], &lock, cli_support::STAY));
    theirs.expect("inside");
    drop(ours);
    assert_eq!(code(&mut run(&with("flock", &["-n", "-s"]), &lock, "true")), 0);
    assert_eq!(code(&mut run(&with("flock", &["-n"]), &lock, "true")), 73);
}

#[test]
fn the_command_keeps_the_lock_when_lockkeeper_is_killed() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    for kind in ["flock", "ofd"] {
        let script = "echo @$$; read line < gate";
        let gate = directory.path().join("gate");
        let _ = nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU);
        let mut command = run(&with(kind, &[]), &lock, script);
        command.current_dir(directory.path());
        let mut ours = Process::start(command);
        let _command = ours.next();
        ours.kill();
        let flags = with(kind, &["-n"]);
        assert_eq!(code(&mut run(&flags, &lock, "true")), 73, "{kind}");
        fs::write(&gate, "go\n").unwrap();
        assert_eq!(code(&mut run(&with(kind, &["-w", "60"]), &lock, "true")), 0);
    }
}

#[test]
fn status_tells_who_has_it() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let status = |kind: &str, flags: &[&str]| {
        let mut command = lockkeeper();
        output(command.arg("status").args(["--kernel", kind]).args(flags).arg(&lock))
    };
    let free = status("flock", &[]);
    assert_eq!(free.status.code(), Some(0));
    assert!(stdout(&free).ends_with(": free\n"));
    for kind in ["flock", "ofd"] {
        let mut ours = holder(&with(kind, &[]), &lock);
        let held = status(kind, &[]);
        assert_eq!(held.status.code(), Some(1));
        let text = stdout(&held);
        assert!(text.contains("it keeps the file locked") && !text.contains("foreign"), "{text}");
        if kind != "ofd" {
            assert!(text.contains(&format!("pid {}", ours.id())), "{text}");
        }
        let json = stdout(&status(kind, &["--json"]));
        assert!(json.contains(r#""state":"held""#) && json.contains(r#""foreign":null"#), "{json}");
        ours.hang_up();
        ours.wait();
    }
    assert_eq!(status("flock", &[]).status.code(), Some(0));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    for flags in [&["-s"][..], &["-E", "3"], &["--kernel", "flock", "--note", "x"]] {
        assert_eq!(code(&mut run(flags, &lock, "true")), 64, "{flags:?}");
    }
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn who_asks_for_a_posix_lock_is_told_to_use_ofd() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut status = lockkeeper();
    status.args(["status", "--kernel", "posix"]).arg(&lock);
    for mut command in [run(&with("posix", &[]), &lock, "true"), status] {
        let refused = output(&mut command);
        assert_eq!(refused.status.code(), Some(64));
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(text.contains("use --kernel ofd"), "{text}");
    }
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn a_daemon_that_the_command_starts_keeps_the_lock_as_under_flock_1() {
    let directory = on_tmpfs();
    let (lock, gate) = (directory.path().join("a.lock"), directory.path().join("gate"));
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("(exec >/dev/null 2>&1; read line < {}) &", gate.display());
    assert_eq!(code(&mut flock(&[], &lock, &script)), 0);
    assert_eq!(code(&mut flock(&["-n"], &lock, "true")), 1, "flock(1) itself");
    fs::write(&gate, "go\n").unwrap();
    for kind in ["flock", "ofd"] {
        for sharing in [&[][..], &["--shared"]] {
            let flags = with(kind, sharing);
            assert_eq!(code(&mut run(&[&flags[..], &["-w60"]].concat(), &lock, &script)), 0);
            let next = with(kind, &["-n"]);
            assert_eq!(code(&mut run(&next, &lock, "true")), 73, "{flags:?}");
            let mut waiting = Process::start(run(&with(kind, &[]), &lock, "echo @inside"));
            waiting.expect_quiet();
            fs::write(&gate, "go\n").unwrap();
            waiting.expect("inside");
            assert_eq!(waiting.wait().code(), Some(0));
        }
    }
}

#[test]
fn with_close_the_lock_ends_with_the_command() {
    let directory = on_tmpfs();
    let (lock, gate) = (directory.path().join("a.lock"), directory.path().join("gate"));
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("(exec >/dev/null 2>&1; read line < {}) &", gate.display());
    for flags in [with("flock", &["--close"]), with("flock", &["-o"]), with("ofd", &["-o"])] {
        assert_eq!(code(&mut run(&flags, &lock, &script)), 0);
        assert_eq!(code(&mut run(&with(flags[1], &["-n"]), &lock, "true")), 0, "{flags:?}");
        fs::write(&gate, "go\n").unwrap();
    }
}

#[test]
fn a_command_that_cannot_be_started_leaves_the_lock_free() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut command = lockkeeper();
    command.args(["run", "--kernel", "flock"]).arg(&lock).args(["--", "no-such-program"]);
    assert_eq!(code(&mut command), 127);
    assert_eq!(code(&mut run(&with("flock", &["-n"]), &lock, "true")), 0);
}
