//! `lockkeeper run` and signals that were ignored or blocked when it started: as under
//! flock(1), with and without `/proc`. And what starts as a command at all.

#![cfg(feature = "cli")]

mod cli_support;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cli_support::{code, lockkeeper, output, run, stderr, stdout};
use nix::sys::signal::Signal;
use support::{Process, on_tmpfs};

/// The ways to hold a lock that need no daemon.
const KINDS: [&[&str]; 3] =
    [&[], &["--kernel", "flock"], &["--openlock-compat", "--race-delay", "20ms"]];

/// What a command sees of the signals it inherited.
const SHOW: &str = "grep -E '^Sig(Ign|Blk)' /proc/self/status";

/// `inner` with signals set by env(1), which has set all others to their defaults.
fn with_signals(settings: &[&str], inner: &Command) -> Command {
    let words = [inner.get_program()].into_iter().chain(inner.get_args());
    let mut words = words.map(|word| word.to_owned());
    let mut command = Command::new(words.next().expect("env"));
    command.arg(words.next().expect("--default-signal")).args(settings).args(words);
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Blocked and ignored signals, by `SHOW`. The C library's own two, 32 and 33, are left
/// out: its `posix_spawn` ignores them, and its threads set them anew.
fn inherited(command: &mut Command) -> Vec<u64> {
    let output = output(command);
    let text = stdout(&output);
    let masks = text.lines().map(|line| line.split_whitespace().nth(1).expect("a mask"));
    let masks = masks.map(|mask| u64::from_str_radix(mask, 16).expect("a mask") & !(0b11 << 31));
    let masks: Vec<_> = masks.collect();
    assert_eq!(masks.len(), 2, "{text} {}", stderr(&output));
    masks
}

fn flock(lock: &Path, script: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", "flock"]).arg(lock).args(["sh", "-c", script]);
    command
}

/// The command in a mount namespace where `/proc` is not mounted. `None`, said clearly,
/// where that is not allowed.
fn without_proc(inner: &Command) -> Option<Command> {
    let hide = "mount --bind \"$0\" /proc && exec \"$@\"";
    let empty = env!("CARGO_TARGET_TMPDIR").to_owned() + "/no-proc";
    fs::create_dir_all(&empty).expect("an empty directory");
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", hide, &empty]);
        command
    };
    let is_allowed = unshare().arg("true").output().is_ok_and(|tried| tried.status.success());
    if !is_allowed {
        eprintln!("SKIPPED: this user may not hide /proc (unshare -m)");
        return None;
    }
    let mut command = unshare();
    command.arg(inner.get_program()).args(inner.get_args());
    Some(command)
}

#[test]
fn the_command_inherits_what_it_inherits_under_flock_1() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let settings: [&[&str]; 7] = [
        &[],
        &["--ignore-signal=PIPE"],
        &["--ignore-signal=HUP"],
        &["--ignore-signal=CHLD"],
        &["--ignore-signal=PIPE,HUP,INT,QUIT,TERM,USR1,USR2,ALRM"],
        &["--block-signal=USR2"],
        &["--block-signal=PIPE", "--ignore-signal=PIPE"],
    ];
    for set in settings {
        let other = directory.path().join("b.lock");
        let expected = inherited(&mut with_signals(set, &flock(&other, SHOW)));
        for kind in KINDS {
            let found = inherited(&mut with_signals(set, &run(kind, &lock, SHOW)));
            assert_eq!(found, expected, "{set:?} {kind:?}");
        }
    }
}

#[test]
fn a_hangup_that_is_ignored_ends_nothing_with_and_without_proc() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let inner = run(&[], &lock, "echo @ready; read line; exit 7");
    let mut inner = with_signals(&["--ignore-signal=HUP"], &inner);
    for name in ["LOCKKEEPER_PATH", "LOCKKEEPER_HOLD_ID"] {
        inner.env_remove(name);
    }
    let commands = [without_proc(&inner), Some(inner)];
    for (command, is_seen) in commands.into_iter().zip([false, true]) {
        let Some(command) = command else { continue };
        let mut wrapper = Process::start(command);
        wrapper.expect("ready");
        wrapper.signal(Signal::SIGHUP);
        // Whatever it did with that, it did before it sees the end of the command.
        assert_eq!(wrapper.wait().code(), Some(7), "/proc is mounted: {is_seen}");
    }
}

#[test]
fn a_pipeline_whose_reader_is_gone_ends_quietly_unless_sigpipe_was_ignored() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    // `$?` of a writer: 141 by SIGPIPE, else what it makes of EPIPE.
    let script = "{ sleep 0.1; printf x; } 2>/dev/null";
    for (set, expected) in [(&[][..], 141), (&["--ignore-signal=PIPE"][..], 1)] {
        // The programs of other tests do not inherit it.
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        drop(reader);
        let mut command = with_signals(set, &run(&[], &lock, &format!("{script}; exit $?")));
        let status = command.stdout(writer).status().expect("lockkeeper runs");
        assert_eq!(status.code(), Some(expected), "{set:?}");
    }
}

/// A script without `#!`, as crontabs have them.
fn script(directory: &Path, name: &str) {
    let path = directory.join(name);
    fs::write(&path, "echo \"$0 $*\"; exit 3\n").expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable one");
}

#[test]
fn a_script_without_an_interpreter_line_is_run_as_flock_1_runs_it() {
    let (directory, scripts) = (on_tmpfs(), on_tmpfs());
    script(scripts.path(), "job");
    let path = std::env::var("PATH").expect("a path");
    let path = format!("/does/not/exist:{}:{path}", scripts.path().display());
    for program in ["./job", "job", &scripts.path().join("job").display().to_string()] {
        let started = |mut command: Command| {
            command.args([program, "a b", "-c"]);
            let output = output(command.current_dir(scripts.path()).env("PATH", &path));
            (output.status.code(), stdout(&output))
        };
        let mut theirs = Command::new("flock");
        theirs.arg(directory.path().join("f"));
        let expected = started(theirs);
        assert_eq!(expected.0, Some(3), "{expected:?}");
        for kind in [&[][..], &["--kernel", "flock"], &["--kernel", "ofd"]] {
            let mut ours = lockkeeper();
            ours.arg("run").args(kind).arg(directory.path().join("a.lock")).arg("--");
            assert_eq!(started(ours), expected, "{program} {kind:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_executable_is_no_script() {
    let directory = on_tmpfs();
    fs::write(directory.path().join("job"), "exit 3").expect("a file");
    let mut command = lockkeeper();
    command.args(["run", "a.lock", "--", "./job"]).current_dir(directory.path());
    assert_eq!(code(&mut command), 126);
}
