//! [`RemoteOptions`]: how a daemon's lock is asked for and kept.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::lock::error::Error;

/// Renewing a shorter lease would be most of what a machine does. If larger, a lock
/// cannot pass as soon after the death of its holder.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// Options of an [`AsyncRemoteLock`](crate::AsyncRemoteLock).
///
/// ```
/// use std::time::Duration;
/// use lockkeeper::RemoteOptions;
///
/// let options = RemoteOptions::default()
///     .lease(Duration::from_secs(10))
///     .bearer_token("the secret of this machine");
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RemoteOptions {
    pub(super) timeout: Option<Duration>,
    pub(super) lease: Option<Duration>,
    pub(super) reconnect: Duration,
    pub(super) bearer_token: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            timeout: None,
            lease: Some(Duration::from_secs(30)),
            reconnect: Duration::from_secs(30),
            bearer_token: None,
            ca_file: None,
        }
    }
}

/// Without the secret.
impl fmt::Debug for RemoteOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RemoteOptions")
            .field("timeout", &self.timeout)
            .field("lease", &self.lease)
            .field("reconnect", &self.reconnect)
            .field("bearer_token", &self.bearer_token.as_ref().map(|_| "…"))
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

impl RemoteOptions {
    /// How long [`acquire`](crate::AsyncRemoteLock::acquire) waits. Default:
    /// `None`, for ever.
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// How long the lock is held without a sign of life from this process. The lease
    /// is renewed in the background each third of this, and counts as lost
    /// somewhat earlier than it ends: see [`RemoteGuard::lost`](crate::RemoteGuard::lost).
    /// At least 100 ms. With `None` the lock is held until
    /// it is released, also if this process dies. Default: 30 s.
    #[doc(alias("ttl", "expiry"))]
    #[must_use]
    pub fn lease(mut self, lease: impl Into<Option<Duration>>) -> Self {
        self.lease = lease.into();
        self
    }

    /// How long a daemon that cannot be reached is tried again, as while it is
    /// restarted. While a lock is waited for, every answer begins that time anew,
    /// whatever its status: a wait outlives any number of restarts, and a proxy that
    /// gives up or says that its daemon is away. Default: 30 s.
    #[must_use]
    pub fn reconnect(mut self, time: Duration) -> Self {
        self.reconnect = time;
        self
    }

    /// The secret by which the daemon knows this client. Over `http://` others can read
    /// it on its way. Default: none.
    #[must_use]
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.bearer_token = Some(token.into());
        self
    }

    /// A file with the certificates to trust, in PEM. Default: those the system trusts.
    ///
    /// The daemon's certificate must be one of them, or signed by one of them.
    #[must_use]
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(file.into());
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.lease {
            Some(lease) if lease < SHORTEST_LEASE => Err(invalid(
                "lease",
                format!("{lease:?} is too short, at least {SHORTEST_LEASE:?} is needed"),
            )),
            _ => Ok(()),
        }
    }
}

pub(super) fn invalid(option: &'static str, why: String) -> Error {
    Error::InvalidOption { option, why }
}
