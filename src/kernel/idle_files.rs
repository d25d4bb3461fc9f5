//! What is kept open between uses is closed when it has not been used for a while.
//!
//! 1. A queue that keeps something open without a user's wish is watched.
//! 2. One thread of a process looks at all watched queues each [`PERIOD`], and ends
//!    when there is none. It closes what was not used since its last look.
//! 3. Without a thread nothing is kept.

use std::collections::HashMap;
use std::sync::{LazyLock, MutexGuard, Weak};
use std::thread;
use std::time::Duration;

use crate::sys::mutex::Mutex;
use crate::sys::process_key::{ProcessKey, this_process};

/// Between two looks. Long beside the time from one use to the next of a lock in use,
/// so that hardly any use opens anything anew. If longer, an unmount is refused longer.
const PERIOD: Duration = Duration::from_secs(1);

/// What keeps files open for a while.
pub(super) trait CloseUnused: Send + Sync {
    /// Close what was not used since the last call, but for what a contender waits for
    /// or a user wants open. Whether to call it again.
    fn close_unused(&self) -> bool;
}

#[derive(Default)]
struct Watched {
    queues: Vec<Weak<dyn CloseUnused>>,
    has_thread: bool,
}

/// By process: a forked child has not its parent's thread.
static WATCHED: LazyLock<Mutex<HashMap<ProcessKey, Watched>>> = LazyLock::new(Mutex::default);

fn watched() -> MutexGuard<'static, HashMap<ProcessKey, Watched>> {
    WATCHED.lock()
}

/// Have [`CloseUnused::close_unused`] called until it says that nothing is left. Whether
/// that will be done (3).
pub(super) fn watch(queue: Weak<dyn CloseUnused>) -> bool {
    let process = this_process();
    let mut all = watched();
    let watched = all.entry(process).or_default();
    if !watched.has_thread {
        let thread = thread::Builder::new().name("lockkeeper-idle".to_owned());
        watched.has_thread = thread.spawn(move || work(process)).is_ok();
    }
    if watched.has_thread {
        watched.queues.push(queue);
    }
    watched.has_thread
}

fn work(process: ProcessKey) {
    loop {
        thread::sleep(PERIOD);
        let mut due = std::mem::take(&mut watched().entry(process).or_default().queues);
        // With nothing locked: a close may take its time.
        due.retain(|queue| queue.upgrade().is_some_and(|queue| queue.close_unused()));
        let mut all = watched();
        let watched = all.entry(process).or_default();
        watched.queues.append(&mut due);
        if watched.queues.is_empty() {
            watched.has_thread = false;
            return;
        }
    }
}
