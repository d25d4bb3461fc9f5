//! Where batches of changes go to the disk, one after the other.
//!
//! With syncs the writer has a thread: what is asked for during a sync shares the next one.
//! Without syncs it runs on the thread of the request: its calls take microseconds, less
//! than it takes to wake a thread.

use std::io;
use std::sync::mpsc;

use tokio::runtime::Handle;
use tokio::task::yield_now;

use crate::lockd::store::Store;
use crate::sys::mutex::Mutex;

/// Batches that one request writes without syncs, also for others. With more, the other
/// tasks of its thread wait for longer.
const BATCHES_AT_ONCE: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Writer {
    /// `None` once the store is closed.
    pub(super) store: Mutex<Option<Store>>,
    /// The thread ends with this sender.
    thread: Option<mpsc::Sender<Job>>,
    runtime: Handle,
}

impl Writer {
    /// For the runtime that calls this.
    pub(super) fn new(store: Store, sync: bool) -> io::Result<Self> {
        let thread = if sync { Some(start_thread()?) } else { None };
        Ok(Self { store: Mutex::new(Some(store)), thread, runtime: Handle::current() })
    }

    /// Call `write_batch` until it says that no more is left.
    pub(super) fn run(&self, write_batch: impl Fn() -> bool + Send + 'static) {
        if let Some(thread) = &self.thread {
            let job = Box::new(move || while write_batch() {});
            thread.send(job).expect("BUG: the writer's thread has ended");
        } else if (0..BATCHES_AT_ONCE).all(|_| write_batch()) {
            self.runtime.spawn(async move {
                while (0..BATCHES_AT_ONCE).all(|_| write_batch()) {
                    yield_now().await;
                }
            });
        }
    }
}

fn start_thread() -> io::Result<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let work = move || jobs.into_iter().for_each(|job| job());
    std::thread::Builder::new().name("lockkeeper-store".to_owned()).spawn(work)?;
    Ok(sender)
}
