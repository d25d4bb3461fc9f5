//! Which file systems are local: the kernel's own `flock` holds there for every process
//! that can reach the file, and ends with its holder.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::files::{Errno, call, inspect_directory};
use crate::sys::inode::Inode;

/// By their names, as mount(8) shows them.
const LOCAL: [&[u8]; 5] = [b"apfs", b"hfs", b"ufs", b"zfs", b"tmpfs"];

fn is_known(found: rustix::fs::StatFs) -> bool {
    let name = found.f_fstypename.map(|byte| byte as u8);
    LOCAL.into_iter().any(|local| name.split(|byte| *byte == 0).next() == Some(local))
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
