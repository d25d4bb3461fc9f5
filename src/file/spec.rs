//! What the contenders of one lock share: its names, its options, and what is remembered
//! of it from one acquisition to the next.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::task::consume_budget;

use super::contender::Contender;
use super::options::FileOptions;
use crate::local::executor::{Executor, LastLook};
use crate::local::task_queue::TaskQueue;
use crate::lock::error::Error;
use crate::lock::holder::{Holder, Status};
use crate::sys::files::directory_identity;
use crate::sys::path::{BadPath, LockPath};
use crate::sys::process_key::{ProcessKey, this_process};

/// A lock as its user named it. Clones of a lock share one.
pub(crate) struct LockSpec {
    given: PathBuf,
    /// `None` if what was given cannot name a lock file.
    path: Option<Arc<LockPath>>,
    options: Arc<FileOptions>,
    last_queue: Mutex<Option<Arc<TaskQueue>>>,
    /// The path was seen to lead to the directory of that.
    last_look: LastLook,
}

/// The same path, as it is compared by [`LockSpec::path`], and equal options.
impl PartialEq for LockSpec {
    fn eq(&self, other: &Self) -> bool {
        self.path() == other.path() && self.options == other.options
    }
}

impl Eq for LockSpec {}

impl LockSpec {
    /// With options that were checked.
    pub(crate) fn new(path: &Path, options: FileOptions) -> Self {
        let (given, options) = (path.to_owned(), Arc::new(options));
        let path = LockPath::new(path).ok().map(Arc::new);
        Self { given, path, options, last_queue: Mutex::new(None), last_look: LastLook::default() }
    }

    /// The lock file, as an absolute path where that could be made.
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().map_or(&self.given, LockPath::path)
    }

    /// `None` if what was given cannot name a lock file.
    pub(crate) fn names(&self) -> Option<&Arc<LockPath>> {
        self.path.as_ref()
    }

    pub(crate) fn options(&self) -> &Arc<FileOptions> {
        &self.options
    }

    /// What tells this lock from others, whatever path leads to it.
    pub(crate) async fn entry(&self) -> Result<((u64, u64), OsString), Error> {
        Ok(self.contender().await?.entry())
    }

    /// A new contender of this process.
    pub(crate) async fn contender(&self) -> Result<Contender, Error> {
        // All else may be done in one poll; so a loop of this must yield here.
        consume_budget().await;
        self.contender_of(this_process()).await
    }

    pub(crate) async fn contender_of(&self, process: ProcessKey) -> Result<Contender, Error> {
        let Some(path) = self.path.clone() else {
            let given = self.given.clone();
            let why = "the working directory was unknown when the lock was made".to_owned();
            let bad = LockPath::new(&given).err();
            return Err(Error::of_path(bad.unwrap_or(BadPath { path: given, why })));
        };
        Contender::enter(path, Arc::clone(&self.options), process, &self.last_queue).await
    }

    /// What is at the path.
    pub(crate) async fn status(&self) -> Result<Status, Error> {
        let contender = self.contender().await?;
        Ok(contender.probe().await?.status)
    }

    /// The holder, `None` if the lock is free.
    pub(crate) async fn holder(&self) -> Result<Option<Holder>, Error> {
        match self.status().await? {
            Status::Held(holder) => Ok(Some(holder)),
            Status::Free | Status::Stale(_) => Ok(None),
        }
    }

    /// The queue of the last contender and the names of its lock, if a task of this
    /// process has its turn.
    pub(crate) fn busy_queue(
        &self,
        process: ProcessKey,
    ) -> Option<(&Arc<LockPath>, Arc<TaskQueue>)> {
        let path = self.path.as_ref()?;
        // Not waited for: a fork may have copied it locked.
        let last = self.last_queue.try_lock().ok()?;
        let queue = last.as_ref().filter(|queue| queue.is_busy(process)).cloned()?;
        drop(last);
        self.leads_to(path.directory(), queue.directory()).then_some((path, queue))
    }

    /// Whether the path leads to this directory, as of some milliseconds ago: else one
    /// would wait there for what is somewhere else. Where it is looked at elsewhere,
    /// that is seen after the turn has come.
    fn leads_to(&self, directory: &Path, identity: (u64, u64)) -> bool {
        let Self { options, last_look, .. } = self;
        let look = || directory_identity(directory) == Ok(identity);
        last_look.is_recent()
            || !Executor::is_inline(directory, options.wait.offload)
            || last_look.renew(look)
    }
}
