//! The thread of (L1).

#![expect(
    clippy::disallowed_methods,
    reason = "the one use of the pool in remote locks: its end is seen by the runtime"
)]

use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::per_process::PerProcess;
use crate::sys::process;
use crate::sys::process_key::{ProcessKey, this_process};

/// How long the exit of a process waits for what is outstanding. A daemon that is there
/// answers in a millisecond. If larger, a process beside a dead one seems to hang.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// Between two looks of an exit that waits. If larger, each such exit takes longer.
const EXIT_LOOK: Duration = Duration::from_micros(100);

static IO: PerProcess<Io> = PerProcess::new();

/// The thread of this process, which is made now if there is none.
///
/// # Errors
/// What the system refused: a thread or a descriptor.
pub(crate) fn io() -> io::Result<&'static Io> {
    IO.get_or_make(Io::start)
}

/// The runtime of that thread.
pub(crate) struct Io {
    runtime: Handle,
    /// What an exit waits for.
    outstanding: AtomicUsize,
    /// The thread ends when this is dropped.
    _end: oneshot::Sender<()>,
}

impl Io {
    fn start() -> io::Result<Self> {
        static AT_EXIT: Once = Once::new();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let work = move || {
            let _ = runtime.block_on(ended);
            // A resolver that hangs is not waited for.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("lockkeeper-io".to_owned()).spawn(work)?;
        AT_EXIT.call_once(|| {
            if !process::at_exit(wait_for_outstanding) {
                tracing::warn!("no exit handler could be registered: releases may be cut short");
            }
        });
        Ok(Self { runtime: handle, outstanding: AtomicUsize::new(0), _end: end })
    }

    /// Run this on the thread. It must not block.
    pub(crate) fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(work)
    }

    /// [`spawn`](Self::spawn) work that ends when its [`Running`] is dropped.
    pub(crate) fn run<F>(&self, work: F) -> Running<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Running { process: this_process(), task: Some(self.spawn(work)) }
    }

    /// An exit waits until this is dropped, for at most [`EXIT_LIMIT`].
    pub(crate) fn outstanding(&'static self) -> Outstanding {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Outstanding(self)
    }

    /// Log from a thread of its own: a log that is stuck must hold up no renewal and no
    /// deadline.
    pub(crate) fn log(&self, tell: impl FnOnce() + Send + 'static) {
        drop(self.runtime.spawn_blocking(tell));
    }
}

/// Work on the thread, which ends when this is dropped.
pub(crate) struct Running<T> {
    process: ProcessKey,
    /// Always there, but in [`Drop`].
    task: Option<JoinHandle<T>>,
}

impl<T> Running<T> {
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == this_process()
    }
}

impl<T> Future for Running<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let task = self.task.as_mut().expect("BUG: it was dropped");
        Pin::new(task).poll(context).map_err(io::Error::other)
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        let Some(task) = self.task.take() else { return };
        if self.process == this_process() {
            task.abort();
        } else {
            // It is the parent's. (L2)
            mem::forget(task);
        }
    }
}

/// A request that the server has not answered yet.
pub(crate) struct Outstanding(&'static Io);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Release);
    }
}

/// The thread goes on while the handlers run. In a forked child nothing is outstanding
/// but what its own thread has.
extern "C" fn wait_for_outstanding() {
    let Some(io) = IO.get() else { return };
    let deadline = Instant::now() + EXIT_LIMIT;
    while io.outstanding.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        thread::sleep(EXIT_LOOK);
    }
}
