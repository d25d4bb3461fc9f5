//! Where a lock's system calls run: on the calling thread for local file
//! systems, where a whole attempt is microseconds, and on a thread of this
//! crate's own for network file systems, where a dead server can stop a thread
//! for ever. Never on Tokio's blocking pool: a pool full of tasks that wait
//! for this lock could then never see it released.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::options::Offload;
use super::timer::{PATIENCE, Standing};
use crate::sys::clock::coarse_milliseconds;
use crate::sys::files::{self, Errno};
use crate::sys::inode::FileKind;
use crate::sys::mutex::{Mutex, wait_timeout};
use crate::sys::process_key::{ProcessKey, this_process};

/// How long a thread stays when it has nothing to do: long enough not to be
/// made anew for each attempt of a contender.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// How many directories are remembered; past that all are asked again.
const DIRECTORIES_MAX: usize = 1024;

/// Between two looks of a thread that has to block for a job: only a runtime
/// that goes down does.
const BLOCKING_LOOK: Duration = Duration::from_micros(200);

/// How long a runtime that goes down waits for a file system.
const BLOCKING_LIMIT: Duration = Duration::from_secs(5);

/// When a path was last seen to name a directory. It may name another since, in which
/// are contenders that are not seen from here; so it is looked at again before long.
#[derive(Default)]
pub(crate) struct LastLook(AtomicU64);

/// Milliseconds.
const SEEN_LASTS: u64 = 10;

impl LastLook {
    pub(crate) fn now() -> Self {
        Self(AtomicU64::new(coarse_milliseconds()))
    }

    pub(crate) fn is_recent(&self) -> bool {
        coarse_milliseconds().saturating_sub(self.0.load(Ordering::Relaxed)) <= SEEN_LASTS
    }

    /// What the look found; only that it is still there is remembered.
    #[cold]
    pub(crate) fn renew(&self, look: impl FnOnce() -> bool) -> bool {
        let now = coarse_milliseconds();
        let is_there = look();
        if is_there {
            self.0.store(now, Ordering::Relaxed);
        }
        is_there
    }
}

/// Where the calls for one directory run.
#[derive(Clone)]
pub(crate) enum Executor {
    Inline {
        /// Only then are there events.
        is_local: bool,
    },
    Thread {
        worker: Arc<Worker>,
        /// Then others hear of what is done there.
        is_local: bool,
    },
}

impl Executor {
    /// Find the place for a directory, and the directory's identity.
    pub(crate) async fn of(
        directory: &Path,
        offload: Offload,
    ) -> Result<(Executor, DirectoryIdentity), Errno> {
        let known = DIRECTORIES.lock().get(directory).copied();
        if offload == Offload::Never {
            let identity = files::directory_identity(directory)?;
            let is_local = match known {
                Some(known) if known.device == identity.0 => known.is_local,
                _ => remember(directory, look_here(directory)?),
            };
            return Ok((Executor::Inline { is_local }, identity));
        }
        match known {
            Some(KnownDirectory { device, is_local: true }) if offload == Offload::Auto => {
                let identity = files::directory_identity(directory)?;
                // Unless something else is mounted there now.
                if identity.0 == device {
                    return Ok((Executor::Inline { is_local: true }, identity));
                }
            }
            Some(KnownDirectory { device, .. }) => {
                let worker = Worker::of(device);
                let (identity, is_local) = Box::pin(look(&worker, directory)).await?;
                if identity.0 == device {
                    return Ok((Self::at(worker, is_local, offload), identity));
                }
            }
            None => {}
        }
        Box::pin(Self::scout(directory, offload)).await
    }

    /// The first look at a directory may be the one that hangs, so it is not
    /// made here, nor where other directories are looked at.
    async fn scout(
        directory: &Path,
        offload: Offload,
    ) -> Result<(Executor, DirectoryIdentity), Errno> {
        let (identity, is_local) = look(&Worker::scout(directory), directory).await?;
        remember(directory, (identity, is_local));
        Ok((Self::at(Worker::of(identity.0), is_local, offload), identity))
    }

    fn at(worker: Arc<Worker>, is_local: bool, offload: Offload) -> Self {
        match is_local && offload == Offload::Auto {
            true => Executor::Inline { is_local },
            false => Executor::Thread { worker, is_local },
        }
    }

    /// Whether directories like this are looked at on the calling thread, as far as is
    /// known.
    pub(crate) fn is_inline(directory: &Path, offload: Offload) -> bool {
        let is_local = || DIRECTORIES.lock().get(directory).is_some_and(|known| known.is_local);
        match offload {
            Offload::Never => true,
            Offload::Auto => is_local(),
            Offload::Always => false,
        }
    }

    /// For looks that take milliseconds on any file system.
    pub(crate) fn on_thread(&self) -> Self {
        match self {
            &Executor::Inline { is_local } => {
                Executor::Thread { worker: Worker::of(NO_DEVICE), is_local }
            }
            Executor::Thread { .. } => self.clone(),
        }
    }

    /// Whether the kernel tells of what others do to files here.
    pub(crate) fn has_events(&self) -> bool {
        matches!(self, Executor::Inline { is_local: true })
    }

    /// Whether it tells others of what is done here.
    pub(crate) fn is_local(&self) -> bool {
        let (Executor::Inline { is_local } | Executor::Thread { is_local, .. }) = self;
        *is_local
    }

    /// Run `job` on `payload`. If the future is dropped before the job began,
    /// the payload is dropped at once and the job never runs; if it is dropped
    /// later, the result is dropped when the job ends.
    pub(crate) async fn run<P, T>(&self, payload: P, job: impl FnOnce(P) -> T + Send + 'static) -> T
    where
        P: Send + 'static,
        T: Send + 'static,
    {
        match self {
            Executor::Inline { .. } => job(payload),
            // On the heap: a call made inline should not carry what that takes.
            Executor::Thread { worker, .. } => Box::pin(worker.run(payload, job)).await,
        }
    }

    /// Run `job`, which goes on even if the future is dropped.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Started<T> {
        match self {
            Executor::Inline { .. } => Started::Done(job()),
            Executor::Thread { worker, .. } => Started::Running(worker.enqueue(job)),
        }
    }
}

/// What names the worker of looks that are at no file system.
const NO_DEVICE: u64 = 0;

/// Device and inode.
type DirectoryIdentity = (u64, u64);

/// What was found out about a directory.
#[derive(Clone, Copy)]
struct KnownDirectory {
    device: u64,
    is_local: bool,
}

static DIRECTORIES: LazyLock<Mutex<HashMap<PathBuf, KnownDirectory>>> =
    LazyLock::new(Mutex::default);

async fn look(worker: &Arc<Worker>, directory: &Path) -> Result<(DirectoryIdentity, bool), Errno> {
    worker.run(directory.to_owned(), |directory| look_here(&directory)).await
}

fn look_here(directory: &Path) -> Result<(DirectoryIdentity, bool), Errno> {
    let (inode, is_local) = files::look_at_directory(directory)?;
    let is_directory = inode.kind == FileKind::Directory;
    let answer = (inode.identity, is_local);
    if is_directory { Ok(answer) } else { Err(Errno::NOTDIR) }
}

/// Whether the directory is on a local file system, remembered.
fn remember(directory: &Path, (identity, is_local): (DirectoryIdentity, bool)) -> bool {
    let mut known = DIRECTORIES.lock();
    if known.len() >= DIRECTORIES_MAX {
        known.clear();
    }
    known.insert(directory.to_owned(), KnownDirectory { device: identity.0, is_local });
    is_local
}

/// Takes a job that has not begun out of its worker.
struct Withdraw<J>(Arc<Mutex<Option<J>>>);

impl<J> Drop for Withdraw<J> {
    fn drop(&mut self) {
        let job = self.0.lock().take();
        drop(job);
    }
}

/// A job that runs to its end.
pub(crate) enum Started<T> {
    Done(T),
    Running(oneshot::Receiver<T>),
}

impl<T: Send + 'static> Started<T> {
    pub(crate) async fn finished(self) -> T {
        match self {
            Started::Done(result) => result,
            Started::Running(result) => result.await.expect("BUG: a job was lost"),
        }
    }

    /// Block this thread until the job is done, but not for ever; whether it is.
    pub(crate) fn wait(self) -> bool {
        use oneshot::error::TryRecvError;
        let Started::Running(mut result) = self else {
            return true;
        };
        let deadline = Instant::now() + BLOCKING_LIMIT;
        while matches!(result.try_recv(), Err(TryRecvError::Empty)) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(BLOCKING_LOOK);
        }
        true
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// One file system's jobs, in order, on one thread that ends when idle.
pub(crate) struct Worker {
    state: Mutex<Jobs>,
    arrived: Condvar,
    idle_limit: Duration,
}

#[derive(Default)]
struct Jobs {
    jobs: VecDeque<Job>,
    has_thread: bool,
}

/// By process, so that a forked child does not wait for its parent's threads.
type WorkerKey = (ProcessKey, u64);

/// The workers of devices.
static WORKERS: LazyLock<Mutex<HashMap<WorkerKey, Arc<Worker>>>> = LazyLock::new(Mutex::default);

/// The workers on which directories are looked at for the first time. They go
/// with the last look.
type ScoutKey = (ProcessKey, PathBuf);
static SCOUTS: LazyLock<Mutex<HashMap<ScoutKey, Weak<Worker>>>> = LazyLock::new(Mutex::default);

impl Worker {
    fn new(idle_limit: Duration) -> Arc<Worker> {
        Arc::new(Worker { state: Mutex::default(), arrived: Condvar::new(), idle_limit })
    }

    fn of(device: u64) -> Arc<Worker> {
        Arc::clone(
            WORKERS
                .lock()
                .entry((this_process(), device))
                .or_insert_with(|| Worker::new(IDLE_LIMIT)),
        )
    }

    fn scout(directory: &Path) -> Arc<Worker> {
        let mut scouts = SCOUTS.lock();
        scouts.retain(|_, worker| worker.strong_count() > 0);
        let key = (this_process(), directory.to_owned());
        if let Some(worker) = scouts.get(&key).and_then(Weak::upgrade) {
            return worker;
        }
        // Its thread goes with the last look: there can be many directories.
        let worker = Worker::new(Duration::ZERO);
        scouts.insert(key, Arc::downgrade(&worker));
        worker
    }

    /// See [`Executor::run`].
    async fn run<P, T>(self: &Arc<Self>, payload: P, job: impl FnOnce(P) -> T + Send + 'static) -> T
    where
        P: Send + 'static,
        T: Send + 'static,
    {
        let slot = Arc::new(Mutex::new(Some((payload, job))));
        let _withdraw = Withdraw(Arc::clone(&slot));
        let result = self.enqueue(move || {
            let taken = slot.lock().take();
            taken.map(|(payload, job)| job(payload))
        });
        result.await.ok().flatten().expect("BUG: a job that was not withdrawn gave no result")
    }

    fn enqueue<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        // Whatever waits for this, be it for the turn that it gives up.
        let standing = Standing::at_most(PATIENCE);
        self.push(Box::new(move || {
            // Without a waiter the result is dropped here, off the runtime.
            let _ = sender.send(job());
            // After that: the runtime has something to do by now.
            drop(standing);
        }));
        receiver
    }

    fn push(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        state.jobs.push_back(job);
        if state.has_thread {
            self.arrived.notify_one();
            return;
        }
        let worker = Arc::clone(self);
        let thread = thread::Builder::new().name("lockkeeper".to_owned());
        state.has_thread = thread.spawn(move || worker.work()).is_ok();
        if !state.has_thread {
            // No thread to be had: the job is done here rather than never.
            let jobs = std::mem::take(&mut state.jobs);
            drop(state);
            jobs.into_iter().for_each(carry_out);
        }
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            carry_out(job);
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            let (woken, is_over) = wait_timeout(&self.arrived, state, self.idle_limit);
            state = woken;
            if is_over && state.jobs.is_empty() {
                state.has_thread = false;
                return None;
            }
        }
    }
}

/// If it panics, the task that waits for its result panics in its place.
fn carry_out(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

/// Wait until every deletion that dropped guards have scheduled so far is done.
///
/// On local file systems a dropped guard deletes on the spot and there is
/// nothing to wait for; on others deletions are done in order by a thread of
/// this crate.
///
/// # Cancel safety
/// Dropping the future stops only the waiting.
///
/// # Examples
/// ```no_run
/// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
/// drop(lock.acquire().await?);
/// lockkeeper::flush().await; // on a network file system too, the file is gone now
/// # Ok(())
/// # }
/// ```
pub async fn flush() {
    let process = this_process();
    let workers: Vec<Arc<Worker>> = WORKERS
        .lock()
        .iter()
        .filter(|((owner, _), _)| *owner == process)
        .map(|(_, worker)| Arc::clone(worker))
        .collect();
    let markers: Vec<_> = workers.iter().map(|worker| worker.enqueue(|| ())).collect();
    for marker in markers {
        let _ = marker.await;
    }
}
