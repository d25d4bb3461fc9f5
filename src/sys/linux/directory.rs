//! A directory by its descriptor, and the files in it. No symbolic link is followed.

#![expect(clippy::disallowed_methods, reason = "the room of system calls on files")]

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{self, AtFlags, CWD, OFlags, RenameFlags};

use super::files::{Errno, call};
use crate::sys::posix::directory::FILE_MODE;
pub(crate) use crate::sys::posix::directory::{
    Directory, FileState, inspect, may_use, read_at, sync, sync_data, touch, truncate,
};

impl Directory {
    /// A file to write that has no name: `O_TMPFILE`.
    pub(crate) fn create_unnamed(&self) -> Result<File, Errno> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        call(|| fs::openat(&self.0, c".", flags, FILE_MODE)).map(File::from)
    }

    /// What is known of a file that is new here.
    pub(crate) fn new_file(&self, _: &str) -> Result<FileState, Errno> {
        inspect(&self.create_unnamed()?)
    }

    /// Give such a file a name by its descriptor, where there is none.
    pub(crate) fn link_by_descriptor(&self, file: &File, to: &str) -> Result<(), Errno> {
        fs::linkat(file, c"", &self.0, to, AtFlags::EMPTY_PATH)
    }

    /// Give such a file a name through `/proc`, where there is none.
    pub(crate) fn link_by_process(&self, file: &File, to: &str) -> Result<(), Errno> {
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::linkat(CWD, from, &self.0, to, AtFlags::SYMLINK_FOLLOW)
    }

    /// Another name, where there is none.
    pub(crate) fn rename_to_free(&self, from: &str, to: &str) -> Result<(), Errno> {
        fs::renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE)
    }

    /// Make the names durable.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        call(|| fs::fsync(&self.0))
    }

    /// Make everything durable that is on this file system.
    pub(crate) fn sync_all(&self) -> Result<(), Errno> {
        call(|| fs::syncfs(&self.0))
    }
}
