//! Work that goes on when its caller is gone.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::io::{Outstanding, io};
use super::per_process::PerProcess;
use crate::local::timer::Standing;
use crate::sys::mutex::Mutex;

/// The work in the background of one lock, or of locks that share a server.
pub(crate) struct Background {
    tasks: PerProcess<TaskTracker>,
    pub(crate) hand_over: HandOver,
}

/// Work in the background: `flush` waits for it, and an exit for a moment.
pub(crate) struct Scheduled {
    _flush: TaskTrackerToken,
    _exit: Option<Outstanding>,
}

impl Default for Background {
    fn default() -> Self {
        Self { tasks: PerProcess::new(), hand_over: HandOver::default() }
    }
}

impl Background {
    fn tasks(&self) -> &TaskTracker {
        let made = self.tasks.get_or_make(|| {
            let tasks = TaskTracker::new();
            // So that it can be waited for; tasks are taken all the same.
            tasks.close();
            Ok::<_, Infallible>(tasks)
        });
        match made {
            Ok(tasks) => tasks,
            Err(never) => match never {},
        }
    }

    /// Work in the background, from now until this is dropped.
    pub(crate) fn schedule(&self) -> Scheduled {
        let exit = io().ok().map(|io| io.outstanding());
        Scheduled { _flush: self.tasks().token(), _exit: exit }
    }

    /// Start this work in the background.
    ///
    /// # Errors
    /// What the system refused.
    pub(crate) fn start<F>(&self, work: F) -> io::Result<JoinHandle<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let scheduled = self.schedule();
        let work = async move {
            let done = work.await;
            drop(scheduled);
            done
        };
        Ok(io()?.spawn(work))
    }

    /// Wait until what was scheduled is done.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn flush(&self) {
        self.tasks().wait().await;
    }
}

/// Under a paused clock, whether this process has released a hold that it also waits for.
/// The clock stands then until the daemon has answered a waiter.
#[derive(Default)]
pub(crate) struct HandOver(Mutex<(usize, Option<Standing>)>);

/// How long it stands at most: many times what a daemon takes. If larger, a test in which
/// another client is the successor is held up so long.
const HAND_OVER: Duration = Duration::from_secs(5);

impl HandOver {
    /// An acquisition waits, until what this gives is dropped.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.state().0 += 1;
        Waiting(self)
    }

    pub(crate) fn begin(&self) {
        let mut state = self.state();
        if state.0 > 0 {
            state.1 = Standing::at_most(HAND_OVER);
        }
    }

    fn state(&self) -> MutexGuard<'_, (usize, Option<Standing>)> {
        self.0.lock()
    }
}

/// An acquisition that waits under a paused clock.
pub(crate) struct Waiting<'a>(&'a HandOver);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.0, state.1) = (state.0 - 1, None);
    }
}
