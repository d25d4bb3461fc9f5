//! Which file systems are local: the kernel's own `flock` holds there for every process
//! that can reach the file, and ends with its holder.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::files::{Errno, call, inspect_directory};
use crate::sys::inode::Inode;

/// By their magic numbers, statfs(2).
const LOCAL: [u32; 8] = [
    0x0000_ef53, // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0xf2f5_2010, // f2fs
    0x2fc1_2fc1, // zfs
    0xca45_1a4e, // bcachefs
    0x794c_7630, // overlayfs
];

/// The magic numbers have 32 bits; the field is wider and may be sign-extended.
fn is_known(found: rustix::fs::StatFs) -> bool {
    LOCAL.contains(&(found.f_type as u32))
}

/// Whether the file is on a local file system that is known to do `flock` right.
pub(crate) fn is_local(file: &File) -> Result<bool, Errno> {
    call(|| rustix::fs::fstatfs(file.as_fd())).map(is_known)
}

/// What a path names, and whether on such a file system: `stat`, then `statfs`.
pub(crate) fn look_at_directory(path: &Path) -> Result<(Inode, bool), Errno> {
    let inode = inspect_directory(path)?;
    let answer = call(|| rustix::fs::statfs(path))?;
    Ok((inode, is_known(answer)))
}
