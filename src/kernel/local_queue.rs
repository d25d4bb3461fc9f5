//! The queue of one lock's contenders in this process: whose turn it is, which guards
//! they have, and a file that was left open for the next.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::idle_files::{self, CloseUnused};
use super::open_file::OpenFile;
use crate::local::deadline::Deadline;
use crate::local::task_queue::{CallSite, Entry, TaskQueue, Turn};
use crate::sys::mutex::Mutex;
use crate::sys::path::LockPath;
use crate::sys::tickets::Waiters;

/// Turns, and the file between two of them.
pub(super) struct LocalQueue {
    key: Entry,
    turns: Arc<TaskQueue>,
    kept: Mutex<KeptFile>,
    /// What is kept was used since [`idle_files`] looked last.
    was_used: AtomicBool,
    /// Tasks that wait for their turn. A holder that leaves a file for them reads this with
    /// `kept` locked. The last of them locks `kept` after it has gone.
    waiting: AtomicUsize,
    /// Whether a file is kept, to be read without the lock.
    has_left: AtomicBool,
    /// When the lock is left free next, for threads that sleep in the kernel.
    yields_at: Mutex<Option<Instant>>,
    held: Mutex<Guarded>,
}

/// What guards of this process have.
#[derive(Default)]
struct Guarded {
    /// The last one last.
    holds: Vec<(u64, Identity, CallSite)>,
    /// Notified when there is none any more.
    awaits_none: Option<Arc<Notify>>,
}

/// Device and inode.
type Identity = (u64, u64);

/// Between two times that a process which has the lock over and over leaves it
/// free. A thread that sleeps in `flock` beside holds of 0.05 to 1 ms then waits 2
/// to 5 ms in the median, and 8 to 17 at most nine times in ten (`cargo bench
/// --bench kernel -- sleepers`). Without, it was 3 to 100, and up to half a second. If
/// longer, such a thread waits longer.
const YIELD_PERIOD: Duration = Duration::from_millis(10);

/// The lock is left free for at most one in so many of all time. If smaller, readers that
/// leave slowly cost more of it.
const YIELD_SHARE_MAX: u32 = 20;

#[derive(Default)]
struct KeptFile {
    /// The file that the last holder left for the next of this process, open
    /// and not locked.
    left: Option<OpenFile>,
    stay: Stay,
    /// The directory, to ask for waiters.
    waiters: Option<Arc<Waiters>>,
    /// [`idle_files`] looks.
    is_watched: bool,
}

/// How long a file is kept while no task waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stay {
    #[default]
    No,
    /// Until it is idle.
    Awhile,
    Always,
}

static QUEUES: LazyLock<Mutex<HashMap<Entry, Weak<LocalQueue>>>> = LazyLock::new(Mutex::default);

impl LocalQueue {
    pub(super) fn of(entry: Entry) -> Arc<Self> {
        let mut queues = QUEUES.lock();
        if let Some(queue) = queues.get(&entry).and_then(Weak::upgrade) {
            return queue;
        }
        let (key, turns) = (entry.clone(), TaskQueue::of(entry.clone()));
        let queue = Arc::new(Self {
            key,
            turns,
            kept: Mutex::default(),
            was_used: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            has_left: AtomicBool::new(false),
            yields_at: Mutex::default(),
            held: Mutex::default(),
        });
        queues.insert(entry, Arc::downgrade(&queue));
        queue
    }

    /// A hold begins, asked for there. Its number is for [`hold_ends`](Self::hold_ends).
    pub(super) fn hold_begins(&self, identity: Identity, source: CallSite) -> u64 {
        let holds = &mut self.held.lock().holds;
        let number = holds.last().map_or(0, |(last, ..)| last + 1);
        holds.push((number, identity, source));
        number
    }

    /// Not for a forked child, which may have copied the list locked.
    pub(super) fn hold_ends(&self, ended: u64) {
        let mut held = self.held.lock();
        held.holds.retain(|(number, ..)| *number != ended);
        let told = if held.holds.is_empty() { held.awaits_none.take() } else { None };
        drop(held);
        if let Some(told) = told {
            told.notify_one();
        }
    }

    /// Where this process asked for the lock that it has on this file.
    pub(super) fn asked_at(&self, identity: Identity) -> Option<CallSite> {
        let held = self.held.lock();
        held.holds.iter().rev().find(|(_, of, _)| *of == identity).map(|(.., source)| *source)
    }

    /// Whether it is time to leave the lock free; then it is done now.
    pub(super) fn is_to_yield(&self, now: Instant) -> bool {
        let mut due = self.yields_at.lock();
        let is_due = due.is_none_or(|due| due <= now);
        if is_due {
            *due = Some(now + YIELD_PERIOD);
        }
        is_due
    }

    /// It was done, and took so long.
    pub(super) fn has_yielded(&self, now: Instant, took: Duration) {
        let pause = YIELD_PERIOD.max(took * YIELD_SHARE_MAX);
        *self.yields_at.lock() = Some(now + pause);
    }

    /// Whether a guard of this process has it.
    pub(super) fn is_held(&self) -> bool {
        !self.held.lock().holds.is_empty()
    }

    /// Until no guard of this process has it. To be waited for with the turn.
    pub(super) async fn has_no_holds(&self) {
        loop {
            let none = {
                let mut held = self.held.lock();
                if held.holds.is_empty() {
                    return;
                }
                Arc::clone(held.awaits_none.insert(Arc::default()))
            };
            none.notified().await;
        }
    }

    /// The turn, if no task has it or waits for it, and the file that the last
    /// holder left.
    pub(super) fn try_turn(&self) -> Option<(Turn, Option<OpenFile>)> {
        let turn = self.turns.try_turn()?;
        Some((turn, self.take_left()))
    }

    fn take_left(&self) -> Option<OpenFile> {
        // First by a look, as nearly always there is nothing.
        if !self.has_left.load(Ordering::Acquire) {
            return None;
        }
        self.take_from(&mut self.kept.lock())
    }

    fn take_from(&self, kept: &mut KeptFile) -> Option<OpenFile> {
        self.has_left.store(false, Ordering::Release);
        kept.left.take()
    }

    /// The same by waiting; `None` if the deadline came first.
    pub(super) async fn turn_until(
        &self,
        deadline: Option<Deadline>,
    ) -> Option<(Turn, Option<OpenFile>)> {
        let _waiting = Waiting::begin(self);
        // Pinned here: the limit would keep it twice.
        let turn = pin!(self.turns.next_turn());
        let turn = Deadline::limit(deadline, turn).await?;
        // Before this one counts as not waiting any more.
        Some((turn, self.take_left()))
    }

    /// Leave an unlocked file for the next holder: if a task of this process
    /// waits, or as long as it may `stay`. But close it if that `wakes` a waiter
    /// elsewhere. Whether it is closed.
    pub(super) fn leave(
        self: &Arc<Self>,
        mut file: OpenFile,
        stay: Stay,
        wakes: impl FnOnce(&mut Option<Arc<Waiters>>) -> bool,
    ) -> bool {
        let is_awaited = self.waiting.load(Ordering::Acquire) > 0;
        if stay == Stay::No && !is_awaited || wakes(&mut file.waiters) {
            drop(file);
            return true;
        }
        let mut kept = self.kept.lock();
        let stay =
            if stay == Stay::Awhile && !self.is_watched(&mut kept) { Stay::No } else { stay };
        // The waiter may have gone.
        let superfluous = if self.waiting.load(Ordering::Acquire) > 0 || stay != Stay::No {
            kept.stay = stay;
            self.has_left.store(true, Ordering::Release);
            kept.left.replace(file)
        } else {
            Some(file)
        };
        drop(kept);
        superfluous.is_some()
    }

    /// The waiters of all processes, if they were looked for not long ago.
    pub(super) fn waiters(&self) -> Option<Arc<Waiters>> {
        let waiters = self.kept.lock().waiters.clone();
        self.was_used.store(true, Ordering::Relaxed);
        waiters
    }

    /// The waiters of all processes; `None` where they cannot be seen. What is opened for
    /// it stays open until it is idle.
    pub(super) fn open_waiters(self: &Arc<Self>, label: &LockPath) -> Option<Arc<Waiters>> {
        if let Some(waiters) = self.waiters() {
            return Some(waiters);
        }
        let waiters = Arc::new(Waiters::of(label)?);
        let mut kept = self.kept.lock();
        if self.is_watched(&mut kept) {
            kept.waiters = Some(Arc::clone(&waiters));
        }
        Some(waiters)
    }

    /// Whether what is kept from now on is closed when it is idle.
    fn is_watched(self: &Arc<Self>, kept: &mut KeptFile) -> bool {
        self.was_used.store(true, Ordering::Relaxed);
        kept.is_watched =
            kept.is_watched || idle_files::watch(Arc::downgrade(self) as Weak<dyn CloseUnused>);
        kept.is_watched
    }
}

impl CloseUnused for LocalQueue {
    fn close_unused(&self) -> bool {
        let mut kept = self.kept.lock();
        if self.was_used.swap(false, Ordering::Relaxed) {
            return true;
        }
        if kept.stay == Stay::Awhile {
            // If tasks wait, the last of them closes it.
            kept.stay = Stay::No;
        }
        let is_wanted = kept.stay == Stay::Always || self.waiting.load(Ordering::Acquire) > 0;
        let left = if is_wanted { None } else { self.take_from(&mut kept) };
        kept.is_watched = false;
        let unused = (left, kept.waiters.take());
        drop(kept);
        drop(unused);
        false
    }
}

impl Drop for LocalQueue {
    fn drop(&mut self) {
        let mut queues = QUEUES.lock();
        // A newcomer may have made another for the entry since.
        if queues.get(&self.key).is_some_and(|queue| queue.strong_count() == 0) {
            queues.remove(&self.key);
        }
    }
}

/// A task that waits for its turn.
struct Waiting<'a>(&'a LocalQueue);

impl<'a> Waiting<'a> {
    fn begin(queue: &'a LocalQueue) -> Self {
        queue.waiting.fetch_add(1, Ordering::AcqRel);
        Self(queue)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // A holder that leaves a file from now on sees no waiter, or a new one.
        let mut kept = self.0.kept.lock();
        let is_kept = kept.stay != Stay::No || self.0.waiting.load(Ordering::Acquire) > 0;
        let left = if is_kept { None } else { self.0.take_from(&mut kept) };
        drop(kept);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::sys::process_key::this_process;

    #[tokio::test]
    async fn the_end_of_the_last_hold_is_notified() {
        let path = Arc::new(LockPath::new("/nowhere/read.lock".as_ref()).unwrap());
        let queue = LocalQueue::of(Entry { process: this_process(), directory: (0, 0), path });
        queue.has_no_holds().await;
        let source = std::panic::Location::caller();
        let [first, last] = [1, 2].map(|inode| queue.hold_begins((0, inode), source));
        let mut none = Box::pin(queue.has_no_holds());
        assert!(futures::poll!(&mut none).is_pending());
        queue.hold_ends(first);
        assert!(futures::poll!(&mut none).is_pending() && queue.is_held());
        queue.hold_ends(last);
        assert!(futures::poll!(&mut none).is_ready() && !queue.is_held());
    }

    #[test]
    fn a_process_that_yielded_for_long_does_so_seldom() {
        let path = Arc::new(LockPath::new("/nowhere/busy.lock".as_ref()).unwrap());
        let queue = LocalQueue::of(Entry { process: this_process(), directory: (0, 0), path });
        let (start, instant) = (Instant::now(), Duration::from_nanos(1));
        let pause = |after: Instant, took| {
            queue.has_yielded(after, took);
            let pause = YIELD_PERIOD.max(20 * took);
            assert!(!queue.is_to_yield(after + pause - instant));
            after + pause
        };
        assert!(queue.is_to_yield(start), "the first time");
        assert!(!queue.is_to_yield(start + YIELD_PERIOD - instant));
        assert!(queue.is_to_yield(start + YIELD_PERIOD));
        for took in [200, 5000].map(Duration::from_micros) {
            let due = pause(start, took);
            assert!(queue.is_to_yield(due), "{took:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_kept_is_closed_when_no_task_comes_for_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("left.lock");
        let open = || OpenFile::open(|| Ok(File::create(&path).unwrap())).unwrap();
        let path = Arc::new(LockPath::new(&path).unwrap());
        let queue = LocalQueue::of(Entry { process: this_process(), directory: (0, 0), path });
        let is_there = || queue.kept.lock().left.is_some();
        for stay in [Stay::No, Stay::Awhile, Stay::Always] {
            let waiting = Waiting::begin(&queue);
            assert!(!queue.leave(open(), stay, |_| false) && is_there());
            drop(waiting);
            assert_eq!(is_there(), stay != Stay::No);
            drop(queue.take_left());
        }
        assert!(queue.leave(open(), Stay::Always, |_| true), "a waiter elsewhere");
    }

    #[test]
    fn what_is_not_used_is_closed_unless_it_is_waited_for_or_wanted_open() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("unused.lock");
        let open = || OpenFile::open(|| Ok(File::create(&path).unwrap())).unwrap();
        let path = Arc::new(LockPath::new(&path).unwrap());
        let key = Entry { process: this_process(), directory: (0, 0), path: Arc::clone(&path) };
        let queue = LocalQueue::of(key);
        let is_there = || queue.kept.lock().left.is_some();
        for stay in [Stay::Awhile, Stay::Always] {
            // Those of other processes can be seen on Linux only.
            assert_eq!(queue.open_waiters(&path).is_some(), Waiters::of(&path).is_some());
            queue.leave(open(), stay, |_| false);
            assert!(queue.close_unused(), "it was used");
            queue.was_used.store(false, Ordering::Relaxed);
            let waiting = Waiting::begin(&queue);
            assert!(!queue.close_unused() && is_there(), "a task waits for it");
            drop(waiting);
            assert!(!queue.close_unused());
            assert_eq!(is_there(), stay == Stay::Always);
            assert!(queue.kept.lock().waiters.is_none());
        }
    }
}
