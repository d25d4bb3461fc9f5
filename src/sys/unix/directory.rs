//! A directory by its descriptor, and the files in it. No symbolic link is followed.

#![cfg_attr(
    target_vendor = "apple",
    expect(clippy::disallowed_methods, reason = "the room of system calls on files")
)]

use std::fs::File;

use super::files::{Errno, call};
pub(crate) use crate::sys::posix::directory::{
    Directory, FileState, inspect, may_use, read_at, sync, sync_data, touch, truncate,
};

impl Directory {
    /// There are no files without a name.
    pub(crate) fn create_unnamed(&self) -> Result<File, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// What is known of a file that is new here: by one that is called `draft` for a moment,
    /// which no other may be.
    pub(crate) fn new_file(&self, draft: &str) -> Result<FileState, Errno> {
        let state = inspect(&self.create(draft)?);
        self.unlink(draft.as_bytes())?;
        state
    }

    /// Nor is there a way to name one.
    pub(crate) fn link_by_descriptor(&self, _: &File, _: &str) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// Nor is there a way to name one.
    pub(crate) fn link_by_process(&self, _: &File, _: &str) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// Another name, where there is none: `renameatx_np`.
    #[cfg(target_vendor = "apple")]
    pub(crate) fn rename_to_free(&self, from: &str, to: &str) -> Result<(), Errno> {
        use rustix::fs::{RenameFlags, renameat_with};

        renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE)
    }

    /// Another name, where there is none. For a moment the file has both.
    #[cfg(not(target_vendor = "apple"))]
    pub(crate) fn rename_to_free(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.link(from, to)?;
        let removed = self.unlink(from.as_bytes());
        if removed.is_err() {
            let _ = self.unlink(to.as_bytes());
        }
        removed
    }

    /// Make the names durable.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        sync(&File::from(call(|| rustix::io::fcntl_dupfd_cloexec(&self.0, 0))?))
    }

    /// Make all files and names durable: one by one, as `sync(2)` does not wait for the
    /// disk. What is no file of the daemon's is passed over.
    pub(crate) fn sync_all(&self) -> Result<(), Errno> {
        for name in self.names()? {
            let Ok(name) = String::from_utf8(name) else { continue };
            if let Ok(file) = self.open_to_read(&name) {
                if inspect(&file)?.is_file {
                    sync(&file)?;
                }
            }
        }
        self.sync()
    }
}
