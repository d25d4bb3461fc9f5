//! A server, as its users name it and as this process has it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::access::Access;
use super::failure::{Failure, GivenUp, Kind, pause};
use super::key::{LockKey, Mode};
use super::lock_session::{ANSWER_LIMIT, LockSession, Use};
use super::options::{PostgresOptions, Table};
use super::schema;
use crate::lease::{Patience, PerProcess};
use crate::lock::error::Error;
use crate::sys::mutex::Mutex;

/// So many locks are held in one session. If larger, more are lost with it.
const MOST_IN_A_SESSION: usize = 256;

/// So many sessions that have waited are kept for the next wait. If larger, an idle process
/// has more of the server's sessions.
const MOST_SPARE: usize = 2;

/// Queues without a task in them are forgotten when there are more than this, and each time
/// that their number has doubled.
const QUEUES_KEPT: usize = 64;

/// All permits of a queue: a writer takes them, a reader one.
const READERS: u32 = 1 << 20;

/// A server, and how its locks are asked for.
pub(super) struct Server {
    /// As a URL, without anything secret.
    pub(super) url: String,
    pub(super) options: PostgresOptions,
    shared: Arc<Shared>,
}

/// What locks of the same access have in common, however they were made: so their tasks
/// stand in one queue.
struct Shared {
    access: Access,
    terms: Terms,
    live: PerProcess<Arc<Live>>,
}

/// What sessions depend on beside the access.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Terms {
    lease: Duration,
    table: Table,
    most_locks: usize,
}

/// What this process has of a server.
pub(super) struct Live {
    access: Access,
    terms: Terms,
    /// Locked while one is being made.
    keeper: AsyncMutex<Keeper>,
    /// Sessions that have waited, and hold nothing.
    spare: Mutex<Vec<Arc<LockSession>>>,
    /// So many locks there may be more.
    room: Arc<Semaphore>,
    queues: Mutex<Queues>,
}

/// The session in which locks are tried.
#[derive(Default)]
struct Keeper {
    session: Option<Arc<LockSession>>,
    /// Why there is none, and since when that is known.
    failed: Option<(Instant, Failure)>,
}

/// The tasks of this process that want a lock. (E6)
#[derive(Default)]
struct Queues {
    all: HashMap<LockKey, Weak<Semaphore>>,
    /// So many were left after the last look.
    kept: usize,
}

static SERVERS: PerProcess<Mutex<Vec<Weak<Shared>>>> = PerProcess::new();

impl Server {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn new(access: Access, options: PostgresOptions) -> Result<Self, Error> {
        options.check()?;
        let (url, most_locks) = (access.url(), options.most_locks.min(Semaphore::MAX_PERMITS));
        let terms = Terms { lease: options.lease, table: options.table, most_locks };
        Ok(Self { url, options, shared: Shared::of(access, terms) })
    }

    /// The same for a command of this name.
    #[cfg(feature = "cli")]
    pub(super) fn of_command(&self, name: &str, note: Option<String>) -> Self {
        let mut options = self.options.clone();
        options.name = Some(name.to_owned());
        options.note = options.note.or(note);
        let shared = Shared::of(self.shared.access.of_command(name), self.shared.terms);
        Self { url: self.url.clone(), options, shared }
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        let Shared { live, access, terms } = &*self.shared;
        let made = live.get_or_make(|| Ok::<_, Infallible>(Arc::new(Live::new(access, *terms))));
        match made {
            Ok(live) => live,
            Err(never) => match never {},
        }
    }
}

/// The same access and options.
impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) && self.options == other.options
    }
}

impl Shared {
    /// That which is there, or a new one.
    fn of(access: Access, terms: Terms) -> Arc<Self> {
        let servers = match SERVERS.get_or_make(|| Ok::<_, Infallible>(Mutex::default())) {
            Ok(servers) => servers,
            Err(never) => match never {},
        };
        let mut servers = servers.lock();
        servers.retain(|server| server.strong_count() > 0);
        let is_same = |it: &Arc<Self>| it.access == access && it.terms == terms;
        let found = servers.iter().filter_map(Weak::upgrade).find(is_same);
        found.unwrap_or_else(|| {
            let made = Arc::new(Self { access, terms, live: PerProcess::new() });
            servers.push(Arc::downgrade(&made));
            made
        })
    }
}

impl Live {
    fn new(access: &Access, terms: Terms) -> Self {
        Self {
            access: access.clone(),
            terms,
            keeper: AsyncMutex::default(),
            spare: Mutex::default(),
            room: Arc::new(Semaphore::new(terms.most_locks)),
            queues: Mutex::default(),
        }
    }

    /// A session in which a lock can be tried. A caller's limit is not outlasted by more than
    /// one answer may take, though others wait for it longer.
    pub(super) async fn keeper(
        &self,
        patience: &mut Patience,
    ) -> Result<Arc<LockSession>, GivenUp> {
        let Some(end) = patience.end_of(ANSWER_LIMIT) else {
            return self.keeper_at_last(patience).await;
        };
        let made = timeout_at(end, self.keeper_at_last(patience)).await;
        made.unwrap_or_else(|_| Err(GivenUp::Final(late())))
    }

    async fn keeper_at_last(&self, patience: &mut Patience) -> Result<Arc<LockSession>, GivenUp> {
        loop {
            let begun = Instant::now();
            match self.try_keeper(patience).await {
                Ok(keeper) => return Ok(keeper),
                Err(failure) => pause(failure, begun, patience).await?,
            }
        }
    }

    /// One try for all tasks that want one at the time: else each would wait for the tries of
    /// those before it.
    async fn try_keeper(&self, patience: &mut Patience) -> Result<Arc<LockSession>, Failure> {
        let begun = Instant::now();
        let mut keeper = self.keeper.lock().await;
        if let Some(session) = keeper.session.as_ref().filter(|it| it.takes_more(MOST_IN_A_SESSION))
        {
            return Ok(Arc::clone(session));
        }
        if let Some((_, failure)) = keeper.failed.as_ref().filter(|(since, _)| *since >= begun) {
            return Err(failure.clone());
        }
        keeper.session = None;
        match self.begin_keeper().await {
            Ok(session) => {
                patience.renew(begun.elapsed());
                Ok(Arc::clone(keeper.session.insert(session)))
            }
            Err(failure) => {
                keeper.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn begin_keeper(&self) -> Result<Arc<LockSession>, Failure> {
        let keeper = LockSession::begin(&self.access, self.terms.lease).await?;
        // A pooler gives the second one the session of the first, before a lock is taken, and
        // before it is set for locks: the next statement may be another client's. (P7)
        let second = LockSession::begin(&self.access, self.terms.lease).await?;
        keeper.set(Use::Keeper).await?;
        second.set(Use::Waiter).await?;
        if self.terms.table == Table::Own {
            schema::check(&keeper).await?;
        }
        self.put_back(second);
        Ok(keeper)
    }

    /// [`waiter`](Self::waiter), for one try. A caller's limit is not outlasted by more than one
    /// answer may take.
    pub(super) async fn waiter_in_time(
        &self,
        patience: &Patience,
    ) -> Result<Arc<LockSession>, Failure> {
        let Some(end) = patience.end_of(ANSWER_LIMIT) else { return self.waiter().await };
        timeout_at(end, self.waiter()).await.unwrap_or_else(|_| Err(late()))
    }

    /// A session in which a lock can be waited for. It holds nothing.
    pub(super) async fn waiter(&self) -> Result<Arc<LockSession>, Failure> {
        loop {
            let found = self.spare.lock().pop();
            let Some(session) = found else { break };
            if session.takes_more(1) {
                return Ok(session);
            }
        }
        let session = LockSession::begin(&self.access, self.terms.lease).await?;
        session.set(Use::Waiter).await?;
        Ok(session)
    }

    /// A session of a wait that holds nothing any more, and is probed.
    pub(super) fn put_back(&self, session: Arc<LockSession>) {
        let mut spare = self.spare.lock();
        spare.retain(|it| it.takes_more(1));
        if spare.len() < MOST_SPARE && session.takes_more(1) {
            spare.push(session);
        }
    }

    /// Room for one more lock.
    pub(super) fn room(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            let most = self.terms.most_locks;
            let text = format!(
                "this process holds or waits for {most} locks of this server already (most_locks)"
            );
            Failure {
                state: Some("too_many_locks".to_owned()),
                ..Failure::new(Kind::Refused, text)
            }
        })
    }

    /// The queue of this process for a lock.
    pub(super) fn queue(&self, key: LockKey) -> Arc<Semaphore> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.all.get(&key).and_then(Weak::upgrade) {
            return queue;
        }
        if queues.all.len() >= QUEUES_KEPT.max(queues.kept * 2) {
            queues.all.retain(|_, queue| queue.strong_count() > 0);
            queues.kept = queues.all.len();
        }
        let queue = Arc::new(Semaphore::new(READERS as usize));
        queues.all.insert(key, Arc::downgrade(&queue));
        queue
    }
}

fn late() -> Failure {
    Failure::new(Kind::Passing, "no session was made in time")
}

/// How many permits of a queue a turn takes.
pub(super) fn permits(mode: Mode) -> u32 {
    match mode {
        Mode::Exclusive => READERS,
        Mode::Shared => 1,
    }
}
