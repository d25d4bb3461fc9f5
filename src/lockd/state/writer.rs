//! The way of changes to the disk: one works on a batch, and what is asked for
//! meanwhile is the next.
//!
//! Where every change is synced, that is a thread of its own, so that many share
//! a sync. Where none is, it is whoever asks while nobody works: the calls take
//! microseconds, less than it takes to wake a thread. Nobody waits for who works,
//! or works with the books open.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::Inner;
use super::books::Purpose;
use crate::lockd::store::{BATCH_MAX, Change, Store};

/// What waits to be done.
#[derive(Default)]
pub(super) struct Lane {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// For who asks to work with, until it is closed; a thread has its own.
    store: Option<Mutex<Option<Store>>>,
}

/// So many batches one who asks works on for the others, before its runtime's
/// other tasks have their turn.
const ROUNDS: usize = 4;

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
    /// For who asks to work with.
    pub(super) fn shared(store: Store) -> Self {
        Self { store: Some(Mutex::new(Some(store))), ..Self::default() }
    }

    /// In the order in which the books have it: to be called while they are
    /// open. Whoever puts them back calls [`rouse`](Self::rouse).
    pub(super) fn extend(&self, changes: impl Iterator<Item = (Change, Purpose)>) {
        self.waiting().changes.extend(changes);
    }

    /// Have done what waits.
    pub(super) fn rouse(&self, inner: &Inner) {
        let Some(store) = &self.store else {
            return self.wake.notify_one();
        };
        // Who works looks again after the store was put back, so nothing that
        // came before is left.
        let mut rounds = 0;
        while self.has_waiting() {
            if rounds >= ROUNDS {
                let elsewhere = Handle::try_current().ok().zip(inner.this.upgrade());
                if let Some((runtime, inner)) = elsewhere {
                    runtime.spawn(async move { inner.lane.rouse(&inner) });
                    return;
                }
            }
            rounds += 1;
            let mut store = match store.try_lock() {
                Ok(store) => store,
                Err(TryLockError::Poisoned(store)) => store.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let Some(store) = store.as_mut() else {
                return;
            };
            carry_out(store, inner, self.batch());
        }
    }

    /// Close the store once all that was asked for is done.
    pub(super) fn close(self: Arc<Self>, inner: &Arc<Inner>, closed: Closed) {
        if self.store.is_none() {
            return self.stop(Stop::Close(closed));
        }
        let inner = Arc::clone(inner);
        tokio::task::spawn_blocking(move || {
            let mut shared = self.shared_store();
            while let Some(store) = shared.as_mut().filter(|_| self.has_waiting()) {
                carry_out(store, &inner, self.batch());
            }
            if let Some(store) = shared.take() {
                let _ = closed.send(store.close());
            }
        });
    }

    /// Nothing is done any more, unless somebody asked to close the store: to be
    /// called where nobody asks any more, or nothing may be written. What was
    /// asked for is refused.
    pub(super) fn abandon(&self, inner: Option<&Inner>) {
        if self.store.is_none() {
            return self.stop(Stop::Abandon);
        }
        let mut shared = self.shared_store();
        if let (Some(store), Some(inner)) = (shared.as_mut(), inner) {
            while self.has_waiting() {
                carry_out(store, inner, self.batch());
            }
        }
        drop(shared.take());
    }

    fn stop(&self, stop: Stop) {
        self.waiting().stop.get_or_insert(stop);
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
                    let Some(inner) = inner.upgrade() else {
                        return;
                    };
                    carry_out(&mut store, &inner, batch);
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
        let mut waiting = self.waiting();
        loop {
            if !waiting.changes.is_empty() {
                return Next::Batch(waiting.batch());
            }
            if let Some(stop) = waiting.stop.take() {
                return Next::Stop(stop);
            }
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_waiting(&self) -> bool {
        !self.waiting().changes.is_empty()
    }

    fn batch(&self) -> Vec<(Change, Purpose)> {
        self.waiting().batch()
    }

    /// While this is had, nobody works.
    pub(super) fn shared_store(&self) -> MutexGuard<'_, Option<Store>> {
        let store = self.store.as_ref().expect("BUG: a thread has it");
        store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn batch(&mut self) -> Vec<(Change, Purpose)> {
        let count = self.changes.len().min(BATCH_MAX);
        self.changes.drain(..count).collect()
    }
}

fn carry_out(store: &mut Store, inner: &Inner, batch: Vec<(Change, Purpose)>) {
    let (changes, purposes): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let changed = match inner.may_write() {
        true => store.commit(changes),
        false => store.refuse(&changes),
    };
    let mut core = inner.open_books();
    for (purpose, changed) in purposes.into_iter().zip(changed) {
        core.complete(purpose, changed);
    }
    core.note_store(store.syncs(), store.last_token());
    core.flush();
    // Who works looks what else there is.
    core.takes_has_asked();
}
