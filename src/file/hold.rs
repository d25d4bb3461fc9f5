//! A hold together with what has to end with it, in the right order and at the
//! right place: the file first, then the turn of the next local task. Or the
//! file is handed off to that task along with the turn.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;

use super::at_exit;
use super::options::{AtExit, FileOptions, Proof};
use super::protocol::disk::OsDisk;
use super::protocol::lock_file::LockFile;
use crate::local::executor::{Executor, Started};
use crate::local::task_queue::Turn;
use crate::lock::error::Error;
use crate::lock::events;
use crate::sys::path::LockPath;

/// A held lock file, its turn, and where its system calls run.
pub(crate) struct Hold {
    parts: Option<Parts>,
    executor: Executor,
}

/// Dropped in this order.
struct Parts {
    lock_file: Arc<LockFile<OsDisk>>,
    turn: Turn,
    /// Of a file that may be handed off to a task with equal ones.
    options: Option<Arc<FileOptions>>,
}

/// A held file that one task hands off to the next. Dropping it releases it.
pub(crate) struct Handoff {
    lock_file: Arc<LockFile<OsDisk>>,
    options: Arc<FileOptions>,
    executor: Executor,
}

impl Handoff {
    /// What came with this turn.
    pub(crate) fn of(turn: &mut Turn) -> Option<Box<Self>> {
        turn.take_handoff()?.downcast().ok()
    }

    /// Where the system calls of the last hold were made.
    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The file, for a lock with the same path and equal options.
    pub(crate) fn for_lock(
        self,
        path: &LockPath,
        options: &Arc<FileOptions>,
    ) -> Option<Arc<LockFile<OsDisk>>> {
        let is_equal = Arc::ptr_eq(&self.options, options) || self.options == *options;
        let is_same = is_equal && self.lock_file.path().path() == path.path();
        if is_same { alone(self.lock_file).ok() } else { None }
    }
}

impl Hold {
    pub(crate) fn new(lock_file: Arc<LockFile<OsDisk>>, turn: Turn, executor: Executor) -> Self {
        Self { parts: Some(Parts { lock_file, turn, options: None }), executor }
    }

    /// The file may be handed off, to a task whose lock has equal options.
    pub(crate) fn with_handoff(mut self, options: &Arc<FileOptions>) -> Self {
        let is_quick = matches!(self.executor, Executor::Inline { is_local: true });
        let is_plain = options.proof != Proof::Process && !options.openlock_compat;
        let may_hand_off = is_quick && is_plain && !options.wait.local_handoff.is_zero();
        if may_hand_off {
            if let Some(parts) = &mut self.parts {
                parts.options = Some(Arc::clone(options));
            }
        }
        self
    }

    pub(crate) fn lock_file(&self) -> &Arc<LockFile<OsDisk>> {
        &self.parts.as_ref().expect("BUG: a hold was used after its end").lock_file
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    fn take(&mut self) -> Option<(Parts, Executor)> {
        let parts = self.parts.take()?;
        let executor = match &self.executor {
            // In a forked child there are no threads that would do it elsewhere.
            Executor::Thread { .. } if !parts.lock_file.is_ours() => {
                Executor::Inline { is_local: false }
            }
            executor => executor.clone(),
        };
        Some((parts, executor))
    }

    /// Give the file back and keep the turn, to try again.
    pub(crate) async fn give_back(mut self) -> Turn {
        let (Parts { lock_file, turn, .. }, executor) =
            self.take().expect("BUG: a hold ended twice");
        let give_back = move || {
            let _ = lock_file.release();
            drop(lock_file);
            turn
        };
        executor.start(give_back).finished().await
    }

    /// End the hold. Once this was called it ends, even if the future is dropped.
    pub(crate) async fn end(mut self) -> Result<(), Error> {
        let (parts, executor) = self.take().expect("BUG: a hold ended twice");
        let Some(parts) = parts.hand_off(&executor) else {
            return Ok(());
        };
        let mut ending = Ending(Some(executor.start(move || parts.end())));
        ending.done().await
    }
}

impl Parts {
    /// Hand the file off to the next task, if one waits and this process may go on.
    /// Else nothing has changed.
    fn hand_off(mut self, executor: &Executor) -> Option<Self> {
        let Some(options) = self.options.take() else {
            return Some(self);
        };
        let now = Instant::now();
        if !self.turn.may_hand_off(options.wait.local_handoff, now) {
            return Some(self);
        }
        // A look at this moment, whether the lock is lost, shares it: then it ends.
        match alone(self.lock_file) {
            Ok(mut lock_file) => {
                if !Arc::get_mut(&mut lock_file)
                    .is_some_and(|lock_file| lock_file.may_be_handed_off(now))
                {
                    return Some(Self { lock_file, ..self });
                }
                if options.at_exit == AtExit::Remove {
                    at_exit::remove_at_exit(&lock_file);
                }
                events::released(&lock_file.path().path().display());
                let (executor, lasts) = (executor.clone(), options.wait.local_handoff);
                self.turn.hand_off(Box::new(Handoff { lock_file, options, executor }), now, lasts);
                None
            }
            Err(lock_file) => Some(Self { lock_file, ..self }),
        }
    }

    fn end(self) -> Result<(), Error> {
        let outcome = self.lock_file.release();
        if matches!(outcome, Err(Error::Forked { .. })) {
            // The queue was copied by a fork, perhaps in the middle of a change.
            std::mem::forget(self.turn);
        } else {
            events::released(&self.lock_file.path().path().display());
        }
        outcome
    }
}

/// The file for its next holder, in a place where the weak references of the last one do
/// not find it. An error if it is shared.
fn alone(
    mut lock_file: Arc<LockFile<OsDisk>>,
) -> Result<Arc<LockFile<OsDisk>>, Arc<LockFile<OsDisk>>> {
    match Arc::get_mut(&mut lock_file) {
        Some(_) => Ok(lock_file),
        None => Arc::try_unwrap(lock_file).map(Arc::new),
    }
}

/// Schedules the deletion, or does it on the spot outside of a runtime.
impl Drop for Hold {
    fn drop(&mut self) {
        let Some((parts, executor)) = self.take() else {
            return;
        };
        let Some(parts) = parts.hand_off(&executor) else {
            return;
        };
        let end = move || match parts.end() {
            Ok(()) | Err(Error::Forked { .. }) => {}
            Err(error) => tracing::warn!("{error}"),
        };
        match Handle::try_current() {
            Ok(_) => drop(Ending(Some(executor.start(end)))),
            // Without a runtime; and this may be the thread of the executor.
            Err(_) => end(),
        }
    }
}

/// The end of a hold, on its way. Dropped before it is there, it is left to
/// the runtime.
struct Ending<T: Send + 'static>(Option<Started<T>>);

impl<T: Send + 'static> Ending<T> {
    async fn done(&mut self) -> T {
        let result = match self.0.as_mut().expect("BUG: an end that was over") {
            Started::Done(_) => None,
            Started::Running(result) => Some(result.await.expect("BUG: a job was lost")),
        };
        match (result, self.0.take()) {
            (Some(result), _) | (None, Some(Started::Done(result))) => result,
            _ => unreachable!("BUG: a result was lost"),
        }
    }
}

impl<T: Send + 'static> Drop for Ending<T> {
    fn drop(&mut self) {
        let Some(started @ Started::Running(_)) = self.0.take() else {
            return;
        };
        let left = Left(Some(started));
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn(left.done()));
        }
    }
}

/// The same, kept by a runtime. If that goes down first, or there is none, it
/// waits, so that the file does not outlive both.
struct Left<T: Send + 'static>(Option<Started<T>>);

impl<T: Send + 'static> Left<T> {
    async fn done(mut self) {
        if let Some(Started::Running(result)) = &mut self.0 {
            let _ = result.await;
        }
        self.0 = None;
    }
}

impl<T: Send + 'static> Drop for Left<T> {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|started| !started.wait()) {
            tracing::warn!("a lock file is not deleted yet: its file system does not answer");
        }
    }
}
