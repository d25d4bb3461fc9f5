//! What every request is about: a cluster and a lock in it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use super::client::{Client, GivenUp};
use super::endpoint::Endpoint;
use super::failure::{Failure, Kind};
use super::key;
use super::key_watch::KeyWatches;
use super::options::EtcdOptions;
use super::session::Session;
use crate::lease::{Background, Exhausted, Patience, PerProcess, Tls};
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::name::LockName;
use crate::sys::mutex::Mutex;

/// Queues without a task in them are forgotten when there are twice as many as were needed.
const QUEUES_KEPT: usize = 64;

/// A cluster, as its users name it. Locks of one cluster share its session.
pub(super) struct Cluster {
    /// As a URL, without anything secret.
    pub(super) url: String,
    pub(super) options: EtcdOptions,
    endpoints: Vec<Endpoint>,
    live: PerProcess<Arc<Live>>,
}

/// What this process has of a cluster.
pub(super) struct Live {
    pub(super) client: Arc<Client>,
    pub(super) watches: KeyWatches,
    /// Locked while one is being made.
    session: AsyncMutex<Option<Arc<Session>>>,
    /// The tasks of this process that want a lock. (E6)
    queues: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Cluster {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn new(endpoints: &str, options: EtcdOptions) -> Result<Self, Error> {
        options.check()?;
        let identity = options.cert_file.as_deref().zip(options.key_file.as_deref());
        let tls = |host: &str| {
            let host = options.server_name.as_deref().unwrap_or(host);
            Tls::new(host, options.ca_file.as_deref(), identity).map(Tls::for_http2)
        };
        let parsed = Endpoint::parse_all(endpoints, options.has_tls(), &tls)?;
        let scheme = if parsed[0].tls().is_some() { "etcd+tls" } else { "etcd" };
        let hosts: Vec<_> = parsed.iter().map(ToString::to_string).collect();
        let url = format!("{scheme}://{}/{}", hosts.join(","), options.prefix);
        Ok(Self { url, options, endpoints: parsed, live: PerProcess::new() })
    }

    /// # Errors
    /// What the system refused.
    pub(super) fn live(&self) -> io::Result<&Arc<Live>> {
        self.live.get_or_make(|| {
            let client = Arc::new(Client::new(&self.endpoints, self.options.credentials.clone()));
            let watches = KeyWatches::new(Arc::clone(&client))?;
            let (session, queues) = (AsyncMutex::new(None), Mutex::default());
            Ok(Arc::new(Live { client, watches, session, queues }))
        })
    }
}

impl Live {
    /// The session, or a new one if that has ended.
    pub(super) async fn session(
        &self,
        options: &EtcdOptions,
        patience: &mut Patience,
    ) -> Result<Arc<Session>, GivenUp> {
        let mut place = self.session.lock().await;
        if let Some(session) = place.as_ref().filter(|session| session.state.over().is_none()) {
            return Ok(Arc::clone(session));
        }
        drop(place.take());
        let begun = Session::begin(&self.client, &options.prefix, options.ttl, patience).await?;
        Ok(Arc::clone(place.insert(begun)))
    }

    /// The queue of this process for a lock.
    pub(super) fn queue(&self, key: &str) -> Arc<Semaphore> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get(key).and_then(Weak::upgrade) {
            return queue;
        }
        if queues.len() >= QUEUES_KEPT && queues.len() == queues.capacity() {
            queues.retain(|_, queue| queue.strong_count() > 0);
        }
        let queue = Arc::new(Semaphore::new(1));
        queues.insert(key.to_owned(), Arc::downgrade(&queue));
        queue
    }
}

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
