//! What every request is about: a cluster and a lock in it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::client::GivenUp;
use super::cluster::Cluster;
use super::failure::{Failure, Kind};
use super::key;
use super::options::EtcdOptions;
use crate::lease::{Background, Exhausted, Patience};
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::name::LockName;

/// One lock.
pub(super) struct Target {
    pub(super) cluster: Arc<Cluster>,
    pub(super) name: String,
    /// What the keys of contenders begin with.
    pub(super) queue: String,
    pub(super) background: Background,
}

impl Target {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn new(cluster: Arc<Cluster>, name: &str) -> Result<Self, Error> {
        let options = &cluster.options;
        let queue = key::queue(&options.prefix, name, options.raw_key.as_deref())?;
        Ok(Self { cluster, name: name.to_owned(), queue, background: Background::default() })
    }

    pub(super) fn options(&self) -> &EtcdOptions {
        &self.cluster.options
    }

    pub(super) fn name(&self) -> LockName {
        LockName::at(&self.name, &self.cluster.url)
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
        let (lock, message) = (self.name(), failure.message);
        let code = match failure.kind {
            Kind::Forbidden | Kind::Stale => return Error::Forbidden { lock, doing, message },
            Kind::Untrusted => {
                return Error::Untrusted { lock, doing, source: io::Error::other(message) };
            }
            Kind::Foreign => return Error::NotAServer { lock, doing, found: message },
            Kind::Passing => {
                return self.unreachable(doing, Duration::ZERO, io::Error::other(message));
            }
            Kind::NoSpace => {
                let message = format!(
                    "{message}: compact and defragment it, then etcdctl alarm disarm; or raise \
                     --quota-backend-bytes"
                );
                return Error::Refused { lock, doing, code: "no_space".to_owned(), message };
            }
            Kind::NoLease => "no_lease",
            Kind::Restored => "restored",
            Kind::Refused => "refused",
        };
        Error::Refused { lock, doing, code: code.to_owned(), message }
    }
}

/// The same endpoints, options and name, whatever work goes on.
impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        let one = (&self.cluster.url, &self.cluster.options, &self.name);
        one == (&other.cluster.url, &other.cluster.options, &other.name)
    }
}
