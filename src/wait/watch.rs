//! Events that are a reason to look again: one inotify instance for the whole
//! process, and one thread that reads it and wakes whoever listens, on
//! whatever runtime.
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
//!    second way to hear of it, the holder's process is followed.
//! 5. inotify is made before the first lock file is opened and never closed.
//!    When a process is killed, its files are let go from the last opened to
//!    the first, and letting go of an inotify instance that has had watches
//!    takes milliseconds, for which its successor would wait.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::epoll;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::Notify;

use crate::liveness::{ProcessKey, this_process};
use crate::path::LockPath;

const EVENTS: WatchFlags = WatchFlags::DELETE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What concerns everybody who listens in a directory (3).
const FOR_ALL: ReadFlags = ReadFlags::MOVE_SELF
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::IGNORED)
    .union(ReadFlags::UNMOUNT);

/// The inotify instance among what the thread waits for. Listeners, who get
/// an event from a process, count from 1.
const INOTIFY: u64 = 0;

/// Room for some hundred events at a time.
const BUFFER_BYTES: usize = 16 * 1024;

/// The events of this process.
struct Watch {
    process: ProcessKey,
    inotify: OwnedFd,
    epoll: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By watch descriptor.
    directories: HashMap<i32, HashMap<u64, Arc<Ear>>>,
    /// Listeners who wait for the end of a process.
    processes: HashMap<u64, Arc<Ear>>,
    last_listener: u64,
    has_thread: bool,
}

/// One who listens.
struct Ear {
    path: Arc<LockPath>,
    /// Names whose close counts, beside the lock file's own (4).
    closes: Mutex<Vec<OsString>>,
    event: Notify,
    /// A file was closed that may have been the holder's.
    was_closed: AtomicBool,
    /// The process that is followed has ended.
    has_ended: AtomicBool,
}

static WATCH: Mutex<Option<Arc<Watch>>> = Mutex::new(None);

/// The process that `WATCH` was last prepared for; 0 for none, or if the id
/// alone does not tell.
static PREPARED: AtomicU32 = AtomicU32::new(0);

/// Say once that there are no events, and why.
pub(crate) fn tell_of_no_events(error: Errno) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(%error, "no inotify: waiting looks again each retry_period");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// To be called before a lock file is opened (5).
pub(crate) fn prepare(process: ProcessKey) {
    if PREPARED.load(Ordering::Acquire) == process.pid {
        return;
    }
    let mut watch = lock(&WATCH);
    if watch.as_ref().is_none_or(|watch| watch.process != process) {
        match Watch::new(process) {
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

impl Watch {
    fn new(process: ProcessKey) -> Result<Self, Errno> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &inotify, epoll::EventData::new_u64(INOTIFY), epoll::EventFlags::IN)?;
        Ok(Self { process, inotify, epoll, state: Mutex::default() })
    }

    fn of_this_process() -> Option<Arc<Watch>> {
        let process = this_process();
        lock(&WATCH).as_ref().filter(|watch| watch.process == process).cloned()
    }

    /// Start the thread, once; whether there is one.
    fn has_thread(self: &Arc<Self>, state: &mut State) -> bool {
        if !state.has_thread {
            let watch = Arc::clone(self);
            let thread = thread::Builder::new().name("lockkeeper-watch".to_owned());
            state.has_thread = thread.spawn(move || watch.work()).is_ok();
        }
        state.has_thread
    }

    fn work(&self) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        loop {
            let mut ready = [MaybeUninit::<epoll::Event>::uninit(); 16];
            let ready = match epoll::wait(&self.epoll, &mut ready, None) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    // The program closed descriptors that are not its own.
                    lock(&self.state).has_thread = false;
                    return tell_of_no_events(error);
                }
            };
            for event in ready {
                match event.data.u64() {
                    INOTIFY => self.read(&mut buffer),
                    listener => self.process_ended(listener),
                }
            }
        }
    }

    fn read(&self, buffer: &mut [MaybeUninit<u8>]) {
        let mut reader = inotify::Reader::new(&self.inotify, buffer);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            let what = event.events();
            // Whoever is woken may do anything, so nothing is locked meanwhile.
            let ears = self.concerned(event.wd(), what, name);
            ears.iter().for_each(|ear| ear.hear(what));
        }
    }

    fn concerned(&self, directory: i32, what: ReadFlags, name: Option<&OsStr>) -> Vec<Arc<Ear>> {
        let mut state = lock(&self.state);
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return state.directories.values().flat_map(HashMap::values).cloned().collect();
        }
        let Some(ears) = state.directories.get(&directory) else {
            return Vec::new();
        };
        let concerned = ears.values().filter(|ear| ear.is_concerned(what, name)).cloned();
        let concerned = concerned.collect();
        if ears.is_empty() && !what.contains(ReadFlags::IGNORED) {
            // Kept after the last listener went, in case one came soon.
            let _ = inotify::remove_watch(&self.inotify, directory);
        }
        if ears.is_empty() || what.contains(ReadFlags::IGNORED) {
            state.directories.remove(&directory);
        }
        concerned
    }

    fn process_ended(&self, listener: u64) {
        // Not removed: the listener may follow another by now, and is told for nothing.
        let ear = lock(&self.state).processes.get(&listener).cloned();
        if let Some(ear) = ear {
            ear.has_ended.store(true, Ordering::Release);
            ear.hear(ReadFlags::CLOSE_WRITE);
        }
    }
}

impl Ear {
    fn is_concerned(&self, what: ReadFlags, name: Option<&OsStr>) -> bool {
        let Some(name) = name else {
            return what.intersects(FOR_ALL);
        };
        if name == self.path.name() {
            return true;
        }
        what.contains(ReadFlags::CLOSE_WRITE)
            && lock(&self.closes).iter().any(|close| close == name)
    }

    fn hear(&self, what: ReadFlags) {
        if what.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::QUEUE_OVERFLOW) {
            self.was_closed.store(true, Ordering::Release);
        }
        self.event.notify_one();
    }
}

/// Listens for what may change who holds a lock. Dropping it ends that.
pub(crate) struct Listening {
    watch: Arc<Watch>,
    ear: Arc<Ear>,
    listener: u64,
    directory: i32,
    /// A process whose end is an event as well.
    process: Option<(u32, OwnedFd)>,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A file that may have been the holder's was closed. That comes a little
    /// before its kernel lock is free.
    Close,
    Change,
}

impl Listening {
    /// `None` where there are no events: then one has to look now and then.
    pub(crate) fn to(path: &Arc<LockPath>) -> Option<Self> {
        let watch = Watch::of_this_process()?;
        let ear = Arc::new(Ear {
            path: Arc::clone(path),
            closes: Mutex::default(),
            event: Notify::new(),
            was_closed: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        });
        let mut state = lock(&watch.state);
        if !watch.has_thread(&mut state) {
            return None;
        }
        let directory = match inotify::add_watch(&watch.inotify, path.directory(), EVENTS) {
            Ok(directory) => directory,
            Err(error) => {
                drop(state);
                tell_of_no_events(error);
                return None;
            }
        };
        state.last_listener += 1;
        let listener = state.last_listener;
        state.directories.entry(directory).or_default().insert(listener, Arc::clone(&ear));
        drop(state);
        Some(Self { watch, ear, listener, directory, process: None })
    }

    /// To be called before each look (2): the directory that is listened to must
    /// be the one that the path leads to now.
    pub(crate) fn renew(this: Option<Self>, path: &Arc<LockPath>) -> Option<Self> {
        match this {
            Some(mut listening) => listening.is_renewed().then_some(listening),
            None => Self::to(path),
        }
    }

    fn is_renewed(&mut self) -> bool {
        if !self.is_ours() {
            return false;
        }
        let directory = self.ear.path.directory();
        let mut state = lock(&self.watch.state);
        let Ok(directory) = inotify::add_watch(&self.watch.inotify, directory, EVENTS) else {
            return false;
        };
        if directory != self.directory {
            if let Some(ears) = state.directories.get_mut(&self.directory) {
                ears.remove(&self.listener);
            }
            self.directory = directory;
        }
        // Also if it is the same: the thread drops a directory whose watch has ended.
        let ears = state.directories.entry(directory).or_default();
        ears.insert(self.listener, Arc::clone(&self.ear));
        true
    }

    /// A forked child shares the epoll instance, and must not touch it.
    fn is_ours(&self) -> bool {
        self.watch.process == this_process()
    }

    /// The names of files whose close is an event, beside the lock file's own;
    /// whether they are others than before. Then what happened to them before
    /// was not heard, and one has to look again.
    pub(crate) fn await_closes<const N: usize>(&self, files: [PathBuf; N]) -> bool {
        let names = files.iter().filter_map(|file| file.file_name()).map(OsStr::to_owned);
        let names: Vec<OsString> = names.collect();
        let mut closes = lock(&self.ear.closes);
        let has_changed = *closes != names;
        *closes = names;
        has_changed
    }

    /// Listen for the end of this process, and of no other any more; whether
    /// that will be heard. One that was `seen` and is not there has ended;
    /// another may have its number in another pid namespace.
    pub(crate) fn follow(&mut self, pid: Option<u32>, seen: bool) -> bool {
        let has_ended = self.ear.has_ended.swap(false, Ordering::AcqRel);
        if !has_ended && self.process.as_ref().map(|(pid, _)| *pid) == pid {
            return true;
        }
        self.unfollow();
        let number = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let (Some(pid), Some(number)) = (pid, number) else {
            return true;
        };
        let descriptor = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) if seen => {
                // It ended since the look: the next will see that.
                self.ear.hear(ReadFlags::CLOSE_WRITE);
                return true;
            }
            Err(_) => return !seen,
        };
        let data = epoll::EventData::new_u64(self.listener);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        lock(&self.watch.state).processes.insert(self.listener, Arc::clone(&self.ear));
        if epoll::add(&self.watch.epoll, &descriptor, data, flags).is_err() {
            lock(&self.watch.state).processes.remove(&self.listener);
            return false;
        }
        self.process = Some((pid, descriptor));
        true
    }

    fn unfollow(&mut self) {
        if let Some((_, descriptor)) = self.process.take() {
            let _ = epoll::delete(&self.watch.epoll, &descriptor);
            lock(&self.watch.state).processes.remove(&self.listener);
        }
    }

    /// Something that happened since the last call, or since the start.
    pub(crate) async fn event(&self) -> Heard {
        // Events that keep coming must not keep the thread.
        tokio::task::consume_budget().await;
        self.ear.event.notified().await;
        match self.ear.was_closed.swap(false, Ordering::AcqRel) {
            true => Heard::Close,
            false => Heard::Change,
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        self.unfollow();
        if let Some(ears) = lock(&self.watch.state).directories.get_mut(&self.directory) {
            ears.remove(&self.listener);
        }
    }
}
