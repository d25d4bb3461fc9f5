//! Arguments for locks of a lock daemon.

#![expect(clippy::disallowed_methods, reason = "reads the token file that the command names")]

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Run;
use super::exit::Failure;
use crate::any::own_name;
use crate::lock::duration;
use crate::{AsyncRemoteLock, RemoteOptions};

/// Where the lock is kept, if not in a file
#[derive(Debug, Args)]
pub(super) struct Remote {
    /// LOCK is a resource of the lock daemon at this URL instead of a file
    #[arg(long, value_name = "URL", group = "daemon", conflicts_with_all = [
        "retry_period", "race_delay", "tries", "openlock_compat", "pin", "note", "close", "kernel", "at",
    ])]
    pub(super) server: Option<String>,

    /// With --server: the holder's name, for people and for the daemon's tokens
    /// [default: this machine's name and the process id]
    #[arg(long, value_name = "NAME", requires = "server")]
    client: Option<String>,

    /// With --server: how long the lock is held without a sign of life from lockkeeper, which
    /// renews it each third of that. It counts as lost a little before its end
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "server",
        default_value = "30s")]
    lease: Duration,

    #[command(flatten)]
    credentials: Credentials,
}

/// How a daemon is talked to
#[derive(Debug, Args)]
pub(super) struct Credentials {
    /// A file with the token by which the daemon knows this client
    #[arg(long, value_name = "FILE", requires = "daemon")]
    token_file: Option<PathBuf>,

    /// A file with the certificates to trust, in PEM: the daemon's is one of them, or signed by
    /// one [default: those the system trusts]
    #[arg(long, value_name = "FILE", requires = "daemon")]
    ca: Option<PathBuf>,

    /// How long to go on trying while the daemon cannot be reached. In a wait that time begins anew
    /// with each answer, so a wait outlives any number of restarts [default: 30s; with --try, and
    /// for lock and unlock: one try]
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "daemon")]
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

/// The lock of `run --server`.
pub(super) fn lock(arguments: &Run, resource: &str) -> Result<AsyncRemoteLock, Failure> {
    let remote = &arguments.remote;
    let url = remote.server.as_deref().expect("BUG: there is no server");
    let mut options = remote.credentials.options()?.timeout(arguments.timeout);
    if arguments.only_try && remote.credentials.reconnect.is_none() {
        options = options.reconnect(Duration::ZERO);
    }
    let options = options.lease(Some(remote.lease));
    let client = remote.client.clone().unwrap_or_else(own_name);
    Ok(AsyncRemoteLock::with_options(url, resource, client, options)?)
}
