//! Events that are a reason to look again: one inotify instance for the whole
//! process, read by a task on each runtime that has a listener.
//!
//! 1. Directories are watched, not lock files: those come and go.
//! 2. A listener begins *before* the look it relies on. An event between the
//!    two is kept, and several are kept as one.
//! 3. An event is a reason to look and nothing more: what is so, only an
//!    attempt says. That is why an overflow, a directory that was moved and a
//!    watch that ended are simply events for all listeners.
//! 4. A holder's death is the close of a file that was open for writing. The
//!    name in that event is the one the file was opened by: for a file that was
//!    made without one it is `#` and the number of its inode. Other closes wake
//!    no listener, or every lock's waiters in a directory would wake for each. As a
//!    second way to hear of it, the holder's process is followed, or a watch of
//!    that one file tells, once, of a close by a process that could only read it. It
//!    must be a regular file: the watch of a directory may be another listener's.
//! 5. inotify is made before the first lock file is opened and never closed,
//!    nor is its descriptor copied. When a process is killed, its files are
//!    closed from the highest descriptor to the lowest, and the close of an inotify
//!    instance that has had watches takes milliseconds, for which its successor
//!    would wait.
//! 6. A waiter that need not look before its predecessors have looked listens to the
//!    [pipes](super::wait_pipe) of their processes instead of the directory, once.
//!    One watch of a pipe is for all that wait behind that process, and its event ends
//!    it for all of them. What is reached through /proc is of this process's pid
//!    namespace, so its inode is compared.
//! 7. Each runtime with a listener has a reader of its own, so that an event
//!    costs one wake of one thread and no listener depends on a runtime that is busy
//!    or going down. Whichever reads an event first notifies every listener that it
//!    concerns, in the same poll: an event that was read is never lost.
//! 8. A process is followed by one descriptor on each runtime, however many wait
//!    for its end.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
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
use crate::sys::event::tell_of_no_events;
pub(crate) use crate::sys::event::{Event, Following};
use crate::sys::mutex::Mutex;
use crate::sys::path::LockPath;

/// Whether the end of a kernel lock is an event, as a rule.
pub(crate) const UNLOCKS_ARE_HEARD: bool = true;

/// Whether the close of a file is an event for waiters.
pub(crate) const CLOSES_ARE_HEARD: bool = true;

const EVENTS: WatchFlags = WatchFlags::DELETE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What is asked for in addition by a stream of status changes: that the lock is
/// acquired, by a new file or by a write.
const CHANGES: WatchFlags = WatchFlags::CREATE.union(WatchFlags::MODIFY);

/// The same, as it is reported.
const CHANGED: ReadFlags = ReadFlags::CREATE.union(ReadFlags::MODIFY);

/// What is asked for of another process's pipe, once: that a contender has left, or that
/// all are gone (6).
const PIPE_EVENTS: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ONESHOT)
    // Not to change a watch that there is, should the number be a directory's by now.
    .union(WatchFlags::MASK_CREATE);

/// What is asked for of the holder's file, once: a close by a process that could
/// only read it (4). Of others the directory tells, for less.
const CLOSES: WatchFlags =
    WatchFlags::CLOSE_NOWRITE.union(WatchFlags::ONESHOT).union(WatchFlags::MASK_CREATE);

/// What is still asked for when the last listener in a directory has gone: next to
/// nothing, as a watch that ends tells of it, and that wakes.
const MUTED: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::ONLYDIR);

/// So many directories are remembered for the next listener. If more, the kernel keeps a
/// watch of each.
const DIRECTORIES_MAX: usize = 64;

/// What a file system that is frozen has no events of.
const WRITES: ReadFlags = ReadFlags::DELETE.union(ReadFlags::MOVED_TO).union(ReadFlags::MOVED_FROM);

/// What concerns every listener in a directory (3).
const FOR_ALL: ReadFlags = ReadFlags::MOVE_SELF
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::IGNORED)
    .union(ReadFlags::UNMOUNT);

/// Room for some hundred events at a time.
const BUFFER_BYTES: usize = 16 * 1024;

/// So many events fit the buffer whatever their names: 16 bytes each and a name
/// of at most 255, padded. A read that gave fewer has left none.
const EVENTS_THAT_FIT: usize = BUFFER_BYTES / (16 + 256);

/// So many events are handled at a time; then other tasks have their turn.
const EVENTS_AT_ONCE: usize = 512;

/// The events of this process.
struct Inotify {
    process: ProcessKey,
    inotify: OwnedFd,
    watches: Mutex<Watches>,
    /// Held while a runtime is made to read: of two at once, one would end the other's.
    registering: Mutex<()>,
    /// By the runtime that hears of their end, and id (8).
    processes: Mutex<HashMap<(runtime::Id, u32), Weak<FollowedProcess>>>,
}

#[derive(Default)]
struct Watches {
    /// By watch descriptor.
    directories: HashMap<i32, HashMap<u64, Arc<Listener>>>,
    /// By watch descriptor: what ends with its first event.
    files: HashMap<i32, FileWatch>,
    /// The watches of other processes' pipes (6).
    pipes: HashMap<PublishedFd, i32>,
    last_id: u64,
    /// The runtimes that were asked to read, and whether they do.
    readers: HashMap<runtime::Id, bool>,
}

/// A file or a pipe, and its listeners.
struct FileWatch {
    pipe: Option<PublishedFd>,
    listeners: HashMap<u64, Arc<Listener>>,
}

/// What a [`Subscription`] is notified by.
struct Listener {
    path: Arc<LockPath>,
    /// Names whose close counts, beside the lock file's own (4).
    closes: Mutex<Vec<OsString>>,
    event: Notify,
    /// A file was closed that may have been the holder's.
    was_closed: AtomicBool,
    /// What was heard does not tell which directory it is of.
    is_shaken: AtomicBool,
    /// Acquisitions are events for it too.
    hears_changes: AtomicBool,
    /// A name in the directory was removed or moved.
    was_written: AtomicBool,
}

static INSTANCE: Mutex<Option<Arc<Inotify>>> = Mutex::new(None);

/// The process that `WATCH` was last prepared for; 0 for none, or if the id
/// alone does not tell.
static PREPARED: AtomicU32 = AtomicU32::new(0);

/// To be called before a lock file is opened (5).
pub(crate) fn prepare(process: ProcessKey) {
    if PREPARED.load(Ordering::Acquire) == process.pid {
        return;
    }
    let mut instance = INSTANCE.lock();
    if instance.as_ref().is_none_or(|instance| instance.process != process) {
        match Inotify::new(process) {
            // A forked child inherits its parent's, which is not closed (5).
            Ok(made) => std::mem::forget(instance.replace(Arc::new(made))),
            Err(error) => {
                drop(instance);
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
        let (watches, registering, processes) = Default::default();
        Ok(Self { process, inotify, watches, registering, processes })
    }

    fn of_this_process() -> Option<Arc<Inotify>> {
        let process = this_process();
        INSTANCE.lock().as_ref().filter(|instance| instance.process == process).cloned()
    }

    /// Have this runtime read events, from its first listener to its end;
    /// whether it does (7).
    fn is_read_here(self: &Arc<Self>) -> bool {
        let Ok(runtime) = Handle::try_current() else {
            return false;
        };
        let known = || self.watches.lock().readers.get(&runtime.id()).copied();
        if let Some(reads) = known() {
            return reads;
        }
        let _registering = self.registering.lock();
        if let Some(reads) = known() {
            return reads;
        }
        let reading = Reading { instance: Arc::clone(self), runtime: runtime.id() };
        self.watches.lock().readers.insert(runtime.id(), true);
        // Tokio panics where the runtime was built without `enable_io`, and
        // offers no way to ask.
        #[allow(deprecated, reason = "sound here: the instance is never closed, nor another")]
        let registered =
            catch_unwind(AssertUnwindSafe(|| AsyncFd::with_interest(reading, Interest::READABLE)));
        match registered {
            // A runtime that is going down drops it, and then it does not read.
            Ok(Ok(reading)) => drop(runtime.spawn(read_events(reading))),
            Ok(Err(error)) => tell_of_no_events(error),
            Err(_) => {
                tell_of_no_events("this runtime was built without enable_io");
                self.watches.lock().readers.insert(runtime.id(), false);
            }
        }
        self.watches.lock().readers.get(&runtime.id()) == Some(&true)
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
            // A task that is woken may do anything, so nothing is locked meanwhile.
            let listeners = self.concerned(event.wd(), what, name);
            listeners.iter().for_each(|listener| listener.notify(what));
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
        let mut watches = self.watches.lock();
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            let listeners = watches.directories.values().flat_map(HashMap::values);
            let mut listeners: Vec<_> = listeners.cloned().collect();
            // What is lost may be the one event of a file.
            for (file, watched) in watches.files.drain() {
                let _ = inotify::remove_watch(&self.inotify, file);
                listeners.extend(watched.listeners.into_values());
            }
            watches.pipes.clear();
            return listeners;
        }
        if let Some(watched) = watches.files.remove(&directory) {
            watched.pipe.and_then(|pipe| watches.pipes.remove(&pipe));
            return watched.listeners.into_values().collect();
        }
        let Some(listeners) = watches.directories.get(&directory) else {
            return Vec::new();
        };
        let concerned =
            listeners.values().filter(|listener| listener.is_concerned(what, name)).cloned();
        let concerned = concerned.collect();
        if what.contains(ReadFlags::IGNORED) {
            watches.directories.remove(&directory);
        }
        concerned
    }

    /// The watch of this pipe for one more listener. `None` if it is not there any
    /// more, or cannot be seen.
    fn watch_pipe(&self, watches: &mut Watches, published: PublishedFd) -> Option<i32> {
        if let Some(known) = watches.pipes.get(&published) {
            return Some(*known);
        }
        let path = format!("/proc/{}/fd/{}", published.process, published.descriptor);
        // What is there may be any file, on a server that does not answer.
        if !is_still(published, &path) {
            return None;
        }
        let pipe = inotify::add_watch(&self.inotify, &path, PIPE_EVENTS).ok()?;
        // Listen first, then look.
        if !is_still(published, &path) {
            let _ = inotify::remove_watch(&self.inotify, pipe);
            return None;
        }
        watches.pipes.insert(published, pipe);
        watches.files.insert(pipe, FileWatch { pipe: Some(published), listeners: HashMap::new() });
        Some(pipe)
    }

    /// The listener to this file leaves.
    fn leave_file(&self, watches: &mut Watches, file: i32, id: u64) {
        // One that was heard of has ended by itself.
        let Some(watched) = watches.files.get_mut(&file) else {
            return;
        };
        watched.listeners.remove(&id);
        if watched.listeners.is_empty() {
            watched.pipe.and_then(|pipe| watches.pipes.remove(&pipe));
            watches.files.remove(&file);
            let _ = inotify::remove_watch(&self.inotify, file);
        }
    }

    /// This process, whose end is an event on this runtime (8).
    fn process(&self, pid: u32) -> Result<Arc<FollowedProcess>, Errno> {
        let runtime = Handle::try_current().map_err(|_| Errno::NOSYS)?.id();
        let mut processes = self.processes.lock();
        let known = processes.get(&(runtime, pid)).and_then(Weak::upgrade);
        // The id may be another's by now.
        if let Some(known) = known.filter(|known| !known.has_ended.load(Ordering::Relaxed)) {
            return Ok(known);
        }
        let process = Arc::new(FollowedProcess::new(pid)?);
        processes.retain(|_, process| process.strong_count() > 0);
        processes.insert((runtime, pid), Arc::downgrade(&process));
        Ok(process)
    }

    /// The last listener in this directory has left. The watch is kept, since one
    /// that is ended and made anew for each wait wakes the reader; it is
    /// muted, or each release here would.
    ///
    /// Where it is the wrong one, others listened there.
    fn mute(&self, watches: &mut Watches, directory: i32, path: &LockPath) -> Deafened {
        let mut deafened = Deafened::default();
        let muted = inotify::add_watch(&self.inotify, path.directory(), MUTED);
        if muted == Ok(directory) && watches.directories.len() <= DIRECTORIES_MAX {
            return deafened;
        }
        // The path leads elsewhere by now, where there may be listeners.
        for descriptor in [Some(directory), muted.ok()].into_iter().flatten() {
            match watches.directories.get(&descriptor).filter(|listeners| !listeners.is_empty()) {
                None => {
                    watches.directories.remove(&descriptor);
                    let _ = inotify::remove_watch(&self.inotify, descriptor);
                }
                Some(listeners) if descriptor != directory => {
                    let _ = inotify::add_watch(&self.inotify, path.directory(), EVENTS);
                    // What happened meanwhile gave no event.
                    deafened.0.extend(listeners.values().cloned());
                }
                Some(_) => {}
            }
        }
        deafened
    }
}

/// Listeners whose directory was muted by mistake, and which must look again.
#[derive(Default)]
#[must_use]
struct Deafened(Vec<Arc<Listener>>);

impl Deafened {
    /// With nothing locked: a task that is woken may do anything.
    fn tell(self) {
        self.0.iter().for_each(|listener| listener.notify(ReadFlags::QUEUE_OVERFLOW));
    }
}

/// Whether this is the pipe that was shown. No server is asked.
fn is_still(published: PublishedFd, path: &str) -> bool {
    let wanted = StatxFlags::INO | StatxFlags::TYPE;
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, wanted);
    found.is_ok_and(|found| {
        let is_pipe = FileType::from_raw_mode(found.stx_mode.into()) == FileType::Fifo;
        is_pipe && published.is_inode(found.stx_ino)
    })
}

/// The inotify instance as one runtime has it registered.
struct Reading {
    instance: Arc<Inotify>,
    runtime: runtime::Id,
}

impl AsRawFd for Reading {
    fn as_raw_fd(&self) -> RawFd {
        self.instance.inotify.as_raw_fd()
    }
}

/// The runtime goes down, or never read.
impl Drop for Reading {
    fn drop(&mut self) {
        if self.instance.process == this_process() {
            self.instance.watches.lock().readers.remove(&self.runtime);
        }
    }
}

async fn read_events(reading: AsyncFd<Reading>) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    while let Ok(mut ready) = reading.readable().await {
        // Nothing is awaited between reading an event and telling of it (7).
        if reading.get_ref().instance.read(&mut buffer) {
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
    /// until the last listener there has left.
    fn events(&self) -> WatchFlags {
        let changes = if self.hears_changes.load(Ordering::Relaxed) { CHANGES } else { EVENTS };
        EVENTS | changes | WatchFlags::MASK_ADD
    }

    fn notify(&self, what: ReadFlags) {
        // Of files that are only read, closes are asked for where one is a holder's.
        let close = ReadFlags::CLOSE_WRITE | ReadFlags::CLOSE_NOWRITE;
        if what.intersects(close | ReadFlags::QUEUE_OVERFLOW) {
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

/// Listens for what may change the holder of a lock. Dropping it ends that.
pub(crate) struct Subscription {
    instance: Arc<Inotify>,
    listener: Arc<Listener>,
    id: u64,
    /// The directory's watch, unless it is the pipes that are listened to.
    directory: Option<i32>,
    pipes: Vec<i32>,
    /// The file whose readers' closes are listened to, by device and inode (4).
    closing: Option<((u64, u64), i32)>,
    /// The process whose end is listened to, and whether that was heard.
    process: Option<(Arc<FollowedProcess>, AtomicBool)>,
}

/// A process whose end is an event as well.
struct FollowedProcess {
    pid: u32,
    descriptor: AsyncFd<OwnedFd>,
    has_ended: AtomicBool,
}

impl FollowedProcess {
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

impl Subscription {
    /// Not yet to anything. `None` where there are no events: then one has to
    /// look now and then.
    pub(crate) fn begin(path: &Arc<LockPath>) -> Option<Self> {
        let instance = Inotify::of_this_process().or_else(|| {
            // There may have been too many open files.
            prepare(this_process());
            Inotify::of_this_process()
        })?;
        let listener = Arc::new(Listener {
            path: Arc::clone(path),
            closes: Mutex::default(),
            event: Notify::new(),
            was_closed: AtomicBool::new(false),
            is_shaken: AtomicBool::new(false),
            hears_changes: AtomicBool::new(false),
            was_written: AtomicBool::new(false),
        });
        if !instance.is_read_here() {
            return None;
        }
        let mut watches = instance.watches.lock();
        watches.last_id += 1;
        let id = watches.last_id;
        drop(watches);
        let (directory, pipes, closing, process) = (None, Vec::new(), None, None);
        Some(Self { instance, listener, id, directory, pipes, closing, process })
    }

    /// To be called before each look (2): the directory that is listened to must
    /// be the one that the path leads to now.
    pub(crate) fn follow_directory(this: Option<Self>, path: &Arc<LockPath>) -> Option<Self> {
        let mut subscription = match this {
            Some(subscription) => subscription,
            None => Self::begin(path)?,
        };
        subscription.is_renewed().then_some(subscription)
    }

    /// The same for a stream of status changes: acquisitions are events as well.
    pub(crate) fn follow_changes(this: Option<Self>, path: &Arc<LockPath>) -> Option<Self> {
        let subscription = this.or_else(|| Self::begin(path))?;
        subscription.listener.hears_changes.store(true, Ordering::Relaxed);
        Self::follow_directory(Some(subscription), path)
    }

    fn is_renewed(&mut self) -> bool {
        if !self.is_ours() || !self.instance.is_read_here() {
            return false;
        }
        let instance = Arc::clone(&self.instance);
        let directory = self.listener.path.directory();
        let mut watches = instance.watches.lock();
        let directory =
            match inotify::add_watch(&instance.inotify, directory, self.listener.events()) {
                Ok(directory) => directory,
                Err(error) => {
                    drop(watches);
                    if self.directory.is_none() {
                        tell_of_no_events(error);
                    }
                    return false;
                }
            };
        self.leave_pipes(&mut watches);
        // Also if it is the same: the reader drops a directory whose watch has ended.
        let listeners = watches.directories.entry(directory).or_default();
        listeners.insert(self.id, Arc::clone(&self.listener));
        // After that, or its watch could be ended as one without a listener.
        let last = self.directory.replace(directory).filter(|last| *last != directory);
        let deafened = self.leave(&mut watches, last);
        drop(watches);
        deafened.tell();
        true
    }

    /// Whether it is the directory that is listened to.
    pub(crate) fn follows_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// Listen to what becomes of these contenders, and to the directory no longer (6);
    /// whether that can be. Afterwards one has to look whether they are still there.
    pub(crate) fn follow_predecessors(&mut self, predecessors: [Predecessor; 2]) -> bool {
        if !self.is_ours() || !self.instance.is_read_here() {
            return false;
        }
        let instance = Arc::clone(&self.instance);
        let mut watches = instance.watches.lock();
        let last = std::mem::take(&mut self.pipes);
        for predecessor in predecessors {
            let pipe = predecessor
                .published
                .and_then(|published| instance.watch_pipe(&mut watches, published));
            let watched = pipe.and_then(|pipe| Some((pipe, watches.files.get_mut(&pipe)?)));
            let Some((pipe, watched)) = watched else { break };
            watched.listeners.insert(self.id, Arc::clone(&self.listener));
            self.pipes.push(pipe);
        }
        let is_turned = self.pipes.len() == predecessors.len();
        for pipe in last.into_iter().filter(|pipe| !self.pipes.contains(pipe)) {
            instance.leave_file(&mut watches, pipe, self.id);
        }
        let mut deafened = Deafened::default();
        if is_turned {
            deafened = self.leave(&mut watches, self.directory);
            self.end_closing(&mut watches);
            (self.directory, self.process) = (None, None);
        } else {
            self.leave_pipes(&mut watches);
        }
        drop(watches);
        deafened.tell();
        is_turned
    }

    fn leave_pipes(&mut self, watches: &mut Watches) {
        let pipes = std::mem::take(&mut self.pipes).into_iter();
        pipes.for_each(|pipe| self.instance.leave_file(watches, pipe, self.id));
    }

    /// Listen in this directory no longer.
    fn leave(&self, watches: &mut Watches, directory: Option<i32>) -> Deafened {
        let listeners = directory.and_then(|directory| watches.directories.get_mut(&directory));
        let Some((directory, listeners)) = directory.zip(listeners) else {
            return Deafened::default();
        };
        listeners.remove(&self.id);
        match listeners.is_empty() {
            true => self.instance.mute(watches, directory, &self.listener.path),
            false => Deafened::default(),
        }
    }

    /// Whether what was heard since the last call leaves it open which
    /// directory the path leads to.
    pub(crate) fn is_shaken(&self) -> bool {
        self.listener.is_shaken.swap(false, Ordering::AcqRel)
    }

    /// Whether the file was heard to be removed or moved since the last call.
    pub(crate) fn has_heard_a_write(&self) -> bool {
        self.listener.was_written.swap(false, Ordering::AcqRel)
    }

    /// A forked child shares the inotify instance, and must not touch it.
    fn is_ours(&self) -> bool {
        self.instance.process == this_process()
    }

    /// The names of files whose close is an event, beside the lock file's own;
    /// whether they are others than before. Then what happened to them before
    /// was not heard, and one has to look again.
    pub(crate) fn await_closes<const N: usize>(&self, files: [PathBuf; N]) -> bool {
        let names = files.iter().filter_map(|file| file.file_name()).map(OsStr::to_owned);
        let names: Vec<OsString> = names.collect();
        let mut closes = self.listener.closes.lock();
        let has_changed = *closes != names;
        *closes = names;
        has_changed
    }

    /// Listen for the end of this process, and of no other any more.
    pub(crate) fn follow_process(&mut self, pid: Option<u32>) -> Following {
        let is_heard_of = |(process, was_heard): &(Arc<FollowedProcess>, AtomicBool)| {
            Some(process.pid) == pid && !was_heard.load(Ordering::Relaxed)
        };
        if self.process.as_ref().is_some_and(is_heard_of) {
            return Following::Heard;
        }
        self.process = None;
        let Some(pid) = pid else {
            return Following::Heard;
        };
        match self.instance.process(pid) {
            Ok(process) => self.process = Some((process, AtomicBool::new(false))),
            Err(Errno::SRCH) => return Following::Gone,
            Err(_) => return Following::Unheard,
        }
        Following::Heard
    }

    /// Listen to closes of this regular file by processes that could only read it, until
    /// one is heard, and to no other's any more. Whether it is: another listener of this
    /// process may have the only watch that an inode can have. What was before is
    /// not heard.
    pub(crate) fn follow_closes(&mut self, file: &File, identity: (u64, u64)) -> bool {
        if !self.is_ours() || !self.instance.is_read_here() {
            return false;
        }
        let instance = Arc::clone(&self.instance);
        let mut watches = instance.watches.lock();
        let is_heard = |(known, number)| known == identity && watches.files.contains_key(&number);
        if self.closing.is_some_and(is_heard) {
            return true;
        }
        self.end_closing(&mut watches);
        let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        let Ok(number) = inotify::add_watch(&instance.inotify, &path, CLOSES) else {
            return false;
        };
        let listeners = HashMap::from([(self.id, Arc::clone(&self.listener))]);
        watches.files.insert(number, FileWatch { pipe: None, listeners });
        self.closing = Some((identity, number));
        true
    }

    fn end_closing(&mut self, watches: &mut Watches) {
        if let Some((_, file)) = self.closing.take() {
            self.instance.leave_file(watches, file, self.id);
        }
    }

    /// Something that happened since the last call, or since the start.
    pub(crate) async fn event(&self) -> Event {
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
            () = self.listener.event.notified() => {}
            () = end => self.listener.was_closed.store(true, Ordering::Release),
        }
        match self.listener.was_closed.swap(false, Ordering::AcqRel) {
            true => Event::Close,
            false => Event::Change,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.is_ours() {
            // Its end would be one in the parent's runtime.
            return std::mem::forget(self.process.take());
        }
        let instance = Arc::clone(&self.instance);
        let mut watches = instance.watches.lock();
        self.leave_pipes(&mut watches);
        self.end_closing(&mut watches);
        let deafened = self.leave(&mut watches, self.directory);
        drop(watches);
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
            Subscription::follow_directory(None, &Arc::new(LockPath::new(&path).unwrap()))
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
        let mut subscription = Subscription::begin(&paths).expect("there are events here");
        // And again after it was heard.
        for _ in 0..2 {
            assert!(subscription.follow_closes(&file, identity(&file)));
            assert!(subscription.follow_closes(&file, identity(&file)), "it is listened to");
            drop(File::open(&path).unwrap());
            subscription.event().await;
        }
        assert!(subscription.follow_closes(&file, identity(&file)));
        let mut other = Subscription::begin(&paths).unwrap();
        assert!(!other.follow_closes(&file, identity(&file)), "there is one watch only");
        // Another file is at the path by now.
        std::fs::remove_file(&path).unwrap();
        let replaced = File::create(&path).unwrap();
        assert!(subscription.follow_closes(&replaced, identity(&replaced)));
        assert!(other.follow_closes(&file, identity(&file)), "the watch was given up");
        drop(File::open(&path).unwrap());
        subscription.event().await;
        drop(other);
        let mut other = Subscription::begin(&paths).unwrap();
        assert!(other.follow_closes(&file, identity(&file)), "it ended with who listened");
    }

    #[tokio::test]
    async fn only_who_watches_a_lock_hears_of_its_acquisition() {
        prepare(this_process());
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("lock");
        let names = Arc::new(LockPath::new(&path).unwrap());
        let watches = Subscription::follow_changes(None, &names).expect("there are events");
        let waits = Subscription::follow_directory(None, &names).expect("there are events");
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
        let instance = Inotify::of_this_process().expect("inotify can be had here");
        for round in 0..300 {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .enable_all()
                .build()
                .unwrap();
            let barrier = Arc::new(Barrier::new(WORKERS));
            let ask = || {
                let (instance, barrier) = (Arc::clone(&instance), Arc::clone(&barrier));
                runtime.spawn(async move {
                    barrier.wait();
                    instance.is_read_here()
                })
            };
            let asked: Vec<_> = (0..WORKERS).map(|_| ask()).collect();
            for reads in asked {
                assert!(runtime.block_on(reads).unwrap(), "round {round}");
            }
            runtime.block_on(async { assert!(instance.is_read_here(), "round {round}, later") });
        }
    }
}
