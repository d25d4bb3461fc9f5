//! Waiting where the kernel has dropped events, and where it gives none.

mod support;

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error, FileOptions, Proof};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use support::{HOUR, Process};

/// More events than this would take a test too long.
const EVENTS_MAX: usize = 1 << 20;

fn pin_of(path: &Path) -> Proof {
    if path.ends_with("portable.lock") { Proof::Process } else { Proof::KernelLock }
}

/// Holds until told, and stays: its end would wake those who wait, too.
async fn hold(path: &Path) {
    let options = FileOptions::default().proof(pin_of(path));
    let lock = AsyncFileLock::with_options(path, options).unwrap();
    let guard = lock.acquire().await.unwrap();
    support::tell("held");
    support::told();
    guard.release().await.unwrap();
    support::tell("released");
    support::told();
}

/// How many events the kernel keeps for one who does not read them.
fn queued_events_max() -> usize {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    text.trim().parse().unwrap()
}

/// Another watch of the same directory, which nobody reads meanwhile.
fn another_watch(directory: &Path) -> OwnedFd {
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, directory, WatchFlags::CLOSE_WRITE | WatchFlags::DELETE).unwrap();
    watch
}

/// More events than are kept. Two files by turns, as what happens twice is told once.
fn overflow(directory: &Path, events: usize) {
    for number in 0..events {
        drop(File::create(directory.join(["one", "other"][number % 2])).unwrap());
    }
}

/// Whether events were dropped, and none of what is kept is of `path`.
fn has_dropped_all_of(watch: &OwnedFd, path: &Path) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(watch, &mut buffer);
    let mut has_dropped = false;
    loop {
        match reader.next() {
            Ok(event) => {
                has_dropped |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                let name = event.file_name().map(|name| name.to_bytes().to_owned());
                if name.is_some_and(|name| path.as_os_str().as_encoded_bytes().ends_with(&name)) {
                    return false;
                }
            }
            Err(Errno::AGAIN) => return has_dropped,
            Err(error) => panic!("reading events: {error}"),
        }
    }
}

/// The release happens after so many events that nothing of it is told: only
/// that something was not told can wake. The runtime's one thread is blocked
/// meanwhile, so that nobody reads.
#[tokio::test]
async fn dropped_events_wake() {
    const TEST: &str = "dropped_events_wake";
    if let Some((_, path)) = support::role() {
        return hold(&path).await;
    }
    let events = queued_events_max() + 1000;
    if events > EVENTS_MAX {
        return eprintln!("SKIPPED: max_queued_events is so large that {events} are needed");
    }
    for name in ["pinned.lock", "portable.lock"] {
        let directory = support::on_tmpfs();
        let path = directory.path().join(name);
        let mut holder = Process::play(TEST, "holder", &path);
        holder.expect("held");
        let options = FileOptions::default().proof(pin_of(&path));
        let options = options.retry_period(HOUR).fallback_period(HOUR);
        let lock = AsyncFileLock::with_options(&path, options).unwrap();
        let waiting = tokio::spawn(async move { lock.acquire().await });
        tokio::time::sleep(support::QUIET).await;
        assert!(!waiting.is_finished(), "it should have waited");
        let watch = another_watch(directory.path());
        overflow(directory.path(), events);
        holder.tell("release");
        holder.expect("released");
        assert!(has_dropped_all_of(&watch, &path), "{name}: no event of the release was dropped");
        assert!(!waiting.is_finished());
        let guard = tokio::time::timeout(support::VERY_LONG, waiting).await;
        drop(guard.expect("what was dropped should have woken it").unwrap().unwrap());
    }
}

/// A command in a user namespace of its own in which `limit` is nothing; `None`,
/// said clearly, where that is not allowed.
fn without(limit: &str, command: &Command) -> Option<Command> {
    let limited = |rest: &str| {
        let mut unshare = Command::new("unshare");
        let script = format!("echo 0 > /proc/sys/user/{limit} && {rest}");
        unshare.args(["-Ur", "sh", "-c", &script, "sh"]);
        unshare
    };
    let tried = limited("true").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this user may not set {limit} in a user namespace (unshare -Ur)");
        return None;
    }
    let mut unshare = limited("exec \"$@\"");
    unshare.arg(command.get_program()).args(command.get_args());
    unshare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Some(unshare)
}

/// That the kernel does refuse what this role is about.
fn must_be_refused(limit: &str, directory: &Path) {
    let refusal = match inotify::init(CreateFlags::CLOEXEC) {
        Ok(watch) => inotify::add_watch(&watch, directory, WatchFlags::DELETE).map(drop),
        Err(error) => Err(error),
    };
    let expected = if limit == INSTANCES { Errno::MFILE } else { Errno::NOSPC };
    assert_eq!(refusal, Err(expected));
}

const INSTANCES: &str = "max_inotify_instances";
const WATCHES: &str = "max_inotify_watches";

/// Waits for somebody else's lock by looking now and then.
async fn wait_without(limit: &str, path: &Path) {
    must_be_refused(limit, path.parent().unwrap());
    let options =
        FileOptions::default().proof(pin_of(path)).retry_period(Duration::from_millis(20));
    let lock = AsyncFileLock::with_options(path, options).unwrap();
    let error = lock.acquire_timeout(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    support::tell("waits");
    let guard = lock.acquire().await.unwrap();
    support::tell("acquired");
    // That it was lost is found by looking as well.
    fs::remove_file(path).unwrap();
    guard.lost().await;
    support::tell("lost");
}

/// Instances are counted for each user and watches, too, so that anybody's
/// other programs can have used them up.
#[test]
fn without_inotify_the_period_is_looked_at() {
    const TEST: &str = "without_inotify_the_period_is_looked_at";
    if let Some((limit, path)) = support::role() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(wait_without(&limit, &path));
    }
    for limit in [INSTANCES, WATCHES] {
        for name in ["pinned.lock", "portable.lock"] {
            let directory = support::on_tmpfs();
            let path = directory.path().join(name);
            let Some(command) = without(limit, &support::player(TEST, limit, &path)) else {
                return;
            };
            let options = FileOptions::default().proof(pin_of(&path));
            let lock = AsyncFileLock::with_options(&path, options).unwrap();
            let guard = lock.blocking_acquire().unwrap();
            let waiter = Process::start(command);
            waiter.expect("waits");
            waiter.expect_quiet();
            drop(guard);
            waiter.expect("acquired");
            waiter.expect("lost");
        }
    }
}
