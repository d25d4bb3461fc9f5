//! A cluster, as its users name it and as this process has it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Uri;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::client::{ANSWER_LIMIT, Client, Credentials, GivenUp};
use super::endpoint::Endpoint;
use super::key_watch::KeyWatches;
use super::options::EtcdOptions;
use super::session::Session;
use crate::lease::{Exhausted, OptionNames, Patience, PerProcess, Tls, Trust};
use crate::lock::error::Error;
use crate::sys::mutex::Mutex;

/// Queues without a task in them are forgotten when there are more than this, and each time
/// that their number has doubled.
const QUEUES_KEPT: usize = 64;

/// A cluster, and how its locks are asked for.
pub(super) struct Cluster {
    /// As a URL, without anything secret.
    pub(super) url: String,
    pub(super) options: EtcdOptions,
    shared: Arc<Shared>,
}

/// What locks of the same access have in common, however they were made: so their tasks
/// stand in one queue.
struct Shared {
    access: Access,
    endpoints: Vec<Endpoint>,
    live: PerProcess<Arc<Live>>,
}

/// What a session depends on.
#[derive(Clone, PartialEq, Eq)]
struct Access {
    /// With their schemes.
    endpoints: Vec<Uri>,
    prefix: String,
    ttl: Duration,
    credentials: Option<Credentials>,
    files: [Option<PathBuf>; 3],
    server_name: Option<String>,
}

/// What this process has of a cluster.
pub(super) struct Live {
    pub(super) client: Arc<Client>,
    pub(super) watches: KeyWatches,
    /// Locked while one is being made.
    session: AsyncMutex<Option<Arc<Session>>>,
    queues: Mutex<Queues>,
}

/// The tasks of this process that want a lock. (E6)
#[derive(Default)]
struct Queues {
    all: HashMap<String, Weak<Semaphore>>,
    /// So many were left after the last look.
    kept: usize,
}

static CLUSTERS: PerProcess<Mutex<Vec<Weak<Shared>>>> = PerProcess::new();

impl Cluster {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn new(endpoints: &str, options: EtcdOptions) -> Result<Self, Error> {
        options.check()?;
        let identity = options.cert_file.as_deref().zip(options.key_file.as_deref());
        let trust = options.ca_file.as_deref().map_or(Trust::System, Trust::File);
        let tls = |host: &str| {
            let host = options.server_name.as_deref().unwrap_or(host);
            Tls::new(host, trust, identity, OptionNames::USUAL).map(Tls::for_http2)
        };
        let endpoints = Endpoint::parse_all(endpoints, options.has_tls(), &tls)?;
        let scheme = if endpoints[0].tls().is_some() { "etcd+tls" } else { "etcd" };
        let hosts: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        let url = format!("{scheme}://{}/{}", hosts.join(","), options.prefix);
        let EtcdOptions { ttl, credentials, server_name, prefix, .. } = options.clone();
        let files = [&options.ca_file, &options.cert_file, &options.key_file].map(Clone::clone);
        let origins = endpoints.iter().map(|endpoint| endpoint.origin().clone()).collect();
        let access = Access { endpoints: origins, prefix, ttl, credentials, files, server_name };
        Ok(Self { url, options, shared: Shared::of(access, endpoints) })
    }

    /// The same for a command of this name.
    #[cfg(feature = "cli")]
    pub(super) fn of_command(&self, name: &str, note: Option<String>) -> Self {
        let mut options = self.options.clone();
        options.name = Some(name.to_owned());
        options.note = options.note.or(note);
        Self { url: self.url.clone(), options, shared: Arc::clone(&self.shared) }
    }

    /// # Errors
    /// What the system refused.
    pub(super) fn live(&self) -> io::Result<&Arc<Live>> {
        let Shared { live, endpoints, access } = &*self.shared;
        live.get_or_make(|| Live::new(endpoints, access.credentials.clone()).map(Arc::new))
    }
}

impl Shared {
    /// That which is there, or a new one.
    fn of(access: Access, endpoints: Vec<Endpoint>) -> Arc<Self> {
        let clusters = match CLUSTERS.get_or_make(|| Ok::<_, Infallible>(Mutex::default())) {
            Ok(clusters) => clusters,
            Err(never) => match never {},
        };
        let mut clusters = clusters.lock();
        clusters.retain(|cluster| cluster.strong_count() > 0);
        let found = clusters.iter().filter_map(Weak::upgrade).find(|it| it.access == access);
        found.unwrap_or_else(|| {
            let made = Arc::new(Self { access, endpoints, live: PerProcess::new() });
            clusters.push(Arc::downgrade(&made));
            made
        })
    }
}

impl Live {
    fn new(endpoints: &[Endpoint], credentials: Option<Credentials>) -> io::Result<Self> {
        let client = Arc::new(Client::new(endpoints, credentials));
        let watches = KeyWatches::new(Arc::clone(&client))?;
        let (session, queues) = (AsyncMutex::new(None), Mutex::default());
        Ok(Self { client, watches, session, queues })
    }

    /// The session, or a new one if that has ended.
    pub(super) async fn session(
        &self,
        options: &EtcdOptions,
        patience: &mut Patience,
    ) -> Result<Arc<Session>, GivenUp> {
        let begun = Instant::now();
        let mut place = match patience.end_of(ANSWER_LIMIT) {
            None => self.session.lock().await,
            // Another task may be more patient with members that do not answer.
            Some(end) => timeout_at(end, self.session.lock()).await.map_err(|_| {
                let error = io::Error::other("another task waits for a session meanwhile");
                GivenUp::Exhausted(Exhausted { tried: begun.elapsed(), error })
            })?,
        };
        if let Some(session) = place.as_ref().filter(|session| session.state.over().is_none()) {
            return Ok(Arc::clone(session));
        }
        drop(place.take());
        // No guard relies on the cluster that was known: it may have been restored as another.
        self.client.loosen();
        let begun = Session::begin(&self.client, &options.prefix, options.ttl, patience).await?;
        Ok(Arc::clone(place.insert(begun)))
    }

    /// The queue of this process for a lock.
    pub(super) fn queue(&self, key: &str) -> Arc<Semaphore> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.all.get(key).and_then(Weak::upgrade) {
            return queue;
        }
        if queues.all.len() >= QUEUES_KEPT.max(queues.kept * 2) {
            queues.all.retain(|_, queue| queue.strong_count() > 0);
            queues.kept = queues.all.len();
        }
        let queue = Arc::new(Semaphore::new(1));
        queues.all.insert(key.to_owned(), Arc::downgrade(&queue));
        queue
    }
}
