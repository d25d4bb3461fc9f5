//! File systems without hard links, and such as take a link for another file.

mod strace_support;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use lockkeeper::{AsyncFileLock, AsyncKernelLock, Error, FileOptions, Proof};
use strace_support::with_faults;
use support::{Process, eventually, names_in};

fn lock(pin: Proof, path: &Path) -> AsyncFileLock {
    AsyncFileLock::with_options(path, FileOptions::default().proof(pin)).unwrap()
}

/// Acquire, say how that went, hold until told, and release.
fn play((role, path): (String, PathBuf)) {
    let (pin, hurry) = role.split_once(' ').expect("how it is pinned, and how it acquires");
    let pin = if pin == "never" { Proof::Process } else { Proof::Auto };
    let hurry = hurry == "once";
    let play = move || {
        support::block_on(async {
            let lock = lock(pin, &path);
            let acquired = match hurry {
                true => lock.try_acquire().await,
                false => lock.acquire().await.map(Some),
            };
            match acquired {
                Ok(Some(guard)) => {
                    let dead = guard.recovered_from().is_some();
                    support::tell(if dead { "recovered" } else { "held" });
                    support::told();
                    guard.release().await.expect("a release");
                    support::tell("released");
                }
                Ok(None) => support::tell("busy"),
                Err(error) => support::tell(&error.to_string()),
            }
        })
    };
    std::thread::spawn(play).join().unwrap();
}

/// How file systems say that they have none.
const LINK_ERRORS: [&str; 5] = ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV"];
const PINS: [&str; 2] = ["auto", "never"];

fn without_links(test: &str, role: &str, path: &Path, error: &str) -> Process {
    let faults = [format!("link,linkat:error={error}")];
    Process::start(with_faults(&faults, &support::player(test, role, path)))
}

#[test]
fn a_lock_needs_no_hard_links() {
    const TEST: &str = "a_lock_needs_no_hard_links";
    if let Some(role) = support::role() {
        return play(role);
    }
    if !strace_support::is_there() {
        return;
    }
    for error in LINK_ERRORS {
        for pin in PINS {
            let directory = support::on_tmpfs();
            let path = directory.path().join("a.lock");
            let mut holder = without_links(TEST, &format!("{pin} wait"), &path, error);
            holder.expect("held");
            assert_eq!(names_in(directory.path()), ["a.lock"]);
            let other = without_links(TEST, &format!("{pin} once"), &path, error);
            other.expect("busy");
            holder.tell("go");
            holder.expect("released");
            assert!(holder.wait().success());
            assert!(names_in(directory.path()).is_empty(), "{:?}", names_in(directory.path()));
        }
    }
}

/// Who is killed there is taken over from, by the claim of a portable lock too.
#[test]
fn without_hard_links_the_dead_are_taken_over_from() {
    const TEST: &str = "without_hard_links_the_dead_are_taken_over_from";
    if let Some(role) = support::role() {
        return play(role);
    }
    if !strace_support::is_there() {
        return;
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, &format!("{pin} wait"), &path);
        holder.expect("held");
        holder.kill();
        let mut next = without_links(TEST, &format!("{pin} wait"), &path, "EPERM");
        next.expect("recovered");
        assert_eq!(names_in(directory.path()), ["a.lock"]);
        next.tell("go");
        next.expect("released");
        assert!(names_in(directory.path()).is_empty(), "{:?}", names_in(directory.path()));
    }
}

#[test]
fn where_there_is_no_way_the_error_says_what_is_missing_and_what_works() {
    const TEST: &str = "where_there_is_no_way_the_error_says_what_is_missing_and_what_works";
    if let Some(role) = support::role() {
        return play(role);
    }
    if !strace_support::is_there() {
        return;
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let faults = ["link,linkat:error=EPERM", "renameat2:error=EINVAL"].map(str::to_owned);
        let player = support::player(TEST, &format!("{pin} wait"), &path);
        let refused = Process::start(with_faults(&faults, &player)).next();
        assert!(refused.contains("no hard links"), "{refused}");
        assert!(refused.contains("a.lock") && refused.contains("--kernel flock"), "{refused}");
        assert!(names_in(directory.path()).is_empty(), "{:?}", names_in(directory.path()));
    }
}

/// A directory by way of FUSE, in which each name has an inode number of its own.
struct ByName {
    server: Child,
    mounted: PathBuf,
}

impl ByName {
    fn mount(below: &Path, mounted: &Path, flags: &[&str]) -> Option<Self> {
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/fuse/bin/python");
        let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/by_name_fuse.py");
        if !Path::new(python).exists() || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: needs /dev/fuse and what tests/setup.sh installs");
            return None;
        }
        let mut command = Command::new(python);
        command.arg(server).arg(below).arg(mounted).args(flags);
        let mut server = command.spawn().expect("python");
        let is_mounted = || {
            let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
            mounts.lines().any(|line| line.split(' ').nth(1) == mounted.to_str())
        };
        eventually("it is mounted, or cannot be", || {
            is_mounted() || server.try_wait().expect("its status").is_some()
        });
        if !is_mounted() {
            eprintln!("SKIPPED: this user may not mount a FUSE file system here");
            return None;
        }
        Some(Self { server, mounted: mounted.to_owned() })
    }
}

impl Drop for ByName {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).status();
        let _ = self.server.wait();
    }
}

fn by_name(flags: &[&str], check: impl AsyncFn(&Path, &Path)) {
    let directory = support::on_disk();
    let [below, mounted] = ["below", "mounted"].map(|name| directory.path().join(name));
    for made in [&below, &mounted] {
        fs::create_dir(made).unwrap();
    }
    let Some(_by_name) = ByName::mount(&below, &mounted, flags) else {
        return;
    };
    support::block_on(check(&below, &mounted));
}

/// Before anybody is told that the lock is held, and nothing stays.
#[test]
fn where_a_link_is_another_file_the_lock_is_refused() {
    by_name(&["without-rename-flags"], async |below, mounted| {
        let path = mounted.join("a.lock");
        for pin in [Proof::Auto, Proof::Process] {
            let error = lock(pin, &path).try_acquire().await.unwrap_err();
            assert!(matches!(error, Error::NoHardLinks { .. }), "{error:?}");
            // libfuse keeps what is removed while it is open under another name.
            eventually("nothing is left", || names_in(below).is_empty());
        }
        // What the error recommends.
        let kernel = AsyncKernelLock::new(&path);
        let guard = kernel.try_acquire().await.unwrap().expect("it is free");
        guard.release().await.unwrap();
    });
}

#[test]
fn where_a_link_is_another_file_a_rename_serves() {
    by_name(&[], async |below, mounted| {
        let path = mounted.join("a.lock");
        for pin in [Proof::Auto, Proof::Process] {
            let first = lock(pin, &path).try_acquire().await.unwrap().expect("it is free");
            // libfuse keeps what is removed while it is open under another name.
            eventually("the lock alone is there", || names_in(below) == ["a.lock"]);
            first.release().await.unwrap();
            eventually("nothing is left", || names_in(below).is_empty());
        }
    });
}
