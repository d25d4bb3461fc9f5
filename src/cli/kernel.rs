//! `lockkeeper run --kernel`: a command under a lock of the kernel's, as
//! flock(1) does it. What differs from [`super::run`]: the file is the user's.
//! It stays, nothing is written to it, and a removed file is no reason to end
//! the command, since those who use such locks do not look. And the lock is not
//! given back when the command ends, but closed: a daemon that the command started
//! and that inherited the open file keeps it, until it ends or closes it.

use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::process::Child;
use tokio::time::timeout;

use super::exit::{self, Failure, message_of};
use super::run::{abort_on_panic, attend, code};
use super::signals::Signals;
use super::text::tell;
use super::{OnLost, Run, command};
use crate::{AsyncKernelLock, Error, KernelGuard, KernelOptions, Primitive};

/// Shorter waits are not told of.
const UNTOLD: Duration = Duration::from_millis(100);

/// How long a network file system may take to hear that nobody waits any more.
const UNDO: Duration = Duration::from_secs(5);

const PATH: &str = "LOCKKEEPER_PATH";

/// A lock of the kernel's instead of a lock file
#[derive(Debug, Args)]
pub(super) struct Kernel {
    /// Take a lock of the kernel's on the file LOCK, and exclude the programs that use the same:
    /// flock (flock(1), cargo, systemd), posix (apt, dpkg, Python's lockf) or ofd, which excludes
    /// posix. The file is made if it is not there, stays, and is not written to
    #[arg(long, value_enum, value_name = "KIND", conflicts_with_all = [
        "race_delay", "tries", "openlock_compat", "pin", "note",
    ])]
    pub(super) kernel: Option<Kind>,

    /// With --kernel: share the lock with others who share it
    #[arg(long, short, requires = "kernel")]
    shared: bool,

    /// With --kernel: end with this if the lock was not had in time [default: 73; flock(1) has 1]
    #[arg(long, short = 'E', value_name = "N", requires = "kernel")]
    conflict_exit_code: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    Flock,
    Ofd,
    Posix,
}

impl Kind {
    pub(super) fn options(self) -> KernelOptions {
        KernelOptions::default().primitive(match self {
            Kind::Flock => Primitive::Flock,
            Kind::Ofd => Primitive::Ofd,
            Kind::Posix => Primitive::Posix,
        })
    }
}

pub(super) fn run(arguments: &Run) -> Result<u8, Failure> {
    abort_on_panic();
    super::runtime()?.block_on(run_locked(arguments))
}

async fn run_locked(arguments: &Run) -> Result<u8, Failure> {
    let kind = arguments.kernel.kernel.expect("BUG: no kind of lock");
    let mut options = kind.options().timeout(arguments.timeout);
    if let Some(period) = arguments.retry_period {
        options = options.retry_period(period);
    }
    let lock = AsyncKernelLock::with_options(&arguments.lock, options)?;
    let watched = Signals::watch();
    let mut signals = watched.map_err(|error| Failure::system("watching signals", &error))?;
    let acquired = tokio::select! {
        biased;
        signal = signals.next() => Err(signal),
        acquired = acquire(arguments, &lock) => Ok(acquired),
    };
    match (acquired, signals.already()) {
        (Ok(Ok(guard)), None) => run_command(arguments, guard, signals).await,
        (Ok(Err(error @ Error::Timeout { .. })), _) => {
            if !arguments.quiet {
                tell(message_of(&error));
            }
            Ok(arguments.kernel.conflict_exit_code.unwrap_or(exit::NOT_IN_TIME))
        }
        (Ok(Err(error)), _) => Err(error.into()),
        (Err(signal), _) | (Ok(Ok(_)), Some(signal)) => {
            let _ = timeout(UNDO, crate::flush()).await;
            Ok(exit::by_signal(signal.number))
        }
    }
}

async fn acquire(arguments: &Run, lock: &AsyncKernelLock) -> Result<KernelGuard, Error> {
    let is_shared = arguments.kernel.shared;
    if arguments.only_try {
        return match is_shared {
            true => lock.acquire_shared_timeout(Duration::ZERO).await,
            false => lock.acquire_timeout(Duration::ZERO).await,
        };
    }
    let acquiring = async {
        match is_shared {
            true => lock.acquire_shared().await,
            false => lock.acquire().await,
        }
    };
    let mut acquiring = std::pin::pin!(acquiring);
    tokio::select! {
        biased;
        acquired = &mut acquiring => return acquired,
        () = tokio::time::sleep(UNTOLD), if !arguments.quiet => {}
    }
    let holder = lock.holder().await.ok().flatten();
    let holder = holder.map_or_else(|| "somebody".to_owned(), |holder| holder.to_string());
    tell(format_args!("waiting for {}, held by {holder}", lock.path().display()));
    acquiring.await
}

async fn run_command(
    arguments: &Run,
    guard: KernelGuard,
    mut signals: Signals,
) -> Result<u8, Failure> {
    let mut command = start(arguments, &guard, &mut signals)?;
    // From here on the lock ends with the descriptors: this one, which the end of this
    // process closes, and the copies. To drop it would unlock it for all of them.
    std::mem::forget(guard);
    let never = std::future::pending::<&str>();
    let attended = attend(&mut command, never, &mut signals, OnLost::Ignore).await;
    let (status, _) = attended.map_err(|error| Failure::system("waiting for CMD", &error))?;
    Ok(code(status))
}

fn start(arguments: &Run, guard: &KernelGuard, signals: &mut Signals) -> Result<Child, Failure> {
    // A copy of a POSIX lock's descriptor would drop it when it is closed here.
    let is_inherited = !arguments.close && arguments.kernel.kernel != Some(Kind::Posix);
    let copy = is_inherited.then(|| rustix::io::dup(guard)).transpose();
    let _inherited = copy.map_err(command::no_copy)?;
    command::start(&arguments.command, signals, |command| {
        command.env(PATH, guard.path());
    })
}
