//! One variant for each thing a caller does differently.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::lock::error::rounded;

/// Why a daemon's lock could not be had, kept or given back.
///
/// Every variant but [`InvalidOption`](RemoteError::InvalidOption) names the
/// server and the resource.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Somebody else had the lock until the limit, as the daemon says. Try later, or tell
    /// the user who has it.
    #[error("{resource:?} at {server} was not free within {}{}", rounded(*waited), held_by(holder.as_deref()))]
    Timeout {
        /// The daemon's URL.
        server: String,
        /// What was to be locked.
        resource: String,
        /// How long was waited.
        waited: Duration,
        /// The client that had it at last, where the daemon said so.
        holder: Option<String>,
    },

    /// The token given to [`acquire_with`](crate::AsyncRemoteLock::acquire_with) was cancelled.
    #[error("waiting for {resource:?} at {server} was cancelled")]
    Cancelled {
        /// The daemon's URL.
        server: String,
        /// What was to be locked.
        resource: String,
    },

    /// The daemon did not answer for as long as
    /// [`reconnect`](crate::RemoteOptions::reconnect) says, or up to the limit of the
    /// wait: nothing is known of the lock. Start it, or correct the URL.
    #[error("{doing} {resource:?}: {server} could not be reached for {}", rounded(*tried))]
    Unreachable {
        /// The daemon's URL.
        server: String,
        /// What is locked.
        resource: String,
        /// What was being done, as in "locking".
        doing: &'static str,
        /// How long it was tried, in whole milliseconds.
        tried: Duration,
        /// What went wrong at last.
        source: io::Error,
    },

    /// The daemon's certificate, or what stands for it, cannot be trusted.
    /// Name its authority with [`ca_file`](crate::RemoteOptions::ca_file).
    #[error("{doing} {resource:?}: {server} cannot be trusted")]
    Untrusted {
        /// The daemon's URL.
        server: String,
        /// What is locked.
        resource: String,
        /// What was being done.
        doing: &'static str,
        /// What is wrong.
        source: io::Error,
    },

    /// The daemon does not know the bearer token, or it may not use this client name.
    #[error("{doing} {resource:?}: {server} refused these credentials: {message}")]
    Forbidden {
        /// The daemon's URL.
        server: String,
        /// What is locked.
        resource: String,
        /// What was being done.
        doing: &'static str,
        /// What the daemon said.
        message: String,
    },

    /// The daemon refused for another reason, which its message tells.
    #[error("{doing} {resource:?}: {server} refused: {message}")]
    Refused {
        /// The daemon's URL.
        server: String,
        /// What is locked.
        resource: String,
        /// What was being done.
        doing: &'static str,
        /// The daemon's word for the reason, for programs.
        code: String,
        /// What the daemon said.
        message: String,
    },

    /// What answered does not speak this daemon's language, or speaks TLS where the URL
    /// says that it does not, or the other way round. Correct the URL.
    #[error("{doing} {resource:?}: what answers at {server} is no lock daemon: {found}")]
    NotADaemon {
        /// The URL.
        server: String,
        /// What was to be locked.
        resource: String,
        /// What was being done.
        doing: &'static str,
        /// What came.
        found: String,
    },

    /// An option, the URL or a name has an impossible value.
    #[error("{option}: {why}")]
    InvalidOption {
        /// Name of the option.
        option: &'static str,
        /// What is wrong with the value.
        why: String,
    },

    /// The lock was lost while it was held. What it guards may have been
    /// entered by somebody else.
    #[error(transparent)]
    Lost(#[from] RemoteLost),
}

impl RemoteError {
    /// The daemon's URL.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        self.names().map(|(server, _)| server)
    }

    /// What is locked.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        self.names().map(|(_, resource)| resource)
    }

    fn names(&self) -> Option<(&str, &str)> {
        match self {
            Self::InvalidOption { .. } => None,
            Self::Timeout { server, resource, .. }
            | Self::Cancelled { server, resource }
            | Self::Unreachable { server, resource, .. }
            | Self::Untrusted { server, resource, .. }
            | Self::Forbidden { server, resource, .. }
            | Self::Refused { server, resource, .. }
            | Self::NotADaemon { server, resource, .. }
            | Self::Lost(RemoteLost { server, resource, .. }) => Some((server, resource)),
        }
    }
}

/// A daemon's lock that was lost while it was held, as
/// [`RemoteGuard::lost`](crate::RemoteGuard::lost) and
/// [`RemoteGuard::release`](crate::RemoteGuard::release) tell it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock {resource:?} at {server} was lost: {reason}")]
#[non_exhaustive]
pub struct RemoteLost {
    /// The daemon's URL.
    pub server: String,
    /// What was locked.
    pub resource: String,
    /// What happened.
    pub reason: RemoteLostReason,
}

/// Why a held lock is not ours any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemoteLostReason {
    /// The lease could not be renewed in time: the daemon was out of reach, or
    /// this process was stopped. The daemon may give the lock to another now.
    Expired,
    /// The daemon says that we do not hold it: an administrator ended the hold,
    /// its lock file was removed, or the lease had run out there.
    Ended,
    /// It is held by the process from which this one was forked, and only there.
    Forked,
}

impl fmt::Display for RemoteLostReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Expired => "its lease was not renewed in time",
            Self::Ended => "the daemon has ended it",
            Self::Forked => "it is that of the process from which this one was forked",
        })
    }
}

fn held_by(holder: Option<&str>) -> String {
    holder.map_or_else(String::new, |holder| format!(": held by {holder:?}"))
}
