//! What the contenders of one lock in this process have in common: where calls
//! are made, whose turn it is, and a file that was left open for the next.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::idle_files;
use super::open_file::OpenFile;
use super::options::{KernelOptions, Primitive};
use crate::local::deadline::Deadline;
use crate::local::executor::{Executor, Seen};
use crate::local::path_check::LOOK_LASTS;
use crate::local::task_queue::{Entry, Queue, Turn};
use crate::lock::error::Error;
use crate::sys::files::directory_identity;
use crate::sys::inotify::prepare;
use crate::sys::mutex::Mutex;
use crate::sys::path::LockPath;
use crate::sys::process_key::{ProcessKey, this_process};
use crate::sys::tickets::Waiters;

/// What a lock is, however often it is acquired.
pub(super) struct Terms {
    pub(super) path: Arc<LockPath>,
    /// The path as the kernel wants it, not to be made anew for each call.
    pub(super) c_path: CString,
    pub(super) options: KernelOptions,
    /// Names the turns of this lock in its directory: other primitives, ranges
    /// and ways to end at the same path do not wait for each other's.
    turns: Arc<LockPath>,
    /// Names those who wait for it in any process.
    pub(super) label: Arc<LockPath>,
}

impl Terms {
    pub(super) fn new(path: LockPath, options: KernelOptions) -> Result<Self, Error> {
        let kind = match options.primitive {
            Primitive::Flock => "flock",
            Primitive::Ofd => "fcntl",
        };
        let (range, primitive) = (options.range, options.primitive);
        let beside = |name: String| {
            let mut file = path.name().to_owned();
            file.push(name);
            LockPath::new(&path.directory().join(file)).map(Arc::new)
        };
        let label = beside(format!("\n{kind} {range:?}"))?;
        let turns = beside(format!("\n{primitive:?} {range:?} {}", options.delete_on_release))?;
        let c_path = CString::new(path.path().as_os_str().as_bytes());
        let c_path = c_path.expect("BUG: a lock's path with a NUL byte");
        Ok(Self { path: Arc::new(path), c_path, options, turns, label })
    }

    /// How long the locked file may pass from task to task; zero for not at all.
    pub(super) fn share(&self) -> Duration {
        self.options.wait.local_handoff.min(SHARE_MAX)
    }
}

/// One lock's directory, as it was found.
pub(super) struct LockState {
    /// Who found it, and makes holds here.
    pub(super) process: ProcessKey,
    pub(super) executor: Executor,
    directory: Identity,
    /// The path was seen to name it.
    seen: Seen,
    pub(super) station: Arc<LocalQueue>,
}

impl LockState {
    pub(super) async fn of(terms: &Terms) -> Result<Arc<Self>, Error> {
        let process = this_process();
        prepare(process);
        let directory = terms.path.directory();
        let found = Executor::of(directory, terms.options.wait.offload).await;
        let failed = |error| Error::of_directory(terms.path.path(), error);
        let (executor, identity) = found.map_err(failed)?;
        let entry = Entry { process, directory: identity, path: Arc::clone(&terms.turns) };
        let (station, seen) = (LocalQueue::of(entry), Seen::now());
        let site = Self { process, executor, directory: identity, seen, station };
        if let Executor::Lane { is_local: true, .. } = site.executor {
            let known = (Arc::clone(&terms.label), Arc::clone(&site.station));
            site.executor.run(known, |(label, station)| drop(station.open_waiters(&label))).await;
        }
        Ok(Arc::new(site))
    }

    /// Whether the path of the directory still names it, as of some milliseconds ago.
    /// Where calls are made elsewhere it is not known then, and on network file systems
    /// it is not asked: nobody is seen there.
    pub(super) fn is_in_place(&self, terms: &Terms) -> bool {
        match self.executor {
            Executor::Here { .. } => self.is_in_place_now(terms),
            Executor::Lane { is_local, .. } => !is_local || self.seen.is_recent(),
        }
    }

    /// The same at the place where calls are made.
    pub(super) fn is_in_place_now(&self, terms: &Terms) -> bool {
        let look = || directory_identity(terms.path.directory()) == Ok(self.directory);
        self.seen.is_recent() || self.seen.renew(look)
    }

    pub(super) fn device(&self) -> u64 {
        self.directory.0
    }

    /// Whether it was found by this process, and not by the one it was forked from.
    pub(super) fn is_ours(&self) -> bool {
        self.process == this_process()
    }

    /// Who waits; `None` where that cannot be seen, or not now.
    pub(super) fn waiters(&self, terms: &Terms) -> Option<Arc<Waiters>> {
        match self.executor {
            Executor::Here { is_local: true } => self.station.open_waiters(&terms.label),
            // Not opened here where calls are made elsewhere.
            _ => self.station.waiters(),
        }
    }

    /// The same at the place where calls are made.
    pub(super) fn waiters_there(&self, terms: &Terms) -> Option<Arc<Waiters>> {
        self.station.open_waiters(&terms.label)
    }
}

/// Turns, and the file between two of them.
pub(super) struct LocalQueue {
    key: Entry,
    queue: Arc<Queue>,
    desk: Mutex<KeptFile>,
    /// What is on the desk was used since [`idle`] looked last.
    was_used: AtomicBool,
    /// Tasks that wait for their turn. Who puts a file on the desk for them looks with
    /// the desk locked, and the last of them looks there after it has gone.
    waiting: AtomicUsize,
    /// Whether a file lies on the desk, to be asked without its lock.
    has_left: AtomicBool,
    /// When it is to be left free next, for those who sleep in the kernel.
    stands_back: Mutex<Option<Instant>>,
    held: Mutex<Guarded>,
}

/// What guards of this process have.
#[derive(Default)]
struct Guarded {
    /// The last one last.
    holds: Vec<(u64, Identity, Source)>,
    /// To be told when there is none any more.
    awaits_none: Option<Arc<Notify>>,
}

/// Device and inode.
type Identity = (u64, u64);

/// A line of the program's source.
pub(super) type Source = crate::local::task_queue::CallSite;

/// A process that has had the lock over and over for so long asks whether
/// others wait. Until then the locked file passes from task to task. No longer
/// than a look at its path lasts: within a share there is none.
pub(super) const SHARE_MAX: Duration = LOOK_LASTS;

/// Between two times that a process which has the lock over and over leaves it
/// free. A thread that sleeps in `flock` beside holds of 0.05 to 1 ms then waits 2
/// to 5 ms in the median, and 8 to 17 at most nine times in ten (`cargo bench
/// --bench kernel -- sleepers`); without, it was 3 to 100, and up to half a second.
const STAND_BACK_PERIOD: Duration = Duration::from_millis(10);

/// Nor more of all time than one in so many.
const STAND_BACK_SHARE: u32 = 20;

#[derive(Default)]
struct KeptFile {
    /// The file that the last holder left for the next of this process, open
    /// and not locked.
    left: Option<OpenFile>,
    stay: Stay,
    /// The directory, to ask who waits.
    waiters: Option<Arc<Waiters>>,
    /// [`idle`] looks.
    is_watched: bool,
}

/// How long a file may lie on the desk with nobody waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stay {
    #[default]
    No,
    /// Until it is idle.
    Awhile,
    Always,
}

static STATIONS: LazyLock<Mutex<HashMap<Entry, Weak<LocalQueue>>>> = LazyLock::new(Mutex::default);

impl LocalQueue {
    fn of(entry: Entry) -> Arc<Self> {
        let mut stations = STATIONS.lock();
        if let Some(station) = stations.get(&entry).and_then(Weak::upgrade) {
            return station;
        }
        let (key, queue) = (entry.clone(), Queue::of(entry.clone()));
        let station = Arc::new(Self {
            key,
            queue,
            desk: Mutex::default(),
            was_used: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            has_left: AtomicBool::new(false),
            stands_back: Mutex::default(),
            held: Mutex::default(),
        });
        stations.insert(entry, Arc::downgrade(&station));
        station
    }

    /// A hold begins, asked for there. Its number is for [`hold_ends`](Self::hold_ends).
    pub(super) fn hold_begins(&self, identity: Identity, source: Source) -> u64 {
        let holds = &mut self.held.lock().holds;
        let number = holds.last().map_or(0, |(last, ..)| last + 1);
        holds.push((number, identity, source));
        number
    }

    /// Not to be told in a forked child, which may have copied the list locked.
    pub(super) fn hold_ends(&self, ended: u64) {
        let mut held = self.held.lock();
        held.holds.retain(|(number, ..)| *number != ended);
        let told = if held.holds.is_empty() { held.awaits_none.take() } else { None };
        drop(held);
        if let Some(told) = told {
            told.notify_one();
        }
    }

    /// Where this process asked for the lock that it has on this file.
    pub(super) fn asked_at(&self, identity: Identity) -> Option<Source> {
        let held = self.held.lock();
        held.holds.iter().rev().find(|(_, of, _)| *of == identity).map(|(.., source)| *source)
    }

    /// Whether it is time to leave the lock free; then it is done now.
    pub(super) fn is_to_stand_back(&self, now: Instant) -> bool {
        let mut due = self.stands_back.lock();
        let is_due = due.is_none_or(|due| due <= now);
        if is_due {
            *due = Some(now + STAND_BACK_PERIOD);
        }
        is_due
    }

    /// It was done, and took so long.
    pub(super) fn has_stood_back(&self, now: Instant, took: Duration) {
        let pause = STAND_BACK_PERIOD.max(took * STAND_BACK_SHARE);
        *self.stands_back.lock() = Some(now + pause);
    }

    /// Whether a task of this process has the turn.
    pub(super) fn is_busy(&self) -> bool {
        self.queue.is_busy(self.key.process)
    }

    /// Whether a guard of this process has it.
    pub(super) fn is_held(&self) -> bool {
        !self.held.lock().holds.is_empty()
    }

    /// Until no guard of this process has it. To be waited for with the turn.
    pub(super) async fn has_no_holds(&self) {
        loop {
            let none = {
                let mut held = self.held.lock();
                if held.holds.is_empty() {
                    return;
                }
                Arc::clone(held.awaits_none.insert(Arc::default()))
            };
            none.notified().await;
        }
    }

    /// The turn, if nobody has it or waits for it, and the file that the last
    /// holder left.
    pub(super) fn try_turn(&self) -> Option<(Turn, Option<OpenFile>)> {
        let turn = Arc::clone(&self.queue).try_turn()?;
        Some((turn, self.take_left()))
    }

    fn take_left(&self) -> Option<OpenFile> {
        // First by a look, as nearly always there is nothing.
        if !self.has_left.load(Ordering::Acquire) {
            return None;
        }
        self.take_from(&mut self.desk.lock())
    }

    fn take_from(&self, desk: &mut KeptFile) -> Option<OpenFile> {
        self.has_left.store(false, Ordering::Release);
        desk.left.take()
    }

    /// The same by waiting; `None` if the deadline came first.
    pub(super) async fn turn_until(
        &self,
        deadline: Option<Deadline>,
    ) -> Option<(Turn, Option<OpenFile>)> {
        if let Some(found) = self.try_turn() {
            return Some(found);
        }
        let _waiting = Waiting::begin(self);
        let turn = Arc::clone(&self.queue).next_turn();
        let turn = Deadline::limit(deadline, turn).await?;
        // Before this one counts as not waiting any more.
        Some((turn, self.take_left()))
    }

    /// Leave an unlocked file for the next holder: if one of this process
    /// waits, or as it may `stay`. But close it if that `wakes` somebody
    /// elsewhere. Whether it is closed.
    pub(super) fn leave(
        self: &Arc<Self>,
        mut file: OpenFile,
        stay: Stay,
        wakes: impl FnOnce(&mut Option<Arc<Waiters>>) -> bool,
    ) -> bool {
        let is_awaited = self.waiting.load(Ordering::Acquire) > 0;
        if stay == Stay::No && !is_awaited || wakes(&mut file.waiters) {
            drop(file);
            return true;
        }
        let mut desk = self.desk.lock();
        let stay =
            if stay == Stay::Awhile && !self.is_watched(&mut desk) { Stay::No } else { stay };
        // Who waited may have gone.
        let superfluous = if self.waiting.load(Ordering::Acquire) > 0 || stay != Stay::No {
            desk.stay = stay;
            self.has_left.store(true, Ordering::Release);
            desk.left.replace(file)
        } else {
            Some(file)
        };
        drop(desk);
        superfluous.is_some()
    }

    /// Who waits, if that was asked not long ago.
    fn waiters(&self) -> Option<Arc<Waiters>> {
        let waiters = self.desk.lock().waiters.clone();
        self.was_used.store(true, Ordering::Relaxed);
        waiters
    }

    /// Who waits; `None` where that cannot be seen. What is opened for it stays open
    /// until it is idle.
    fn open_waiters(self: &Arc<Self>, label: &LockPath) -> Option<Arc<Waiters>> {
        if let Some(waiters) = self.waiters() {
            return Some(waiters);
        }
        let waiters = Arc::new(Waiters::of(label)?);
        let mut desk = self.desk.lock();
        if self.is_watched(&mut desk) {
            desk.waiters = Some(Arc::clone(&waiters));
        }
        Some(waiters)
    }

    /// Whether what is put on the desk now is closed when it is idle.
    fn is_watched(self: &Arc<Self>, desk: &mut KeptFile) -> bool {
        self.was_used.store(true, Ordering::Relaxed);
        desk.is_watched = desk.is_watched || idle_files::watch(self);
        desk.is_watched
    }

    /// Close what was not used since the last call, but for what somebody waits for or
    /// a user wants open. Whether it is to be called again.
    pub(super) fn close_unused(&self) -> bool {
        let mut desk = self.desk.lock();
        if self.was_used.swap(false, Ordering::Relaxed) {
            return true;
        }
        if desk.stay == Stay::Awhile {
            // Should anybody wait, the last of them closes it.
            desk.stay = Stay::No;
        }
        let is_wanted = desk.stay == Stay::Always || self.waiting.load(Ordering::Acquire) > 0;
        let left = if is_wanted { None } else { self.take_from(&mut desk) };
        desk.is_watched = false;
        let unused = (left, desk.waiters.take());
        drop(desk);
        drop(unused);
        false
    }
}

impl Drop for LocalQueue {
    fn drop(&mut self) {
        let mut stations = STATIONS.lock();
        // A newcomer may have made another for the entry since.
        if stations.get(&self.key).is_some_and(|station| station.strong_count() == 0) {
            stations.remove(&self.key);
        }
    }
}

/// A task that waits for its turn.
struct Waiting<'a>(&'a LocalQueue);

impl<'a> Waiting<'a> {
    fn begin(station: &'a LocalQueue) -> Self {
        station.waiting.fetch_add(1, Ordering::AcqRel);
        Self(station)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // Whoever leaves a file from now on sees that nobody waits, or somebody new.
        let mut desk = self.0.desk.lock();
        let is_kept = desk.stay != Stay::No || self.0.waiting.load(Ordering::Acquire) > 0;
        let left = if is_kept { None } else { self.0.take_from(&mut desk) };
        drop(desk);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[tokio::test]
    async fn the_end_of_the_last_hold_is_told() {
        let path = Arc::new(LockPath::new("/nowhere/read.lock".as_ref()).unwrap());
        let station = LocalQueue::of(Entry { process: this_process(), directory: (0, 0), path });
        station.has_no_holds().await;
        let source = std::panic::Location::caller();
        let [first, last] = [1, 2].map(|inode| station.hold_begins((0, inode), source));
        let mut none = Box::pin(station.has_no_holds());
        assert!(futures::poll!(&mut none).is_pending());
        station.hold_ends(first);
        assert!(futures::poll!(&mut none).is_pending() && station.is_held());
        station.hold_ends(last);
        assert!(futures::poll!(&mut none).is_ready() && !station.is_held());
    }

    #[test]
    fn who_stood_back_for_long_does_so_seldom() {
        let path = Arc::new(LockPath::new("/nowhere/busy.lock".as_ref()).unwrap());
        let station = LocalQueue::of(Entry { process: this_process(), directory: (0, 0), path });
        let (start, instant) = (Instant::now(), Duration::from_nanos(1));
        let pause = |after: Instant, took| {
            station.has_stood_back(after, took);
            let pause = STAND_BACK_PERIOD.max(20 * took);
            assert!(!station.is_to_stand_back(after + pause - instant));
            after + pause
        };
        assert!(station.is_to_stand_back(start), "the first time");
        assert!(!station.is_to_stand_back(start + STAND_BACK_PERIOD - instant));
        assert!(station.is_to_stand_back(start + STAND_BACK_PERIOD));
        for took in [200, 5000].map(Duration::from_micros) {
            let due = pause(start, took);
            assert!(station.is_to_stand_back(due), "{took:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_kept_is_closed_when_nobody_comes_for_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("lock");
        let open = || OpenFile::open(|| Ok(File::create(&path).unwrap())).unwrap();
        let path = Arc::new(LockPath::new(&path).unwrap());
        let station = LocalQueue::of(Entry { process: this_process(), directory: (0, 0), path });
        let is_there = || station.desk.lock().left.is_some();
        for stay in [Stay::No, Stay::Awhile, Stay::Always] {
            let waiting = Waiting::begin(&station);
            assert!(!station.leave(open(), stay, |_| false) && is_there());
            drop(waiting);
            assert_eq!(is_there(), stay != Stay::No);
            drop(station.take_left());
        }
        assert!(station.leave(open(), Stay::Always, |_| true), "somebody elsewhere waits");
    }

    #[test]
    fn what_is_not_used_is_closed_unless_it_is_waited_for_or_wanted_open() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("lock");
        let open = || OpenFile::open(|| Ok(File::create(&path).unwrap())).unwrap();
        let path = Arc::new(LockPath::new(&path).unwrap());
        let key = Entry { process: this_process(), directory: (0, 0), path: Arc::clone(&path) };
        let station = LocalQueue::of(key);
        let is_there = || station.desk.lock().left.is_some();
        for stay in [Stay::Awhile, Stay::Always] {
            assert!(station.open_waiters(&path).is_some());
            station.leave(open(), stay, |_| false);
            assert!(station.close_unused(), "it was used");
            station.was_used.store(false, Ordering::Relaxed);
            let waiting = Waiting::begin(&station);
            assert!(!station.close_unused() && is_there(), "somebody waits for it");
            drop(waiting);
            assert!(!station.close_unused());
            assert_eq!(is_there(), stay == Stay::Always);
            assert!(station.desk.lock().waiters.is_none());
        }
    }
}
