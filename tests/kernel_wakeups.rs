//! Who waits for a kernel lock is woken and let in, whatever else is done with its file:
//! copies in children, another directory at its path.

// A raw fork is one of the ways to give a file away.
#![allow(unsafe_code)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::poll;
use lockkeeper::{AsyncKernelLock, Error, KernelGuard, KernelOptions, Offload, Primitive};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::sleep;

use support::{
    HOUR, Process, VERY_LONG, all_hold, block_on, eventually, kernel_locks, on_tmpfs, role, tell,
    told,
};

fn lock(kind: &str, path: &Path) -> AsyncKernelLock {
    let options = KernelOptions::default();
    let options = match kind {
        "flock" => options,
        "flock kept" => options.keep_open(true),
        "flock elsewhere" => options.offload(Offload::Always),
        "flock kept elsewhere" => options.keep_open(true).offload(Offload::Always),
        "ofd" => options.primitive(Primitive::Ofd),
        "ofd kept" => options.primitive(Primitive::Ofd).keep_open(true),
        "ofd tail" => options.primitive(Primitive::Ofd).range(20..30),
        "ofd mid" => options.primitive(Primitive::Ofd).range(25..35),
        other => panic!("{other}?"),
    };
    // Nothing is looked at for the time that has passed, once it was a while.
    AsyncKernelLock::with_options(path, options.fallback_period(HOUR)).expect("possible options")
}

/// Roles of two words or more: what to do, and with which kind of lock.
fn play((role, path): (String, PathBuf)) {
    let (verb, kind) = role.split_once(' ').expect("a verb and a kind");
    let lock = lock(kind, &path);
    match verb {
        "acquire" => block_on(obey(lock.acquire())),
        "copied" => hold_with_a_copy(&lock, "copied"),
        "forked" => hold_with_a_copy(&lock, "forked"),
        "hears" => wait_for_an_event(lock, false),
        "reads" => wait_for_an_event(lock, true),
        "writes" => block_on(async {
            // So long that readers must have been in its way.
            match lock.acquire_timeout(WRITER_WAITS).await {
                Ok(_guard) => tell("in"),
                Err(error) => tell(&error.to_string()),
            }
        }),
        other => panic!("{other}?"),
    }
}

/// Let go when told to, and live on.
async fn obey(acquire: impl Future<Output = Result<KernelGuard, Error>>) {
    let mut guard = Some(acquire.await.expect("nothing is wrong"));
    tell("held");
    while let Some(order) = told() {
        let held = guard.take().expect("an order of which something is left");
        match order.as_str() {
            "release" => held.release().await.expect("nothing is wrong"),
            "downgrade" => guard = Some(held.downgrade().await.expect("nothing is wrong")),
            other => panic!("{other}?"),
        }
        tell("done");
    }
}

/// A child has the guard's open file, and lives longer than the hold.
fn hold_with_a_copy(lock: &AsyncKernelLock, how: &str) {
    let guard = block_on(lock.acquire()).unwrap();
    let end: Box<dyn FnOnce()> = if how == "forked" {
        // SAFETY: the child only makes system calls, and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Box::new(move || {
                kill(child, Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
            }),
            ForkResult::Child => unsafe {
                libc::sleep(120);
                libc::_exit(0)
            },
        }
    } else {
        let copy = guard.file().try_clone().unwrap();
        let mut sleep = Command::new("sleep");
        let mut child = sleep.arg("120").stdin(Stdio::from(copy)).spawn().unwrap();
        Box::new(move || {
            child.kill().unwrap();
            child.wait().unwrap();
        })
    };
    block_on(obey(async { Ok(guard) }));
    end();
}

/// More than it takes until the looks are an hour apart.
const LOOKS: usize = 40;

/// Wait for the lock by a clock that this advances. Once it has said `waiting`, no
/// look but after an event is due for three quarters of an hour of that clock, of
/// which less than a minute passes: time for an event's echoes. So whoever says
/// `held` was woken, however slow the machine is.
fn wait_for_an_event(lock: AsyncKernelLock, is_shared: bool) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(async {
        // The clock would go on by itself if nothing blocked.
        let end = tokio::task::spawn_blocking(told);
        let waiter: JoinHandle<Result<KernelGuard, Error>> = tokio::spawn(async move {
            if is_shared { lock.acquire_shared().await } else { lock.acquire().await }
        });
        for _ in 0..LOOKS {
            advance(2 * HOUR).await;
        }
        assert!(!waiter.is_finished(), "it is not held");
        tell("waiting");
        let start = Instant::now();
        while !waiter.is_finished() && start.elapsed() < VERY_LONG / 2 {
            advance(Duration::from_millis(1)).await;
        }
        if waiter.is_finished() {
            let _guard = waiter.await.unwrap().unwrap();
            tell("held");
            end.await.unwrap();
        } else {
            tell("heard nothing");
            std::process::exit(0);
        }
    });
}

async fn advance(time: Duration) {
    tokio::time::advance(time).await;
    // Other threads answer, and the kernel tells.
    std::thread::sleep(Duration::from_millis(1));
    for _ in 0..5 {
        yield_now().await;
    }
}

/// The waiter is woken when the holder does as it is told.
#[track_caller]
fn must_be_heard(test: &str, holder: &str, order: &str, waiter: &str, path: &Path) -> Process {
    let mut holding = Process::play(test, holder, path);
    holding.expect("held");
    let waiting = Process::play(test, waiter, path);
    waiting.expect("waiting");
    holding.tell(order);
    holding.expect("done");
    assert_eq!(waiting.next(), "held", "{holder}, {order}, {waiter}");
    holding
}

/// Else both would have the lock.
#[tokio::test]
async fn a_file_that_a_child_may_have_is_not_locked_again() {
    let directory = on_tmpfs();
    let path = directory.path().join("lock");
    let flock = lock("flock", &path);
    let guard = flock.acquire().await.unwrap();
    let copy = guard.file().try_clone().unwrap();
    drop(guard);
    let hold = "import fcntl, sys; fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB); \
        print('held', flush=True); sys.stdout.close(); import time; time.sleep(120)";
    let mut child = Command::new("python3");
    let child = child.args(["-c", hold]).stdin(Stdio::from(copy)).stdout(Stdio::piped());
    let mut child = child.spawn().expect("python");
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "held\n");
    assert!(flock.try_acquire().await.unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Readers let it in within some 50 ms, or never.
const WRITER_WAITS: Duration = Duration::from_secs(10);

/// At any time some reader of this process holds the lock, unless a writer is let in.
async fn read_without_a_pause(lock: &AsyncKernelLock) -> Vec<JoinHandle<()>> {
    let readers = (0..4).map(|number| {
        let lock = lock.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(7 * number)).await;
            loop {
                let guard = lock.acquire_shared().await.expect("nothing is wrong");
                sleep(Duration::from_millis(25)).await;
                drop(guard);
            }
        })
    });
    let readers = readers.collect();
    sleep(Duration::from_millis(100)).await;
    readers
}

/// A writer of another process gets in between the readers of this one.
async fn must_let_a_writer_in(test: &'static str, lock: &AsyncKernelLock, what: &str) {
    let readers = read_without_a_pause(lock).await;
    let path = lock.path().to_owned();
    let writer = move || Process::play(test, "writes flock", &path).next();
    let said = tokio::task::spawn_blocking(writer).await.unwrap();
    assert!(readers.iter().all(|reader| !reader.is_finished()), "{what}: a reader has ended");
    assert_eq!(said, "in", "{what}");
}

const WAYS: [&str; 2] = ["flipped", "made again"];

/// Two ways to have another directory at the path of the one a lock was used in.
fn replace(how: &str, directory: &Path) {
    let [first, second, current] = ["a", "b", "current"].map(|name| directory.join(name));
    match how {
        "begin" => {
            fs::create_dir(&first).unwrap();
            fs::create_dir(&second).unwrap();
            symlink(&first, &current).unwrap();
        }
        "flipped" => {
            let new = directory.join("new");
            symlink(&second, &new).unwrap();
            fs::rename(&new, &current).unwrap();
        }
        "made again" => {
            fs::rename(&first, directory.join("old")).unwrap();
            fs::create_dir(&first).unwrap();
            fs::remove_dir_all(directory.join("old")).unwrap();
        }
        other => panic!("{other}?"),
    }
}

/// Who waits was looked for in the directory that the path led to at first.
#[test]
fn readers_let_writers_in_after_the_directory_was_replaced() {
    const TEST: &str = "readers_let_writers_in_after_the_directory_was_replaced";
    if let Some(role) = role() {
        return play(role);
    }
    for (how, kind) in WAYS.into_iter().flat_map(|how| [(how, "flock"), (how, "flock elsewhere")]) {
        let directory = on_tmpfs();
        replace("begin", directory.path());
        let lock = lock(kind, &directory.path().join("current/lock"));
        block_on(async {
            drop(lock.acquire_shared().await.unwrap());
            replace(how, directory.path());
            must_let_a_writer_in(TEST, &lock, how).await;
        });
    }
}

/// And who waited already stood in the line of the directory that was there then.
#[test]
fn readers_let_in_a_writer_that_waited_before_the_directory_was_replaced() {
    const TEST: &str = "readers_let_in_a_writer_that_waited_before_the_directory_was_replaced";
    if let Some(role) = role() {
        return play(role);
    }
    for how in WAYS {
        let directory = on_tmpfs();
        replace("begin", directory.path());
        let path = directory.path().join("current/lock");
        let guard = block_on(lock("flock", &path).acquire()).unwrap();
        let writer = Process::play(TEST, "writes flock", &path);
        let waiters = directory.path().join("a");
        eventually("it waits", || !kernel_locks(&waiters, "OFDLCK").is_empty());
        replace(how, directory.path());
        block_on(async {
            let readers = read_without_a_pause(&lock("flock", &path)).await;
            let said = tokio::task::spawn_blocking(move || writer.next()).await.unwrap();
            assert_eq!(said, "in", "{how}");
            drop((guard, readers));
        });
    }
}

/// As there: who keeps its file open did not see that somebody waits for its close.
#[test]
fn a_file_kept_open_is_closed_for_waiters_after_the_directory_was_replaced() {
    const TEST: &str = "a_file_kept_open_is_closed_for_waiters_after_the_directory_was_replaced";
    if let Some(role) = role() {
        return play(role);
    }
    let kinds = ["flock kept", "flock kept elsewhere"];
    for (how, kind) in WAYS.into_iter().flat_map(|how| kinds.map(|kind| (how, kind))) {
        let directory = on_tmpfs();
        replace("begin", directory.path());
        let path = directory.path().join("current/lock");
        let kept = lock(kind, &path);
        block_on(async {
            drop(kept.acquire().await.unwrap());
            replace(how, directory.path());
            let guard = kept.acquire().await.unwrap();
            let waiter = Process::play(TEST, "hears flock", &path);
            waiter.expect("waiting");
            drop(guard);
            assert_eq!(waiter.next(), "held", "{how}");
        });
    }
}

/// That nobody could be looked for once, for want of descriptors, was remembered.
#[test]
fn readers_let_writers_in_after_descriptors_were_short() {
    const TEST: &str = "readers_let_writers_in_after_descriptors_were_short";
    if let Some((role, path)) = role() {
        if role != "short of descriptors" {
            return play((role, path));
        }
        let lock = lock("flock", &path);
        return block_on(async {
            drop(lock.acquire().await.unwrap());
            let limit = getrlimit(Resource::Nofile);
            let none = Rlimit { current: Some(0), maximum: limit.maximum };
            setrlimit(Resource::Nofile, none).unwrap();
            let refused = lock.try_acquire_shared().await;
            setrlimit(Resource::Nofile, limit).unwrap();
            assert!(matches!(refused, Err(Error::Shortage { .. })), "{refused:?}");
            let readers = read_without_a_pause(&lock).await;
            tell("reading");
            tokio::task::spawn_blocking(told).await.unwrap();
            let are_all = readers.iter().all(|reader| !reader.is_finished());
            tell(if are_all { "still reading" } else { "a reader has ended" });
            std::process::exit(0);
        });
    }
    let directory = on_tmpfs();
    let path = directory.path().join("lock");
    let mut readers = Process::play(TEST, "short of descriptors", &path);
    readers.expect("reading");
    let said = Process::play(TEST, "writes flock", &path).next();
    readers.hang_up();
    readers.expect("still reading");
    assert_eq!(said, "in");
}

/// Who made its calls on another thread saw nobody wait.
#[test]
fn who_makes_its_calls_elsewhere_lets_others_in() {
    const TEST: &str = "who_makes_its_calls_elsewhere_lets_others_in";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    let path = directory.path().join("lock");
    let holder = "acquire flock kept elsewhere";
    drop(must_be_heard(TEST, holder, "release", "hears flock", &path));
    let lock = lock("flock elsewhere", &path);
    block_on(must_let_a_writer_in(TEST, &lock, "elsewhere"));
}

/// A release was told by the close of the file, which is none as long as another
/// process has the same open file.
#[test]
fn a_release_wakes_though_a_child_has_the_file() {
    const TEST: &str = "a_release_wakes_though_a_child_has_the_file";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    let wait = &|how: &str, kind: &str| {
        let path = directory.path().join(format!("{how} {kind}"));
        let (holder, waiter) = (format!("{how} {kind}"), format!("hears {kind}"));
        let mut holder = must_be_heard(TEST, &holder, "release", &waiter, &path);
        assert!(holder.wait().success());
    };
    std::thread::scope(|scope| {
        for kind in ["flock", "flock kept", "ofd", "ofd kept"] {
            scope.spawn(move || wait("copied", kind));
            scope.spawn(move || wait("forked", kind));
        }
        scope.spawn(|| {
            let path = directory.path().join("overlapping");
            drop(must_be_heard(TEST, "copied ofd tail", "release", "hears ofd mid", &path));
        });
    });
}

/// Wait, hold, and then be busy with what never lets the runtime do anything again.
fn wait_and_be_busy(role: &str, path: &Path) {
    let options = KernelOptions::default().retry_period(HOUR).fallback_period(HOUR);
    let lock = AsyncKernelLock::with_options(path, options).unwrap();
    let work = |guard| {
        tell("held");
        std::thread::sleep(Duration::from_millis(20));
        drop(guard);
        tell("released");
        // All of them have had the lock long before.
        let be_busy = || std::thread::sleep(10 * VERY_LONG);
        if role == "blocks" {
            be_busy();
        }
        be_busy
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    match role {
        "blocks" => drop(runtime.block_on(async { work(lock.acquire().await.unwrap()) })),
        "leaves" => work(runtime.block_on(lock.acquire()).unwrap())(),
        other => panic!("{other}?"),
    }
}

/// Who had had the lock ended its place in the line when its runtime had time for
/// it, and those behind waited for that.
#[test]
fn who_had_the_lock_is_not_waited_for_though_its_runtime_stands_still() {
    const TEST: &str = "who_had_the_lock_is_not_waited_for_though_its_runtime_stands_still";
    if let Some((role, path)) = role() {
        return wait_and_be_busy(&role, &path);
    }
    for role in ["leaves", "blocks"] {
        let directory = on_tmpfs();
        let path = directory.path().join("line.lock");
        let guard = block_on(AsyncKernelLock::new(&path).acquire()).unwrap();
        let mut line = support::line(TEST, role, &path, 6);
        drop(guard);
        all_hold(&mut line);
    }
}

/// Who had waited in vain kept its turn while it asked who has the lock.
#[tokio::test]
async fn a_wait_that_is_over_keeps_no_task_out() {
    const TEST: &str = "a_wait_that_is_over_keeps_no_task_out";
    if let Some(role) = role() {
        return std::thread::spawn(|| play(role)).join().unwrap();
    }
    let directory = on_tmpfs();
    for limit in [Duration::ZERO, Duration::from_millis(20)] {
        let path = directory.path().join(format!("{limit:?}"));
        let lock = lock("flock", &path);
        // The directory is looked at elsewhere.
        drop(lock.acquire().await.unwrap());
        let mut holder = Process::play(TEST, "acquire flock", &path);
        holder.expect("held");
        let mut late = Box::pin(lock.acquire_timeout(limit));
        let _ = poll!(&mut late);
        if !limit.is_zero() {
            sleep(4 * limit).await;
            let _ = poll!(&mut late);
        }
        holder.tell("release");
        holder.expect("done");
        // Not polled meanwhile. Whoever it asked may have the lock for a moment.
        let start = Instant::now();
        while lock.try_acquire().await.unwrap().is_none() {
            assert!(start.elapsed() < VERY_LONG, "it keeps its turn, after {limit:?}");
            sleep(Duration::from_millis(2)).await;
        }
        drop(late);
    }
}
