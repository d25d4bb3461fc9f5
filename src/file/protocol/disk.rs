//! The few file-system operations the protocol needs: the seam between
//! [`attempt`](crate::file::protocol) and the kernel, and the only place that links,
//! locks, unlinks.
//!
//! Each method is one system call, so that a driver that stops, fails or
//! reorders them sees every step the shipped protocol takes.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::mutants;
use crate::sys::files::{self, Errno};
use crate::sys::inode::Inode;
pub(crate) use crate::sys::sharing::Sharing as Flock;

/// How a file that exists is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Closing it wakes no waiter that watches for a writer's close.
    Read,
    /// Needed to rewrite the record.
    ReadWrite,
}

/// File-system operations. None waits for another process.
pub(crate) trait Disk: Clone + Send + Sync + 'static {
    /// An open file description. Dropping it closes it.
    type File: Send + Sync + 'static;

    /// Open what is at `path`, if it is there; a symbolic link is `ELOOP`, and `EAGAIN`
    /// that another program has it open in a way that keeps others out.
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
    /// Rename a file that is open to a name that may not exist yet.
    fn rename_to_free(&self, file: &Self::File, from: &Path, to: &Path) -> Result<(), Errno>;
    /// `unlink`.
    fn unlink(&self, path: &Path) -> Result<(), Errno>;
    /// The same for a file that is held. It may have the name `aside` in between.
    fn remove(
        &self,
        file: &Self::File,
        path: &Path,
        aside: impl FnOnce() -> PathBuf,
    ) -> Result<(), Errno>;
    /// The names in a directory that begin with `prefix`.
    fn list(&self, directory: &Path, prefix: &OsStr) -> Result<Vec<OsString>, Errno>;
    /// Whether a free `flock` on this file proves that the lock is not held:
    /// `statfs` names a local file system known to do it right.
    fn trusts_flock(&self, file: &Self::File) -> Result<bool, Errno>;
    /// Whether another description has a `flock` of this file, where that can be asked
    /// without taking it.
    fn is_flocked(&self, _: &Self::File) -> Option<bool> {
        None
    }
    /// Whether a range of this file is locked by `fcntl`. The NFS server
    /// of a machine has such a lock for each `flock` of its clients.
    fn is_range_locked(&self, file: &Self::File) -> Result<bool, Errno>;
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OsDisk;

impl Disk for OsDisk {
    type File = File;

    fn open(&self, path: &Path, access: Access) -> Result<File, Errno> {
        mutants::step();
        match access {
            Access::Read => files::open_to_read(path),
            Access::ReadWrite => files::open_to_write(path),
        }
    }

    fn create_unnamed(&self, directory: &Path, mode: u32) -> Result<File, Errno> {
        mutants::step();
        files::create_unnamed(directory, mode)
    }

    fn create(&self, path: &Path, mode: u32) -> Result<File, Errno> {
        mutants::step();
        files::create(path, mode)
    }

    fn inspect(&self, file: &File) -> Result<Inode, Errno> {
        mutants::step();
        files::inspect(file)
    }

    fn links(&self, file: &File) -> Result<u64, Errno> {
        mutants::step();
        files::links(file)
    }

    fn look(&self, path: &Path) -> Result<Inode, Errno> {
        mutants::step();
        files::look(path)
    }

    fn read(&self, file: &File, into: &mut [u8]) -> Result<usize, Errno> {
        mutants::step();
        files::read_start(file, into)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        mutants::step();
        files::write_at(file, bytes, offset)
    }

    fn try_flock(&self, file: &File, flock: Flock) -> Result<bool, Errno> {
        mutants::step();
        files::try_pin(file, flock)
    }

    fn unlock(&self, file: &File) -> Result<(), Errno> {
        mutants::step();
        files::unpin(file)
    }

    fn link_unnamed(&self, file: &File, to: &Path) -> Result<(), Errno> {
        mutants::step();
        files::link_unnamed(file, to)
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        mutants::step();
        files::link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        mutants::step();
        files::rename(from, to)
    }

    fn rename_to_free(&self, file: &File, from: &Path, to: &Path) -> Result<(), Errno> {
        mutants::step();
        files::rename_to_free(file, from, to)
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        mutants::step();
        files::unlink(path)
    }

    fn remove(
        &self,
        file: &File,
        path: &Path,
        aside: impl FnOnce() -> PathBuf,
    ) -> Result<(), Errno> {
        mutants::step();
        files::remove(file, path, aside)
    }

    fn list(&self, directory: &Path, prefix: &OsStr) -> Result<Vec<OsString>, Errno> {
        mutants::step();
        files::list(directory, prefix)
    }

    fn trusts_flock(&self, file: &File) -> Result<bool, Errno> {
        mutants::step();
        files::is_local(file)
    }

    fn is_flocked(&self, file: &File) -> Option<bool> {
        mutants::step();
        files::is_pinned(file)
    }

    fn is_range_locked(&self, file: &File) -> Result<bool, Errno> {
        mutants::step();
        files::is_range_locked(file)
    }
}
