//! Where batches of changes go to the disk, one after the other.
//!
//! With syncs the writer runs on a thread for blocking calls: what is asked for during a
//! sync shares the next one. Without syncs it runs on the thread of the request: its calls
//! take microseconds, less than it takes to wake a thread.

use tokio::runtime::Handle;
use tokio::task::yield_now;

use crate::lockd::store::Store;
use crate::sys::mutex::Mutex;

/// Batches that one request writes without syncs, also for others. With more, the other
/// tasks of its thread wait for longer.
const BATCHES_AT_ONCE: usize = 4;

pub(super) struct Writer {
    /// Until it is closed.
    pub(super) store: Mutex<Option<Store>>,
    runtime: Handle,
    sync: bool,
}

impl Writer {
    /// For the runtime that calls this.
    pub(super) fn new(store: Store, sync: bool) -> Self {
        Self { store: Mutex::new(Some(store)), runtime: Handle::current(), sync }
    }

    /// Call `write_batch` until it says that no more is left.
    pub(super) fn run(&self, write_batch: impl Fn() -> bool + Send + 'static) {
        if self.sync {
            self.runtime.spawn_blocking(move || while write_batch() {});
        } else if (0..BATCHES_AT_ONCE).all(|_| write_batch()) {
            self.runtime.spawn(async move {
                while (0..BATCHES_AT_ONCE).all(|_| write_batch()) {
                    yield_now().await;
                }
            });
        }
    }
}
