//! A moment without descriptors or memory does not end a wait: only a single try
//! and a limit report it.

mod strace_support;
mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::poll;
use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, Error, FileGuard, FileOptions, KernelGuard, KernelOptions,
    Offload, acquire_all,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{HOUR, Log, Process, eventually, kernel_locks};
use tokio::runtime::Runtime;
use tokio::time::sleep;

/// Between two looks of a waiter that is short.
const PERIOD: Duration = Duration::from_millis(10);

/// Some looks of a waiter.
const LOOKS: Duration = PERIOD.saturating_mul(20);

#[derive(Debug)]
enum Guard {
    File(FileGuard),
    Kernel(KernelGuard),
}

impl Guard {
    async fn release(self) {
        match self {
            Guard::File(guard) => guard.release().await.unwrap(),
            Guard::Kernel(guard) => guard.release().await.unwrap(),
        }
    }
}

/// A lock of either kind.
#[derive(Clone)]
enum Lock {
    File(AsyncFileLock),
    Kernel(AsyncKernelLock),
}

impl Lock {
    /// `role` is the kind, and where the calls run. Who only waits for the shortage to
    /// pass has no other reason to look.
    fn new(role: &str, path: &Path) -> Self {
        let offload = if role.contains("lane") { Offload::Always } else { Offload::Auto };
        let fallback = if role.contains("looks") { PERIOD } else { HOUR };
        if role.contains("kernel") {
            let options = KernelOptions::default().offload(offload).fallback_period(fallback);
            let options = options.retry_period(PERIOD);
            return Lock::Kernel(AsyncKernelLock::with_options(path, options).unwrap());
        }
        let options = FileOptions::default().offload(offload).fallback_period(fallback);
        let options = options.retry_period(PERIOD);
        Lock::File(AsyncFileLock::with_options(path, options).unwrap())
    }

    async fn acquire(&self) -> Result<Guard, Error> {
        match self {
            Lock::File(lock) => lock.acquire().await.map(Guard::File),
            Lock::Kernel(lock) => lock.acquire().await.map(Guard::Kernel),
        }
    }

    async fn acquire_timeout(&self, limit: Duration) -> Result<Guard, Error> {
        match self {
            Lock::File(lock) => lock.acquire_timeout(limit).await.map(Guard::File),
            Lock::Kernel(lock) => lock.acquire_timeout(limit).await.map(Guard::Kernel),
        }
    }

    async fn try_acquire(&self) -> Result<Option<Guard>, Error> {
        match self {
            Lock::File(lock) => Ok(lock.try_acquire().await?.map(Guard::File)),
            Lock::Kernel(lock) => Ok(lock.try_acquire().await?.map(Guard::Kernel)),
        }
    }

    fn blocking_acquire(&self) -> Result<Guard, Error> {
        match self {
            Lock::File(lock) => lock.blocking_acquire().map(Guard::File),
            Lock::Kernel(lock) => lock.blocking_acquire().map(Guard::Kernel),
        }
    }
}

const ROLES: [&str; 4] = ["file", "file lane", "kernel", "kernel lane"];

/// All descriptors that this process may have.
fn all_descriptors() -> Vec<OwnedFd> {
    let limit = Rlimit { current: Some(64), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    let mut taken = vec![null];
    while let Ok(more) = taken[0].try_clone() {
        taken.push(more);
    }
    taken
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// In each role in a process of its own, which ends with this.
fn in_each_role(test: &str) {
    for role in ROLES {
        let directory = support::on_tmpfs();
        let mut child = Process::play(test, role, &directory.path().join("a.lock"));
        child.expect("done");
        assert!(child.wait().success(), "{role}");
    }
}

fn is_short(error: &Error, path: &Path) -> bool {
    let text = error.to_string();
    let is_said = text.contains(path.to_str().unwrap()) && text.contains("ulimit -n");
    matches!(error, Error::Shortage { .. }) && is_said
}

#[test]
fn a_wait_without_a_limit_outlasts_it() {
    let Some((role, path)) = support::role() else {
        return in_each_role("a_wait_without_a_limit_outlasts_it");
    };
    let log = Log::listen();
    runtime().block_on(async {
        // Where the calls run has its thread then.
        Lock::new(&role, &path).acquire().await.unwrap().release().await;
        for round in 1..3 {
            // One that keeps no descriptor open which it could use.
            let lock = Lock::new(&role, &path);
            // What the last wait took is put away when there is time.
            sleep(PERIOD).await;
            let taken = all_descriptors();
            let mut acquiring = pin!(lock.acquire());
            while log.warnings() < round {
                let polled = poll!(&mut acquiring);
                assert!(polled.is_pending(), "{role}: {polled:?}");
                sleep(PERIOD).await;
            }
            tokio::select! {
                acquired = &mut acquiring => panic!("{role}: {acquired:?}"),
                () = sleep(LOOKS) => {}
            }
            drop(taken);
            acquiring.await.unwrap().release().await;
            assert_eq!(log.warnings(), round, "{role}: once for each wait");
        }
    });
    support::tell("done");
}

#[test]
fn a_single_try_and_a_limit_report_it() {
    let Some((role, path)) = support::role() else {
        return in_each_role("a_single_try_and_a_limit_report_it");
    };
    runtime().block_on(async {
        Lock::new(&role, &path).acquire().await.unwrap().release().await;
        let lock = Lock::new(&role, &path);
        let taken = all_descriptors();
        for error in [
            lock.try_acquire().await.unwrap_err(),
            lock.acquire_timeout(Duration::ZERO).await.unwrap_err(),
            lock.acquire_timeout(LOOKS).await.unwrap_err(),
        ] {
            assert!(is_short(&error, &path), "{role}: {error:?}: {error}");
        }
        drop(taken);
        lock.try_acquire().await.unwrap().unwrap().release().await;
    });
    support::tell("done");
}

/// There is no runtime yet, and one needs descriptors.
#[test]
fn a_blocked_thread_outlasts_it() {
    let Some((role, path)) = support::role() else {
        return in_each_role("a_blocked_thread_outlasts_it");
    };
    let (lock, log) = (Lock::new(&role, &path), Log::listen());
    let taken = all_descriptors();
    let blocked = std::thread::spawn(move || lock.blocking_acquire().map(drop));
    eventually("it is short", || log.warnings() == 1);
    drop(taken);
    blocked.join().unwrap().unwrap();
    support::tell("done");
}

/// Behind a holder of another process, with another task behind it.
#[test]
fn it_costs_a_waiter_no_place() {
    const TEST: &str = "it_costs_a_waiter_no_place";
    if let Some((role, path)) = support::role() {
        return match role.strip_prefix("holds ") {
            Some(kind) => hold_until_told(&Lock::new(kind, &path)),
            None => wait_in_line(&role, &path),
        };
    }
    // With the calls on another thread there is no line of processes.
    for role in ["file looks", "kernel looks"] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, &format!("holds {role}"), &path);
        holder.expect("held");
        let mut waiter = Process::play(TEST, role, &path);
        waiter.expect("short");
        let is_in_line = || !kernel_locks(directory.path(), "OFDLCK").is_empty();
        eventually("it has a place among the processes", is_in_line);
        std::thread::sleep(LOOKS);
        // Of a table that other processes change one look may miss a line.
        eventually("it has kept its place", is_in_line);
        waiter.tell("enough");
        waiter.expect("enough");
        holder.hang_up();
        waiter.expect("first");
        waiter.expect("second");
    }
}

fn hold_until_told(lock: &Lock) {
    runtime().block_on(async {
        let guard = lock.acquire().await.unwrap();
        support::tell("held");
        support::told();
        guard.release().await;
    });
}

fn wait_in_line(role: &str, path: &Path) {
    let (lock, log) = (Lock::new(role, path), Log::listen());
    runtime().block_on(async {
        let line = ["first", "second"].map(|name| {
            let lock = lock.clone();
            tokio::spawn(async move {
                let guard = lock.acquire().await.unwrap();
                support::tell(name);
                guard.release().await;
            })
        });
        let directory = path.parent().unwrap();
        while kernel_locks(directory, "OFDLCK").is_empty() {
            sleep(PERIOD).await;
        }
        let taken = all_descriptors();
        if role.contains("kernel") {
            // Its file is open between two looks: only a new one needs a descriptor.
            sleep(LOOKS).await;
            assert_eq!(log.warnings(), 0);
        }
        while role.contains("file") && log.warnings() == 0 {
            sleep(PERIOD).await;
        }
        support::tell("short");
        support::told();
        drop(taken);
        support::tell("enough");
        for task in line {
            task.await.unwrap();
        }
    });
}

/// One descriptor is enough for one lock: the other is short, and nothing is held
/// while it is waited for.
#[test]
fn all_of_several_are_acquired_after_it() {
    const TEST: &str = "all_of_several_are_acquired_after_it";
    let Some((_, path)) = support::role() else {
        let directory = support::on_tmpfs();
        let mut child = Process::play(TEST, "file", &directory.path().join("a.lock"));
        child.expect("done");
        assert!(child.wait().success());
        return;
    };
    let log = Log::listen();
    runtime().block_on(async {
        let other = path.with_extension("other");
        let [one, other] = [&path, &other].map(|path| {
            let options = FileOptions::default().retry_period(PERIOD);
            AsyncFileLock::with_options(path, options).unwrap()
        });
        one.acquire().await.unwrap().release().await.unwrap();
        let mut taken = all_descriptors();
        taken.pop();
        let mut acquiring = pin!(acquire_all([&one, &other]));
        // Neither the one nor the other was acquired for good.
        while log.warnings() < 5 {
            let polled = poll!(&mut acquiring);
            assert!(polled.is_pending(), "{polled:?}");
            sleep(PERIOD).await;
        }
        drop(taken);
        acquiring.await.unwrap().release().await.unwrap();
    });
    support::tell("done");
}

/// What the system as a whole is short of cannot be had here: strace has the kernel say so.
#[test]
fn a_shortage_of_the_system_is_outlasted_too() {
    const TEST: &str = "a_shortage_of_the_system_is_outlasted_too";
    if let Some((role, path)) = support::role() {
        let (lock, log) = (Lock::new(&role, &path), Log::listen());
        runtime().block_on(async {
            let acquired = tokio::time::timeout(support::VERY_LONG, lock.acquire()).await;
            acquired.expect("it does not end").unwrap().release().await;
        });
        assert_eq!(log.warnings(), 1, "{role}");
        return support::tell("done");
    }
    if !strace_support::is_there() {
        return;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    for (role, error) in [("file", "ENFILE"), ("kernel", "ENFILE"), ("kernel lane", "ENOMEM")] {
        let played = support::player(TEST, role, &path);
        // Only what is opened there, and not what the process is made of.
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null"]);
        strace.arg("-P").arg(&path).arg("-P").arg(directory.path());
        strace.arg("-etrace=?open,openat");
        strace.arg(format!("-einject=?open,openat:error={error}:when=1..5"));
        strace.arg(played.get_program()).args(played.get_args());
        strace.envs(played.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = Process::start(strace);
        child.expect("done");
        assert!(child.wait().success(), "{role}");
    }
}
