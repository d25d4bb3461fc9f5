//! What the system refuses is told with the lock's name and a way out.

mod strace_support;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use lockkeeper::{AsyncFileLock, AsyncKernelLock};
use strace_support::with_faults;
use support::{Process, names_in};

fn play((kind, path): (String, PathBuf)) {
    let play = move || {
        support::block_on(async {
            let acquired = match kind.as_str() {
                "file" => AsyncFileLock::new(&path).acquire().await.map(drop),
                _ => AsyncKernelLock::new(&path).acquire().await.map(drop),
            };
            support::tell(&acquired.map_or_else(|error| error.to_string(), |()| "held".to_owned()));
        })
    };
    std::thread::spawn(play).join().unwrap();
}

fn say(test: &str, kind: &str, path: &Path, fault: &str) -> String {
    let faults = [fault.to_owned()];
    Process::start(with_faults(&faults, &support::player(test, kind, path))).next()
}

#[test]
fn a_lock_manager_that_is_away_is_named_with_the_lock() {
    const TEST: &str = "a_lock_manager_that_is_away_is_named_with_the_lock";
    if let Some(role) = support::role() {
        return play(role);
    }
    if !strace_support::is_there() {
        return;
    }
    let directory = support::on_tmpfs();
    for kind in ["file", "kernel"] {
        let path = directory.path().join(kind);
        let said = say(TEST, kind, &path, "flock:error=ENOLCK");
        assert!(said.contains("lock manager"), "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
    assert_eq!(names_in(directory.path()), ["kernel"], "a kernel lock's file stays");
}

/// A sandbox, or an old kernel: Rust's own library reads `/dev/urandom` then.
#[test]
fn without_getrandom_a_lock_is_held_all_the_same() {
    const TEST: &str = "without_getrandom_a_lock_is_held_all_the_same";
    if let Some(role) = support::role() {
        return play(role);
    }
    if !strace_support::is_there() {
        return;
    }
    let directory = support::on_tmpfs();
    for error in ["ENOSYS", "EPERM"] {
        let fault = format!("getrandom:error={error}");
        let path = directory.path().join("a.lock");
        assert_eq!(say(TEST, "file", &path, &fault), "held");
    }
}

/// A file system of its own, unmounted when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs(options: &str) -> Option<Self> {
        let mounted = Self(support::on_disk());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(mounted.0.path());
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(mounted);
        }
        eprintln!("SKIPPED: this user may not mount");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_file_system_that_takes_no_file_is_told_by_what_it_lacks() {
    for (options, word) in [("ro", "read-only"), ("nr_inodes=1", "full")] {
        let Some(mounted) = Mounted::tmpfs(options) else { return };
        let path = mounted.0.path().join("a.lock");
        let said = AsyncFileLock::new(&path).try_acquire().await.unwrap_err().to_string();
        assert!(said.contains(word) && said.contains(path.to_str().unwrap()), "{said}");
        let said = AsyncKernelLock::new(&path).try_acquire().await.unwrap_err().to_string();
        assert!(said.contains(word) && said.contains(path.to_str().unwrap()), "{said}");
    }
}
