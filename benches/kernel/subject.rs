//! The locks that are compared.

use std::fs::File;
use std::path::{Path, PathBuf};

use async_fd_lock::{LockWrite, RwLockWriteGuard};
use lockkeeper::{AsyncKernelLock, KernelGuard, KernelOptions};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::runtime::{Builder, Runtime};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    /// Ours with `keep_open`.
    OursKept,
    /// async-fd-lock 0.2, opened for each acquisition.
    AsyncFdLock,
    /// `flock` in `spawn_blocking`, what std's `File::lock` calls.
    Std,
    /// filelock 0.7 with `tokio`, opened for each acquisition. It does not
    /// look whether the path still names what it locked.
    Filelock,
    /// A thread blocked in `flock`: no async at all.
    Flock,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] =
        [Kind::Ours, Kind::OursKept, Kind::AsyncFdLock, Kind::Std, Kind::Filelock, Kind::Flock];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ours => "lockkeeper",
            Kind::OursKept => "lockkeeper, kept open",
            Kind::AsyncFdLock => "async-fd-lock 0.2",
            Kind::Std => "flock, spawn_blocking",
            Kind::Filelock => "filelock 0.7 tokio",
            Kind::Flock => "thread in flock",
        }
    }

    pub(crate) fn of(name: &str) -> Kind {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.unwrap_or_else(|| panic!("no kind {name}"))
    }
}

pub(crate) fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build().expect("a runtime")
}

/// A lock of either kind.
pub(crate) struct Lock {
    kind: Kind,
    path: PathBuf,
    ours: AsyncKernelLock,
}

/// A hold; it ends with [`Lock::release`].
pub(crate) enum Hold {
    Ours(KernelGuard),
    AsyncFdLock(RwLockWriteGuard<tokio::fs::File>),
    Filelock(filelock::OwnedFileLockGuard),
    File(File),
}

impl Lock {
    pub(crate) fn new(kind: Kind, path: &Path) -> Self {
        let options = KernelOptions::default().keep_open(kind == Kind::OursKept);
        let ours = AsyncKernelLock::with_options(path, options).expect("possible options");
        Lock { kind, path: path.to_owned(), ours }
    }

    pub(crate) async fn acquire(&self) -> Hold {
        match self.kind {
            Kind::Ours | Kind::OursKept => {
                Hold::Ours(self.ours.acquire().await.expect("nothing is wrong"))
            }
            Kind::AsyncFdLock => {
                let file = tokio::fs::File::from_std(open(&self.path));
                let guard = file.lock_write().await;
                Hold::AsyncFdLock(guard.unwrap_or_else(|_| panic!("nothing is wrong")))
            }
            Kind::Std => {
                let file = open(&self.path);
                let locked = tokio::task::spawn_blocking(move || {
                    flock(&file, FlockOperation::LockExclusive).map(|()| file)
                });
                Hold::File(locked.await.expect("no panic").expect("nothing is wrong"))
            }
            Kind::Filelock => {
                let lock = filelock::new(&self.path).expect("a lock file");
                Hold::Filelock(lock.lock_owned_async().await.expect("nothing is wrong"))
            }
            Kind::Flock => {
                let file = open(&self.path);
                flock(&file, FlockOperation::LockExclusive).expect("nothing is wrong");
                Hold::File(file)
            }
        }
    }

    pub(crate) async fn release(&self, hold: Hold) {
        match hold {
            Hold::Ours(guard) => guard.release().await.expect("nobody touched it"),
            Hold::AsyncFdLock(guard) => drop(guard),
            Hold::Filelock(guard) => drop(guard.unlock().expect("it is held")),
            Hold::File(file) => drop(file),
        }
    }
}

pub(crate) fn open(path: &Path) -> File {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from(0o644)).expect("a file").into()
}

/// The system calls of an acquisition and release that cannot be done without:
/// open, flock, fstat, lstat, close.
pub(crate) fn floor(path: &Path) {
    let file = open(path);
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    let opened = rustix::fs::fstat(&file).expect("it is open");
    let named = rustix::fs::lstat(path).expect("it is there");
    assert_eq!((opened.st_dev, opened.st_ino), (named.st_dev, named.st_ino));
}

/// The same with a file that stays open: flock, lstat, flock.
pub(crate) fn floor_kept(file: &File, inode: u64, path: &Path) {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    assert_eq!(rustix::fs::lstat(path).expect("it is there").st_ino, inode);
    rustix::fs::flock(file, FlockOperation::Unlock).expect("it is locked");
}
