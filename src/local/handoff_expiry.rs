//! A hand-off expires if the next task does not take it in time. That task was woken, but
//! perhaps it is not polled, or the thread of its runtime is blocked, or its future was
//! forgotten. Other processes would wait in vain.
//!
//! 1. A queue with a hand-off is looked at by the time until which that lasts, or its
//!    last holder is about to ask for that look. The queue remembers, under the lock of
//!    the hand-off, when the look comes.
//! 2. One thread of a process looks at all its queues, whatever becomes of runtimes. It
//!    is there while a hand-off may expire, and a while after.
//! 3. Without a thread there is no hand-off.

use std::collections::HashMap;
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::mutex::{Mutex, wait_timeout};
use crate::sys::process_key::{ProcessKey, this_process};

/// A hand-off lasts at least so long: many times what a task takes to run that was
/// woken. If longer, other processes wait longer for a lock that is not used.
const LASTS_MIN: Duration = Duration::from_millis(10);

/// How long the thread stays when there is no hand-off: it is not started anew for each
/// of a busy lock. If longer, an idle process has a thread more for longer.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// Until when a hand-off lasts that is made now for that long.
pub(crate) fn until(now: Instant, lasts: Duration) -> Instant {
    let lasts = lasts.max(LASTS_MIN);
    // FileOptions refuse what does not fit.
    now.checked_add(lasts).unwrap_or(now)
}

/// What may have a hand-off that is not taken.
pub(crate) trait Expire: Send + Sync {
    /// Drop a hand-off that lasts no longer than this. When to look again, if another is
    /// there.
    fn expire(&self, now: Instant) -> Option<Instant>;
}

/// The thread that looks at the queues of a process.
#[derive(Default)]
struct ExpiryThread {
    looks: Mutex<Looks>,
    came: Condvar,
}

#[derive(Default)]
struct Looks {
    due: Vec<Look>,
    has_thread: bool,
}

/// A queue that is looked at then. When it is gone, so is its hand-off.
struct Look {
    queue: Weak<dyn Expire>,
    until: Instant,
}

/// By process: a forked child has not its parent's thread.
static THREADS: LazyLock<Mutex<HashMap<ProcessKey, Arc<ExpiryThread>>>> =
    LazyLock::new(Mutex::default);

/// Have [`Expire::expire`] called then. Whether that will be done (3).
pub(crate) fn look_at(queue: Weak<dyn Expire>, until: Instant) -> bool {
    let thread = Arc::clone(THREADS.lock().entry(this_process()).or_default());
    thread.add(Look { queue, until })
}

impl Look {
    /// Look. The next look, if there is another hand-off by now.
    fn make(self, now: Instant) -> Option<Self> {
        let queue = self.queue.upgrade()?;
        // A panic in there would end the thread for all.
        let expire = AssertUnwindSafe(|| queue.expire(now));
        let until = catch_unwind(expire).ok().flatten()?;
        Some(Self { until, ..self })
    }
}

impl ExpiryThread {
    fn add(self: &Arc<Self>, new: Look) -> bool {
        let mut looks = self.looks.lock();
        if !looks.has_thread {
            let this = Arc::clone(self);
            let thread = thread::Builder::new().name("lockkeeper-pass".to_owned());
            looks.has_thread = thread.spawn(move || this.work()).is_ok();
        }
        if looks.has_thread {
            looks.put(new);
            self.came.notify_one();
        }
        looks.has_thread
    }

    fn work(&self) {
        while let Some(due) = self.next_due() {
            let now = Instant::now();
            for again in due.into_iter().filter_map(|look| look.make(now)) {
                self.looks.lock().put(again);
            }
        }
    }

    /// Those whose time has come; `None` if there has been nothing for long.
    fn next_due(&self) -> Option<Vec<Look>> {
        let mut looks = self.looks.lock();
        loop {
            let now = Instant::now();
            let due = looks.take_due(now);
            if !due.is_empty() {
                return Some(due);
            }
            let next = looks.due.iter().map(|each| each.until).min();
            let time = next.map_or(IDLE_LIMIT, |next| next.saturating_duration_since(now));
            let (woken, is_over) = wait_timeout(&self.came, looks, time);
            looks = woken;
            if next.is_none() && is_over && looks.due.is_empty() {
                looks.has_thread = false;
                return None;
            }
        }
    }
}

impl Looks {
    /// A queue is looked at once, at the earliest time that was asked for.
    fn put(&mut self, new: Look) {
        match self.due.iter_mut().find(|each| Weak::ptr_eq(&each.queue, &new.queue)) {
            Some(same) => same.until = same.until.min(new.until),
            None => self.due.push(new),
        }
    }

    fn take_due(&mut self, now: Instant) -> Vec<Look> {
        let looks = take(&mut self.due).into_iter();
        let (due, later) = looks.partition(|each| each.until <= now);
        self.due = later;
        due
    }
}
