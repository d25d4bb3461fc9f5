//! `lockkeeper run`: a command under a lock.
//!
//! 1. TERM, HUP, INT, QUIT, USR1 and USR2 are watched: from here to the end none
//!    of them kills this process. Any other deadly signal does, and leaves the
//!    lock file to be taken over; the command keeps the lock.
//! 2. The lock is waited for. A signal ends the wait and the program.
//! 3. The command is started in the same process group, with a copy of the
//!    descriptor that carries the kernel lock: if this process is killed, the
//!    lock lasts until the command is gone as well, and what it left running.
//! 4. Signals are passed on until the command is gone.
//! 5. The lock is released, whoever else still has the descriptor: the file is the
//!    lock, and it says that this process holds it. [`super::kernel`] differs.

use std::fmt::Display;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::pin::pin;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::{Instant, sleep_until, timeout};

use super::exit::{self, Failure, message_of};
use super::signals::{Arrived, Signals};
use super::text::{printable, tell};
use super::waiting::tell_of_waiting;
use super::{OnLost, Run, command, inherited};
use crate::{AsyncFileLock, Error, FileGuard, FileOptions};

/// How long a command may take to end after SIGTERM when the lock is lost.
const GRACE: Duration = Duration::from_secs(5);

/// How long an attempt that was given up may take to undo what it did. Only a
/// network file system that does not answer takes any time.
const UNDO: Duration = Duration::from_secs(5);

/// `argv[0]` that openlock believes to be Python.
const VISIBLE_NAME: &str = "python-lockkeeper";

const PATH: &str = "LOCKKEEPER_PATH";
const TOKEN: &str = "LOCKKEEPER_TOKEN";
const RECOVERED_FROM: &str = "LOCKKEEPER_RECOVERED_FROM";
const RECOVERED_PID: &str = "LOCKKEEPER_RECOVERED_PID";

pub(super) fn run(arguments: &Run) -> Result<u8, Failure> {
    abort_on_panic();
    super::runtime()?.block_on(run_locked(arguments))
}

/// openlock looks for "python" in the command line, so start again with one.
pub(super) fn be_visible() -> Result<(), Failure> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name.to_string_lossy().to_lowercase().contains("python") {
        return Ok(());
    }
    let mut again = Command::new("/proc/self/exe");
    inherited::pass_on(&mut again);
    let error = again.arg0(VISIBLE_NAME).args(arguments).exec();
    Err(Failure::system("starting again under a name that openlock sees", &error))
}

/// A panic must not release the lock while the command runs: the kernel does,
/// when both are gone.
pub(super) fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tell(panic);
        std::process::abort();
    }));
}

async fn run_locked(arguments: &Run) -> Result<u8, Failure> {
    let lock = AsyncFileLock::with_options(&arguments.lock, options(arguments))?;
    let watched = Signals::watch();
    let mut signals = watched.map_err(|error| Failure::system("watching signals", &error))?;
    let acquired = tokio::select! {
        biased;
        signal = signals.next() => Err(signal),
        acquired = acquire(&lock, arguments) => Ok(acquired?),
    };
    match (acquired, signals.already()) {
        (Ok(guard), None) => run_command(arguments, guard, signals).await,
        (Err(signal), _) => {
            let _ = timeout(UNDO, crate::flush()).await;
            Ok(exit::by_signal(signal.number))
        }
        (Ok(guard), Some(signal)) => {
            release(guard, false).await;
            Ok(exit::by_signal(signal.number))
        }
    }
}

fn options(arguments: &Run) -> FileOptions {
    let mut options = FileOptions::process_default()
        .timeout(if arguments.only_try { Some(Duration::ZERO) } else { arguments.timeout })
        .proof(arguments.pin.into())
        .openlock_compat(arguments.openlock_compat);
    if let Some(period) = arguments.retry_period {
        options = options.retry_period(period);
    }
    if let Some(delay) = arguments.race_delay {
        options = options.race_delay(delay);
    }
    if let Some(tries) = arguments.tries {
        options = options.tries(tries);
    }
    if !arguments.openlock_compat {
        // openlock looks for the name in what ps(1) shows of this process.
        options.name = Some(command::name(&arguments.command).into());
    }
    match arguments.note.clone().or_else(|| command::note(&arguments.command)) {
        Some(note) if !note.is_empty() => options.note(note),
        _ => options,
    }
}

async fn acquire(lock: &AsyncFileLock, arguments: &Run) -> Result<FileGuard, Error> {
    if arguments.only_try || arguments.quiet {
        return lock.acquire().await;
    }
    tokio::select! {
        biased;
        acquired = lock.acquire() => acquired,
        never = tell_of_waiting(lock) => match never {},
    }
}

async fn run_command(
    arguments: &Run,
    guard: FileGuard,
    mut signals: Signals,
) -> Result<u8, Failure> {
    let mut command = match start(arguments, &guard, &mut signals) {
        Ok(command) => command,
        Err(failure) => {
            release(guard, false).await;
            return Err(failure);
        }
    };
    let attended = attend(&mut command, guard.lost(), &mut signals, arguments.on_lost).await;
    let (status, was_lost) =
        attended.map_err(|error| Failure::system("waiting for CMD", &error))?;
    let is_lost = release(guard, was_lost).await;
    Ok(if is_lost && arguments.on_lost == OnLost::Term { exit::LOST } else { code(status) })
}

fn start(arguments: &Run, guard: &FileGuard, signals: &mut Signals) -> Result<Child, Failure> {
    let pin = if arguments.close { None } else { guard.lock_fd() };
    // A copy is not closed by exec. Ours is closed again before anything else is started.
    let _inherited = pin.map(rustix::io::dup).transpose().map_err(command::no_copy)?;
    command::start(&arguments.command, signals, |command| {
        command.env(PATH, guard.path()).env(TOKEN, guard.hold_id());
        command.env_remove(RECOVERED_FROM).env_remove(RECOVERED_PID);
        if let Some(dead) = guard.recovered_from() {
            command.env(RECOVERED_FROM, printable(dead));
            if let Some(pid) = dead.pid {
                command.env(RECOVERED_PID, pid.to_string());
            }
        }
    })
}

/// Wait until the command is gone; what became of it, and whether the lock was
/// lost meanwhile.
pub(super) async fn attend(
    command: &mut Child,
    losing: impl Future<Output = impl Display>,
    signals: &mut Signals,
    on_lost: OnLost,
) -> io::Result<(ExitStatus, bool)> {
    let mut losing = pin!(losing);
    let mut was_lost = false;
    let mut kill_at = None;
    loop {
        tokio::select! {
            biased;
            status = command.wait() => return Ok((status?, was_lost)),
            signal = signals.next() => pass_on(command, signal),
            why = &mut losing, if !was_lost => {
                tell(&why);
                was_lost = true;
                if on_lost == OnLost::Term {
                    send(command, Signal::TERM.as_raw());
                    kill_at = Some(Instant::now() + GRACE);
                }
            }
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                tell("CMD did not end after SIGTERM: killed");
                send(command, Signal::KILL.as_raw());
                kill_at = None;
            }
        }
    }
}

fn pass_on(command: &Child, signal: Arrived) {
    if !signal.is_for_all {
        send(command, signal.number);
    }
}

/// The number of a command that is gone is not used: `id` knows that.
pub(super) fn send(command: &Child, number: i32) {
    let pid = command.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) else {
        return;
    };
    if let Err(error) = kill_process(pid, signal) {
        tell(format_args!("signal {number} could not be passed on to CMD: {error}"));
    }
}

pub(super) fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(number)) => exit::by_signal(number),
        (None, None) => u8::MAX,
    }
}

/// Whether the lock was lost, before (`was_lost`, which was told) or as it now turns out.
async fn release(guard: FileGuard, was_lost: bool) -> bool {
    match guard.release().await {
        Ok(()) => was_lost,
        Err(Error::Lost(_)) if was_lost => true,
        Err(error) => {
            tell(message_of(&error));
            was_lost || matches!(error, Error::Lost(_))
        }
    }
}
