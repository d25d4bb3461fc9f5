//! Tasks of one process are served first in, first out, whatever they call the file.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::poll;
use lockkeeper::{AsyncFileLock, Error, FileGuard, FileOptions, Offload, Proof};
use support::{Process, QUIET, VERY_LONG, names_in};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// A directory, and the ways to name a file in it.
struct Spellings {
    top: TempDir,
}

impl Spellings {
    fn new() -> Self {
        let top = support::on_tmpfs();
        std::fs::create_dir(top.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", top.path().join("linked")).unwrap();
        Self { top }
    }

    fn directory(&self) -> PathBuf {
        self.top.path().join("real")
    }

    fn of(&self, name: &str) -> [PathBuf; 5] {
        let absolute = self.directory().join(name);
        let top = std::env::current_dir().unwrap();
        let mut relative = PathBuf::from_iter(top.components().skip(1).map(|_| ".."));
        relative.push(absolute.strip_prefix("/").unwrap());
        [
            absolute,
            relative,
            self.top.path().join("linked").join(name),
            self.directory().join("../real").join(name),
            self.top.path().join("real/.//").join(name),
        ]
    }
}

fn inline(path: &Path) -> AsyncFileLock {
    AsyncFileLock::with_options(path, FileOptions::default().offload(Offload::Never)).unwrap()
}

/// Waiters in the order of `locks`, each surely in the queue before the next comes.
macro_rules! queue_up {
    ($locks:expr) => {{
        let mut waiters = Vec::new();
        for lock in $locks {
            let mut waiter = Box::pin(async move { lock.acquire().await.unwrap() });
            assert!(poll!(&mut waiter).is_pending());
            waiters.push(waiter);
        }
        waiters
    }};
}

#[tokio::test]
async fn tasks_are_served_in_the_order_they_came() {
    let spellings = Spellings::new();
    let locks: Vec<_> = spellings.of("a.lock").iter().map(|path| inline(path)).collect();
    for lock in &locks[1..] {
        let same = std::fs::metadata(lock.path().parent().unwrap()).unwrap();
        let first = std::fs::metadata(locks[0].path().parent().unwrap()).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((same.dev(), same.ino()), (first.dev(), first.ino()));
    }
    for first in &locks {
        let guard = first.acquire().await.unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let row: Vec<_> = locks.iter().cycle().take(20).cloned().collect();
        let queue = queue_up!(row);
        let tasks: Vec<_> = queue
            .into_iter()
            .enumerate()
            // Started in another order than they came.
            .rev()
            .map(|(place, waiter)| {
                let served = Arc::clone(&served);
                tokio::spawn(async move {
                    let guard: FileGuard = waiter.await;
                    served.lock().unwrap().push(place);
                    tokio::task::yield_now().await;
                    guard.release().await.unwrap();
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(served.lock().unwrap().is_empty());
        drop(guard);
        for task in tasks {
            timeout(VERY_LONG, task).await.unwrap().unwrap();
        }
        assert_eq!(*served.lock().unwrap(), (0..20).collect::<Vec<_>>());
        assert!(names_in(&spellings.directory()).is_empty());
    }
}

#[tokio::test]
async fn a_cancelled_waiter_gives_up_its_place() {
    let directory = support::on_tmpfs();
    let lock = inline(&directory.path().join("a.lock"));
    let guard = lock.acquire().await.unwrap();
    let mut waiters = queue_up!([lock.clone(), lock.clone(), lock.clone()]);
    let last = waiters.pop().unwrap();
    let cancelled = waiters.pop().unwrap();
    let first = waiters.pop().unwrap();
    drop(cancelled);
    drop(guard);
    drop(timeout(VERY_LONG, first).await.unwrap());
    // A waiter that had its turn already, and never used it, gives it up too.
    let guard = timeout(VERY_LONG, last).await.unwrap();
    let mut waiters = queue_up!([lock.clone(), lock.clone()]);
    let last = waiters.pop().unwrap();
    drop(guard);
    drop(waiters);
    drop(timeout(VERY_LONG, last).await.unwrap());
    assert!(lock.try_acquire().await.unwrap().is_some());
}

#[tokio::test]
async fn a_try_does_not_overtake() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let options = FileOptions::default().local_handoff(Duration::ZERO);
    let lock = AsyncFileLock::with_options(path, options).unwrap();
    let guard = lock.acquire().await.unwrap();
    let waiter = queue_up!([lock.clone()]).pop().unwrap();
    guard.release().await.unwrap();
    assert!(names_in(directory.path()).is_empty(), "the file is free, but it is the waiter's turn");
    assert!(lock.try_acquire().await.unwrap().is_none());
    let error = lock.acquire_timeout(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    drop(timeout(VERY_LONG, waiter).await.unwrap());
    assert!(lock.try_acquire().await.unwrap().is_some());
}

#[tokio::test]
async fn the_limit_holds_in_the_queue_and_the_error_names_the_holder() {
    for offload in [Offload::Never, Offload::Always] {
        let directory = support::on_tmpfs();
        let options = FileOptions::default().offload(offload).note("the first");
        let lock = AsyncFileLock::with_options(directory.path().join("a.lock"), options).unwrap();
        let guard = lock.acquire().await.unwrap();
        let limit = Duration::from_millis(30);
        let error = timeout(VERY_LONG, lock.acquire_timeout(limit)).await.unwrap().unwrap_err();
        let Error::Timeout { lock: named, waited, holder } = &error else { panic!("{error}") };
        assert_eq!(named.path(), Some(lock.path()));
        assert!(*waited >= limit);
        let holder = holder.as_ref().unwrap();
        assert_eq!(holder.hold_id.as_deref(), Some(guard.hold_id().as_str()));
        let text = error.to_string();
        assert!(
            text.contains("the first") && text.contains(lock.path().to_str().unwrap()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn independent_locks_do_not_wait_for_one_another() {
    for offload in [Offload::Never, Offload::Auto, Offload::Always] {
        let (here, there) = (support::on_tmpfs(), support::on_tmpfs());
        let elsewhere = support::on_disk();
        let options = FileOptions::default().offload(offload);
        let lock = |path: PathBuf| AsyncFileLock::with_options(path, options.clone()).unwrap();
        let held = lock(here.path().join("a.lock"));
        let _guard = held.acquire().await.unwrap();
        let waiter = tokio::spawn(async move { drop(held.acquire().await) });
        tokio::task::yield_now().await;
        let others = [
            here.path().join("b.lock"),
            there.path().join("a.lock"),
            elsewhere.path().join("a.lock"),
        ];
        for path in others {
            let lock = lock(path);
            let guard = timeout(VERY_LONG, lock.acquire()).await.expect("it waits").unwrap();
            guard.release().await.unwrap();
        }
        assert!(!waiter.is_finished());
        waiter.abort();
    }
}

/// Each look at a busy lock is one event: many waiters look no more often than one.
#[tokio::test]
async fn one_contender_of_a_process_looks_for_all() {
    const TEST: &str = "one_contender_of_a_process_looks_for_all";
    if let Some((_, path)) = support::role() {
        let guard = AsyncFileLock::new(path).acquire().await.unwrap();
        support::tell("held");
        support::told();
        return guard.release().await.unwrap();
    }
    let spellings = Spellings::new();
    let mut holder = Process::play(TEST, "holder", &spellings.directory().join("a.lock"));
    holder.expect("held");
    let period = Duration::from_millis(20);
    let options = FileOptions::default().offload(Offload::Never).retry_period(period);
    let events = Events::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer({
            let events = events.clone();
            move || events.clone()
        })
        .finish();
    // For this thread, which is the only one of the runtime.
    let subscribed = support::subscribe(subscriber);
    let started = Instant::now();
    let waiters: Vec<_> = (0..40)
        .map(|waiter| {
            let path = &spellings.of("a.lock")[waiter % 5];
            let lock = AsyncFileLock::with_options(path, options.clone()).unwrap();
            tokio::spawn(async move { lock.acquire().await.unwrap().release().await.unwrap() })
        })
        .collect();
    sleep(QUIET).await;
    let looks = events.count(" busy ");
    let most = started.elapsed().as_millis() / (period * 3 / 4).as_millis() + 2;
    drop(subscribed);
    assert!(looks > 0, "nobody looks, or the events were renamed: {}", events.text());
    assert!(u128::from(looks) <= most, "{looks} looks, not {most}");
    holder.hang_up();
    for waiter in waiters {
        timeout(VERY_LONG, waiter).await.unwrap().unwrap();
    }
}

#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<u8>>>);

impl Events {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn count(&self, words: &str) -> u32 {
        let lines = self.text().lines().filter(|line| line.contains(words)).count();
        u32::try_from(lines).unwrap()
    }
}

impl Write for Events {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a lock guards: two writers at once lose a count, or meet at the door.
struct Ledger {
    count: PathBuf,
    door: PathBuf,
}

impl Ledger {
    async fn enter(&self) {
        std::fs::File::create_new(&self.door).expect("nobody else is inside");
        let count: u64 = std::fs::read_to_string(&self.count).unwrap().parse().unwrap();
        tokio::task::yield_now().await;
        std::fs::write(&self.count, (count + 1).to_string()).unwrap();
        std::fs::remove_file(&self.door).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_with_many_spellings_exclude_one_another() {
    const TASKS: usize = 64;
    const ENTRIES: usize = 25;
    for (pin, offload) in [Proof::Auto, Proof::Process]
        .into_iter()
        .flat_map(|pin| [Offload::Never, Offload::Always].map(|offload| (pin, offload)))
    {
        let spellings = Spellings::new();
        let beside = support::on_tmpfs();
        let ledger = Arc::new(Ledger {
            count: beside.path().join("count"),
            door: beside.path().join("door"),
        });
        std::fs::write(&ledger.count, "0").unwrap();
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let path = &spellings.of("a.lock")[task % 5];
                let options = FileOptions::default()
                    .proof(pin)
                    .offload(offload)
                    .retry_period(Duration::from_millis(2));
                let lock = AsyncFileLock::with_options(path, options).unwrap();
                let ledger = Arc::clone(&ledger);
                tokio::spawn(async move {
                    for entry in 0..ENTRIES {
                        let guard = lock.acquire().await.unwrap();
                        assert_eq!(guard.recovered_from(), None);
                        ledger.enter().await;
                        match entry % 2 {
                            0 => guard.release().await.unwrap(),
                            _ => drop(guard),
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            timeout(VERY_LONG, task).await.expect("a task is stuck").unwrap();
        }
        let count = std::fs::read_to_string(&ledger.count).unwrap();
        assert_eq!(count, (TASKS * ENTRIES).to_string());
        lockkeeper::flush().await;
        assert!(names_in(&spellings.directory()).is_empty());
    }
}

/// Nor does it wait for anything, so Tokio's budget has to see to that.
#[tokio::test]
async fn a_loop_that_finds_all_free_lets_other_tasks_run() {
    let directory = support::on_tmpfs();
    let held = AsyncFileLock::new(directory.path().join("held"));
    // The first look at a directory is waited for.
    let guard = held.acquire().await.unwrap();
    let mut other = tokio::spawn(async {});
    for number in 0..300 {
        let lock = AsyncFileLock::new(directory.path().join(number.to_string()));
        lock.acquire().await.unwrap().release().await.unwrap();
    }
    assert!(other.is_finished(), "after 300 acquisitions");
    other = tokio::spawn(async {});
    for _ in 0..300 {
        assert!(held.try_acquire().await.unwrap().is_none());
    }
    assert!(other.is_finished(), "after 300 tries");
    drop(guard);
}

/// What its own process has in the directory of before is in nobody's way.
#[tokio::test]
async fn nobody_queues_for_a_directory_that_the_path_leads_to_no_more() {
    let top = support::on_tmpfs();
    let [a, b, current] = ["a", "b", "current"].map(|name| top.path().join(name));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    std::os::unix::fs::symlink(&a, &current).unwrap();
    let lock = AsyncFileLock::new(current.join("a.lock"));
    let before = lock.acquire().await.unwrap();
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(&b, &current).unwrap();
    // The path is looked at again some milliseconds later.
    sleep(Duration::from_millis(100)).await;
    let guard = timeout(VERY_LONG, lock.acquire()).await.expect("it is free").unwrap();
    guard.release().await.unwrap();
    drop(before);
}

/// The file that a waiter has ready is of no use on another file system.
#[tokio::test]
async fn a_path_that_leads_to_another_file_system_meanwhile_is_locked_there() {
    let top = support::on_tmpfs();
    let (a, b) = (top.path().join("a"), support::on_disk());
    let current = top.path().join("current");
    std::fs::create_dir(&a).unwrap();
    std::os::unix::fs::symlink(&a, &current).unwrap();
    let path = current.join("a.lock");
    // Another program's, which lives.
    std::fs::write(&path, format!("{}\n", std::os::unix::process::parent_id())).unwrap();
    let lock = AsyncFileLock::new(&path);
    let mut waits = Box::pin(lock.acquire());
    for _ in 0..20 {
        assert!(poll!(&mut waits).is_pending());
        sleep(Duration::from_millis(1)).await;
    }
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(b.path(), &current).unwrap();
    std::fs::remove_file(a.join("a.lock")).unwrap();
    let guard = timeout(VERY_LONG, waits).await.expect("it is free").unwrap();
    assert_eq!(names_in(b.path()), ["a.lock"]);
    guard.release().await.unwrap();
}
