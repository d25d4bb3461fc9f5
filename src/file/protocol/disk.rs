//! The few file-system operations the protocol needs: the seam between
//! [`attempt`](crate::file::protocol) and the kernel, and the only place that links,
//! locks, unlinks.
//!
//! Each method is one system call, so that a driver that stops, fails or
//! reorders them sees every step the shipped protocol takes.

#![expect(clippy::disallowed_methods, reason = "the room of lock files")]

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, RenameFlags};

use super::mutants;
use crate::sys::byte_ranges::{self, Bytes, Kind};
use crate::sys::files::{
    self, Errno, Inode, OPEN_FLAGS, call, file_system, inspect, lifted, look, open, unlink,
};

/// How a file that exists is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Closing it wakes no waiter that watches for a writer's close.
    Read,
    /// Needed to rewrite the record.
    ReadWrite,
}

/// A `flock`, always asked for without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flock {
    Shared,
    Exclusive,
}

/// File-system operations. None waits for another process.
pub(crate) trait Disk: Clone + Send + Sync + 'static {
    /// An open file description. Dropping it closes it.
    type File: AsFd + Send + Sync + 'static;

    /// Open what is at `path`, if it is there; a symbolic link is `ELOOP`.
    fn open(&self, path: &Path, access: Access) -> Result<Self::File, Errno>;
    /// Make a file that has no name.
    fn create_unnamed(&self, directory: &Path, mode: u32) -> Result<Self::File, Errno>;
    /// Make a file at `path`, where none may be.
    fn create(&self, path: &Path, mode: u32) -> Result<Self::File, Errno>;
    /// `statx`.
    fn inspect(&self, file: &Self::File) -> Result<Inode, Errno>;
    /// `fstat`: how many names the file has.
    fn links(&self, file: &Self::File) -> Result<u64, Errno>;
    /// `lstat`.
    fn look(&self, path: &Path) -> Result<Inode, Errno>;
    /// One `pread` at the start; the number of bytes read.
    fn read(&self, file: &Self::File, into: &mut [u8]) -> Result<usize, Errno>;
    /// One `pwrite`; the number of bytes written.
    fn write(&self, file: &Self::File, bytes: &[u8], offset: u64) -> Result<usize, Errno>;
    /// `flock` without waiting; `false` when another description has it.
    fn try_flock(&self, file: &Self::File, flock: Flock) -> Result<bool, Errno>;
    /// `LOCK_UN`, which also ends what forked children inherited.
    fn unlock(&self, file: &Self::File) -> Result<(), Errno>;
    /// Give an unnamed file a name that may not exist yet.
    fn link_unnamed(&self, file: &Self::File, to: &Path) -> Result<(), Errno>;
    /// `link`, to a name that may not exist yet.
    fn link(&self, from: &Path, to: &Path) -> Result<(), Errno>;
    /// `rename`, over what is there.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno>;
    /// `renameat2` with `RENAME_NOREPLACE`: to a name that may not exist yet.
    fn rename_to_free(&self, from: &Path, to: &Path) -> Result<(), Errno>;
    /// `unlink`.
    fn unlink(&self, path: &Path) -> Result<(), Errno>;
    /// The names in a directory that begin with `prefix`.
    fn list(&self, directory: &Path, prefix: &[u8]) -> Result<Vec<OsString>, Errno>;
    /// Whether a free `flock` on this file proves that the lock is not held:
    /// `statfs` names a local file system known to do it right.
    fn trusts_flock(&self, file: &Self::File) -> Result<bool, Errno>;
    /// Whether a range of this file is locked by `fcntl`. The NFS server
    /// of a machine has such a lock for each `flock` of its clients.
    fn is_range_locked(&self, file: &Self::File) -> Result<bool, Errno>;
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OsDisk;

impl Disk for OsDisk {
    type File = OwnedFd;

    fn open(&self, path: &Path, access: Access) -> Result<OwnedFd, Errno> {
        mutants::step();
        match access {
            Access::Read => match look(path) {
                Err(Errno::NOENT) => Err(Errno::NOENT),
                Ok(inode) if inode.does_more_when_opened() => {
                    open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0)
                }
                _ => open(path, OPEN_FLAGS | OFlags::RDONLY, 0),
            },
            Access::ReadWrite => open(path, OPEN_FLAGS | OFlags::RDWR, 0).map(lifted),
        }
    }

    fn create_unnamed(&self, directory: &Path, mode: u32) -> Result<OwnedFd, Errno> {
        mutants::step();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        open(directory, flags, mode).map(lifted)
    }

    fn create(&self, path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
        mutants::step();
        let flags = OPEN_FLAGS | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        open(path, flags, mode).map(lifted)
    }

    fn inspect(&self, file: &OwnedFd) -> Result<Inode, Errno> {
        mutants::step();
        inspect(file.as_fd())
    }

    fn links(&self, file: &OwnedFd) -> Result<u64, Errno> {
        mutants::step();
        call(|| rustix::fs::fstat(file)).map(|stat| Inode::from(stat).links)
    }

    fn look(&self, path: &Path) -> Result<Inode, Errno> {
        mutants::step();
        look(path)
    }

    fn read(&self, file: &OwnedFd, into: &mut [u8]) -> Result<usize, Errno> {
        mutants::step();
        call(|| rustix::io::pread(file, &mut *into, 0))
    }

    fn write(&self, file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        mutants::step();
        call(|| rustix::io::pwrite(file, bytes, offset))
    }

    fn try_flock(&self, file: &OwnedFd, flock: Flock) -> Result<bool, Errno> {
        mutants::step();
        let operation = match flock {
            Flock::Shared => FlockOperation::NonBlockingLockShared,
            Flock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match call(|| rustix::fs::flock(file, operation)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unlock(&self, file: &OwnedFd) -> Result<(), Errno> {
        mutants::step();
        call(|| rustix::fs::flock(file, FlockOperation::Unlock))
    }

    /// By descriptor where the kernel lets its opener do that (6.10, or with
    /// CAP_DAC_READ_SEARCH), else through /proc, as open(2) has it.
    fn link_unnamed(&self, file: &OwnedFd, to: &Path) -> Result<(), Errno> {
        mutants::step();
        match call(|| rustix::fs::linkat(file, c"", CWD, to, AtFlags::EMPTY_PATH)) {
            Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {}
            result => return result,
        }
        use std::os::fd::AsRawFd;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        call(|| rustix::fs::linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        mutants::step();
        call(|| rustix::fs::link(from, to))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        mutants::step();
        call(|| rustix::fs::rename(from, to))
    }

    fn rename_to_free(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        mutants::step();
        call(|| rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        mutants::step();
        unlink(path)
    }

    fn list(&self, directory: &Path, prefix: &[u8]) -> Result<Vec<OsString>, Errno> {
        mutants::step();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // All of it again: a listing that was interrupted is over.
        call(|| {
            let directory = open(directory, flags, 0)?;
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(directory)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name.starts_with(prefix) {
                    names.push(OsString::from_vec(name));
                }
            }
            Ok(names)
        })
    }

    fn trusts_flock(&self, file: &OwnedFd) -> Result<bool, Errno> {
        mutants::step();
        file_system(file.as_fd()).map(files::FileSystem::is_local)
    }

    fn is_range_locked(&self, file: &OwnedFd) -> Result<bool, Errno> {
        mutants::step();
        let found = byte_ranges::in_the_way(file, Kind::Write, Bytes::ALL)?;
        Ok(found.is_some())
    }
}
