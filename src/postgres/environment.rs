//! What a process has around it: variables, a user, a home.

use std::env::VarError;
use std::path::{Path, PathBuf};

use super::connection_string::Pairs;
use super::keys::Refusal;
use crate::lock::error::Error;
use crate::sys::{libpq, user};

/// Variables of libpq's, and the keys that they stand for. Those that only say how libpq
/// itself talks (encoding, Kerberos) are left alone.
const VARIABLES: [(&str, &str); 28] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGAPPNAME", "application_name"),
    ("PGOPTIONS", "options"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLCOMPRESSION", "sslcompression"),
    ("PGSSLCERTMODE", "sslcertmode"),
    ("PGSSLSNI", "sslsni"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGREQUIREAUTH", "require_auth"),
];

/// Where a variable is looked up.
pub(super) type Variable<'a> = &'a dyn Fn(&'static str) -> Result<Option<String>, Error>;

#[derive(Clone, Copy)]
pub(super) struct Environment<'a> {
    variable: Variable<'a>,
    /// The directory of sockets, for a text without a host.
    pub(super) sockets: &'a str,
}

impl Environment<'static> {
    pub(super) const OF_THIS_PROCESS: Self = Self { variable: &variable, sockets: libpq::SOCKETS };
}

impl<'a> Environment<'a> {
    #[cfg(test)]
    pub(super) fn new(variable: Variable<'a>, sockets: &'a str) -> Self {
        Self { variable, sockets }
    }

    /// # Errors
    /// [`Error::InvalidOption`]: it is not UTF-8.
    pub(super) fn variable(&self, name: &'static str) -> Result<Option<String>, Error> {
        Ok((self.variable)(name)?.filter(|value| !value.is_empty()))
    }

    /// What the variables say.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] with the variable's name.
    pub(super) fn pairs(&self) -> Result<Pairs, Error> {
        let mut pairs = Pairs::default();
        for (option, key) in VARIABLES {
            if let Some(value) = self.variable(option)? {
                let set = pairs.set(key, &value).map_err(Refusal::without_name);
                set.map_err(|why| Error::InvalidOption { option, why })?;
            }
        }
        Ok(pairs)
    }

    /// The name of the user that this process runs as.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn login() -> Result<String, Error> {
        user::name().map_err(|why| Error::InvalidOption {
            option: "user",
            why: format!("it is not given, and {why}"),
        })
    }

    /// A file below the home of this process's user.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn at_home(&self, file: impl AsRef<Path>) -> Result<Option<PathBuf>, Error> {
        let home = match self.variable(libpq::BASE_VARIABLE)? {
            Some(home) => Some(PathBuf::from(home)),
            None => user::home(),
        };
        Ok(home.map(|home| home.join(file)))
    }
}

/// # Errors
/// It is not UTF-8.
fn variable(name: &'static str) -> Result<Option<String>, Error> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            Err(Error::InvalidOption { option: name, why: "it is not UTF-8".to_owned() })
        }
    }
}
