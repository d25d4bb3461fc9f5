//! The rights on a file.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Permission bits and the kind of file, as in inode(7). `None` where rights are kept
/// otherwise.
pub(crate) fn mode(about: &Metadata) -> Option<u32> {
    Some(about.mode())
}

/// Whether the file's owner is root.
#[cfg(feature = "postgres")]
pub(crate) fn is_of_root(about: &Metadata) -> bool {
    about.uid() == 0
}
