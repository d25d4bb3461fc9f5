//! What a turn left lapses if the next turn does not take it in time. Whoever
//! has that turn was woken, but perhaps nobody polls it, or its runtime's thread
//! is blocked, or its future was forgotten; others would wait for nobody.
//!
//! 1. A queue that has something left is watched by the time until which that
//!    lasts, or its leaver is about to see to it: the queue remembers, under the
//!    lock of what is left, until when it is left alone.
//! 2. One thread of a process watches all its queues, whatever becomes of
//!    runtimes. It is there while something may lapse, and a while after.
//! 3. Without a thread nothing is left.

use std::collections::HashMap;
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::mutex::{Mutex, wait_timeout};
use crate::sys::process_key::{ProcessKey, this_process};

/// What is left lasts at least so long: many times what a task takes to run that
/// was woken, and little for who waits for a lock that nobody uses.
const LASTS_MIN: Duration = Duration::from_millis(10);

/// How long the thread stays when nothing is left.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// Until when something lasts that is left now for that long.
pub(crate) fn until(now: Instant, lasts: Duration) -> Instant {
    let lasts = lasts.max(LASTS_MIN);
    // FileOptions refuse what does not fit.
    now.checked_add(lasts).unwrap_or(now)
}

/// What may hold a hand-off that nobody takes.
pub(crate) trait Expire: Send + Sync {
    /// Drop what lasts no longer than this. When to look again, if anything else is
    /// there.
    fn expire(&self, now: Instant) -> Option<Instant>;
}

/// The watch over the queues of a process.
#[derive(Default)]
struct ExpiryThread {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    watched: Vec<Watched>,
    has_thread: bool,
}

/// A queue that is left alone until then. When it is gone, so is what was left.
struct Watched {
    queue: Weak<dyn Expire>,
    until: Instant,
}

/// By process: a forked child has not its parent's thread.
static WATCHES: LazyLock<Mutex<HashMap<ProcessKey, Arc<ExpiryThread>>>> =
    LazyLock::new(Mutex::default);

/// Have [`Expire::expire`] called then. Whether anybody will do that (3).
pub(crate) fn watch(queue: Weak<dyn Expire>, until: Instant) -> bool {
    let watch = Arc::clone(WATCHES.lock().entry(this_process()).or_default());
    watch.add(Watched { queue, until })
}

impl Watched {
    /// The same for what else is left by now, if anything is.
    fn end(self, now: Instant) -> Option<Self> {
        let queue = self.queue.upgrade()?;
        // A panic in there would end the watch for all.
        let expire = AssertUnwindSafe(|| queue.expire(now));
        let until = catch_unwind(expire).ok().flatten()?;
        Some(Self { until, ..self })
    }
}

impl ExpiryThread {
    fn add(self: &Arc<Self>, new: Watched) -> bool {
        let mut state = self.state.lock();
        if !state.has_thread {
            let watch = Arc::clone(self);
            let thread = thread::Builder::new().name("lockkeeper-pass".to_owned());
            state.has_thread = thread.spawn(move || watch.work()).is_ok();
        }
        if state.has_thread {
            state.put(new);
            self.came.notify_one();
        }
        state.has_thread
    }

    fn work(&self) {
        while let Some(due) = self.next_due() {
            let now = Instant::now();
            for again in due.into_iter().filter_map(|due| due.end(now)) {
                self.state.lock().put(again);
            }
        }
    }

    /// Those whose time has come; `None` if there has been nothing for long.
    fn next_due(&self) -> Option<Vec<Watched>> {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let due = state.take_due(now);
            if !due.is_empty() {
                return Some(due);
            }
            let next = state.watched.iter().map(|each| each.until).min();
            let time = next.map_or(IDLE_LIMIT, |next| next.saturating_duration_since(now));
            let (woken, is_over) = wait_timeout(&self.came, state, time);
            state = woken;
            if next.is_none() && is_over && state.watched.is_empty() {
                state.has_thread = false;
                return None;
            }
        }
    }
}

impl State {
    /// A queue is watched once, until the earliest time that was asked for.
    fn put(&mut self, new: Watched) {
        match self.watched.iter_mut().find(|each| Weak::ptr_eq(&each.queue, &new.queue)) {
            Some(same) => same.until = same.until.min(new.until),
            None => self.watched.push(new),
        }
    }

    fn take_due(&mut self, now: Instant) -> Vec<Watched> {
        let watched = take(&mut self.watched).into_iter();
        let (due, later) = watched.partition(|each| each.until <= now);
        self.watched = later;
        due
    }
}
