//! `lockkeeper run`: exit codes, signals, a lost lock, and a lock that lasts as long as the command.

#![cfg(feature = "cli")]

mod cli_support;
mod support;

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cli_support::{code, holder, lockkeeper, output, run, stderr, stdout, text, waiter};
use nix::sys::signal::Signal;
use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use support::{Process, eventually, names_in, on_tmpfs, player, role, tell};

const FORWARDED: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

#[test]
fn the_exit_status_is_passed_on_exactly() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    for status in [0, 1, 2, 64, 73, 125, 200, 255] {
        assert_eq!(code(&mut run(&[], &lock, &format!("exit {status}"))), status);
    }
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn a_command_ended_by_a_signal_gives_128_plus_its_number() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    for number in [2, 9, 10, 15] {
        assert_eq!(code(&mut run(&[], &lock, &format!("kill -{number} $$"))), 128 + number);
    }
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn an_inherited_ignored_sigchld_does_not_cost_the_exit_status() {
    let directory = on_tmpfs();
    let inner = run(&[], &directory.path().join("a.lock"), "exit 7");
    assert_eq!(code(&mut ignoring("CHLD", &inner)), 7);
}

/// A command of `lockkeeper`, started with a signal ignored, by env(1).
fn ignoring(signal: &str, inner: &Command) -> Command {
    let [defaults, rest @ ..] = &inner.get_args().collect::<Vec<_>>()[..] else {
        panic!("no command to start");
    };
    let mut command = Command::new("env");
    command.arg(defaults).arg(format!("--ignore-signal={signal}")).args(rest);
    with_environment_of(inner, command)
}

fn with_environment_of(inner: &Command, mut command: Command) -> Command {
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

#[test]
fn a_lock_not_had_in_time_is_73_and_the_holder_is_named() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let holder = holder(&["--note", "nightly import"], &lock);
    for flags in [&["--try"][..], &["--timeout", "150ms"], &["--timeout", "0.05"]] {
        let output = output(&mut run(flags, &lock, "echo never"));
        assert_eq!(output.status.code(), Some(73), "{flags:?}");
        assert_eq!(stdout(&output), "", "{flags:?}");
        let by = format!("held by sh (pid {} ", holder.id());
        assert!(stderr(&output).contains(&by), "{flags:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("nightly import"), "{flags:?}: {}", stderr(&output));
    }
}

#[test]
fn waits_for_the_holder_and_says_so_in_one_line() {
    let directory = on_tmpfs();
    let (lock, log) = (directory.path().join("a.lock"), directory.path().join("log"));
    let mut holder = holder(&[], &lock);
    let mut next = waiter(&["--timeout", "1h"], &lock, "echo @next; exit 5", &log);
    next.expect_quiet();
    holder.hang_up();
    next.expect("next");
    assert_eq!(next.wait().code(), Some(5));
    let said = text(&log);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!("held by sh (pid {} ", holder.id())), "{said}");
    assert_eq!(names_in(directory.path()), ["log"]);
}

#[test]
fn a_signal_ends_the_wait_with_128_plus_its_number_and_leaves_nothing() {
    let directory = on_tmpfs();
    let (lock, log) = (directory.path().join("a.lock"), directory.path().join("log"));
    let mut holder = holder(&[], &lock);
    for signal in FORWARDED {
        let mut waiter = waiter(&[], &lock, "echo @never", &log);
        waiter.signal(signal);
        assert_eq!(waiter.wait().code(), Some(128 + signal as i32), "{signal}");
        assert_eq!(names_in(directory.path()), ["a.lock", "log"], "{signal}");
    }
    holder.hang_up();
    assert_eq!(holder.wait().code(), Some(0));
    assert_eq!(names_in(directory.path()), ["log"]);
}

#[test]
fn no_moment_between_lock_and_release_lets_a_signal_leave_the_file() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let (mut ended_by_signal, mut delay) = (0, Duration::ZERO);
    for round in 0.. {
        if round >= 60 && ended_by_signal > 0 {
            break;
        }
        assert!(round < 400, "no signal came while it watched");
        let mut wrapper = Process::start(run(&[], &lock, "exec sleep 0.01"));
        std::thread::sleep(delay);
        wrapper.signal(Signal::SIGTERM);
        let status = wrapper.wait();
        // None: it had not got as far as watching signals, nor the lock.
        assert!(matches!(status.code(), None | Some(0 | 143)), "round {round}: {status}");
        ended_by_signal += u32::from(status.code() == Some(143));
        assert!(names_in(directory.path()).is_empty(), "round {round}: {status}");
        // After those, on a slow machine: look for the time in which it watches.
        delay = match status.code() {
            _ if round < 60 => delay + Duration::from_micros(300),
            Some(0) => delay / 2,
            _ => delay + delay / 8,
        };
    }
}

/// The part of a command that tells which signals it gets, and from whom.
fn tell_signals() {
    let watched = [SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2];
    let watched: Vec<i32> = match std::env::var("HANGUP_IS_IGNORED") {
        Ok(_) => watched.into_iter().filter(|&signal| signal != SIGHUP).collect(),
        Err(_) => watched.into(),
    };
    let mut signals = SignalsInfo::<WithOrigin>::new(watched).expect("signals");
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    tell("ready");
    for origin in signals.forever() {
        let sender = if origin.process.is_some() { "a process" } else { "the kernel" };
        tell(&format!("{} from {sender}", origin.signal));
    }
}

/// The test that plays `tell_signals` for all.
const PLAYER: &str = "a_signal_from_a_process_reaches_the_command_once";

/// `lockkeeper run FLAGS… lock` around `tell_signals`.
fn run_telling_signals(flags: &[&str], lock: &Path) -> Command {
    let player = player(PLAYER, "command", lock);
    let mut command = lockkeeper();
    command.arg("run").args(flags).arg(lock).arg("--");
    command.arg(player.get_program()).args(player.get_args());
    for (name, value) in player.get_envs() {
        command.env(name, value.expect("a value"));
    }
    command
}

#[test]
fn a_signal_from_a_process_reaches_the_command_once() {
    if role().is_some() {
        return tell_signals();
    }
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut wrapper = Process::start(run_telling_signals(&[], &lock));
    wrapper.expect("ready");
    for signal in FORWARDED {
        wrapper.signal(signal);
        wrapper.expect(&format!("{} from a process", signal as i32));
    }
    wrapper.expect_quiet();
    wrapper.hang_up();
    assert_eq!(wrapper.wait().code(), Some(0));
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn a_hangup_is_passed_on_though_the_session_began_in_another_pid_namespace() {
    let directory = on_tmpfs();
    let inner = run(&[], &directory.path().join("a.lock"), "echo @ready; exec sleep 60");
    let mut command = Command::new("sh");
    command.args(["-c", r#""$@" & read line; kill -HUP $!; wait $!; echo "@$?""#, "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let Some(command) = support::in_a_pid_namespace(&command) else { return };
    let mut wrapper = Process::start(command);
    wrapper.expect("ready");
    wrapper.tell("hang up");
    wrapper.expect("129");
    assert!(wrapper.wait().success());
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn an_interrupt_typed_at_the_terminal_reaches_the_command_once() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut terminal =
        Process::start(on_a_terminal(&run_telling_signals(&[], &lock), Path::new("/dev/null")));
    assert_eq!(terminal.next().trim_end(), "ready");
    for (key, signal) in [("\x03", SIGINT), ("\x1c", SIGQUIT)] {
        terminal.tell(key);
        assert_eq!(terminal.next().trim_end(), format!("{signal} from the kernel"));
        terminal.expect_quiet();
    }
    terminal.tell("\x04");
    assert_eq!(terminal.wait().code(), Some(0));
    eventually("the lock is released", || names_in(directory.path()).is_empty());
}

/// The command with a terminal of its own, by script(1); what it prints there
/// goes to `log` as well.
fn on_a_terminal(inner: &Command, log: &Path) -> Command {
    let words = std::iter::once(inner.get_program()).chain(inner.get_args());
    let words: Vec<_> = words
        .map(|word| format!("'{}'", word.to_str().expect("text").replace('\'', r"'\''")))
        .collect();
    let mut command = Command::new("script");
    command.args(["-qfe", "-c", &format!("exec {}", words.join(" "))]).arg(log);
    command.env("SHELL", "/bin/sh").env("TERM", "xterm");
    with_environment_of(inner, command)
}

#[test]
fn an_interrupt_typed_during_the_wait_ends_it_and_clears_its_line() {
    let directory = on_tmpfs();
    let (lock, log) = (directory.path().join("a.lock"), directory.path().join("log"));
    let holder = holder(&[], &lock);
    let mut terminal = Process::start(on_a_terminal(&run(&[], &lock, "echo never"), &log));
    let named = format!("held by sh (pid {} ", holder.id());
    eventually("the line names the holder", || text(&log).contains(&named));
    terminal.tell("\x03");
    assert_eq!(terminal.wait().code(), Some(130));
    let said = text(&log);
    let after_line = said.rsplit_once(&named).expect("the line").1;
    assert!(after_line.contains("\x1b[2K"), "the line is cleared: {after_line:?}");
    assert!(said.lines().all(|line| line.trim() != "never"), "{said}");
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let inner = run_telling_signals(&[], &lock);
    let mut command = ignoring("HUP", &inner);
    command.env("HANGUP_IS_IGNORED", "yes");
    let mut wrapper = Process::start(command);
    wrapper.expect("ready");
    wrapper.signal(Signal::SIGHUP);
    wrapper.expect_quiet();
    wrapper.signal(Signal::SIGUSR1);
    wrapper.expect("10 from a process");
    wrapper.hang_up();
    assert_eq!(wrapper.wait().code(), Some(0));
}

#[test]
fn a_killed_wrapper_lets_nobody_in_until_its_command_is_gone() {
    let directory = on_tmpfs();
    let (lock, log) = (directory.path().join("a.lock"), directory.path().join("log"));
    let mut wrapper = holder(&[], &lock);
    let tells = "echo \"@$LOCKKEEPER_RECOVERED_PID $LOCKKEEPER_RECOVERED_FROM\"";
    let mut next = waiter(&[], &lock, tells, &log);
    wrapper.kill();
    next.expect_quiet();
    assert_eq!(code(&mut run(&["--try"], &lock, "true")), 73);
    wrapper.hang_up();
    let told = next.next();
    let expected = format!("{id} sh (pid {id} ", id = wrapper.id());
    assert!(told.starts_with(&expected), "{told}");
    assert_eq!(next.wait().code(), Some(0));
    assert_eq!(names_in(directory.path()), ["log"]);
}

#[test]
fn the_lock_ends_with_the_command_though_a_grandchild_still_has_the_descriptor() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut wrapper = Process::start(run(&[], &lock, "exec 3<&0; cat <&3 & echo @inside"));
    wrapper.expect("inside");
    eventually("the wrapper ended", || code(&mut run(&["--try"], &lock, "true")) == 0);
    wrapper.hang_up();
    wrapper.wait();
}

#[test]
fn with_close_a_killed_wrapper_lets_the_next_one_in_at_once() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut wrapper = holder(&["--close"], &lock);
    wrapper.kill();
    let output = output(&mut run(&["--try"], &lock, "echo $LOCKKEEPER_RECOVERED_PID"));
    assert_eq!(stdout(&output), format!("{}\n", wrapper.id()));
}

#[test]
fn a_lost_lock_is_told_to_the_command_by_sigterm_and_gives_74() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut wrapper = Process::start(run_telling_signals(&["--retry-period", "50ms"], &lock));
    wrapper.expect("ready");
    fs::remove_file(&lock).unwrap();
    wrapper.expect("15 from a process");
    wrapper.hang_up();
    assert_eq!(wrapper.wait().code(), Some(74));
}

#[test]
fn a_command_that_goes_on_after_sigterm_is_killed_when_the_lock_is_lost() {
    let directory = on_tmpfs();
    let (lock, log) = (directory.path().join("a.lock"), directory.path().join("log"));
    let mut command = run_telling_signals(&["--retry-period", "50ms"], &lock);
    command.stderr(File::create(&log).unwrap());
    let mut wrapper = Process::start(command);
    wrapper.expect("ready");
    fs::remove_file(&lock).unwrap();
    wrapper.expect("15 from a process");
    eventually("it is killed", || text(&log).contains("did not end after SIGTERM: killed"));
    assert_eq!(wrapper.wait().code(), Some(74));
}

#[test]
fn on_lost_ignore_only_says_so() {
    let directory = on_tmpfs();
    let (lock, log) = (directory.path().join("a.lock"), directory.path().join("log"));
    let flags = ["--on-lost", "ignore", "--retry-period", "50ms"];
    let mut command = run_telling_signals(&flags, &lock);
    command.stderr(File::create(&log).unwrap());
    let mut wrapper = Process::start(command);
    wrapper.expect("ready");
    fs::remove_file(&lock).unwrap();
    eventually("it says so", || text(&log).contains("was lost: its file was removed"));
    wrapper.expect_quiet();
    wrapper.hang_up();
    assert_eq!(wrapper.wait().code(), Some(0));
    assert_eq!(text(&log).lines().count(), 1, "{}", text(&log));
}

#[test]
fn a_loss_that_shows_only_at_the_release_is_told() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let script = "rm \"$LOCKKEEPER_PATH\"";
    assert_eq!(code(&mut run(&["--retry-period", "1h"], &lock, script)), 74);
    assert_eq!(code(&mut run(&["--retry-period", "1h", "--on-lost", "ignore"], &lock, script)), 0);
}

#[test]
fn the_environment_tells_path_and_token_and_of_no_recovery_that_was_none() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let script = "grep -c \"^token: $LOCKKEEPER_HOLD_ID$\" \"$LOCKKEEPER_PATH\"; \
                  echo \"${LOCKKEEPER_RECOVERED_FROM-none} ${LOCKKEEPER_RECOVERED_PID-none}\"";
    let mut command = run(&[], Path::new("a.lock"), script);
    command.current_dir(directory.path());
    command.env("LOCKKEEPER_RECOVERED_FROM", "old").env("LOCKKEEPER_RECOVERED_PID", "1");
    assert_eq!(stdout(&output(&mut command)), "1\nnone none\n");
    let output = output(&mut run(&[], &lock, "echo $LOCKKEEPER_PATH"));
    assert_eq!(stdout(&output).trim_end().as_bytes(), lock.as_os_str().as_bytes());
}

#[test]
fn a_hostile_record_cannot_keep_the_command_from_starting() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let token = "0".repeat(32);
    fs::write(&lock, format!("1\nx\ntoken: {token}\npin: flock\nlocal: yes\nnote: a\0b\x1b[2J\n"))
        .unwrap();
    let output = output(&mut run(&[], &lock, "echo \"$LOCKKEEPER_RECOVERED_FROM\""));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = stdout(&output);
    assert!(told.starts_with("x (pid 1)"), "{told:?}");
    assert!(!told.trim_end().chars().any(char::is_control), "{told:?}");
}

#[test]
fn what_is_not_a_lock_file_is_65_and_untouched() {
    let directory = on_tmpfs();
    let data = directory.path().join("data.db");
    fs::write(&data, "precious").unwrap();
    let output = output(&mut run(&[], &data, "echo never"));
    assert_eq!((output.status.code(), stdout(&output)), (Some(65), String::new()));
    assert_eq!(fs::read(&data).unwrap(), b"precious");
}

#[test]
fn bad_usage_is_64_and_help_is_0() {
    let bad: [&[&str]; 10] = [
        &[],
        &["walk"],
        &["run"],
        &["run", "a.lock"],
        &["run", "a.lock", "--"],
        &["run", "a.lock", "true"],
        &["run", "--try", "--timeout", "1s", "a.lock", "--", "true"],
        &["run", "--timeout", "5 parsecs", "a.lock", "--", "true"],
        &["run", "--note", "two\nlines", "a.lock", "--", "true"],
        &["run", "directory/", "--", "true"],
    ];
    let directory = on_tmpfs();
    for arguments in bad {
        let mut command = lockkeeper();
        command.args(arguments).current_dir(directory.path());
        assert_eq!(code(&mut command), 64, "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"]] {
        assert_eq!(code(lockkeeper().args(arguments)), 0, "{arguments:?}");
    }
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn a_command_without_dashes_before_it_gets_a_tip() {
    let tip = "write `--` before the command";
    let said = |arguments: &[&str]| stderr(&output(lockkeeper().args(arguments)));
    assert!(said(&["run", "a.lock", "true"]).contains(tip));
    assert!(!said(&["run", "a.lock", "--wrong"]).contains(tip));
    assert!(!said(&["break", "a.lock", "b.lock"]).contains(tip));
}

#[test]
fn an_unknown_log_level_is_told_once_and_ends_nothing() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    for (level, times) in [("loud", 1), ("debug", 0), ("", 0)] {
        let mut command = run(&["--openlock-compat", "--race-delay", "50ms"], &lock, "exit 3");
        let said = output(command.env("LOCKKEEPER_LOG", level));
        assert_eq!(said.status.code(), Some(3));
        assert_eq!(stderr(&said).matches("LOCKKEEPER_LOG").count(), times, "{}", stderr(&said));
    }
}

#[test]
fn what_the_system_refuses_is_69() {
    let directory = on_tmpfs();
    assert_eq!(code(&mut run(&[], &directory.path().join("missing/a.lock"), "true")), 69);
}

#[test]
fn a_command_that_cannot_be_started_is_126_or_127_and_the_lock_is_released() {
    let directory = on_tmpfs();
    let (lock, text) = (directory.path().join("a.lock"), directory.path().join("text"));
    fs::write(&text, "not a program").unwrap();
    for (program, expected) in [(text.as_path(), 126), (Path::new("no-such-program"), 127)] {
        let mut command = lockkeeper();
        command.arg("run").arg(&lock).arg("--").arg(program);
        let output = output(&mut command);
        assert_eq!(output.status.code(), Some(expected), "{program:?}");
        assert!(stderr(&output).contains(program.to_str().unwrap()), "{}", stderr(&output));
        assert_eq!(names_in(directory.path()), ["text"]);
    }
}

#[test]
fn openlock_compat_makes_the_wrapper_visible_and_keeps_the_arguments() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let script = "sed -n 2p \"$LOCKKEEPER_PATH\"; tr '\\0' ' ' < /proc/$PPID/cmdline; exit 9";
    let output = output(&mut run(&["--openlock-compat", "--race-delay", "50ms"], &lock, script));
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(
        said.starts_with("python-lockkeeper\npython-lockkeeper run --openlock-compat"),
        "{said}"
    );
}

#[test]
fn a_reader_of_standard_error_that_goes_away_does_not_end_the_wait() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let mut holder = holder(&[], &lock);
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    drop(reader);
    let mut command = run(&[], &lock, "echo @next");
    command.stderr(writer).env("LOCKKEEPER_LOG", "trace").stdin(Stdio::null());
    let mut next = Process::start(command);
    next.expect_quiet();
    holder.hang_up();
    next.expect("next");
    assert_eq!(next.wait().code(), Some(0));
}

#[test]
fn quiet_says_nothing_of_waiting_nor_that_the_lock_was_not_had_in_time() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    for kind in [&[][..], &["--kernel", "flock"]] {
        let mut holder = holder(kind, &lock);
        for flags in [&["-qn"][..], &["--quiet", "-w", "300ms"]] {
            let output = output(&mut run(&[kind, flags].concat(), &lock, "echo never"));
            assert_eq!(output.status.code(), Some(73), "{flags:?}");
            assert_eq!((stdout(&output), stderr(&output)), Default::default(), "{flags:?}");
        }
        let log = directory.path().join("log");
        let mut command = run(&[kind, &["-q"]].concat(), &lock, "echo @next; exit 5");
        command.stderr(File::create(&log).unwrap());
        let mut next = Process::start(command);
        next.expect_quiet();
        holder.hang_up();
        next.expect("next");
        assert_eq!((next.wait().code(), text(&log)), (Some(5), String::new()));
    }
}

#[test]
fn quiet_is_not_silent_about_failures() {
    let directory = on_tmpfs();
    let output = output(&mut run(&["-q"], &directory.path().join("missing/a.lock"), "true"));
    assert_eq!(output.status.code(), Some(69));
    assert!(!stderr(&output).is_empty());
}

/// The second line and the note of the record that a command sees.
fn shown(flags: &[&str], lock: &Path, program: &Path) -> String {
    let show = "sed -n 2p \"$LOCKKEEPER_PATH\"; grep '^note: ' \"$LOCKKEEPER_PATH\"; exit 0";
    let mut command = lockkeeper();
    command.arg("run").args(flags).arg(lock).arg("--").arg(program).args(["-c", show, "secret"]);
    stdout(&output(&mut command))
}

#[test]
fn the_lock_file_names_the_command_and_none_of_its_arguments() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let import = directory.path().join("import.sh");
    std::os::unix::fs::symlink("/bin/sh", &import).unwrap();
    assert_eq!(shown(&[], &lock, Path::new("sh")), "sh\n");
    assert_eq!(shown(&[], &lock, &import), format!("import\nnote: {}\n", import.display()));
    assert_eq!(shown(&["--note", "nightly"], &lock, &import), "import\nnote: nightly\n");
    assert_eq!(shown(&["--note", ""], &lock, &import), "import\n");
}

#[test]
fn a_daemon_that_the_command_starts_does_not_keep_a_lock_file() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let gate = directory.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("(exec >/dev/null 2>&1; read line < {}) &", gate.display());
    assert_eq!(code(&mut run(&[], &lock, &script)), 0);
    let output = output(&mut run(&["--try"], &lock, "echo \"${LOCKKEEPER_RECOVERED_PID-none}\""));
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "none\n".to_owned()));
    fs::write(&gate, "go\n").unwrap();
}

#[test]
fn rust_log_shows_what_becomes_of_the_lock_and_lockkeeper_log_goes_before_it() {
    let directory = on_tmpfs();
    let lock = directory.path().join("a.lock");
    let said = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = run(flags, &lock, "exit 3");
        command.envs(variables.iter().copied());
        let output = output(&mut command);
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        stderr(&output)
    };
    for kind in [&[][..], &["--kernel", "flock"]] {
        let log = said(kind, &[("RUST_LOG", "lockkeeper=debug")]);
        for event in ["acquiring", "acquired"] {
            assert_eq!(log.matches(&format!("lockkeeper: {event} ")).count(), 1, "{event}: {log}");
        }
        assert_eq!(said(kind, &[("RUST_LOG", "another=trace")]), "");
        assert_eq!(said(kind, &[("RUST_LOG", "x[y]=z")]), "");
        let both = [("RUST_LOG", "lockkeeper=debug"), ("LOCKKEEPER_LOG", "warn")];
        assert_eq!(said(kind, &both), "");
    }
}
