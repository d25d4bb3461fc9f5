//! The thread that changes the disk where every change is synced: what is
//! asked for while it works is its next batch, so that many share a sync.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use rustix::io::Errno;
use tokio::sync::oneshot;

use super::Inner;
use super::core::Purpose;
use crate::lockd::store::{BATCH_MAX, Change, Store};

/// What waits for the thread.
#[derive(Default)]
pub(super) struct Lane {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    changes: VecDeque<(Change, Purpose)>,
    stop: Option<Stop>,
}

/// How the thread ends.
enum Stop {
    /// The store is closed, and somebody is told how that went.
    Close(Closed),
    /// Nothing is written any more: the directory may be somebody else's.
    Abandon,
}

pub(super) type Closed = oneshot::Sender<Result<(), Errno>>;

enum Next {
    Batch(Vec<(Change, Purpose)>),
    Stop(Stop),
}

impl Lane {
    pub(super) fn extend(&self, changes: impl Iterator<Item = (Change, Purpose)>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.changes.extend(changes);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Close the store once all that was asked for is done.
    pub(super) fn close(&self, closed: Closed) {
        self.stop(Stop::Close(closed));
    }

    /// End the thread, if nobody asked it to close the store.
    pub(super) fn abandon(&self) {
        self.stop(Stop::Abandon);
    }

    fn stop(&self, stop: Stop) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).stop.get_or_insert(stop);
        self.wake.notify_one();
    }

    pub(super) fn start(self: &Arc<Self>, store: Store, inner: Weak<Inner>) -> io::Result<()> {
        let lane = Arc::clone(self);
        let work = move || lane.work(store, &inner);
        std::thread::Builder::new().name("lockkeeper-store".to_owned()).spawn(work).map(drop)
    }

    fn work(&self, mut store: Store, inner: &Weak<Inner>) {
        loop {
            match self.next() {
                Next::Batch(batch) => {
                    let (changes, purposes): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                    let Some(inner) = inner.upgrade() else {
                        return;
                    };
                    let changed = match inner.may_write() {
                        true => store.commit(changes),
                        false => store.refuse(&changes),
                    };
                    let mut core = inner.core();
                    for (purpose, changed) in purposes.into_iter().zip(changed) {
                        core.complete(purpose, changed);
                    }
                    core.note_syncs(store.syncs());
                    core.flush();
                }
                Next::Stop(Stop::Close(closed)) => {
                    let _ = closed.send(store.close());
                    return;
                }
                Next::Stop(Stop::Abandon) => return,
            }
        }
    }

    fn next(&self) -> Next {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !waiting.changes.is_empty() {
                let count = waiting.changes.len().min(BATCH_MAX);
                return Next::Batch(waiting.changes.drain(..count).collect());
            }
            if let Some(stop) = waiting.stop.take() {
                return Next::Stop(stop);
            }
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
