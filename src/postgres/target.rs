//! What every request is about: a server and a lock of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::failure::{Failure, GivenUp, Kind};
use super::key::LockKey;
use super::options::PostgresOptions;
use super::server::Server;
use crate::lease::{Background, Exhausted, Patience};
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::name::LockName;

/// One lock.
pub(super) struct Target {
    pub(super) server: Arc<Server>,
    pub(super) name: String,
    pub(super) key: LockKey,
    pub(super) background: Background,
}

impl Target {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn new(server: Arc<Server>, name: &str) -> Result<Self, Error> {
        let of_name = LockKey::of_name(name)?;
        let key = server.options.raw_key.unwrap_or(of_name);
        Ok(Self { server, name: name.to_owned(), key, background: Background::default() })
    }

    pub(super) fn options(&self) -> &PostgresOptions {
        &self.server.options
    }

    pub(super) fn name(&self) -> LockName {
        LockName::at(&self.name, &self.server.url)
    }

    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.options().reconnect)
    }

    pub(super) fn lost(&self, reason: LostReason) -> Lost {
        Lost { lock: self.name(), reason }
    }

    pub(super) fn unreachable(
        &self,
        doing: &'static str,
        tried: Duration,
        source: io::Error,
    ) -> Error {
        let tried = Duration::from_millis(u64::try_from(tried.as_millis()).unwrap_or(u64::MAX));
        Error::Unreachable { lock: self.name(), doing, tried, source }
    }

    pub(super) fn cancelled(&self) -> Error {
        Error::Cancelled { lock: self.name() }
    }

    pub(super) fn given_up(&self, doing: &'static str, given_up: GivenUp) -> Error {
        match given_up {
            GivenUp::Exhausted(Exhausted { tried, error }) => self.unreachable(doing, tried, error),
            GivenUp::Final(failure) => self.refused(doing, failure),
        }
    }

    fn refused(&self, doing: &'static str, failure: Failure) -> Error {
        let Failure { kind, state, message } = failure;
        let lock = self.name();
        match kind {
            Kind::Forbidden => Error::Forbidden { lock, doing, message },
            Kind::Untrusted => Error::Untrusted { lock, doing, source: io::Error::other(message) },
            Kind::Foreign | Kind::TooOld => Error::NotAServer { lock, doing, found: message },
            Kind::Passing | Kind::ReadOnly => {
                self.unreachable(doing, Duration::ZERO, io::Error::other(message))
            }
            Kind::NoTls | Kind::Refused => {
                let code = state.unwrap_or_else(|| "refused".to_owned());
                Error::Refused { lock, doing, code, message }
            }
        }
    }
}

/// The same server, options and name, whatever work goes on.
impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && *self.server == *other.server
    }
}
