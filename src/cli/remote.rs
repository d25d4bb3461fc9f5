//! `lockkeeper run --server`: a command under a daemon's lock. What differs
//! from [`super::run`]: nothing carries the lock but this process. If it is
//! killed, the command runs on and the lease ends.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::exit::{self, Failure, message_of};
use super::run::{abort_on_panic, attend, code};
use super::signals::Signals;
use super::text::tell;
use super::{OnLost, Run, command};
use crate::lock::duration;
use crate::{AsyncRemoteLock, Error, RemoteGuard, RemoteOptions};

/// How long a daemon may take to hear that nobody waits, or holds, any more.
const UNDO: Duration = Duration::from_secs(5);

/// Shorter waits are not told of.
const UNTOLD: Duration = Duration::from_millis(100);

const SERVER: &str = "LOCKKEEPER_SERVER";
const RESOURCE: &str = "LOCKKEEPER_RESOURCE";
const TOKEN: &str = "LOCKKEEPER_TOKEN";

/// Where the lock is kept, if not in a file
#[derive(Debug, Args)]
pub(super) struct Remote {
    /// LOCK is a resource of the lock daemon at this URL, and no file
    #[arg(long, value_name = "URL", conflicts_with_all = [
        "retry_period", "race_delay", "tries", "openlock_compat", "pin", "note", "close", "kernel",
    ])]
    pub(super) server: Option<String>,

    /// With --server: who has the lock, for people and for the daemon's tokens
    /// [default: this machine's name and our process id]
    #[arg(long, value_name = "NAME", requires = "server")]
    client: Option<String>,

    /// With --server: how long the lock is held without a sign of life from us;
    /// it is renewed each third of that, and counts as lost a little before its end
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "server",
        default_value = "30s")]
    lease: Duration,

    #[command(flatten)]
    credentials: Credentials,
}

/// How a daemon is talked to
#[derive(Debug, Args)]
pub(super) struct Credentials {
    /// A file with the secret that the daemon knows this client by
    #[arg(long, value_name = "FILE", requires = "server")]
    token_file: Option<PathBuf>,

    /// A file with certificates in PEM: the daemon's must be one of them, or signed by
    /// one [default: those the system trusts]
    #[arg(long, value_name = "FILE", requires = "server")]
    ca: Option<PathBuf>,

    /// How long a daemon that cannot be reached is tried again. A wait begins that time
    /// anew with each answer, so it outlives any number of restarts [default: 30s; with
    /// --try, and for lock and unlock: one try]
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "server")]
    pub(super) reconnect: Option<Duration>,
}

impl Credentials {
    pub(super) fn options(&self) -> Result<RemoteOptions, Failure> {
        let mut options = RemoteOptions::default();
        if let Some(file) = &self.token_file {
            let read = std::fs::read_to_string(file);
            let doing = file.display().to_string();
            let token = read.map_err(|error| Failure::system(&doing, &error))?;
            options = options.bearer_token(token.trim());
        }
        if let Some(file) = &self.ca {
            options = options.ca_file(file);
        }
        if let Some(time) = self.reconnect {
            options = options.reconnect(time);
        }
        Ok(options)
    }
}

pub(super) fn run(arguments: &Run) -> Result<u8, Failure> {
    abort_on_panic();
    let lock = lock(arguments)?;
    super::runtime()?.block_on(run_locked(arguments, &lock))
}

fn lock(arguments: &Run) -> Result<AsyncRemoteLock, Failure> {
    let remote = &arguments.remote;
    let url = remote.server.as_deref().expect("BUG: there is no server");
    let resource = arguments.lock.to_str().ok_or_else(|| Failure {
        code: exit::USAGE,
        message: format!("{}: a resource is named in UTF-8", arguments.lock.display()),
    })?;
    let mut options = remote.credentials.options()?.timeout(arguments.timeout);
    if arguments.only_try && remote.credentials.reconnect.is_none() {
        options = options.reconnect(Duration::ZERO);
    }
    let options = options.lease(Some(remote.lease));
    let client = remote.client.clone().unwrap_or_else(own_name);
    Ok(AsyncRemoteLock::with_options(url, resource, client, options)?)
}

fn own_name() -> String {
    let system = rustix::system::uname();
    format!("{}:{}", system.nodename().to_string_lossy(), std::process::id())
}

async fn run_locked(arguments: &Run, lock: &AsyncRemoteLock) -> Result<u8, Failure> {
    let watched = Signals::watch();
    let mut signals = watched.map_err(|error| Failure::system("watching signals", &error))?;
    let acquired = tokio::select! {
        biased;
        signal = signals.next() => Err(signal),
        acquired = acquire(arguments, lock) => Ok(acquired),
    };
    let ended = match (acquired, signals.already()) {
        (Ok(Ok(guard)), None) => run_command(arguments, guard, signals).await,
        (Ok(Err(error)), _) => Err(error.into()),
        (Err(signal), _) | (Ok(Ok(_)), Some(signal)) => Ok(exit::by_signal(signal.number)),
    };
    // What was dropped above.
    let _ = timeout(UNDO, lock.flush()).await;
    ended
}

async fn acquire(arguments: &Run, lock: &AsyncRemoteLock) -> Result<RemoteGuard, Error> {
    if arguments.only_try {
        return lock.acquire_at_once().await;
    }
    let mut acquiring = std::pin::pin!(lock.acquire());
    tokio::select! {
        biased;
        acquired = &mut acquiring => return acquired,
        () = sleep(UNTOLD), if !arguments.quiet => tell(format_args!("waiting for {:?} at {}", lock.resource(), lock.server())),
    }
    acquiring.await
}

async fn run_command(
    arguments: &Run,
    guard: RemoteGuard,
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

fn start(arguments: &Run, guard: &RemoteGuard, signals: &mut Signals) -> Result<Child, Failure> {
    command::start(&arguments.command, signals, |command| {
        command.env(SERVER, guard.server()).env(RESOURCE, guard.resource());
        command.env(TOKEN, guard.fencing_token().to_string());
    })
}

/// Whether the lock was lost, before (`was_lost`, which was told) or as it now turns out.
async fn release(guard: RemoteGuard, was_lost: bool) -> bool {
    match guard.release().await {
        Ok(()) => was_lost,
        Err(Error::Lost(_)) if was_lost => true,
        Err(error) => {
            tell(message_of(&error));
            was_lost || matches!(error, Error::Lost(_))
        }
    }
}
