//! [`EtcdOptions`]: how a cluster's lock is asked for and kept.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::client::Credentials;
use crate::lock::error::Error;

/// A lease of one second would be lost whenever the cluster elects a leader.
const SHORTEST_TTL: Duration = Duration::from_secs(2);

/// etcd's own limit.
const LONGEST_TTL: Duration = Duration::from_secs(9_000_000_000);

/// Options of an [`AsyncEtcdLock`](crate::AsyncEtcdLock).
///
/// ```
/// use std::time::Duration;
/// use lockkeeper::EtcdOptions;
///
/// let options = EtcdOptions::default().prefix("jobs").ttl(Duration::from_secs(10));
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct EtcdOptions {
    /// With a `/` at its end, or empty.
    pub(super) prefix: String,
    pub(super) ttl: Duration,
    pub(super) timeout: Option<Duration>,
    pub(super) reconnect: Duration,
    pub(super) credentials: Option<Credentials>,
    pub(super) tls: bool,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) server_name: Option<String>,
    pub(super) raw_key: Option<String>,
    pub(super) note: Option<String>,
    /// What is shown instead of this program's name: `lockkeeper run` names its command.
    pub(super) name: Option<String>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            ttl: Duration::from_secs(15),
            timeout: None,
            reconnect: Duration::from_secs(30),
            credentials: None,
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            raw_key: None,
            note: None,
            name: None,
        }
    }
}

/// Without the password.
impl fmt::Debug for EtcdOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("EtcdOptions")
            .field("prefix", &self.prefix)
            .field("ttl", &self.ttl)
            .field("timeout", &self.timeout)
            .field("reconnect", &self.reconnect)
            .field("user", &self.credentials.as_ref().map(|it| &it.user))
            .field("tls", &self.tls)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("server_name", &self.server_name)
            .field("raw_key", &self.raw_key)
            .field("note", &self.note)
            .finish()
    }
}

impl EtcdOptions {
    /// What the keys of locks begin with. Default: none.
    ///
    /// The key of the lock `import` is `jobs/import/…` with the prefix `jobs`, and so it is
    /// with `/jobs/`. All programs that share a lock give the same one.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> Self {
        let prefix = prefix.as_ref().trim_matches('/');
        self.prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        self
    }

    /// How long the lock is held without a sign of life from this process.
    ///
    /// In whole seconds, at least two. The lease is renewed each third of this. After a crash
    /// the next contender waits for this long, and longer if the cluster elects a leader
    /// meanwhile. Below 5 s such an election may cost a living holder the lock.
    /// Default: 15 s.
    #[doc(alias = "lease")]
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How long [`acquire`](crate::AsyncEtcdLock::acquire) waits. Default: `None`, for ever.
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// How long a cluster of which no member answers is asked again. Each answer begins
    /// that time anew. Default: 30 s.
    #[must_use]
    pub fn reconnect(mut self, time: Duration) -> Self {
        self.reconnect = time;
        self
    }

    /// Log in as this user. Without TLS others can read the password on its way.
    /// Default: no login.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let (user, password) = (user.into(), password.into());
        self.credentials = Some(Credentials { user, password });
        self
    }

    /// Speak TLS to endpoints that are given without a scheme. Default: only if one of the
    /// files below is given.
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// A file with the certificates to trust, in PEM. Default: those the system trusts.
    ///
    /// Those of the members must be one of them, or signed by one of them.
    #[must_use]
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(file.into());
        self
    }

    /// The certificate of this client and its key, two files in PEM. Default: none.
    #[must_use]
    pub fn identity(mut self, cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        (self.cert_file, self.key_file) = (Some(cert_file.into()), Some(key_file.into()));
        self
    }

    /// The name that the members' certificates have, where that is not the host's.
    /// Default: the host of each endpoint.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// The key below which contenders queue. Default: prefix and name.
    ///
    /// With it a lock takes turns with a program that names keys by a rule of its own. It
    /// has no `/` at its end.
    #[must_use]
    pub fn raw_key(mut self, key: impl Into<String>) -> Self {
        self.raw_key = Some(key.into());
        self
    }

    /// A line that is shown with the holder. Default: none.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls || self.ca_file.is_some() || self.cert_file.is_some() || self.server_name.is_some()
    }

    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |option, why: String| Err(Error::InvalidOption { option, why });
        if self.ttl < SHORTEST_TTL {
            return wrong("ttl", format!("{:?} is too short, at least 2 s are needed", self.ttl));
        }
        if self.ttl > LONGEST_TTL {
            return wrong("ttl", format!("{:?} is longer than etcd can count", self.ttl));
        }
        if self.ttl.subsec_nanos() != 0 {
            return wrong("ttl", format!("{:?} is not in whole seconds", self.ttl));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return wrong("key_file", "a certificate and its key go together".to_owned());
        }
        let is_folder_above = self.prefix.split('/').any(|part| part == "..");
        if is_folder_above || self.prefix.chars().any(char::is_control) {
            let why = format!("{:?} has .. or a control character in it", self.prefix);
            return wrong("prefix", why);
        }
        match &self.raw_key {
            Some(key) if key.is_empty() || key.ends_with('/') || key.contains('\0') => {
                wrong("raw_key", format!("{key:?} is empty, ends with a / or has a NUL in it"))
            }
            _ => Ok(()),
        }
    }
}
