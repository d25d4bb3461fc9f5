//! `lockkeeper run`: a command under a lock of any kind.
//!
//! 1. TERM, HUP, INT, QUIT, USR1 and USR2 are watched: from here to the end none
//!    of them kills this process. Any other deadly signal does. A lock file is left to be
//!    taken over then, a daemon's lock ends with its lease, and the command keeps what it
//!    inherited.
//! 2. The lock is waited for. A signal ends the wait and the program.
//! 3. The command is started in the same process group, with a copy of the descriptor
//!    that carries the lock, if one does: if this process is killed, the lock lasts until
//!    the command is gone as well, and what it left running.
//! 4. Signals are passed on until the command is gone.
//! 5. The lock is released, whatever process still has the descriptor. A kernel lock is
//!    not released but closed: the file is the user's, a removed one is no reason to end
//!    the command, as programs that use such locks do not look, and a daemon that the
//!    command started keeps the lock.

use std::fmt::Display;
use std::io;
use std::pin::pin;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tokio::process::Child;
use tokio::time::{Instant, sleep_until, timeout};

use super::exit::{self, Failure, message_of};
use super::named::{self, Named};
use super::text::{printable, tell};
use super::waiting::tell_of_waiting;
use super::{OnLost, Run, command};
use crate::lock::any_lock::AnyGuard;
use crate::lock::name::LockName;
use crate::lock::wait::Acquired;
use crate::sys::child::{self, Carrier};
use crate::sys::signals::Signals;
use crate::{Error, Guard, Lock};

/// How long a command may take to end after SIGTERM when the lock is lost.
const GRACE: Duration = Duration::from_secs(5);

/// How long what was given up may take to be undone. A lock file or a kernel lock on a
/// local file system takes no time; a network file system or a daemon may not answer.
const UNDO: Duration = Duration::from_secs(5);

/// `argv[0]` that openlock believes to be Python.
const VISIBLE_NAME: &str = "python-lockkeeper";

/// What CMD finds in its environment. A `run` inside another's CMD tells of its own lock.
const PATH: &str = "LOCKKEEPER_PATH";
const SERVER: &str = "LOCKKEEPER_SERVER";
const RESOURCE: &str = "LOCKKEEPER_RESOURCE";
const HOLD_ID: &str = "LOCKKEEPER_HOLD_ID";
const FENCING_TOKEN: &str = "LOCKKEEPER_FENCING_TOKEN";
const RECOVERED_FROM: &str = "LOCKKEEPER_RECOVERED_FROM";
const RECOVERED_PID: &str = "LOCKKEEPER_RECOVERED_PID";

pub(super) fn run(arguments: &Run) -> Result<u32, Failure> {
    abort_on_panic();
    let named = named::of_run(arguments)?;
    super::runtime()?.block_on(run_locked(arguments, &named))
}

/// openlock looks for "python" in the command line, so start again with one.
pub(super) fn be_visible() -> Result<(), Failure> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name.to_string_lossy().to_lowercase().contains("python") {
        return Ok(());
    }
    let error = child::start_again(VISIBLE_NAME, arguments);
    Err(Failure::system("starting again under a name that openlock sees", &error))
}

/// A panic must not release the lock while the command runs: the kernel does,
/// when both are gone.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tell(panic);
        std::process::abort();
    }));
}

async fn run_locked(arguments: &Run, named: &Named) -> Result<u32, Failure> {
    let watched = Signals::watch();
    let mut signals = watched.map_err(|error| Failure::system("watching signals", &error))?;
    let acquired = tokio::select! {
        biased;
        signal = signals.next() => Err(signal),
        acquired = acquire(arguments, named) => Ok(acquired),
    };
    let ended = match (acquired, signals.already()) {
        (Ok(Ok(guard)), None) => run_command(arguments, named, guard, signals).await,
        (Ok(Err(error)), _) => not_acquired(arguments, error).map(u32::from),
        (Err(signal), _) => Ok(exit::by_signal(signal.number).into()),
        (Ok(Ok(guard)), Some(signal)) => {
            let _ = timeout(UNDO, release(guard, false)).await;
            Ok(exit::by_signal(signal.number).into())
        }
    };
    // What was dropped above.
    let _ = timeout(UNDO, named.lock.flush()).await;
    ended
}

fn not_acquired(arguments: &Run, error: Error) -> Result<u8, Failure> {
    let mut failure = Failure::from(error);
    if failure.code == exit::NOT_IN_TIME {
        failure.code = arguments.kernel.conflict_exit_code.unwrap_or(failure.code);
        if arguments.quiet {
            return Ok(failure.code);
        }
    }
    Err(failure)
}

async fn acquire(arguments: &Run, named: &Named) -> Result<AnyGuard, Error> {
    let started = Instant::now();
    let acquiring = named.lock.acquire_within(named.wait);
    let acquired = match arguments.only_try || arguments.quiet {
        true => acquiring.await?,
        false => tokio::select! {
            biased;
            acquired = acquiring => acquired?,
            never = tell_of_waiting(&named.lock) => match never {},
        },
    };
    match acquired {
        Acquired::Held(guard) => Ok(guard),
        Acquired::Busy(busy) => {
            let waited = if arguments.only_try { Duration::ZERO } else { started.elapsed() };
            Err(Error::Timeout { lock: named.lock.name(), waited, holder: busy.holder })
        }
    }
}

async fn run_command(
    arguments: &Run,
    named: &Named,
    guard: AnyGuard,
    mut signals: Signals,
) -> Result<u32, Failure> {
    let (mut command, _carrier) = match start(arguments, &named.lock.name(), &guard, &mut signals) {
        Ok(started) => started,
        Err(failure) => {
            release(guard, false).await;
            return Err(failure);
        }
    };
    if named.ends_with_file {
        // From here on the lock ends with the descriptors: this one, which the end of this
        // process closes, and the copies. To drop it would unlock it for all of them.
        std::mem::forget(guard);
        let never = std::future::pending::<&str>();
        let attended = attend(&mut command, never, &mut signals, OnLost::Ignore).await;
        return attended.map(|(status, _)| child::code(status)).map_err(no_status);
    }
    let attended = attend(&mut command, guard.lost(), &mut signals, arguments.on_lost).await;
    let (status, was_lost) = attended.map_err(no_status)?;
    let is_lost = release(guard, was_lost).await;
    Ok(if is_lost && arguments.on_lost == OnLost::Term {
        exit::LOST.into()
    } else {
        child::code(status)
    })
}

fn no_status(error: io::Error) -> Failure {
    Failure::system("waiting for CMD", &error)
}

fn start(
    arguments: &Run,
    name: &LockName,
    guard: &AnyGuard,
    signals: &mut Signals,
) -> Result<(Child, Carrier), Failure> {
    let ends_with_process = name.path().is_some();
    let carrier = match arguments.close {
        true => Ok(Carrier::default()),
        false => Carrier::new(guard.lock_fd(), ends_with_process),
    };
    let mut carrier = carrier.map_err(|error| Failure::system("handing CMD the lock", &error))?;
    let describe = |command: &mut Command| describe(command, name, guard);
    let command = command::start(&arguments.command, signals, describe)?;
    carrier.is_handed_over();
    Ok((command, carrier))
}

fn describe(command: &mut Command, name: &LockName, guard: &AnyGuard) {
    let dead = guard.recovered_from();
    let fencing_token = guard.fencing_token().map(|token| token.to_string());
    let dead_pid = dead.and_then(|dead| dead.pid).map(|pid| pid.to_string());
    if let Some(path) = name.path() {
        command.env(PATH, path);
    } else {
        command.env_remove(PATH);
    }
    for (variable, value) in [
        (SERVER, name.server().map(str::to_owned)),
        (RESOURCE, name.name().map(str::to_owned)),
        (HOLD_ID, guard.hold_id()),
        (FENCING_TOKEN, fencing_token),
        (RECOVERED_FROM, dead.map(printable)),
        (RECOVERED_PID, dead_pid),
    ] {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
}

/// Wait until the command is gone; what became of it, and whether the lock was
/// lost meanwhile.
async fn attend(
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
            signal = signals.next() => command::tell_if_failed(child::pass_on(command, signal)),
            why = &mut losing, if !was_lost => {
                tell(&why);
                was_lost = true;
                if on_lost == OnLost::Term {
                    command::tell_if_failed(child::ask_to_end(command));
                    kill_at = Some(Instant::now() + GRACE);
                }
            }
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                tell("CMD did not end after SIGTERM: killed");
                command::tell_if_failed(child::kill(command));
                kill_at = None;
            }
        }
    }
}

/// Whether the lock was lost, before (`was_lost`, which was told) or as it now turns out.
async fn release(guard: AnyGuard, was_lost: bool) -> bool {
    match guard.release().await {
        Ok(()) => was_lost,
        Err(Error::Lost(_)) if was_lost => true,
        Err(error) => {
            tell(message_of(&error));
            was_lost || matches!(error, Error::Lost(_))
        }
    }
}
