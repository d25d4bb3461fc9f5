//! What those who come later in the line can watch: a pipe that a contender has
//! open as long as it waits. It needs no directory that may be written, and no
//! file system.

use std::io::{PipeWriter, pipe};
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, fchmod, fstat};

use crate::wait::Ready;

/// Its end is an event of the pipe's inode.
pub(super) struct Presence {
    pipe: PipeWriter,
    inode: u64,
}

impl Presence {
    /// `None` where there is no room for another open file.
    pub(super) fn begin() -> Option<Self> {
        let (_, pipe) = pipe().ok()?;
        let inode = fstat(&pipe).ok()?.st_ino;
        Some(Self { pipe, inode })
    }

    pub(super) fn ready(&self) -> Option<Ready> {
        let descriptor = u32::try_from(self.pipe.as_raw_fd()).ok()?;
        Some(Ready { process: std::process::id(), descriptor, inode: self.inode })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The close is no event as long as a forked child has a copy. This is.
        let _ = fchmod(&self.pipe, Mode::RUSR | Mode::WUSR);
    }
}
