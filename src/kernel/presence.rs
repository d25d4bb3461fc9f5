//! What those who come later in the line can watch: a pipe that a contender has
//! open as long as it waits. It needs no directory that may be written, and no
//! file system.

use std::io::{PipeWriter, pipe};
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, fchmod, fstat};

use crate::fork::{ProcessKey, this_process};
use crate::wait::Ready;

/// Its end is an event of the pipe's inode.
pub(super) struct Presence {
    pipe: PipeWriter,
    inode: u64,
    /// Whose it is: a forked child has it open as well.
    process: ProcessKey,
}

impl Presence {
    /// `None` where there is no room for another open file.
    pub(super) fn begin() -> Option<Self> {
        let (_, pipe) = pipe().ok()?;
        let inode = fstat(&pipe).ok()?.st_ino;
        Some(Self { pipe, inode, process: this_process() })
    }

    pub(super) fn ready(&self) -> Option<Ready> {
        let descriptor = u32::try_from(self.pipe.as_raw_fd()).ok()?;
        Some(Ready { process: self.process.pid, descriptor, inode: self.inode })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The close is no event as long as a forked child has a copy. This is.
        if self.process == this_process() {
            let _ = fchmod(&self.pipe, Mode::RUSR | Mode::WUSR);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::waitpid;
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn it_ends_with_its_process_and_not_with_a_forked_child() {
        let mut presence = Presence::begin();
        let same = presence.as_ref().unwrap().pipe.try_clone().unwrap();
        let changed = || {
            let stat = fstat(&same).unwrap();
            (stat.st_ctime, stat.st_ctime_nsec)
        };
        let before = changed();
        // More than the clock of inodes needs to go on.
        std::thread::sleep(std::time::Duration::from_millis(50));
        // SAFETY: the child only makes system calls, and ends.
        #[allow(unsafe_code)]
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => drop(waitpid(child, None).unwrap()),
            ForkResult::Child => {
                drop(presence.take());
                // SAFETY: nothing of this process is needed any more.
                unsafe { nix::libc::_exit(0) }
            }
        }
        assert_eq!(changed(), before, "the child ended its parent's");
        drop(presence.take());
        assert_ne!(changed(), before);
    }
}
