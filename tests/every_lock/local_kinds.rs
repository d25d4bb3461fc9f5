//! The kinds of one machine: lock files and kernel locks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, FileOptions, KernelOptions, LostReason, Primitive, Proof,
};
use tempfile::TempDir;

use crate::kinds::{Kind, Life, Promises, Site};
use crate::support::{kernel_locks, names_in, on_tmpfs};

/// A lock file whose holder keeps it locked: the default.
pub struct Pinned;

/// A lock file whose holder is known by its process alone.
pub struct Portable;

/// `flock(2)`.
pub struct Flock;

/// An open file description lock of `fcntl(2)`.
pub struct Ofd;

/// And not any Unix, which the generic build stands for.
const IS_LINUX: bool = cfg!(not(lockkeeper_generic_unix));

const FILE_PROMISES: Promises = Promises {
    names_holders_elsewhere: true,
    tells_of_the_dead: true,
    release_says_lost: true,
    says_where: true,
    has_hold_ids: true,
    has_lines: IS_LINUX,
    // A file counts nothing that storage elsewhere could compare.
    has_fencing_tokens: false,
};

const KERNEL_PROMISES: Promises = Promises {
    // By the kernel's list of locks.
    names_holders_elsewhere: IS_LINUX,
    // The kernel keeps no record of a holder that is gone.
    tells_of_the_dead: false,
    // A release is one system call, and does not look at the path.
    release_says_lost: false,
    says_where: true,
    // There is no record that could have them.
    has_hold_ids: false,
    has_lines: IS_LINUX,
    has_fencing_tokens: false,
};

const FILE_LOSSES: &[LostReason] = &[LostReason::Removed, LostReason::Replaced];

/// A fresh directory, and where it is.
fn directory() -> (String, TempDir) {
    let directory = on_tmpfs();
    (directory.path().to_str().expect("a path in UTF-8").to_owned(), directory)
}

fn lock_file(address: &str) -> PathBuf {
    Path::new(address).join("a.lock")
}

fn url(scheme: &str, address: &str, query: &str, limit: Option<Duration>) -> String {
    let limit = limit.map(|limit| format!("&timeout={}us", limit.as_micros()));
    format!("{scheme}://{address}?{query}{}", limit.unwrap_or_default())
}

fn lose_file(path: &Path, reason: LostReason) {
    match reason {
        LostReason::Removed => std::fs::remove_file(path).expect("a file"),
        LostReason::Replaced => {
            let other = path.with_extension("other");
            std::fs::write(&other, "another program's").expect("a file");
            std::fs::rename(other, path).expect("a file");
        }
        other => panic!("no file is lost so: {other:?}"),
    }
}

/// Each waiting process has two locks on the directory: when it came, what it watches.
fn waiting(address: &str) -> usize {
    kernel_locks(Path::new(address), "OFDLCK").len().div_ceil(2)
}

fn file(address: &str, limit: Option<Duration>, proof: Proof) -> AsyncFileLock {
    let options = FileOptions::default().proof(proof).timeout(limit);
    AsyncFileLock::with_options(lock_file(address), options).expect("options")
}

fn kernel(address: &str, limit: Option<Duration>, primitive: Primitive) -> AsyncKernelLock {
    let options = KernelOptions::default().primitive(primitive).timeout(limit);
    AsyncKernelLock::with_options(Path::new(address).join("a"), options).expect("options")
}

impl Kind for Pinned {
    type Lock = AsyncFileLock;
    type Ground = TempDir;

    const PROMISES: Promises = FILE_PROMISES;
    const LOSSES: &'static [LostReason] = FILE_LOSSES;
    const SCHEMES: &'static [&'static str] = &["file"];

    fn prepare() -> (String, TempDir) {
        directory()
    }

    fn lock(address: &str, limit: Option<Duration>, _: Life) -> AsyncFileLock {
        file(address, limit, Proof::Auto)
    }

    fn url(address: &str, limit: Option<Duration>, _: Life) -> (String, String) {
        (url("file", address, "proof=auto", limit), "a".into())
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        lose_file(&lock_file(place.address), reason);
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        waiting(place.address)
    }

    fn are_waiting(_: &Site<'_, Self>, _: usize) -> bool {
        true
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        names_in(Path::new(place.address)).is_empty() && waiting(place.address) == 0
    }
}

impl Kind for Portable {
    type Lock = AsyncFileLock;
    type Ground = TempDir;

    const PROMISES: Promises = FILE_PROMISES;
    const LOSSES: &'static [LostReason] = FILE_LOSSES;
    const SCHEMES: &'static [&'static str] = &["file"];

    fn prepare() -> (String, TempDir) {
        directory()
    }

    fn lock(address: &str, limit: Option<Duration>, _: Life) -> AsyncFileLock {
        file(address, limit, Proof::Process)
    }

    fn url(address: &str, limit: Option<Duration>, _: Life) -> (String, String) {
        (url("file", address, "proof=process", limit), "a".into())
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        lose_file(&lock_file(place.address), reason);
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        waiting(place.address)
    }

    fn are_waiting(_: &Site<'_, Self>, _: usize) -> bool {
        true
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        names_in(Path::new(place.address)).is_empty() && waiting(place.address) == 0
    }
}

/// The file stays, without a lock.
fn is_kernel_lock_as_new(address: &str) -> bool {
    let path = Path::new(address).join("a");
    let locks = |kind| if path.exists() { kernel_locks(&path, kind).len() } else { 0 };
    locks("FLOCK") + locks("OFDLCK") + waiting(address) == 0
}

impl Kind for Flock {
    type Lock = AsyncKernelLock;
    type Ground = TempDir;

    const PROMISES: Promises = KERNEL_PROMISES;
    const LOSSES: &'static [LostReason] = FILE_LOSSES;
    const SCHEMES: &'static [&'static str] = &["flock"];

    fn prepare() -> (String, TempDir) {
        directory()
    }

    fn lock(address: &str, limit: Option<Duration>, _: Life) -> AsyncKernelLock {
        kernel(address, limit, Primitive::Flock)
    }

    fn url(address: &str, limit: Option<Duration>, _: Life) -> (String, String) {
        (url("flock", address, "keep_open=false", limit), "a".into())
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        lose_file(&Path::new(place.address).join("a"), reason);
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        waiting(place.address)
    }

    fn are_waiting(_: &Site<'_, Self>, _: usize) -> bool {
        true
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        is_kernel_lock_as_new(place.address)
    }
}

impl Kind for Ofd {
    type Lock = AsyncKernelLock;
    type Ground = TempDir;

    // The kernel names no process for a lock that belongs to an open file.
    const PROMISES: Promises = Promises { names_holders_elsewhere: false, ..KERNEL_PROMISES };
    const LOSSES: &'static [LostReason] = FILE_LOSSES;
    const SCHEMES: &'static [&'static str] = &["ofd"];

    fn is_there() -> bool {
        IS_LINUX
    }

    fn prepare() -> (String, TempDir) {
        directory()
    }

    fn lock(address: &str, limit: Option<Duration>, _: Life) -> AsyncKernelLock {
        kernel(address, limit, Primitive::Ofd)
    }

    fn url(address: &str, limit: Option<Duration>, _: Life) -> (String, String) {
        (url("ofd", address, "keep_open=false", limit), "a".into())
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        lose_file(&Path::new(place.address).join("a"), reason);
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        waiting(place.address)
    }

    fn are_waiting(_: &Site<'_, Self>, _: usize) -> bool {
        true
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        is_kernel_lock_as_new(place.address)
    }
}
