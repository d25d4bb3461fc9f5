//! What a turn left lapses if the next turn does not take it in time. Whoever
//! has that turn was woken, but perhaps nobody polls it, or its runtime's thread
//! is blocked, or its future was forgotten; others would wait for nobody.
//!
//! 1. A queue that has something left is watched, or its leaver is about to see
//!    to that: who leaves looks after it left whether the queue is watched, and
//!    who stops watching looks after that whether something is left.
//! 2. One thread of a process watches all its queues, whatever becomes of
//!    runtimes. It is there while something may lapse, and a while after.
//! 3. Without a thread nothing is left.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::queue::Queue;
use crate::fork::{ProcessKey, this_process};

/// What is left lasts at least so long: many times what a task takes to run that
/// was woken, and little for who waits for a lock that nobody uses.
const LASTS_MIN: Duration = Duration::from_millis(10);

/// How long the thread stays when nothing is left.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// What was left, and how long it lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Of the queue's, to tell it from the next.
    pub(super) number: u64,
    pub(super) lasts: Duration,
}

/// The watch over the queues of a process.
#[derive(Default)]
struct Watch {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    watched: Vec<Watched>,
    has_thread: bool,
}

struct Watched {
    queue: Arc<Queue>,
    left: Left,
    /// `None`: too late to matter.
    until: Option<Instant>,
}

/// By process: a forked child has not its parent's thread.
static WATCHES: LazyLock<Mutex<HashMap<ProcessKey, Arc<Watch>>>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Have this lapse in time. Whether anybody sees to that (3).
pub(super) fn watch(queue: &Arc<Queue>, left: Left) -> bool {
    let watch = Arc::clone(lock(&WATCHES).entry(this_process()).or_default());
    watch.add(Watched::new(Arc::clone(queue), left))
}

impl Watched {
    fn new(queue: Arc<Queue>, left: Left) -> Self {
        let until = Instant::now().checked_add(left.lasts.max(LASTS_MIN));
        Self { queue, left, until }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// The queue, if something else is left there by now.
    fn end(self) -> Option<Self> {
        self.queue.is_watched_no_more();
        // A panic in there would end the watch for all.
        let lapse = AssertUnwindSafe(|| self.queue.lapse(self.left));
        let left = catch_unwind(lapse).ok().flatten()?; // (1)
        self.queue.is_to_be_watched().then(|| Self::new(self.queue, left))
    }
}

impl Watch {
    fn add(self: &Arc<Self>, watched: Watched) -> bool {
        let mut state = lock(&self.state);
        if !state.has_thread {
            let watch = Arc::clone(self);
            let thread = thread::Builder::new().name("lockkeeper-pass".to_owned());
            state.has_thread = thread.spawn(move || watch.work()).is_ok();
        }
        if state.has_thread {
            state.watched.push(watched);
            self.came.notify_one();
        }
        state.has_thread
    }

    fn work(&self) {
        while let Some(due) = self.next_due() {
            let again: Vec<_> = due.into_iter().filter_map(Watched::end).collect();
            lock(&self.state).watched.extend(again);
        }
    }

    /// Those whose time has come; `None` if there has been nothing for long.
    fn next_due(&self) -> Option<Vec<Watched>> {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let due: Vec<_> = state.watched.extract_if(.., |watched| watched.is_due(now)).collect();
            if !due.is_empty() {
                return Some(due);
            }
            let is_idle = state.watched.is_empty();
            let next = state.watched.iter().filter_map(|watched| watched.until).min();
            let time = next.map_or(IDLE_LIMIT, |next| next.saturating_duration_since(now));
            let woken = self.came.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
            state = woken.0;
            if is_idle && woken.1.timed_out() && state.watched.is_empty() {
                state.has_thread = false;
                return None;
            }
        }
    }
}
