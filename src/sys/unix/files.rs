//! System calls on files where Linux's own are not there, and those of every Unix.

use std::fs::File;
use std::path::Path;

use rustix::fs::OFlags;

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

/// Not there.
pub(crate) fn rename_to_free(_: &File, _: &Path, _: &Path) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// `fstat`, which tells of no mounts.
pub(crate) fn inspect(file: &File) -> Result<Inode, Errno> {
    inspect_at_once(file)
}

/// An event for waiters, where a lock was given up without a close.
pub(crate) fn signal(_: &File) {}

/// Whether a range of this file is locked by `fcntl`.
pub(crate) fn is_range_locked(_: &File) -> Result<bool, Errno> {
    Ok(false)
}

/// Whether the file is on a local file system that is known to do `flock` right.
pub(crate) fn is_local(_: &File) -> Result<bool, Errno> {
    Ok(true)
}

/// What a path names, and whether on a local file system.
pub(crate) fn look_at_directory(path: &Path) -> Result<(Inode, bool), Errno> {
    Ok((inspect_directory(path)?, true))
}
