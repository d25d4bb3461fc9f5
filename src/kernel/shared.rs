//! What all clones of one lock share, and what the contenders of one lock in this
//! process have in common.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::local_queue::LocalQueue;
use super::options::{KernelOptions, Primitive};
use super::syscalls::{KernelSpec, Sharing, SystemPath};
use crate::local::executor::{Executor, LastLook};
use crate::local::path_check::LOOK_LASTS;
use crate::local::task_queue::Entry;
use crate::lock::error::Error;
use crate::sys::events::prepare;
use crate::sys::files::directory_identity;
use crate::sys::mutex::Mutex;
use crate::sys::path::{BadPath, LockPath};
use crate::sys::process_key::{ProcessKey, this_process};
use crate::sys::tickets::Waiters;

/// A process that has had the lock over and over for so long asks whether
/// others wait. Until then the locked file passes from task to task. No longer
/// than a look at its path lasts: within a share there is none.
pub(super) const SHARE_MAX: Duration = LOOK_LASTS;

/// What a user named: a lock, or a path that cannot name one.
#[derive(Clone)]
pub(super) enum Named {
    Lock(Arc<LockInner>),
    /// What is wrong with it is said when the lock is acquired.
    Nothing(Arc<(PathBuf, KernelOptions)>),
}

impl Named {
    pub(super) fn new(given: &Path, options: KernelOptions) -> Self {
        match LockPath::new(given) {
            Ok(path) => Named::Lock(Arc::new(LockInner::new(path, options))),
            Err(_) => Named::Nothing(Arc::new((given.to_owned(), options))),
        }
    }

    /// Absolute where that could be made.
    pub(super) fn path(&self) -> &Path {
        match self {
            Named::Lock(lock) => lock.path.path(),
            Named::Nothing(given) => &given.0,
        }
    }

    pub(super) fn options(&self) -> &KernelOptions {
        match self {
            Named::Lock(lock) => &lock.options,
            Named::Nothing(given) => &given.1,
        }
    }

    pub(super) fn lock(self) -> Result<Arc<LockInner>, Error> {
        match self {
            Named::Lock(lock) => Ok(lock),
            Named::Nothing(given) => Err(why_not(&given.0)),
        }
    }
}

#[cold]
fn why_not(given: &Path) -> Error {
    let why = "the working directory was unknown when the lock was made".to_owned();
    let error = LockPath::new(given).err();
    Error::of_path(error.unwrap_or_else(|| BadPath { path: given.to_owned(), why }))
}

/// A lock, however often it is acquired.
pub(super) struct LockInner {
    pub(super) path: Arc<LockPath>,
    pub(super) system_path: SystemPath,
    pub(super) options: KernelOptions,
    /// Names the turns of this lock in its directory: other primitives, ranges
    /// and ways to end at the same path do not wait for each other's.
    turns: Arc<LockPath>,
    /// Names its waiters in any process.
    pub(super) label: Arc<LockPath>,
    last_state: Mutex<Option<Arc<LockState>>>,
}

impl LockInner {
    pub(super) fn new(path: LockPath, options: KernelOptions) -> Self {
        let kind = match options.primitive {
            Primitive::Flock => "flock",
            Primitive::Ofd => "fcntl",
        };
        let (range, primitive) = (options.range, options.primitive);
        let labelled = |label: String| Arc::new(path.labelled(&label));
        let label = labelled(format!("\n{kind} {range:?}"));
        let turns = labelled(format!("\n{primitive:?} {range:?} {}", options.delete_on_release));
        let system_path = SystemPath::new(path.path());
        let (path, last_state) = (Arc::new(path), Mutex::default());
        Self { path, system_path, options, turns, label, last_state }
    }

    pub(super) fn spec(&self, sharing: Sharing) -> KernelSpec {
        let KernelOptions { primitive, range, .. } = self.options;
        KernelSpec { primitive, range, sharing }
    }

    /// How long the locked file may pass from task to task; zero for not at all.
    pub(super) fn share(&self) -> Duration {
        self.options.wait.local_handoff.min(SHARE_MAX)
    }

    /// The state of the last acquisition, or what is found now.
    pub(super) async fn state(&self) -> Result<Arc<LockState>, Error> {
        if let Some(state) = self.last_state() {
            return Ok(state);
        }
        let state = LockState::of(self).await?;
        if let Some(mut last) = self.last_state.try_lock() {
            *last = Some(Arc::clone(&state));
        }
        Ok(state)
    }

    pub(super) fn last_state(&self) -> Option<Arc<LockState>> {
        // Not waited for: a fork may have copied it locked.
        let last = self.last_state.try_lock()?.clone();
        last.filter(|state| state.is_ours() && state.is_in_place(self))
    }

    /// Look at the directory anew next time.
    pub(super) fn forget_state(&self) {
        if let Some(mut last) = self.last_state.try_lock() {
            *last = None;
        }
    }
}

/// One lock's directory, as it was found.
pub(super) struct LockState {
    /// The process that found it, and makes holds here.
    pub(super) process: ProcessKey,
    pub(super) executor: Executor,
    directory: (u64, u64),
    /// The path was seen to name it.
    seen: LastLook,
    pub(super) queue: Arc<LocalQueue>,
}

impl LockState {
    async fn of(lock: &LockInner) -> Result<Arc<Self>, Error> {
        let process = this_process();
        prepare(process);
        let found = Executor::of(lock.path.directory(), lock.options.wait.offload).await;
        let failed = |error| Error::of_directory(lock.path.path(), error);
        let (executor, directory) = found.map_err(failed)?;
        let queue = LocalQueue::of(Entry { process, directory, path: Arc::clone(&lock.turns) });
        let state = Self { process, executor, directory, seen: LastLook::now(), queue };
        if let Executor::Thread { is_local: true, .. } = state.executor {
            let known = (Arc::clone(&lock.label), Arc::clone(&state.queue));
            state.executor.run(known, |(label, queue)| drop(queue.open_waiters(&label))).await;
        }
        Ok(Arc::new(state))
    }

    /// Whether the path of the directory still names it, as of some milliseconds ago.
    /// Where calls are made elsewhere it is not known then, and on network file systems
    /// it is not asked: no waiter is seen there.
    pub(super) fn is_in_place(&self, lock: &LockInner) -> bool {
        match self.executor {
            Executor::Inline { .. } => self.is_in_place_now(lock),
            Executor::Thread { is_local, .. } => !is_local || self.seen.is_recent(),
        }
    }

    /// The same at the place where calls are made.
    pub(super) fn is_in_place_now(&self, lock: &LockInner) -> bool {
        let look = || directory_identity(lock.path.directory()) == Ok(self.directory);
        self.seen.is_recent() || self.seen.renew(look)
    }

    pub(super) fn device(&self) -> u64 {
        self.directory.0
    }

    /// Whether it was found by this process, and not by the one it was forked from.
    pub(super) fn is_ours(&self) -> bool {
        self.process == this_process()
    }

    /// The waiters of all processes; `None` where they cannot be seen, or not now.
    pub(super) fn waiters(&self, lock: &LockInner) -> Option<Arc<Waiters>> {
        match self.executor {
            Executor::Inline { is_local: true } => self.queue.open_waiters(&lock.label),
            // Not opened here where calls are made elsewhere.
            _ => self.queue.waiters(),
        }
    }

    /// The same at the place where calls are made.
    pub(super) fn waiters_there(&self, lock: &LockInner) -> Option<Arc<Waiters>> {
        self.queue.open_waiters(&lock.label)
    }
}
