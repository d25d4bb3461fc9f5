//! Who listens to what, where one thread of the process waits for all events.
//!
//! A [`Backend`] watches directories, files and processes, and reports what happened to
//! them by number. This registry knows the listeners of each number and notifies them.
//!
//! 1. Directories are watched, and beside them the file at the path: lock files come
//!    and go.
//! 2. A listener begins *before* the look it relies on. An event between the two is
//!    kept, and several are kept as one.
//! 3. An event is a reason to look and nothing more. Where it is not known what happened,
//!    all listeners that it may concern are notified.
//! 4. A report of a directory need not tell the name. So the thread compares what each
//!    listener's names lead to with what they led to before, and notifies only those that
//!    see a difference. What a listener compares with is taken before its look.
//! 5. A number is never given twice: a report that comes late concerns no listener.
//! 6. A forked child has no such thread. Its first listener begins a registry of its own;
//!    its parent's is never touched and never dropped.
//! 7. No listener is notified, and no watch of a directory or file begins or ends, while
//!    anything is locked here: a task that is woken may do anything, and a file system
//!    may take its time. Watches of processes begin and end under the lock. Systems know
//!    them by the process alone, and an end that is reported at once must find its
//!    listener.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use tokio::sync::Notify;

use super::event::{Event, Following, tell_of_no_events};
use super::mutex::Mutex;
use super::path::LockPath;
use super::process_key::{ProcessKey, this_process};

/// Device and inode, or what else tells files apart while one of them is open.
pub(crate) type Identity = (u64, u64);

/// What is at a path. Two are the same only if nothing happened to the file between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) identity: Identity,
    /// When the file or its attributes changed last, as finely as the system tells.
    pub(crate) changed: (i64, i64),
}

/// Which closes of a file are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Closes {
    /// Those of a file that was open for writing.
    Writers,
    /// All. A process that could only read the file may have held it.
    All,
}

/// What happened, to what has this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(windows, expect(dead_code, reason = "Windows watches no single files"))]
pub(crate) enum Report {
    /// Some name in the directory was made, removed or moved.
    Names(usize),
    /// The directory itself was removed or moved, or is watched no longer.
    DirectoryMoved(usize),
    /// The file was closed or unlocked by one that may have held it.
    FileClosed(usize),
    FileWritten(usize),
    /// The file was removed or moved, or is watched no longer.
    FileMoved(usize),
    ProcessEnded(usize),
    /// Reports were lost: anything may have happened to anything.
    Overflow,
}

/// Why the end of a process will not be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfollowed {
    /// There is no such process.
    Gone,
    /// It may not be watched, or not now.
    Refused,
}

/// The system's own means. What `watch_` answers is kept as long as it is watched, and
/// its drop ends that. All but `wait` may be called on any thread, and at the same time.
pub(crate) trait Backend: Send + Sync + Sized + 'static {
    type Directory: Send;
    type File: Send;
    type Process: Send;

    /// Called once in a process, before the first listener.
    fn new() -> io::Result<Self>;

    /// The registry of this process, or of the one it was forked from.
    fn instance() -> &'static Instance<Self>;

    /// What a path leads to, without opening the file; `None` if nothing.
    fn look(path: &Path) -> Option<Sight>;

    /// The directory that a path leads to.
    fn directory(path: &Path) -> io::Result<Identity>;

    /// Report what happens in a directory from now on, and which one it is.
    fn watch_directory(
        &self,
        number: usize,
        path: &Path,
    ) -> io::Result<(Identity, Self::Directory)>;

    /// The same for a file, as far as the system can. An error where it cannot: then the
    /// directory, the process and the passing of time have to do.
    fn watch_file(
        &self,
        number: usize,
        path: &Path,
        closes: Closes,
    ) -> io::Result<(Identity, Self::File)>;

    /// Report the end of a process.
    fn watch_process(&self, number: usize, pid: u32) -> Result<Self::Process, Unfollowed>;

    /// Wait until something happens and add it to `reports`. Only the registry's own
    /// thread calls this. After an error nothing is reported any more.
    fn wait(&self, reports: &mut Vec<Report>) -> io::Result<()>;
}

/// A place for the registry of a process.
pub(crate) struct Instance<B: Backend>(Mutex<Option<Arc<Registry<B>>>>);

impl<B: Backend> Instance<B> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }
}

/// The listeners of this process.
pub(crate) struct Registry<B: Backend> {
    process: ProcessKey,
    backend: B,
    last_number: AtomicUsize,
    watches: Mutex<Watches<B>>,
}

struct Watches<B: Backend> {
    /// The thread reports nothing any more.
    is_deaf: bool,
    directories: Table<Identity, B::Directory>,
    files: Table<(Identity, Closes), B::File>,
    processes: Table<u32, B::Process>,
}

/// What is watched, by number and by what it is.
struct Table<K, W> {
    watched: HashMap<usize, Watched<K, W>>,
    numbers: HashMap<K, usize>,
}

struct Watched<K, W> {
    key: K,
    watch: W,
    listeners: HashMap<usize, Arc<Listener>>,
}

/// What a [`Subscription`] is notified by.
struct Listener {
    id: usize,
    path: Arc<LockPath>,
    names: Mutex<Names>,
    event: Notify,
    /// A file was closed that may have been the holder's.
    was_closed: AtomicBool,
    /// What was heard does not tell which directory it is of, or which file is at the
    /// path.
    is_shaken: AtomicBool,
    /// Acquisitions are events for it too.
    hears_changes: AtomicBool,
    /// A name in the directory was made, removed or moved.
    was_written: AtomicBool,
}

/// What a listener compares (4).
#[derive(Default)]
struct Names {
    /// Beside the path itself.
    others: Vec<PathBuf>,
    seen: Vec<Option<Sight>>,
}

/// What a listener is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    Closed,
    Written,
    /// Another directory or file may be at the path.
    Moved,
    Unknown,
}

/// Listeners to notify with nothing locked (7).
type Due = Vec<(Arc<Listener>, News)>;

impl<K: Copy + Eq + Hash, W> Table<K, W> {
    fn new() -> Self {
        Self { watched: HashMap::new(), numbers: HashMap::new() }
    }

    fn is_watched(&self, number: usize) -> bool {
        self.watched.contains_key(&number)
    }

    fn number(&self, key: K) -> Option<usize> {
        self.numbers.get(&key).copied()
    }

    /// One more listener to what is watched already.
    fn join(&mut self, key: K, listener: &Arc<Listener>) -> Option<usize> {
        let number = self.number(key)?;
        self.watched.get_mut(&number)?.listeners.insert(listener.id, Arc::clone(listener));
        Some(number)
    }

    /// The first listener. If another was faster, its watch is joined, and this one's
    /// given back.
    fn begin(
        &mut self,
        number: usize,
        (key, watch): (K, W),
        listener: &Arc<Listener>,
    ) -> (usize, Option<W>) {
        if let Some(known) = self.join(key, listener) {
            return (known, Some(watch));
        }
        let listeners = HashMap::from([(listener.id, Arc::clone(listener))]);
        self.watched.insert(number, Watched { key, watch, listeners });
        self.numbers.insert(key, number);
        (number, None)
    }

    /// This listener leaves; what ends with the last, to be dropped with nothing locked.
    fn leave(&mut self, number: Option<usize>, id: usize) -> Option<Watched<K, W>> {
        let number = number?;
        let watched = self.watched.get_mut(&number)?;
        watched.listeners.remove(&id);
        if watched.listeners.is_empty() { self.end(number) } else { None }
    }

    fn end(&mut self, number: usize) -> Option<Watched<K, W>> {
        let watched = self.watched.remove(&number)?;
        self.numbers.remove(&watched.key);
        Some(watched)
    }

    fn listeners(&self, number: usize) -> impl Iterator<Item = &Arc<Listener>> {
        self.watched.get(&number).into_iter().flat_map(|watched| watched.listeners.values())
    }
}

impl<B: Backend> Registry<B> {
    /// Begun for the first listener (6). `None` where that cannot be.
    fn of_this_process() -> Option<Arc<Self>> {
        let process = this_process();
        let mut instance = B::instance().0.lock();
        if let Some(known) = instance.as_ref().filter(|known| known.process == process) {
            return Some(Arc::clone(known));
        }
        match Self::begin(process) {
            Ok(begun) => {
                std::mem::forget(instance.replace(Arc::clone(&begun)));
                Some(begun)
            }
            Err(error) => {
                drop(instance);
                tell_of_no_events(error);
                None
            }
        }
    }

    fn begin(process: ProcessKey) -> io::Result<Arc<Self>> {
        let (last_number, watches) = (AtomicUsize::new(0), Mutex::new(Watches::new()));
        let registry = Arc::new(Self { process, backend: B::new()?, last_number, watches });
        let waits = Arc::clone(&registry);
        thread::Builder::new()
            .name("lockkeeper-events".to_owned())
            .spawn(move || waits.report_for_ever())?;
        Ok(registry)
    }

    fn next_number(&self) -> usize {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn report_for_ever(&self) {
        let mut reports = Vec::new();
        loop {
            if let Err(error) = self.backend.wait(&mut reports) {
                self.watches.lock().is_deaf = true;
                self.report(&[Report::Overflow]);
                return tell_of_no_events(error);
            }
            self.report(&reports);
            reports.clear();
        }
    }

    fn report(&self, reports: &[Report]) {
        for report in reports {
            let (due, _over) = self.watches.lock().concerned(*report);
            let is_concerned = |listener: &Listener| match report {
                Report::Names(_) => listener.sees_a_difference(B::look),
                _ => true,
            };
            for (listener, news) in due {
                if is_concerned(&listener) {
                    listener.notify(news);
                }
            }
        }
    }

    /// The directory of this path, and no other any more.
    fn follow_directory(&self, last: Option<usize>, listener: &Arc<Listener>) -> io::Result<usize> {
        let path = listener.path.directory();
        let identity = B::directory(path)?;
        let known = self.watches.lock().directories.join(identity, listener);
        let (number, _spare) = match known {
            Some(number) => (number, None),
            None => {
                let number = self.next_number();
                let watch = self.backend.watch_directory(number, path)?;
                self.watches.lock().directories.begin(number, watch, listener)
            }
        };
        let last = last.filter(|last| *last != number);
        let _ended = self.watches.lock().directories.leave(last, listener.id);
        Ok(number)
    }

    /// The file at this path, and no other any more; `None` where it cannot be watched.
    fn follow_file(
        &self,
        last: Option<usize>,
        listener: &Arc<Listener>,
        file: Option<Identity>,
        closes: Closes,
    ) -> Option<usize> {
        let number = file.and_then(|file| self.watch_file(listener, (file, closes)));
        let last = last.filter(|last| Some(*last) != number);
        let _ended = self.watches.lock().files.leave(last, listener.id);
        number
    }

    fn watch_file(&self, listener: &Arc<Listener>, key: (Identity, Closes)) -> Option<usize> {
        let known = self.watches.lock().files.join(key, listener);
        if known.is_some() {
            return known;
        }
        let number = self.next_number();
        let (found, watch) = self.backend.watch_file(number, listener.path.path(), key.1).ok()?;
        // Another is at the path by now, of which the directory tells.
        if found != key.0 {
            return None;
        }
        let (number, _spare) = self.watches.lock().files.begin(number, (key, watch), listener);
        Some(number)
    }

    /// Whose end is reported at once finds its listener (7).
    fn follow_process(&self, listener: &Arc<Listener>, pid: u32) -> Result<usize, Unfollowed> {
        let mut watches = self.watches.lock();
        if let Some(number) = watches.processes.join(pid, listener) {
            return Ok(number);
        }
        let number = self.next_number();
        let watch = self.backend.watch_process(number, pid)?;
        Ok(watches.processes.begin(number, (pid, watch), listener).0)
    }

    fn leave_process(&self, last: Option<usize>, id: usize) {
        let mut watches = self.watches.lock();
        drop(watches.processes.leave(last, id));
    }
}

/// What is over, to be dropped with nothing locked.
enum Over<B: Backend> {
    Nothing,
    Directory { _watch: B::Directory },
    File { _watch: B::File },
}

impl<B: Backend> Watches<B> {
    fn new() -> Self {
        let (directories, files, processes) = (Table::new(), Table::new(), Table::new());
        Self { is_deaf: false, directories, files, processes }
    }

    fn concerned(&mut self, report: Report) -> (Due, Over<B>) {
        let mut over = Over::Nothing;
        let due = match report {
            Report::Names(number) => due(self.directories.listeners(number), News::Moved),
            Report::FileClosed(number) => due(self.files.listeners(number), News::Closed),
            Report::FileWritten(number) => {
                let listeners = self.files.listeners(number);
                due(listeners.filter(|listener| listener.hears_changes()), News::Written)
            }
            Report::DirectoryMoved(number) => {
                let Some(ended) = self.directories.end(number) else { return (Due::new(), over) };
                over = Over::Directory { _watch: ended.watch };
                due(ended.listeners.values(), News::Unknown)
            }
            Report::FileMoved(number) => {
                let Some(ended) = self.files.end(number) else { return (Due::new(), over) };
                over = Over::File { _watch: ended.watch };
                due(ended.listeners.values(), News::Moved)
            }
            Report::ProcessEnded(number) => {
                let ended = self.processes.end(number);
                due(ended.iter().flat_map(|ended| ended.listeners.values()), News::Closed)
            }
            Report::Overflow => self.all(),
        };
        (due, over)
    }

    fn all(&self) -> Due {
        let directories = self.directories.watched.values().flat_map(|it| it.listeners.values());
        let files = self.files.watched.values().flat_map(|it| it.listeners.values());
        let processes = self.processes.watched.values().flat_map(|it| it.listeners.values());
        due(directories.chain(files).chain(processes), News::Unknown)
    }
}

fn due<'a>(listeners: impl Iterator<Item = &'a Arc<Listener>>, news: News) -> Due {
    listeners.map(|listener| (Arc::clone(listener), news)).collect()
}

impl Names {
    fn see(&self, path: &LockPath, look: fn(&Path) -> Option<Sight>) -> Vec<Option<Sight>> {
        let others = self.others.iter().map(PathBuf::as_path);
        std::iter::once(path.path()).chain(others).map(look).collect()
    }
}

impl Listener {
    fn new(id: usize, path: &Arc<LockPath>) -> Self {
        Self {
            id,
            path: Arc::clone(path),
            names: Mutex::default(),
            event: Notify::new(),
            was_closed: AtomicBool::new(false),
            is_shaken: AtomicBool::new(false),
            hears_changes: AtomicBool::new(false),
            was_written: AtomicBool::new(false),
        }
    }

    fn hears_changes(&self) -> bool {
        self.hears_changes.load(Ordering::Relaxed)
    }

    /// What is at the path now. Later differences are events (4).
    fn remember(&self, look: fn(&Path) -> Option<Sight>) -> Option<Sight> {
        let mut names = self.names.lock();
        names.seen = names.see(&self.path, look);
        names.seen.first().copied().flatten()
    }

    fn sees_a_difference(&self, look: fn(&Path) -> Option<Sight>) -> bool {
        let mut names = self.names.lock();
        let seen = names.see(&self.path, look);
        let differs = seen != names.seen;
        names.seen = seen;
        differs
    }

    fn notify(&self, news: News) {
        if matches!(news, News::Closed | News::Unknown) {
            self.was_closed.store(true, Ordering::Release);
        }
        if matches!(news, News::Moved | News::Unknown) {
            self.is_shaken.store(true, Ordering::Release);
            self.was_written.store(true, Ordering::Release);
        }
        self.event.notify_one();
    }
}

/// Listens for what may change the holder of a lock. Dropping it ends that.
pub(crate) struct Subscription<B: Backend> {
    registry: Arc<Registry<B>>,
    listener: Arc<Listener>,
    directory: Option<usize>,
    /// The file at the path.
    file: Option<usize>,
    /// The file whose readers' closes are listened to.
    closing: Option<usize>,
    /// The process whose end is listened to.
    process: Option<(u32, usize)>,
}

impl<B: Backend> Subscription<B> {
    /// Not yet to anything. `None` where there are no events: then one has to
    /// look now and then.
    pub(crate) fn begin(path: &Arc<LockPath>) -> Option<Self> {
        let registry = Registry::of_this_process()?;
        let listener = Arc::new(Listener::new(registry.next_number(), path));
        let (directory, file, closing, process) = (None, None, None, None);
        Some(Self { registry, listener, directory, file, closing, process }).filter(Self::can_hear)
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
        if !self.can_hear() {
            return false;
        }
        match self.registry.follow_directory(self.directory, &self.listener) {
            Ok(directory) => self.directory = Some(directory),
            Err(error) => {
                if self.directory.is_none() {
                    tell_of_no_events(error);
                }
                return false;
            }
        }
        let file = self.listener.remember(B::look).map(|sight| sight.identity);
        self.file = self.registry.follow_file(self.file, &self.listener, file, Closes::Writers);
        true
    }

    /// Whether it is the directory that is listened to.
    pub(crate) fn follows_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// Whether what was heard since the last call leaves it open which
    /// directory the path leads to, or which file is there.
    pub(crate) fn is_shaken(&self) -> bool {
        self.listener.is_shaken.swap(false, Ordering::AcqRel)
    }

    /// Whether the file was heard to be removed or moved since the last call.
    pub(crate) fn has_heard_a_write(&self) -> bool {
        self.listener.was_written.swap(false, Ordering::AcqRel)
    }

    /// The thread of a parent reports to its own listeners only (6).
    fn is_ours(&self) -> bool {
        self.registry.process == this_process()
    }

    fn can_hear(&self) -> bool {
        self.is_ours() && !self.registry.watches.lock().is_deaf
    }

    /// The names of files whose close is an event, beside the lock file's own;
    /// whether they are others than before. Then what happened to them before
    /// was not heard, and one has to look again.
    pub(crate) fn await_closes<const N: usize>(&self, files: [PathBuf; N]) -> bool {
        let mut names = self.listener.names.lock();
        let has_changed = names.others != files;
        if has_changed {
            names.others = files.into();
            names.seen = names.see(&self.listener.path, B::look);
        }
        has_changed
    }

    /// Listen for the end of this process, and of no other any more.
    pub(crate) fn follow_process(&mut self, pid: Option<u32>) -> Following {
        if !self.can_hear() {
            return Following::Unheard;
        }
        if let Some((known, number)) = self.process {
            if Some(known) == pid {
                // One whose end was reported may still be about it, and then its end would be
                // reported over and over.
                let is_awaited = self.registry.watches.lock().processes.is_watched(number);
                return if is_awaited { Following::Heard } else { Following::Gone };
            }
        }
        self.leave_process();
        let Some(pid) = pid else {
            return Following::Heard;
        };
        match self.registry.follow_process(&self.listener, pid) {
            Ok(number) => self.process = Some((pid, number)),
            Err(Unfollowed::Gone) => return Following::Gone,
            Err(Unfollowed::Refused) => return Following::Unheard,
        }
        Following::Heard
    }

    fn leave_process(&mut self) {
        let last = self.process.take().map(|(_, number)| number);
        self.registry.leave_process(last, self.listener.id);
    }

    /// Listen to closes of this regular file by processes that could only read it, and to
    /// no other's any more. Whether it is: the path may lead to another file by now, or
    /// the system does not tell. What was before is not heard.
    pub(crate) fn follow_closes(&mut self, _: &File, identity: Identity) -> bool {
        if !self.can_hear() {
            return false;
        }
        let last = self.closing.take();
        self.closing = self.registry.follow_file(last, &self.listener, Some(identity), Closes::All);
        self.closing.is_some()
    }

    /// Something that happened since the last call, or since the start.
    pub(crate) async fn event(&self) -> Event {
        // Events that keep coming must not keep the thread.
        tokio::task::consume_budget().await;
        self.listener.event.notified().await;
        match self.listener.was_closed.swap(false, Ordering::AcqRel) {
            true => Event::Close,
            false => Event::Change,
        }
    }
}

impl<B: Backend> Drop for Subscription<B> {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        let id = self.listener.id;
        self.leave_process();
        let mut watches = self.registry.watches.lock();
        let _over = (
            watches.files.leave(self.file, id),
            watches.files.leave(self.closing, id),
            watches.directories.leave(self.directory, id),
        );
        drop(watches);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::future::Future;
    use std::os::unix::fs::MetadataExt;
    use std::pin::pin;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::{Context, Waker};

    use tempfile::TempDir;

    use super::*;

    /// Reports what a test tells it to.
    struct Told {
        watched: Arc<Mutex<HashMap<usize, What>>>,
        reports: Mutex<Receiver<Vec<Report>>>,
        tell: Mutex<Sender<Vec<Report>>>,
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum What {
        Directory(PathBuf),
        File(PathBuf, Closes),
        Process(u32),
    }

    /// Watched until it is dropped.
    struct Watch(usize, Arc<Mutex<HashMap<usize, What>>>);

    impl Drop for Watch {
        fn drop(&mut self) {
            self.1.lock().remove(&self.0);
        }
    }

    impl Told {
        fn watch(&self, number: usize, what: What) -> Watch {
            self.watched.lock().insert(number, what);
            Watch(number, Arc::clone(&self.watched))
        }

        /// The numbers of what a test has watched.
        fn numbers(&self, what: &What) -> Vec<usize> {
            let watched = self.watched.lock();
            watched.iter().filter(|(_, is)| *is == what).map(|(number, _)| *number).collect()
        }

        fn tell(&self, reports: &[Report]) {
            self.tell.lock().send(reports.to_vec()).unwrap();
        }

        /// The same of what ends a watch. The thread drops that after it has notified the
        /// listeners.
        fn tell_the_end(&self, report: Report, number: usize) {
            self.tell(&[report]);
            while self.watched.lock().contains_key(&number) {
                thread::yield_now();
            }
        }
    }

    /// No test's process has this number.
    const GONE: u32 = u32::MAX;
    const REFUSED: u32 = u32::MAX - 1;

    impl Backend for Told {
        type Directory = Watch;
        type File = Watch;
        type Process = Watch;

        fn new() -> io::Result<Self> {
            let (tell, reports) = channel();
            let (tell, reports) = (Mutex::new(tell), Mutex::new(reports));
            Ok(Self { watched: Arc::default(), reports, tell })
        }

        fn instance() -> &'static Instance<Self> {
            static INSTANCE: Instance<Told> = Instance::new();
            &INSTANCE
        }

        fn look(path: &Path) -> Option<Sight> {
            let found = std::fs::symlink_metadata(path).ok()?;
            let identity = (found.dev(), found.ino());
            Some(Sight { identity, changed: (found.ctime(), found.ctime_nsec()) })
        }

        fn directory(path: &Path) -> io::Result<Identity> {
            std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
        }

        fn watch_directory(&self, number: usize, path: &Path) -> io::Result<(Identity, Watch)> {
            let watch = self.watch(number, What::Directory(path.to_owned()));
            Ok((Self::directory(path)?, watch))
        }

        fn watch_file(
            &self,
            number: usize,
            path: &Path,
            closes: Closes,
        ) -> io::Result<(Identity, Watch)> {
            let watch = self.watch(number, What::File(path.to_owned(), closes));
            Ok((Self::directory(path)?, watch))
        }

        fn watch_process(&self, number: usize, pid: u32) -> Result<Watch, Unfollowed> {
            match pid {
                GONE => Err(Unfollowed::Gone),
                REFUSED => Err(Unfollowed::Refused),
                _ => {
                    let watch = self.watch(number, What::Process(pid));
                    if pid == ENDS_AT_ONCE {
                        self.tell(&[Report::ProcessEnded(number)]);
                        // The thread has it before this call is over.
                        thread::sleep(std::time::Duration::from_millis(20));
                    }
                    Ok(watch)
                }
            }
        }

        fn wait(&self, reports: &mut Vec<Report>) -> io::Result<()> {
            let told = self.reports.lock().recv().map_err(io::Error::other)?;
            reports.extend(told);
            Ok(())
        }
    }

    const ENDS_AT_ONCE: u32 = u32::MAX - 2;

    type Heard = Subscription<Told>;

    struct Place {
        directory: TempDir,
        path: Arc<LockPath>,
    }

    impl Place {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let path = Arc::new(LockPath::new(&directory.path().join("lock")).unwrap());
            Self { directory, path }
        }

        fn listen(&self) -> Heard {
            Heard::follow_directory(None, &self.path).expect("there are events")
        }

        fn numbers(&self) -> Vec<usize> {
            told().numbers(&What::Directory(self.directory.path().to_owned()))
        }

        fn number(&self) -> usize {
            let [number] = self.numbers()[..] else { panic!("{:?}", self.numbers()) };
            number
        }

        fn file(&self, closes: Closes) -> Vec<usize> {
            told().numbers(&What::File(self.path.path().to_owned(), closes))
        }

        fn named(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn make(&self, name: &str) {
            std::fs::write(self.named(name), "").unwrap();
        }
    }

    fn registry() -> Arc<Registry<Told>> {
        Registry::of_this_process().unwrap()
    }

    /// The backend that all tests of this process share.
    fn told() -> Told {
        let registry = registry();
        let (_, reports) = channel();
        Told {
            watched: Arc::clone(&registry.backend.watched),
            reports: Mutex::new(reports),
            tell: Mutex::new(registry.backend.tell.lock().clone()),
        }
    }

    /// What was told before this has arrived.
    async fn arrived() {
        let place = Place::new();
        let marked = place.listen();
        told().tell(&[Report::DirectoryMoved(place.number())]);
        marked.event().await;
    }

    fn is_silent(heard: &Heard) -> bool {
        pin!(heard.event()).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn an_event_between_the_start_and_the_wait_is_kept_and_several_are_one() {
        let place = Place::new();
        let heard = place.listen();
        place.make("lock");
        told().tell(&[Report::Names(place.number())]);
        arrived().await;
        std::fs::remove_file(place.named("lock")).unwrap();
        told().tell(&[Report::Names(place.number())]);
        arrived().await;
        assert_eq!(heard.event().await, Event::Change);
        assert!(is_silent(&heard));
        assert!(heard.has_heard_a_write() && heard.is_shaken());
    }

    #[tokio::test]
    async fn only_a_listener_whose_names_changed_is_notified() {
        let place = Place::new();
        let other = Arc::new(LockPath::new(&place.named("other")).unwrap());
        let mine = place.listen();
        let others = Heard::follow_directory(None, &other).expect("there are events");
        assert!(mine.await_closes([place.named("revoked")]));
        assert!(!mine.await_closes([place.named("revoked")]));
        for name in ["other", "revoked", "lock"] {
            place.make(name);
            told().tell(&[Report::Names(place.number())]);
            arrived().await;
            let notified = [!is_silent(&mine), !is_silent(&others)];
            assert_eq!(notified, [name != "other", name == "other"], "{name}");
        }
    }

    #[tokio::test]
    async fn what_the_look_will_see_is_no_event() {
        let place = Place::new();
        let heard = place.listen();
        place.make("lock");
        let heard = Heard::follow_directory(Some(heard), &place.path).unwrap();
        told().tell(&[Report::Names(place.number())]);
        arrived().await;
        assert!(is_silent(&heard));
        assert!(heard.await_closes([place.named("revoked")]));
    }

    #[tokio::test]
    async fn a_directory_is_watched_once_and_as_long_as_it_is_listened_to() {
        let place = Place::new();
        let (first, second) = (place.listen(), place.listen());
        let number = place.number();
        drop(first);
        assert_eq!(place.number(), number);
        drop(second);
        assert!(place.numbers().is_empty());
        let _again = place.listen();
        assert_ne!(place.number(), number, "a late report would be taken for a new one");
    }

    #[tokio::test]
    async fn listens_in_the_directory_that_the_path_leads_to_now() {
        let (a, b) = (Place::new(), Place::new());
        let top = TempDir::new().unwrap();
        let current = top.path().join("current");
        std::os::unix::fs::symlink(a.directory.path(), &current).unwrap();
        let path = Arc::new(LockPath::new(&current.join("lock")).unwrap());
        let watched = || told().numbers(&What::Directory(current.clone()));
        let heard = Heard::follow_directory(None, &path).unwrap();
        let before = watched();
        std::fs::remove_file(&current).unwrap();
        std::os::unix::fs::symlink(b.directory.path(), &current).unwrap();
        let heard = Heard::follow_directory(Some(heard), &path).unwrap();
        assert!(before.len() == 1 && watched().len() == 1 && before != watched());
        told().tell_the_end(Report::DirectoryMoved(watched()[0]), watched()[0]);
        assert_eq!(heard.event().await, Event::Close, "it is not known what happened");
        assert!(heard.is_shaken());
        let _heard = Heard::follow_directory(Some(heard), &path).unwrap();
        assert_eq!(watched().len(), 1, "it is watched again");
    }

    #[tokio::test]
    async fn the_file_at_the_path_is_listened_to_and_its_successor() {
        let place = Place::new();
        place.make("lock");
        let heard = place.listen();
        let first = place.file(Closes::Writers);
        told().tell(&[Report::FileWritten(first[0]), Report::FileClosed(first[0])]);
        assert_eq!(heard.event().await, Event::Close);
        // While the first is watched it is open, or its number could be given again.
        std::fs::rename(place.named("lock"), place.named("old")).unwrap();
        place.make("lock");
        told().tell_the_end(Report::FileMoved(first[0]), first[0]);
        assert_eq!(heard.event().await, Event::Change);
        assert!(heard.is_shaken());
        let heard = Heard::follow_directory(Some(heard), &place.path).unwrap();
        let second = place.file(Closes::Writers);
        assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
        drop(heard);
        assert!(place.file(Closes::Writers).is_empty());
    }

    #[tokio::test]
    async fn only_a_watcher_hears_of_writes() {
        let place = Place::new();
        place.make("lock");
        let waits = place.listen();
        let watches = Heard::follow_changes(None, &place.path).unwrap();
        told().tell(&[Report::FileWritten(place.file(Closes::Writers)[0])]);
        assert_eq!(watches.event().await, Event::Change);
        assert!(is_silent(&waits));
    }

    #[tokio::test]
    async fn closes_by_readers_are_for_who_asks() {
        let place = Place::new();
        place.make("lock");
        let file = File::open(place.path.path()).unwrap();
        let identity = Told::directory(place.path.path()).unwrap();
        let (mut heard, deaf) = (place.listen(), place.listen());
        assert!(!heard.follow_closes(&file, (0, 0)), "it is another file");
        assert!(heard.follow_closes(&file, identity) && heard.follow_closes(&file, identity));
        told().tell(&[Report::FileClosed(place.file(Closes::All)[0])]);
        assert_eq!(heard.event().await, Event::Close);
        assert!(is_silent(&deaf));
        drop(heard);
        assert!(place.file(Closes::All).is_empty());
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_heard_by_all_that_follow_it() {
        let place = Place::new();
        let (mut first, mut second) = (place.listen(), place.listen());
        let pid = Some(1_000_000_001);
        let number = || told().numbers(&What::Process(1_000_000_001));
        assert_eq!([first.follow_process(pid), second.follow_process(pid)], [Following::Heard; 2]);
        assert_eq!(number().len(), 1);
        told().tell(&[Report::ProcessEnded(number()[0])]);
        assert_eq!([first.event().await, second.event().await], [Event::Close; 2]);
        // It may go on for a moment. One that asks anew each time would hear of it each time.
        assert_eq!([first.follow_process(pid), first.follow_process(pid)], [Following::Gone; 2]);
        assert!(number().is_empty());
        // The number may be another process's by now.
        assert_eq!(first.follow_process(None), Following::Heard);
        assert_eq!(first.follow_process(pid), Following::Heard);
        assert_eq!(number().len(), 1);
        assert_eq!(first.follow_process(None), Following::Heard);
        assert!(number().is_empty());
        assert_eq!(first.follow_process(Some(GONE)), Following::Gone);
        assert_eq!(first.follow_process(Some(REFUSED)), Following::Unheard);
    }

    #[tokio::test]
    async fn an_end_that_is_reported_at_once_is_heard() {
        let place = Place::new();
        let mut heard = place.listen();
        assert_eq!(heard.follow_process(Some(ENDS_AT_ONCE)), Following::Heard);
        assert_eq!(heard.event().await, Event::Close);
    }

    /// One of its own, so that other tests hear nothing of it. Its thread has not begun.
    fn separate(process: ProcessKey) -> Arc<Registry<Told>> {
        let (backend, last_number) = (Told::new().unwrap(), AtomicUsize::new(0));
        Arc::new(Registry { process, backend, last_number, watches: Mutex::new(Watches::new()) })
    }

    #[tokio::test]
    async fn lost_reports_are_an_event_for_all() {
        let registry = separate(this_process());
        let (one, other) = (Place::new(), Place::new());
        let heard = [&one, &other].map(|place| {
            let mut heard = Heard::begin(&place.path).unwrap();
            heard.registry = Arc::clone(&registry);
            assert!(heard.is_renewed() && heard.follows_directory());
            heard
        });
        registry.report(&[Report::Overflow]);
        for heard in heard {
            assert_eq!(heard.event().await, Event::Close);
            assert!(heard.is_shaken());
        }
    }

    #[tokio::test]
    async fn another_process_leaves_the_registry_alone() {
        let place = Place::new();
        let mut process = this_process();
        process.pid += 1;
        let parents = separate(process);
        let mut heard = Heard::begin(&place.path).unwrap();
        heard.registry = Arc::clone(&parents);
        // As a thread of the parent had it locked when the process forked.
        let _locked = parents.watches.lock();
        assert_eq!(heard.follow_process(Some(7)), Following::Unheard);
        assert!(!heard.follow_closes(&File::open("/dev/null").unwrap(), (0, 0)));
        assert!(Heard::follow_directory(Some(heard), &place.path).is_none());
    }

    #[tokio::test]
    async fn without_the_thread_there_are_no_events() {
        let place = Place::new();
        let mut heard = Heard::begin(&place.path).unwrap();
        heard.registry = separate(this_process());
        assert!(heard.is_renewed());
        // Nothing can be told any more.
        *heard.registry.backend.tell.lock() = channel().0;
        heard.registry.report_for_ever();
        heard.event().await;
        assert!(Heard::follow_directory(Some(heard), &place.path).is_none());
    }
}
