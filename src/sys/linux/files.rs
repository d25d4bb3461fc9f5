//! System calls on files that only Linux has, and those of every Unix.

#![expect(clippy::disallowed_methods, reason = "the room of system calls on files")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Statx, StatxAttributes, StatxFlags,
};

pub(crate) use super::file_system::{is_local, look_at_directory};
use crate::sys::byte_ranges::{self, Bytes, Kind};
use crate::sys::inode::Inode;
pub use crate::sys::posix::files::BorrowedFile;
pub(crate) use crate::sys::posix::files::*;

/// To look at what is there, if anything is, without doing more.
pub(crate) fn open_to_read(path: &Path) -> Result<File, Errno> {
    match look(path) {
        Err(Errno::NOENT) => Err(Errno::NOENT),
        Ok(inode) if inode.does_more_when_opened() => {
            open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0).map(File::from)
        }
        _ => open(path, OPEN_FLAGS | OFlags::RDONLY, 0).map(File::from),
    }
}

/// A file that has no name: open(2) on `O_TMPFILE`.
pub(crate) fn create_unnamed(directory: &Path, mode: u32) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    open(directory, flags, mode).map(lifted)
}

/// Give it one that may not exist yet. By descriptor where the kernel lets its opener do
/// that (6.10, or with CAP_DAC_READ_SEARCH), else through /proc, as open(2) has it.
pub(crate) fn link_unnamed(file: &File, to: &Path) -> Result<(), Errno> {
    match call(|| rustix::fs::linkat(file, c"", CWD, to, AtFlags::EMPTY_PATH)) {
        Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {}
        result => return result,
    }
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    call(|| rustix::fs::linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW))
}

/// `renameat2` with `RENAME_NOREPLACE`: to a name that may not exist yet.
pub(crate) fn rename_to_free(_: &File, from: &Path, to: &Path) -> Result<(), Errno> {
    call(|| rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
}

/// By `statx`, which also tells of mounts; by `fstat` where a sandbox refuses it.
pub(crate) fn inspect(file: &File) -> Result<Inode, Errno> {
    let answer =
        call(|| rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS));
    match answer {
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => inspect_at_once(file),
        answer => answer.map(Inode::from),
    }
}

/// An event for waiters, where a lock was given up without a close: the
/// close of this same file, opened once more.
pub(crate) fn signal(file: &File) {
    let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    // The link is to be followed.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |access| open(path.as_str(), access | flags, 0);
    let _ = open(OFlags::WRONLY).or_else(|_| open(OFlags::RDONLY));
}

/// Whether others hear that a lock of a file was given back which was taken to look at it.
pub(crate) const LOOKS_ARE_HEARD: bool = false;

/// Whether another has the kernel lock that proves a holder's life: that cannot be asked
/// without taking it.
pub(crate) fn is_pinned(_: &File) -> Option<bool> {
    None
}

/// Whether a range of this file is locked by `fcntl`. The NFS server of a machine has
/// such a lock for each `flock` of its clients.
pub(crate) fn is_range_locked(file: &File) -> Result<bool, Errno> {
    Ok(byte_ranges::in_the_way(file, Kind::Write, Bytes::ALL)?.is_some())
}

impl From<Statx> for Inode {
    fn from(stat: Statx) -> Self {
        let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let tells = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        let is_mount = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        Inode {
            identity: (device, stat.stx_ino),
            kind: FileType::from_raw_mode(stat.stx_mode.into()).into(),
            owner: stat.stx_uid,
            mode: Mode::from_raw_mode(stat.stx_mode.into()).bits(),
            links: stat.stx_nlink.into(),
            is_mount: tells.then_some(is_mount),
        }
    }
}
