//! System calls on files where Linux's own are not there, and those of every Unix.

#![cfg_attr(
    any(target_vendor = "apple", target_os = "freebsd", target_os = "linux"),
    expect(clippy::disallowed_methods, reason = "the room of system calls on files")
)]

use std::fs::File;
use std::path::Path;

#[cfg(target_os = "freebsd")]
use rustix::fs::Mode;
use rustix::fs::OFlags;

pub(crate) use super::file_system::{is_local, look_at_directory};
use crate::sys::inode::Inode;
pub use crate::sys::posix::files::BorrowedFile;
pub(crate) use crate::sys::posix::files::*;

/// To look at what is there, if anything is, without doing more. A fifo or a device is
/// not opened.
pub(crate) fn open_to_read(path: &Path) -> Result<File, Errno> {
    if look(path)?.does_more_when_opened() {
        return Err(Errno::NXIO);
    }
    open(path, OPEN_FLAGS | OFlags::RDONLY, 0).map(File::from)
}

/// There are no files without a name.
pub(crate) fn create_unnamed(_: &Path, _: u32) -> Result<File, Errno> {
    Err(Errno::OPNOTSUPP)
}

pub(crate) fn link_unnamed(_: &File, _: &Path) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// To a name that may not exist yet, by one call: where the system has none, a lock needs
/// hard links.
#[cfg(any(target_vendor = "apple", target_os = "linux"))]
pub(crate) fn rename_to_free(_: &File, from: &Path, to: &Path) -> Result<(), Errno> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    call(|| renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
}

/// The system has no such call.
#[cfg(not(any(target_vendor = "apple", target_os = "linux")))]
pub(crate) fn rename_to_free(_: &File, _: &Path, _: &Path) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// `fstat`, which tells of no mounts.
pub(crate) fn inspect(file: &File) -> Result<Inode, Errno> {
    inspect_at_once(file)
}

/// An event for waiters, where a lock was given up without a close: the close of this same
/// file, opened once more.
#[cfg(target_os = "freebsd")]
pub(crate) fn signal(file: &File) {
    let flags = OFlags::EMPTY_PATH | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |access| call(|| rustix::fs::openat(file, c"", access | flags, Mode::empty()));
    let _ = open(OFlags::WRONLY).or_else(|_| open(OFlags::RDONLY));
}

/// There is none: macOS tells of each unlock by itself, and not of one that lets readers in.
/// Those look when time has passed.
#[cfg(not(target_os = "freebsd"))]
pub(crate) fn signal(_: &File) {}

/// Whether others hear that a lock of a file was given back which was taken to look at it:
/// on macOS each unlock is an event.
pub(crate) const LOOKS_ARE_HEARD: bool = true;

/// Whether another has the kernel lock that proves a holder's life, where that can be asked
/// without taking it. On macOS the question of `fcntl` finds `flock`s too: one list has both
/// (xnu, `lf_getblock`).
#[cfg(target_vendor = "apple")]
pub(crate) fn is_pinned(file: &File) -> Option<bool> {
    is_locked(file).ok()
}

/// It cannot.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn is_pinned(_: &File) -> Option<bool> {
    None
}

/// `F_GETLK`. This asks only: the lock of a process itself would end with any close of the
/// file.
#[cfg(any(target_vendor = "apple", target_os = "linux"))]
fn is_locked(file: &File) -> Result<bool, Errno> {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    let (l_type, l_whence) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
    let mut found = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
    let mut ask = || fcntl(file, FcntlArg::F_GETLK(&mut found));
    call(|| ask().map_err(|error| Errno::from_raw_os_error(error as i32)))?;
    Ok(found.l_type != libc::F_UNLCK as libc::c_short)
}

/// Whether a range of this file is locked by `fcntl`.
#[cfg(target_os = "linux")]
pub(crate) fn is_range_locked(file: &File) -> Result<bool, Errno> {
    is_locked(file)
}

/// `fcntl` and `flock` exclude each other here, so a `flock` that was had has told already.
/// The question would find that very `flock`.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_range_locked(_: &File) -> Result<bool, Errno> {
    Ok(false)
}
