//! Turns of this process's tasks, first in, first out. One contender per lock
//! and process goes to the file system; the others wait here, so that a
//! release wakes one task and not all.
//!
//! Turns keep order and save work. That two tasks do not hold at once does not
//! rest on them: the protocol excludes tasks as it excludes processes.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::liveness::ProcessKey;
use crate::path::LockPath;

/// One directory entry, whatever path leads to it. The process keeps a
/// forked child out of its parent's queues, where nobody would wake it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) process: ProcessKey,
    pub(crate) directory: (u64, u64),
    pub(crate) path: Arc<LockPath>,
}

impl Entry {
    /// Of the path only the last name counts.
    fn key(&self) -> (ProcessKey, (u64, u64), &OsStr) {
        (self.process, self.directory, self.path.name())
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// The queue of one entry; gone when nobody is in it or remembers it.
#[derive(Debug)]
pub(crate) struct Queue {
    entry: Entry,
    turns: Arc<Semaphore>,
    chain: Mutex<Chain>,
}

/// The time for which this process has had the lock over and over again, with
/// no more than moments in between.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    started: Option<Instant>,
    last_end: Option<Instant>,
}

/// A longer time without the lock begins a new chain: others could have had it.
const MOMENT: Duration = Duration::from_millis(1);

/// After so long a chain this process asks whether others wait, and lets them
/// go first. Asking takes a microsecond or two, so that it costs nothing
/// measurable once in a millisecond.
const CHAIN_MAX: Duration = Duration::from_millis(1);

static QUEUES: LazyLock<Mutex<HashMap<Entry, Weak<Queue>>>> = LazyLock::new(Mutex::default);

fn queues() -> MutexGuard<'static, HashMap<Entry, Weak<Queue>>> {
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    pub(crate) fn is_of(&self, entry: &Entry) -> bool {
        self.entry == *entry
    }

    /// A turn begins; whether this process has had the lock for so long that
    /// it should let others go first, if any wait.
    fn turn_begins(&self) -> bool {
        let now = Instant::now();
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        match (chain.started, chain.last_end) {
            (Some(started), Some(end)) if now.duration_since(end) <= MOMENT => {
                if now.duration_since(started) <= CHAIN_MAX {
                    return false;
                }
                chain.started = Some(now);
                true
            }
            _ => {
                chain.started = Some(now);
                false
            }
        }
    }

    fn turn_ends(&self) {
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.last_end = Some(Instant::now());
    }

    /// The directory's identity and the name in it.
    pub(crate) fn name(&self) -> ((u64, u64), OsString) {
        (self.entry.directory, self.entry.path.name().to_owned())
    }

    pub(crate) fn of(entry: Entry) -> Arc<Queue> {
        let mut queues = queues();
        if let Some(queue) = queues.get(&entry).and_then(Weak::upgrade) {
            return queue;
        }
        let turns = Arc::new(Semaphore::new(1));
        let queue = Arc::new(Queue { entry: entry.clone(), turns, chain: Mutex::default() });
        queues.insert(entry, Arc::downgrade(&queue));
        queue
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut queues = queues();
        // A newcomer may have made another queue for the entry since.
        if queues.get(&self.entry).is_some_and(|queue| queue.strong_count() == 0) {
            queues.remove(&self.entry);
        }
    }
}

/// The right to contend for, and then to hold, one lock. Dropping it gives it
/// to the next task. The fields drop in this order: the permit before the
/// queue it belongs to.
#[derive(Debug)]
pub(crate) struct Turn {
    has_had_its_share: bool,
    _permit: OwnedSemaphorePermit,
    queue: Arc<Queue>,
}

impl Turn {
    fn new(permit: OwnedSemaphorePermit, queue: Arc<Queue>) -> Self {
        Self { has_had_its_share: queue.turn_begins(), _permit: permit, queue }
    }

    /// Whether this process should let others go first, if any wait.
    pub(crate) fn has_had_its_share(&self) -> bool {
        self.has_had_its_share
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.queue.turn_ends();
    }
}

impl Queue {
    /// Wait for the turn. Dropping the future leaves the queue.
    pub(crate) async fn next_turn(self: Arc<Self>) -> Turn {
        let permit = Arc::clone(&self.turns).acquire_owned().await;
        Turn::new(permit.expect("BUG: a queue was closed"), self)
    }

    /// The turn, if nobody has it or waits for it.
    pub(crate) fn try_turn(self: Arc<Self>) -> Option<Turn> {
        let permit = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        Some(Turn::new(permit, self))
    }
}
