//! A directory that is away for a moment does not end a wait that has begun.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, Error, FileOptions, KernelOptions, Offload};
use support::{Log, Process, VERY_LONG, kernel_locks};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Between two looks of a waiter that cannot look.
const PERIOD: Duration = Duration::from_millis(10);

/// Some looks of a waiter.
const LOOKS: Duration = PERIOD.saturating_mul(20);

/// A lock of either kind. What it gives is released as soon as it is acquired.
#[derive(Clone)]
enum Lock {
    File(AsyncFileLock),
    Kernel(AsyncKernelLock),
}

impl Lock {
    /// `role` is the kind, and where the calls run.
    fn new(role: &str, path: &Path) -> Self {
        let offload = if role.contains("lane") { Offload::Always } else { Offload::Auto };
        if role.contains("kernel") {
            let options = KernelOptions::default().offload(offload).fallback_period(PERIOD);
            let options = options.retry_period(PERIOD);
            return Lock::Kernel(AsyncKernelLock::with_options(path, options).unwrap());
        }
        let options = FileOptions::default().offload(offload).fallback_period(PERIOD);
        let options = options.retry_period(PERIOD);
        Lock::File(AsyncFileLock::with_options(path, options).unwrap())
    }

    async fn acquire(&self) -> Result<(), Error> {
        match self {
            Lock::File(lock) => lock.acquire().await?.release().await,
            Lock::Kernel(lock) => lock.acquire().await?.release().await,
        }
    }

    async fn acquire_timeout(&self, limit: Duration) -> Result<(), Error> {
        match self {
            Lock::File(lock) => lock.acquire_timeout(limit).await?.release().await,
            Lock::Kernel(lock) => lock.acquire_timeout(limit).await?.release().await,
        }
    }

    async fn try_acquire(&self) -> Result<(), Error> {
        match self {
            Lock::File(lock) => lock.try_acquire().await.map(drop),
            Lock::Kernel(lock) => lock.try_acquire().await.map(drop),
        }
    }
}

const ROLES: [&str; 4] = ["file", "file lane", "kernel", "kernel lane"];

/// A directory whose lock another process holds.
struct Stage {
    home: TempDir,
    /// Ends with the test.
    holder: Process,
}

impl Stage {
    fn set(test: &str, role: &str) -> Self {
        let home = support::on_tmpfs();
        fs::create_dir(home.path().join("current")).unwrap();
        let holder = Process::play(test, role, &home.path().join("current/a.lock"));
        holder.expect("held");
        Self { home, holder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn lock(&self, role: &str) -> Lock {
        Lock::new(role, &self.at("current/a.lock"))
    }

    fn moves(&self, from: &str, to: &str) {
        fs::rename(self.at(from), self.at(to)).unwrap();
    }
}

fn hold(role: &str, path: &Path) {
    support::block_on(async {
        match Lock::new(role, path) {
            Lock::File(lock) => {
                let guard = lock.acquire().await.unwrap();
                support::tell("held");
                support::told();
                drop(guard);
            }
            Lock::Kernel(lock) => {
                let guard = lock.acquire().await.unwrap();
                support::tell("held");
                support::told();
                drop(guard);
            }
        }
    });
}

fn waits(lock: &Lock) -> JoinHandle<Result<(), Error>> {
    let lock = lock.clone();
    tokio::spawn(async move { lock.acquire().await })
}

/// It has begun to wait: it has looked at the file in that directory again and again.
async fn sees_it_busy(waiting: &JoinHandle<Result<(), Error>>, log: &Log) {
    let looks = log.looks();
    support::eventually_async("it looks", || log.looks() >= looks + 3).await;
    assert!(!waiting.is_finished());
}

/// It has looked where the directory is missing, and goes on.
async fn misses_it(waiting: &JoinHandle<Result<(), Error>>, log: &Log) {
    support::eventually_async("it looks", || log.warnings() > 0).await;
    sleep(LOOKS).await;
    assert!(!waiting.is_finished(), "the wait ended");
    assert_eq!(log.warnings(), 1, "it is said once");
}

async fn ends(waiting: JoinHandle<Result<(), Error>>) {
    timeout(VERY_LONG, waiting).await.expect("it waits for ever").unwrap().unwrap();
}

#[tokio::test]
async fn a_directory_that_is_moved_away_and_back_ends_no_wait() {
    const TEST: &str = "a_directory_that_is_moved_away_and_back_ends_no_wait";
    if let Some((role, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&role, &path)).await.unwrap();
    }
    for role in ROLES {
        let mut stage = Stage::set(TEST, role);
        let (log, _listens) = Log::of_this_thread();
        let waiting = waits(&stage.lock(role));
        sees_it_busy(&waiting, &log).await;
        stage.moves("current", "away");
        misses_it(&waiting, &log).await;
        stage.moves("away", "current");
        sees_it_busy(&waiting, &log).await;
        stage.holder.hang_up();
        ends(waiting).await;
    }
}

#[tokio::test]
async fn a_directory_that_is_made_anew_ends_no_wait() {
    const TEST: &str = "a_directory_that_is_made_anew_ends_no_wait";
    if let Some((role, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&role, &path)).await.unwrap();
    }
    for role in ROLES {
        let stage = Stage::set(TEST, role);
        let (log, _listens) = Log::of_this_thread();
        let waiting = waits(&stage.lock(role));
        sees_it_busy(&waiting, &log).await;
        fs::remove_dir_all(stage.at("current")).unwrap();
        misses_it(&waiting, &log).await;
        fs::create_dir(stage.at("current")).unwrap();
        ends(waiting).await;
    }
}

#[tokio::test]
async fn a_part_of_the_way_that_is_no_directory_for_a_while_ends_no_wait() {
    const TEST: &str = "a_part_of_the_way_that_is_no_directory_for_a_while_ends_no_wait";
    if let Some((role, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&role, &path)).await.unwrap();
    }
    for role in ROLES {
        let stage = Stage::set(TEST, role);
        let (log, _listens) = Log::of_this_thread();
        let waiting = waits(&stage.lock(role));
        sees_it_busy(&waiting, &log).await;
        fs::write(stage.at("file"), "").unwrap();
        stage.moves("current", "away");
        stage.moves("file", "current");
        misses_it(&waiting, &log).await;
        stage.moves("current", "file");
        fs::create_dir(stage.at("current")).unwrap();
        ends(waiting).await;
    }
}

/// The one that comes back may be another, where another process holds the lock.
#[tokio::test]
async fn a_waiter_stands_in_the_line_of_the_directory_that_comes_back() {
    const TEST: &str = "a_waiter_stands_in_the_line_of_the_directory_that_comes_back";
    if let Some((role, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&role, &path)).await.unwrap();
    }
    // With the calls on another thread there is no line of processes.
    for role in ["file", "kernel"] {
        let stage = Stage::set(TEST, role);
        let (log, _listens) = Log::of_this_thread();
        fs::create_dir(stage.at("next")).unwrap();
        let mut next = Process::play(TEST, role, &stage.at("next/a.lock"));
        next.expect("held");
        let waiting = waits(&stage.lock(role));
        sees_it_busy(&waiting, &log).await;
        stage.moves("current", "away");
        misses_it(&waiting, &log).await;
        stage.moves("next", "current");
        let is_in_line = || !kernel_locks(&stage.at("current"), "OFDLCK").is_empty();
        support::eventually_async("it is in line", is_in_line).await;
        assert!(!waiting.is_finished());
        next.hang_up();
        ends(waiting).await;
    }
}

#[tokio::test]
async fn at_its_limit_the_error_says_that_the_directory_is_missing() {
    const TEST: &str = "at_its_limit_the_error_says_that_the_directory_is_missing";
    if let Some((role, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&role, &path)).await.unwrap();
    }
    for role in ROLES {
        let stage = Stage::set(TEST, role);
        let (log, _listens) = Log::of_this_thread();
        let lock = stage.lock(role);
        let mut error = Error::Cancelled { lock: PathBuf::new().into() };
        // On a machine that is busy a short limit may come before the directory is gone.
        for limit in (1..10).map(|doublings| LOOKS * (1 << doublings)) {
            let waiter = lock.clone();
            let waiting = tokio::spawn(async move { waiter.acquire_timeout(limit).await });
            sleep(LOOKS).await;
            stage.moves("current", "away");
            error = timeout(VERY_LONG, waiting).await.unwrap().unwrap().unwrap_err();
            if !matches!(error, Error::Timeout { .. }) && log.warnings() > 0 {
                break;
            }
            stage.moves("away", "current");
        }
        assert!(matches!(error, Error::NoDirectory { .. }), "{role}: {error:?}");
        let path = stage.at("current/a.lock");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(log.warnings(), 1, "it waited for the directory until then");
        // One that is not there at the start may be a mistake in the path.
        for refused in [
            timeout(VERY_LONG, lock.acquire()).await.expect("it waits"),
            lock.acquire_timeout(Duration::ZERO).await,
            lock.try_acquire().await,
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::NoDirectory { .. }), "{role}: {error:?}");
        }
    }
}

/// A task that waits for its turn in the process has not looked yet.
#[tokio::test]
async fn a_task_behind_another_of_its_process_waits_for_the_directory_too() {
    for role in ROLES {
        let home = support::on_tmpfs();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("current")).unwrap();
        let (log, _listens) = Log::of_this_thread();
        let lock = Lock::new(role, &at("current/a.lock"));
        let held: Box<dyn Send> = match &lock {
            Lock::File(lock) => Box::new(lock.acquire().await.unwrap()),
            Lock::Kernel(lock) => Box::new(lock.acquire().await.unwrap()),
        };
        let waiting = waits(&lock);
        support::eventually_async("it waits", || log.waits() > 0).await;
        // It has its place in the queue then.
        sleep(support::QUIET).await;
        fs::rename(at("current"), at("away")).unwrap();
        drop(held);
        misses_it(&waiting, &log).await;
        fs::create_dir(at("current")).unwrap();
        ends(waiting).await;
    }
}
