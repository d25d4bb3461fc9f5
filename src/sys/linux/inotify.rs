//! Events that are a reason to look again: one inotify instance for the whole
//! process, read by a task on each runtime that has somebody who waits.
//!
//! 1. Directories are watched, not lock files: those come and go.
//! 2. Who listens does so *before* the look it relies on. An event between the
//!    two is kept, and several are kept as one.
//! 3. An event is a reason to look and nothing more: what is so, only an
//!    attempt says. That is why an overflow, a directory that was moved and a
//!    watch that ended are simply events for everybody.
//! 4. A holder's death is the close of a file that was open for writing. The
//!    name in that event is the one the file was opened by: for a file that was
//!    made without one it is `#` and the number of its inode. Other closes wake
//!    nobody, or every lock's waiters in a directory would wake for each. As a
//!    second way to hear of it, the holder's process is followed, or a watch of
//!    that one file tells, once, of a close by somebody who could only read it. It
//!    must be a regular file: the watch of a directory may be another listener's.
//! 5. inotify is made before the first lock file is opened and never closed,
//!    nor is its descriptor copied. When a process is killed, its files are let
//!    go from the highest descriptor to the lowest, and letting go of an inotify
//!    instance that has had watches takes milliseconds, for which its successor
//!    would wait.
//! 6. Who need not look before somebody else has looked listens to the
//!    [pipe](super::wait_pipe) of that one's process instead of the directory, once.
//!    One watch of a pipe is for all who wait behind that process, and its event ends
//!    it for all of them. What is reached through /proc is of this process's pid
//!    namespace, so its inode is compared.
//! 7. Each runtime with a listener has a reader of its own, so that an event
//!    costs one wake of one thread and nobody depends on a runtime that is busy
//!    or going down. Whichever reads an event first tells everybody it concerns,
//!    in the same poll: an event that was read is never lost.
//! 8. A process is followed by one descriptor on each runtime, however many wait
//!    for its end.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{self, Handle};
use tokio::sync::Notify;

use super::process_key::{ProcessKey, this_process};
use super::tickets::Predecessor;
use super::wait_pipe::PublishedFd;
use crate::sys::mutex::Mutex;
use crate::sys::path::LockPath;

const EVENTS: WatchFlags = WatchFlags::DELETE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What is asked for in addition by who watches a lock and does not wait for it: that
/// somebody acquires it, by a new file or by a write.
const CHANGES: WatchFlags = WatchFlags::CREATE.union(WatchFlags::MODIFY);

/// The same, as it is told.
const CHANGED: ReadFlags = ReadFlags::CREATE.union(ReadFlags::MODIFY);

/// What is asked for of another process's pipe, once: that a contender has left, or that
/// all are gone (6).
const PIPE_EVENTS: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ONESHOT)
    // Not to change a watch that there is, should the number be a directory's by now.
    .union(WatchFlags::MASK_CREATE);

/// What is asked for of the holder's file, once: that somebody closes it who could
/// only read it (4). Of others the directory tells, for less.
const CLOSES: WatchFlags =
    WatchFlags::CLOSE_NOWRITE.union(WatchFlags::ONESHOT).union(WatchFlags::MASK_CREATE);

/// What is still asked for when nobody listens in a directory any more: next to
/// nothing, as a watch that ends tells of it, and that wakes.
const MUTED: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::ONLYDIR);

/// So many directories are remembered for the next time somebody listens.
const DIRECTORIES_MAX: usize = 64;

/// What a file system that is frozen has no events of.
const WRITES: ReadFlags = ReadFlags::DELETE.union(ReadFlags::MOVED_TO).union(ReadFlags::MOVED_FROM);

/// What concerns everybody who listens in a directory (3).
const FOR_ALL: ReadFlags = ReadFlags::MOVE_SELF
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::IGNORED)
    .union(ReadFlags::UNMOUNT);

/// Room for some hundred events at a time.
const BUFFER_BYTES: usize = 16 * 1024;

/// So many events fit the buffer whatever their names: 16 bytes each and a name
/// of at most 255, padded. A read that gave fewer has left none.
const EVENTS_THAT_FIT: usize = BUFFER_BYTES / (16 + 256);

/// So many events are told at a time; then other tasks have their turn.
const EVENTS_AT_ONCE: usize = 512;

/// The events of this process.
struct Inotify {
    process: ProcessKey,
    inotify: OwnedFd,
    state: Mutex<State>,
    /// Held by who has a runtime read: of two at once, one would end the other's.
    registering: Mutex<()>,
    /// By the runtime that hears of their end, and id (8).
    processes: Mutex<HashMap<(runtime::Id, u32), Weak<Followed>>>,
}

#[derive(Default)]
struct State {
    /// By watch descriptor.
    directories: HashMap<i32, HashMap<u64, Arc<Listener>>>,
    /// By watch descriptor: what ends with its first event.
    files: HashMap<i32, Watched>,
    /// The watches of other processes' pipes (6).
    pipes: HashMap<PublishedFd, i32>,
    last_listener: u64,
    /// The runtimes that were asked to read, and whether they do.
    readers: HashMap<runtime::Id, bool>,
}

/// A file or a pipe, and who listens to it.
struct Watched {
    pipe: Option<PublishedFd>,
    ears: HashMap<u64, Arc<Listener>>,
}

/// One who listens.
struct Listener {
    path: Arc<LockPath>,
    /// Names whose close counts, beside the lock file's own (4).
    closes: Mutex<Vec<OsString>>,
    event: Notify,
    /// A file was closed that may have been the holder's.
    was_closed: AtomicBool,
    /// What was heard does not tell which directory it is of.
    is_shaken: AtomicBool,
    /// It is told of acquisitions too.
    hears_changes: AtomicBool,
    /// A name in the directory was removed or moved.
    was_written: AtomicBool,
}

static WATCH: Mutex<Option<Arc<Inotify>>> = Mutex::new(None);

/// The process that `WATCH` was last prepared for; 0 for none, or if the id
/// alone does not tell.
static PREPARED: AtomicU32 = AtomicU32::new(0);

/// Say once that there are no events, and why.
pub(crate) fn tell_of_no_events(error: impl Display) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(%error, "no events: waiting looks again each retry_period");
    }
}

/// To be called before a lock file is opened (5).
pub(crate) fn prepare(process: ProcessKey) {
    if PREPARED.load(Ordering::Acquire) == process.pid {
        return;
    }
    let mut watch = WATCH.lock();
    if watch.as_ref().is_none_or(|watch| watch.process != process) {
        match Inotify::new(process) {
            // A forked child inherits its parent's, which is not closed (5).
            Ok(made) => std::mem::forget(watch.replace(Arc::new(made))),
            Err(error) => {
                drop(watch);
                return tell_of_no_events(error);
            }
        }
    }
    // The first process of a pid namespace may fork the first of another.
    PREPARED.store(if process.pid == 1 { 0 } else { process.pid }, Ordering::Release);
}

impl Inotify {
    fn new(process: ProcessKey) -> Result<Self, Errno> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let (state, registering, processes) = Default::default();
        Ok(Self { process, inotify, state, registering, processes })
    }

    fn of_this_process() -> Option<Arc<Inotify>> {
        let process = this_process();
        WATCH.lock().as_ref().filter(|watch| watch.process == process).cloned()
    }

    /// Have this runtime read events, from its first listener to its end;
    /// whether it does (7).
    fn is_read_here(self: &Arc<Self>) -> bool {
        let Ok(runtime) = Handle::try_current() else {
            return false;
        };
        let known = || self.state.lock().readers.get(&runtime.id()).copied();
        if let Some(reads) = known() {
            return reads;
        }
        let _registering = self.registering.lock();
        if let Some(reads) = known() {
            return reads;
        }
        let reading = Reading { watch: Arc::clone(self), runtime: runtime.id() };
        self.state.lock().readers.insert(runtime.id(), true);
        // Tokio panics where the runtime was built without `enable_io`, and
        // offers no way to ask.
        #[allow(deprecated, reason = "sound here: the instance is never closed, nor another")]
        let registered =
            catch_unwind(AssertUnwindSafe(|| AsyncFd::with_interest(reading, Interest::READABLE)));
        match registered {
            // A runtime that is going down drops it, and then nobody reads.
            Ok(Ok(reading)) => drop(runtime.spawn(read_events(reading))),
            Ok(Err(error)) => tell_of_no_events(error),
            Err(_) => {
                tell_of_no_events("this runtime was built without enable_io");
                self.state.lock().readers.insert(runtime.id(), false);
            }
        }
        self.state.lock().readers.get(&runtime.id()) == Some(&true)
    }

    /// Tell of what has happened; whether that is all of it.
    fn read(&self, buffer: &mut [MaybeUninit<u8>]) -> bool {
        let mut reader = inotify::Reader::new(&self.inotify, buffer);
        let mut told = 0;
        while told < EVENTS_AT_ONCE || !reader.is_buffer_empty() {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                // AGAIN: there is no more for now.
                Err(_) => return true,
            };
            told += 1;
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            let what = event.events();
            // Whoever is woken may do anything, so nothing is locked meanwhile.
            let ears = self.concerned(event.wd(), what, name);
            ears.iter().for_each(|ear| ear.hear(what));
            // So few that there was room for more: these were all.
            if reader.is_buffer_empty() && told < EVENTS_THAT_FIT {
                return true;
            }
        }
        false
    }

    fn concerned(
        &self,
        directory: i32,
        what: ReadFlags,
        name: Option<&OsStr>,
    ) -> Vec<Arc<Listener>> {
        let mut state = self.state.lock();
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            let ears = state.directories.values().flat_map(HashMap::values);
            let mut ears: Vec<_> = ears.cloned().collect();
            // What is lost may be the one event of a file.
            for (file, watched) in state.files.drain() {
                let _ = inotify::remove_watch(&self.inotify, file);
                ears.extend(watched.ears.into_values());
            }
            state.pipes.clear();
            return ears;
        }
        if let Some(watched) = state.files.remove(&directory) {
            watched.pipe.and_then(|pipe| state.pipes.remove(&pipe));
            return watched.ears.into_values().collect();
        }
        let Some(ears) = state.directories.get(&directory) else {
            return Vec::new();
        };
        let concerned = ears.values().filter(|ear| ear.is_concerned(what, name)).cloned();
        let concerned = concerned.collect();
        if what.contains(ReadFlags::IGNORED) {
            state.directories.remove(&directory);
        }
        concerned
    }

    /// The watch of this pipe for one more who listens. `None` if it is not there any
    /// more, or cannot be seen.
    fn watch_pipe(&self, state: &mut State, ready: PublishedFd) -> Option<i32> {
        if let Some(known) = state.pipes.get(&ready) {
            return Some(*known);
        }
        let path = format!("/proc/{}/fd/{}", ready.process, ready.descriptor);
        // What is there may be anybody's file, on a server that does not answer.
        if !is_still(ready, &path) {
            return None;
        }
        let pipe = inotify::add_watch(&self.inotify, &path, PIPE_EVENTS).ok()?;
        // Listen first, then look.
        if !is_still(ready, &path) {
            let _ = inotify::remove_watch(&self.inotify, pipe);
            return None;
        }
        state.pipes.insert(ready, pipe);
        state.files.insert(pipe, Watched { pipe: Some(ready), ears: HashMap::new() });
        Some(pipe)
    }

    /// Whoever listens to this file does so no longer.
    fn leave_file(&self, state: &mut State, file: i32, listener: u64) {
        // One that was heard of has ended by itself.
        let Some(watched) = state.files.get_mut(&file) else {
            return;
        };
        watched.ears.remove(&listener);
        if watched.ears.is_empty() {
            watched.pipe.and_then(|pipe| state.pipes.remove(&pipe));
            state.files.remove(&file);
            let _ = inotify::remove_watch(&self.inotify, file);
        }
    }

    /// This process, whose end is an event on this runtime (8).
    fn process(&self, pid: u32) -> Result<Arc<Followed>, Errno> {
        let runtime = Handle::try_current().map_err(|_| Errno::NOSYS)?.id();
        let mut processes = self.processes.lock();
        let known = processes.get(&(runtime, pid)).and_then(Weak::upgrade);
        // The id may be another's by now.
        if let Some(known) = known.filter(|known| !known.has_ended.load(Ordering::Relaxed)) {
            return Ok(known);
        }
        let process = Arc::new(Followed::new(pid)?);
        processes.retain(|_, process| process.strong_count() > 0);
        processes.insert((runtime, pid), Arc::downgrade(&process));
        Ok(process)
    }

    /// Nobody listens in this directory any more. The watch is kept, since one
    /// that is ended and made anew for each wait wakes whoever reads; it is
    /// muted, or each release here would.
    ///
    /// Where it is the wrong one, others listened there.
    fn mute(&self, state: &mut State, directory: i32, path: &LockPath) -> Deafened {
        let mut deafened = Deafened::default();
        let muted = inotify::add_watch(&self.inotify, path.directory(), MUTED);
        if muted == Ok(directory) && state.directories.len() <= DIRECTORIES_MAX {
            return deafened;
        }
        // The path leads elsewhere by now, where perhaps somebody listens.
        for watch in [Some(directory), muted.ok()].into_iter().flatten() {
            match state.directories.get(&watch).filter(|ears| !ears.is_empty()) {
                None => {
                    state.directories.remove(&watch);
                    let _ = inotify::remove_watch(&self.inotify, watch);
                }
                Some(ears) if watch != directory => {
                    let _ = inotify::add_watch(&self.inotify, path.directory(), EVENTS);
                    // Of what happened meanwhile nothing is told.
                    deafened.0.extend(ears.values().cloned());
                }
                Some(_) => {}
            }
        }
        deafened
    }
}

/// Ears whose directory was muted by mistake, and which must look again.
#[derive(Default)]
#[must_use]
struct Deafened(Vec<Arc<Listener>>);

impl Deafened {
    /// With nothing locked: whoever is woken may do anything.
    fn tell(self) {
        self.0.iter().for_each(|ear| ear.hear(ReadFlags::QUEUE_OVERFLOW));
    }
}

/// Whether this is the pipe that was shown. No server is asked.
fn is_still(ready: PublishedFd, path: &str) -> bool {
    let wanted = StatxFlags::INO | StatxFlags::TYPE;
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, wanted);
    found.is_ok_and(|found| {
        let is_pipe = FileType::from_raw_mode(found.stx_mode.into()) == FileType::Fifo;
        is_pipe && ready.is_inode(found.stx_ino)
    })
}

/// The inotify instance as one runtime has it registered.
struct Reading {
    watch: Arc<Inotify>,
    runtime: runtime::Id,
}

impl AsRawFd for Reading {
    fn as_raw_fd(&self) -> RawFd {
        self.watch.inotify.as_raw_fd()
    }
}

/// The runtime goes down, or never read.
impl Drop for Reading {
    fn drop(&mut self) {
        if self.watch.process == this_process() {
            self.watch.state.lock().readers.remove(&self.runtime);
        }
    }
}

async fn read_events(reading: AsyncFd<Reading>) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    while let Ok(mut ready) = reading.readable().await {
        // Nothing is awaited between reading an event and telling of it (7).
        if reading.get_ref().watch.read(&mut buffer) {
            ready.clear_ready();
        } else {
            tokio::task::yield_now().await;
        }
    }
}

impl Listener {
    fn is_concerned(&self, what: ReadFlags, name: Option<&OsStr>) -> bool {
        let Some(name) = name else {
            return what.intersects(FOR_ALL);
        };
        if name == self.path.name() {
            return !what.intersects(CHANGED) || self.hears_changes.load(Ordering::Relaxed);
        }
        what.contains(ReadFlags::CLOSE_WRITE)
            && self.closes.lock().iter().any(|close| close == name)
    }

    /// What is asked for of its directory. To whatever others ask for there it is added,
    /// until nobody listens there any more.
    fn events(&self) -> WatchFlags {
        let changes = if self.hears_changes.load(Ordering::Relaxed) { CHANGES } else { EVENTS };
        EVENTS | changes | WatchFlags::MASK_ADD
    }

    fn hear(&self, what: ReadFlags) {
        if what.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::QUEUE_OVERFLOW) {
            self.was_closed.store(true, Ordering::Release);
        }
        if what.intersects(FOR_ALL | ReadFlags::QUEUE_OVERFLOW) {
            self.is_shaken.store(true, Ordering::Release);
        }
        if what.intersects(WRITES) {
            self.was_written.store(true, Ordering::Release);
        }
        self.event.notify_one();
    }
}

/// Listens for what may change who holds a lock. Dropping it ends that.
pub(crate) struct Subscription {
    watch: Arc<Inotify>,
    ear: Arc<Listener>,
    listener: u64,
    /// The directory's watch, unless it is the pipes that are listened to.
    directory: Option<i32>,
    pipes: Vec<i32>,
    /// The file whose readers' closes are listened to, by device and inode (4).
    closing: Option<((u64, u64), i32)>,
    /// The process whose end is listened to, and whether that was heard.
    process: Option<(Arc<Followed>, AtomicBool)>,
}

/// A process whose end is an event as well.
struct Followed {
    pid: u32,
    descriptor: AsyncFd<OwnedFd>,
    has_ended: AtomicBool,
}

impl Followed {
    fn new(pid: u32) -> Result<Self, Errno> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())?;
        #[allow(deprecated, reason = "an OwnedFd is what AsyncFd::new is sound for")]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE);
        let descriptor = descriptor.map_err(|_| Errno::NOMEM)?;
        Ok(Self { pid, descriptor, has_ended: AtomicBool::new(false) })
    }

    async fn end(&self) {
        // An error cannot be waited out either: it is a reason to look.
        let _ = self.descriptor.readable().await;
        self.has_ended.store(true, Ordering::Relaxed);
    }
}

/// Whether the end of a process will be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Following {
    /// Or there is no process whose end would matter.
    Told,
    Untold,
    /// It has ended already, or is one of another pid namespace.
    Gone,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A file that may have been the holder's was closed. That comes a little
    /// before its kernel lock is free.
    Close,
    Change,
}

impl Subscription {
    /// Not yet to anything. `None` where there are no events: then one has to
    /// look now and then.
    pub(crate) fn to_nothing(path: &Arc<LockPath>) -> Option<Self> {
        let watch = Inotify::of_this_process().or_else(|| {
            // There may have been too many open files.
            prepare(this_process());
            Inotify::of_this_process()
        })?;
        let ear = Arc::new(Listener {
            path: Arc::clone(path),
            closes: Mutex::default(),
            event: Notify::new(),
            was_closed: AtomicBool::new(false),
            is_shaken: AtomicBool::new(false),
            hears_changes: AtomicBool::new(false),
            was_written: AtomicBool::new(false),
        });
        if !watch.is_read_here() {
            return None;
        }
        let mut state = watch.state.lock();
        state.last_listener += 1;
        let listener = state.last_listener;
        drop(state);
        let (directory, pipes, closing, process) = (None, Vec::new(), None, None);
        Some(Self { watch, ear, listener, directory, pipes, closing, process })
    }

    /// To be called before each look (2): the directory that is listened to must
    /// be the one that the path leads to now.
    pub(crate) fn renew(this: Option<Self>, path: &Arc<LockPath>) -> Option<Self> {
        let mut subscription = match this {
            Some(subscription) => subscription,
            None => Self::to_nothing(path)?,
        };
        subscription.is_renewed().then_some(subscription)
    }

    /// The same for one who watches the lock: acquisitions are events as well.
    pub(crate) fn renew_for_changes(this: Option<Self>, path: &Arc<LockPath>) -> Option<Self> {
        let subscription = this.or_else(|| Self::to_nothing(path))?;
        subscription.ear.hears_changes.store(true, Ordering::Relaxed);
        Self::renew(Some(subscription), path)
    }

    fn is_renewed(&mut self) -> bool {
        if !self.is_ours() || !self.watch.is_read_here() {
            return false;
        }
        let watch = Arc::clone(&self.watch);
        let directory = self.ear.path.directory();
        let mut state = watch.state.lock();
        let directory = match inotify::add_watch(&watch.inotify, directory, self.ear.events()) {
            Ok(directory) => directory,
            Err(error) => {
                drop(state);
                if self.directory.is_none() {
                    tell_of_no_events(error);
                }
                return false;
            }
        };
        self.leave_pipes(&mut state);
        // Also if it is the same: who reads drops a directory whose watch has ended.
        let ears = state.directories.entry(directory).or_default();
        ears.insert(self.listener, Arc::clone(&self.ear));
        // After that, or its watch could be ended as one that nobody needs.
        let last = self.directory.replace(directory).filter(|last| *last != directory);
        let deafened = self.leave(&mut state, last);
        drop(state);
        deafened.tell();
        true
    }

    /// Whether it is the directory that is listened to.
    pub(crate) fn is_to_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// Listen to what becomes of these contenders, and to the directory no longer (6);
    /// whether that can be. Afterwards one has to look whether they are still there.
    pub(crate) fn turn_to(&mut self, neighbours: [Predecessor; 2]) -> bool {
        if !self.is_ours() || !self.watch.is_read_here() {
            return false;
        }
        let watch = Arc::clone(&self.watch);
        let mut state = watch.state.lock();
        let last = std::mem::take(&mut self.pipes);
        for neighbour in neighbours {
            let pipe = neighbour.ready.and_then(|ready| watch.watch_pipe(&mut state, ready));
            let watched = pipe.and_then(|pipe| Some((pipe, state.files.get_mut(&pipe)?)));
            let Some((pipe, watched)) = watched else { break };
            watched.ears.insert(self.listener, Arc::clone(&self.ear));
            self.pipes.push(pipe);
        }
        let is_turned = self.pipes.len() == neighbours.len();
        for pipe in last.into_iter().filter(|pipe| !self.pipes.contains(pipe)) {
            watch.leave_file(&mut state, pipe, self.listener);
        }
        let mut deafened = Deafened::default();
        if is_turned {
            deafened = self.leave(&mut state, self.directory);
            self.end_closing(&mut state);
            (self.directory, self.process) = (None, None);
        } else {
            self.leave_pipes(&mut state);
        }
        drop(state);
        deafened.tell();
        is_turned
    }

    fn leave_pipes(&mut self, state: &mut State) {
        let pipes = std::mem::take(&mut self.pipes).into_iter();
        pipes.for_each(|pipe| self.watch.leave_file(state, pipe, self.listener));
    }

    /// Listen in this directory no longer.
    fn leave(&self, state: &mut State, directory: Option<i32>) -> Deafened {
        let ears = directory.and_then(|directory| state.directories.get_mut(&directory));
        let Some((directory, ears)) = directory.zip(ears) else {
            return Deafened::default();
        };
        ears.remove(&self.listener);
        match ears.is_empty() {
            true => self.watch.mute(state, directory, &self.ear.path),
            false => Deafened::default(),
        }
    }

    /// Whether what was heard since the last call leaves it open which
    /// directory the path leads to.
    pub(crate) fn is_shaken(&self) -> bool {
        self.ear.is_shaken.swap(false, Ordering::AcqRel)
    }

    /// Whether somebody was heard to remove or move the file since the last call.
    pub(crate) fn has_heard_a_write(&self) -> bool {
        self.ear.was_written.swap(false, Ordering::AcqRel)
    }

    /// A forked child shares the inotify instance, and must not touch it.
    fn is_ours(&self) -> bool {
        self.watch.process == this_process()
    }

    /// The names of files whose close is an event, beside the lock file's own;
    /// whether they are others than before. Then what happened to them before
    /// was not heard, and one has to look again.
    pub(crate) fn await_closes<const N: usize>(&self, files: [PathBuf; N]) -> bool {
        let names = files.iter().filter_map(|file| file.file_name()).map(OsStr::to_owned);
        let names: Vec<OsString> = names.collect();
        let mut closes = self.ear.closes.lock();
        let has_changed = *closes != names;
        *closes = names;
        has_changed
    }

    /// Listen for the end of this process, and of no other any more.
    pub(crate) fn follow(&mut self, pid: Option<u32>) -> Following {
        let is_heard_of = |(process, was_heard): &(Arc<Followed>, AtomicBool)| {
            Some(process.pid) == pid && !was_heard.load(Ordering::Relaxed)
        };
        if self.process.as_ref().is_some_and(is_heard_of) {
            return Following::Told;
        }
        self.process = None;
        let Some(pid) = pid else {
            return Following::Told;
        };
        match self.watch.process(pid) {
            Ok(process) => self.process = Some((process, AtomicBool::new(false))),
            Err(Errno::SRCH) => return Following::Gone,
            Err(_) => return Following::Untold,
        }
        Following::Told
    }

    /// Listen to closes of this regular file by who could only read it, until one
    /// is heard, and to no other's any more. Whether it is: somebody else of this
    /// process may have the only watch that an inode can have. What was before is
    /// not heard.
    pub(crate) fn hear_closes(&mut self, file: &File, identity: (u64, u64)) -> bool {
        if !self.is_ours() || !self.watch.is_read_here() {
            return false;
        }
        let watch = Arc::clone(&self.watch);
        let mut state = watch.state.lock();
        let is_heard = |(known, number)| known == identity && state.files.contains_key(&number);
        if self.closing.is_some_and(is_heard) {
            return true;
        }
        self.end_closing(&mut state);
        let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        let Ok(number) = inotify::add_watch(&watch.inotify, &path, CLOSES) else {
            return false;
        };
        let ears = HashMap::from([(self.listener, Arc::clone(&self.ear))]);
        state.files.insert(number, Watched { pipe: None, ears });
        self.closing = Some((identity, number));
        true
    }

    fn end_closing(&mut self, state: &mut State) {
        if let Some((_, file)) = self.closing.take() {
            self.watch.leave_file(state, file, self.listener);
        }
    }

    /// Something that happened since the last call, or since the start.
    pub(crate) async fn event(&self) -> Heard {
        // Events that keep coming must not keep the thread.
        tokio::task::consume_budget().await;
        let end = async {
            match &self.process {
                Some((process, was_heard)) if !was_heard.load(Ordering::Relaxed) => {
                    process.end().await;
                    was_heard.store(true, Ordering::Relaxed);
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.ear.event.notified() => {}
            () = end => self.ear.was_closed.store(true, Ordering::Release),
        }
        match self.ear.was_closed.swap(false, Ordering::AcqRel) {
            true => Heard::Close,
            false => Heard::Change,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.is_ours() {
            // Its end would be one in the parent's runtime.
            return std::mem::forget(self.process.take());
        }
        let watch = Arc::clone(&self.watch);
        let mut state = watch.state.lock();
        self.leave_pipes(&mut state);
        self.end_closing(&mut state);
        let deafened = self.leave(&mut state, self.directory);
        drop(state);
        deafened.tell();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn who_was_muted_by_mistake_looks_again() {
        prepare(this_process());
        let top = tempfile::TempDir::new().unwrap();
        let [a, b, current] = ["a", "b", "current"].map(|name| top.path().join(name));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        std::os::unix::fs::symlink(&a, &current).unwrap();
        let listen = |path: PathBuf| {
            Subscription::renew(None, &Arc::new(LockPath::new(&path).unwrap()))
                .expect("there are events")
        };
        let at_current = listen(current.join("lock"));
        std::fs::remove_file(&current).unwrap();
        std::os::unix::fs::symlink(&b, &current).unwrap();
        let at_b = listen(b.join("lock"));
        let mut event = Box::pin(at_b.event());
        assert!(futures::poll!(&mut event).is_pending());
        // Its path leads where the other listens.
        drop(at_current);
        assert!(futures::poll!(&mut event).is_ready());
    }

    #[tokio::test]
    async fn the_close_of_a_file_that_was_only_read_can_be_heard() {
        prepare(this_process());
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("lock");
        let paths = Arc::new(LockPath::new(&path).unwrap());
        let file = File::create(&path).unwrap();
        let identity = |file: &File| {
            let stat = rustix::fs::fstat(file).unwrap();
            (stat.st_dev, stat.st_ino)
        };
        let mut subscription = Subscription::to_nothing(&paths).expect("there are events here");
        // And again after it was heard.
        for _ in 0..2 {
            assert!(subscription.hear_closes(&file, identity(&file)));
            assert!(subscription.hear_closes(&file, identity(&file)), "it is listened to");
            drop(File::open(&path).unwrap());
            subscription.event().await;
        }
        assert!(subscription.hear_closes(&file, identity(&file)));
        let mut other = Subscription::to_nothing(&paths).unwrap();
        assert!(!other.hear_closes(&file, identity(&file)), "there is one watch only");
        // Another file is at the path by now.
        std::fs::remove_file(&path).unwrap();
        let replaced = File::create(&path).unwrap();
        assert!(subscription.hear_closes(&replaced, identity(&replaced)));
        assert!(other.hear_closes(&file, identity(&file)), "the watch was given up");
        drop(File::open(&path).unwrap());
        subscription.event().await;
        drop(other);
        let mut other = Subscription::to_nothing(&paths).unwrap();
        assert!(other.hear_closes(&file, identity(&file)), "it ended with who listened");
    }

    #[tokio::test]
    async fn only_who_watches_a_lock_hears_of_its_acquisition() {
        prepare(this_process());
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("lock");
        let names = Arc::new(LockPath::new(&path).unwrap());
        let watches = Subscription::renew_for_changes(None, &names).expect("there are events");
        let waits = Subscription::renew(None, &names).expect("there are events");
        let file = File::create(&path).unwrap();
        watches.event().await;
        rustix::io::write(&file, b"a record").unwrap();
        watches.event().await;
        assert!(futures::poll!(Box::pin(waits.event())).is_pending());
        drop(file);
        waits.event().await;
    }

    #[test]
    fn a_runtime_reads_whoever_listens_there_first() {
        const WORKERS: usize = 4;
        prepare(this_process());
        let watch = Inotify::of_this_process().expect("inotify can be had here");
        for round in 0..300 {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .enable_all()
                .build()
                .unwrap();
            let barrier = Arc::new(Barrier::new(WORKERS));
            let ask = || {
                let (watch, barrier) = (Arc::clone(&watch), Arc::clone(&barrier));
                runtime.spawn(async move {
                    barrier.wait();
                    watch.is_read_here()
                })
            };
            let asked: Vec<_> = (0..WORKERS).map(|_| ask()).collect();
            for reads in asked {
                assert!(runtime.block_on(reads).unwrap(), "round {round}");
            }
            runtime.block_on(async { assert!(watch.is_read_here(), "round {round}, later") });
        }
    }
}
