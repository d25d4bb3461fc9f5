//! A file system that is frozen for a snapshot, fsfreeze(8): whoever writes there waits
//! until it is thawed. A wait for a held lock only looks.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error};
use support::{Process, eventually, kernel_locks};
use tempfile::TempDir;

/// A file system of its own, in a file.
struct FileSystem {
    at: PathBuf,
    _files: TempDir,
}

fn runs(command: &str, arguments: &[&Path]) -> bool {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl FileSystem {
    /// `None`, said clearly, where that is not allowed.
    fn new() -> Option<Self> {
        let files = support::on_disk();
        let (image, at) = (files.path().join("image"), files.path().join("mounted"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(40 << 20).unwrap();
        let is_there = runs("mkfs.ext4 -q", &[&image]) && runs("mount -o loop", &[&image, &at]);
        if !is_there || !runs("fsfreeze -f", &[&at]) || !runs("fsfreeze -u", &[&at]) {
            eprintln!("SKIPPED: no file system that can be frozen (mkfs.ext4, mount, fsfreeze)");
            let _ = runs("umount -l", &[&at]);
            return None;
        }
        Some(Self { at, _files: files })
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = runs("umount -l", &[&self.at]);
    }
}

/// Until it is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: &Path) -> Self {
        assert!(runs("fsfreeze -f", &[at]));
        Self(at.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = runs("fsfreeze -u", &[&self.0]);
    }
}

/// Time enough to be frozen.
const LIMIT: Duration = Duration::from_secs(5);

async fn play(role: &str, path: &Path) {
    let lock = AsyncFileLock::new(path);
    match role {
        "holds" => {
            let _guard = lock.acquire().await.unwrap();
            support::tell("held");
            support::told();
        }
        "waits" => time_out(&lock).await,
        // It has just written there, so that it gets ready for its turn.
        "waits again" => {
            drop(lock.acquire().await.unwrap());
            support::tell("released");
            support::told();
            time_out(&lock).await;
        }
        other => panic!("no role {other}"),
    }
}

async fn time_out(lock: &AsyncFileLock) {
    let error = lock.acquire_timeout(LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    support::tell("timed out");
    support::told();
}

/// Whether it has a file open there that has no name.
fn is_ready(process: &Process, at: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().flatten();
    let mut files = open.filter_map(|open| fs::read_link(open.path()).ok());
    files.any(|file| file.starts_with(at) && file.to_string_lossy().ends_with("(deleted)"))
}

#[tokio::test]
async fn a_wait_on_a_frozen_file_system_ends_at_its_limit() {
    const TEST: &str = "a_wait_on_a_frozen_file_system_ends_at_its_limit";
    if let Some((role, path)) = support::role() {
        return play(&role, &path).await;
    }
    for role in ["waits", "waits again"] {
        let Some(system) = FileSystem::new() else { return };
        let path = system.at.join("a.lock");
        let mut waiter = (role == "waits again").then(|| Process::play(TEST, role, &path));
        if let Some(waiter) = &waiter {
            waiter.expect("released");
        }
        let mut holder = Process::play(TEST, "holds", &path);
        holder.expect("held");
        if let Some(waiter) = &mut waiter {
            waiter.tell("wait");
            eventually("it waits", || !kernel_locks(&system.at, "OFDLCK").is_empty());
            eventually("it is ready", || is_ready(waiter, &system.at));
        }
        // Thawed before whoever hangs there is waited for.
        let frozen = Frozen::new(&system.at);
        let waiter = waiter.get_or_insert_with(|| {
            let waiter = Process::play(TEST, role, &path);
            eventually("it waits", || !kernel_locks(&system.at, "OFDLCK").is_empty());
            waiter
        });
        waiter.expect("timed out");
        drop(frozen);
        holder.hang_up();
    }
}
