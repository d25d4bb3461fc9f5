//! Turns of this process's tasks, first in, first out. One contender per lock
//! and process goes to the file system; the others wait here, so that a
//! release wakes one task and not all.
//!
//! Turns keep order and save work. That two tasks do not hold at once does not
//! rest on them: the protocol excludes tasks as it excludes processes.
//!
//! A turn may hand something off to the next one: a holder, the file that it holds.
//!
//! 1. A hand-off is taken by the next turn, whichever task has that, or dropped with it.
//! 2. If no task waits, it is dropped by the last that could have taken it: the one that
//!    handed it off, or the last waiter that went away.
//! 3. If the next task does not take it in time, it [expires](super::handoff_expiry).

use std::any::Any;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::handoff_expiry::{self, Expire};
use super::hold_id::HoldId;
use crate::sys::mutex::Mutex;
use crate::sys::path::LockPath;
use crate::sys::process_key::ProcessKey;
use crate::sys::tickets;

/// One directory entry, whatever path leads to it. The process keeps a
/// forked child out of its parent's queues, where no task would wake it.
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

/// The queue of one entry; gone with the last that is in it or remembers it.
#[derive(Debug)]
pub(crate) struct TaskQueue {
    entry: Entry,
    turns: Semaphore,
    chain: Mutex<Chain>,
    /// How many wait for a turn.
    waiting: AtomicUsize,
    slot: Mutex<HandoffSlot>,
    /// Whether a hand-off is there, to be asked without its lock.
    has_handoff: AtomicBool,
    /// The last hold of this process, and where in its source it was asked for.
    site: Mutex<Option<(HoldId, CallSite)>>,
    /// Whether a turn since the last end of one became a hold.
    was_held: AtomicBool,
}

/// A line of the program's source.
pub(crate) type CallSite = &'static Location<'static>;

/// What one turn hands off to the next.
pub(crate) type Handoff = Box<dyn Any + Send + Sync>;

/// Where a hand-off waits for the next turn.
#[derive(Debug, Default)]
struct HandoffSlot {
    handoff: Option<Handoff>,
    /// Until when it lasts.
    until: Option<Instant>,
    /// When the expiry thread looks at it (3).
    next_look: Option<Instant>,
}

/// The time for which this process has held the lock over and over again, with
/// no more than moments in between.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    started: Option<Instant>,
    last_end: Option<Instant>,
    /// The same for a hold.
    last_hold_end: Option<Instant>,
}

/// A longer time without the lock begins a new chain: others could have had it.
const MOMENT: Duration = Duration::from_millis(1);

static QUEUES: LazyLock<Mutex<HashMap<Entry, Weak<TaskQueue>>>> = LazyLock::new(Mutex::default);

fn queues() -> MutexGuard<'static, HashMap<Entry, Weak<TaskQueue>>> {
    QUEUES.lock()
}

impl TaskQueue {
    pub(crate) fn is_of(&self, entry: &Entry) -> bool {
        self.entry == *entry
    }

    /// Device and inode.
    pub(crate) fn directory(&self) -> (u64, u64) {
        self.entry.directory
    }

    /// Whether a task of this process has the turn.
    pub(crate) fn is_busy(&self, process: ProcessKey) -> bool {
        self.entry.process == process && self.turns.available_permits() == 0
    }

    /// Where this process asked for the hold with this token.
    pub(crate) fn site_of(&self, token: HoldId) -> Option<CallSite> {
        let (held, site) = (*self.site.lock())?;
        (held == token).then_some(site)
    }

    /// Where this process asked for its last hold.
    pub(crate) fn last_site(&self) -> Option<CallSite> {
        self.site.lock().map(|(_, site)| site)
    }

    /// A turn begins: it goes on with a chain, or begins one. How long the
    /// chain is by now.
    fn turn_begins(&self) -> Duration {
        let now = Instant::now();
        let mut chain = self.chain.lock();
        let goes_on = chain.last_end.is_some_and(|end| now.duration_since(end) <= MOMENT);
        match chain.started.filter(|_| goes_on) {
            Some(started) => now.duration_since(started),
            None => {
                chain.started = Some(now);
                Duration::ZERO
            }
        }
    }

    /// If it is, another begins.
    fn local_handoff_is_over(&self, limit: Duration, now: Instant) -> bool {
        let mut chain = self.chain.lock();
        let is_over = chain.started.is_some_and(|started| now.duration_since(started) > limit);
        if is_over {
            chain.started = Some(now);
        }
        is_over
    }

    fn turn_ends(&self) {
        let now = Some(Instant::now());
        let mut chain = self.chain.lock();
        chain.last_end = now;
        // Only the turn that ends has to do with it; and a look costs less than a swap.
        if self.was_held.load(Ordering::Relaxed) {
            self.was_held.store(false, Ordering::Relaxed);
            chain.last_hold_end = now;
        }
    }

    /// Whether a hold of this process ended so recently.
    pub(crate) fn held_within(&self, time: Duration) -> bool {
        let last_end = self.chain.lock().last_hold_end;
        last_end.is_some_and(|end| end.elapsed() <= time)
    }

    fn take_handoff(&self) -> Option<Handoff> {
        // First by a look, as nearly always there is nothing.
        let is_there = self.has_handoff.load(Ordering::SeqCst);
        if !is_there || !self.has_handoff.swap(false, Ordering::SeqCst) {
            return None;
        }
        self.slot.lock().handoff.take()
    }

    /// Keep this for the next turn until then. Whether the expiry thread has to be notified.
    fn put_handoff(&self, handoff: Handoff, until: Instant) -> bool {
        let mut slot = self.slot.lock();
        (slot.handoff, slot.until) = (Some(handoff), Some(until));
        self.has_handoff.store(true, Ordering::SeqCst);
        let is_looked_at = slot.next_look.is_some_and(|look| look <= until);
        if !is_looked_at {
            slot.next_look = Some(until);
        }
        !is_looked_at
    }

    /// Drop a hand-off that no task waits for (2).
    fn clear(self: &Arc<Self>) {
        if self.has_handoff.load(Ordering::SeqCst) && self.waiting.load(Ordering::SeqCst) == 0 {
            drop(self.try_turn());
        }
    }

    /// The directory's identity and the name in it.
    pub(crate) fn name(&self) -> ((u64, u64), OsString) {
        (self.entry.directory, self.entry.path.name().to_owned())
    }

    pub(crate) fn of(entry: Entry) -> Arc<TaskQueue> {
        let mut queues = queues();
        if let Some(queue) = queues.get(&entry).and_then(Weak::upgrade) {
            return queue;
        }
        let queue = Arc::new(TaskQueue {
            entry: entry.clone(),
            turns: Semaphore::new(1),
            chain: Mutex::default(),
            waiting: AtomicUsize::new(0),
            slot: Mutex::default(),
            has_handoff: AtomicBool::new(false),
            site: Mutex::default(),
            was_held: AtomicBool::new(false),
        });
        queues.insert(entry, Arc::downgrade(&queue));
        queue
    }
}

impl Expire for TaskQueue {
    /// Drop a hand-off that lasts no longer than this (3). When to look again, if another
    /// is there.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut slot = self.slot.lock();
        slot.next_look = None;
        if !self.has_handoff.load(Ordering::SeqCst) {
            return None;
        }
        if let Some(later) = slot.until.filter(|until| *until > now) {
            slot.next_look = Some(later);
            return Some(later);
        }
        // Unless a task takes it at this moment.
        let expires = self.has_handoff.swap(false, Ordering::SeqCst);
        let expired = if expires { slot.handoff.take() } else { None };
        drop(slot);
        if expired.is_some() {
            drop(expired);
            self.turn_ends();
        }
        None
    }
}

impl Drop for TaskQueue {
    fn drop(&mut self) {
        let mut queues = queues();
        // A newcomer may have made another queue for the entry since.
        if queues.get(&self.entry).is_some_and(|queue| queue.strong_count() == 0) {
            queues.remove(&self.entry);
        }
    }
}

/// The right to contend for, and then to hold, one lock. Dropping it gives it
/// to the next task.
#[derive(Debug)]
pub(crate) struct Turn {
    queue: Arc<TaskQueue>,
    handoff: Option<Handoff>,
    /// For how long this process had held the lock when it began. `None` after a hand-off:
    /// that was within the limit.
    chain: Option<Duration>,
    /// Its end is not the end of a time in which this process held the lock.
    goes_on: bool,
}

impl Turn {
    /// For the task that took the queue's permit; its drop gives that back.
    fn new(queue: Arc<TaskQueue>) -> Self {
        let mut turn = Self { queue, handoff: None, chain: None, goes_on: false };
        turn.handoff = turn.queue.take_handoff(); // (1)
        turn.chain = turn.handoff.is_none().then(|| turn.queue.turn_begins());
        turn
    }

    pub(crate) fn is_of(&self, queue: &Arc<TaskQueue>) -> bool {
        Arc::ptr_eq(&self.queue, queue)
    }

    /// What the last turn handed off.
    pub(crate) fn take_handoff(&mut self) -> Option<Handoff> {
        self.handoff.take()
    }

    /// This turn became a hold, asked for there.
    pub(crate) fn holds(&self, token: HoldId, site: CallSite) {
        self.queue.was_held.store(true, Ordering::Relaxed);
        *self.queue.site.lock() = Some((token, site));
    }

    /// Whether another task of this process waits for its turn.
    pub(crate) fn has_local_waiters(&self) -> bool {
        self.queue.waiting.load(Ordering::SeqCst) > 0
    }

    /// Whether this process has held the lock for so long that other processes go first,
    /// if any wait. To be asked once, when the turn has just begun: the caller sees to
    /// that, and the time begins anew.
    pub(crate) fn local_handoff_is_over(&self, limit: Duration) -> bool {
        let may_be_over = self.chain.is_none_or(|chain| chain >= limit);
        may_be_over
            && self.handoff.is_none()
            && self.queue.local_handoff_is_over(limit, Instant::now())
    }

    /// Whether this process has held the lock for no longer than that.
    pub(crate) fn is_within(&self, limit: Duration, now: Instant) -> bool {
        let started = self.queue.chain.lock().started;
        started.is_some_and(|started| now.saturating_duration_since(started) <= limit)
    }

    /// Whether the lock may be handed off to the next turn with no chance for other
    /// processes.
    pub(crate) fn may_hand_off(&self, limit: Duration, now: Instant) -> bool {
        if !self.has_local_waiters() {
            return false;
        }
        // Waiters are looked for once in that time, as it takes as long as a hand-off.
        if self.is_within(limit, now) {
            return true;
        }
        // Where another process waits the time stays over, for the next turn to find so:
        // else that would take the lock again before the other is awake.
        if tickets::has_foreign_waiters(&self.queue.entry.path) {
            return false;
        }
        self.queue.local_handoff_is_over(limit, now);
        true
    }

    /// End the turn and hand this off to the next. It waits so long to be taken, and at
    /// least some milliseconds.
    pub(crate) fn hand_off(mut self, handoff: Handoff, now: Instant, lasts: Duration) {
        self.goes_on = true;
        let until = handoff_expiry::until(now, lasts);
        let look = || handoff_expiry::look_at(Arc::downgrade(&self.queue) as _, until);
        if self.queue.put_handoff(handoff, until) && !look() {
            self.queue.expire(until);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.handoff.take()); // (1)
        if !self.goes_on {
            self.queue.turn_ends();
        }
        self.queue.turns.add_permits(1);
        self.queue.clear();
    }
}

/// A task that waits for a turn, counted.
struct Waiting<'a>(&'a Arc<TaskQueue>);

impl<'a> Waiting<'a> {
    fn new(queue: &'a Arc<TaskQueue>) -> Self {
        queue.waiting.fetch_add(1, Ordering::SeqCst);
        Self(queue)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        self.0.clear();
    }
}

impl TaskQueue {
    /// Wait for the turn. Dropping the future leaves the queue.
    pub(crate) async fn next_turn(self: &Arc<Self>) -> Turn {
        // Dropped after the place among the turns is given up.
        let _waiting = Waiting::new(self);
        self.turns.acquire().await.expect("BUG: a queue was closed").forget();
        Turn::new(Arc::clone(self))
    }

    /// The turn, if no task has it or waits for it.
    pub(crate) fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        self.turns.try_acquire().ok()?.forget();
        Some(Turn::new(Arc::clone(self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process_key::this_process;

    #[test]
    fn a_handoff_lasts_from_when_it_was_handed_off() {
        let path = Arc::new(LockPath::new("/nowhere/expired.lock".as_ref()).unwrap());
        let queue = TaskQueue::of(Entry { process: this_process(), directory: (0, 0), path });
        let now = Instant::now();
        let [early, late] =
            [0, 50].map(|lasts| handoff_expiry::until(now, Duration::from_millis(lasts)));
        assert!(early > now && early < late);
        assert!(queue.put_handoff(Box::new("first"), late));
        assert!(queue.take_handoff().is_some());
        assert!(queue.put_handoff(Box::new("sooner"), early), "the look comes too late");
        assert!(queue.take_handoff().is_some());
        assert!(!queue.put_handoff(Box::new("later"), late), "the thread looks in time");
        assert_eq!(queue.expire(early), Some(late));
        assert_eq!(queue.expire(late), None);
        assert!(queue.take_handoff().is_none(), "it expired");
        assert!(queue.put_handoff(Box::new("last"), late), "no thread looks any more");
    }
}
