//! What those who come later in the line can watch: a pipe that a contender has
//! open as long as it waits. It needs no directory that may be written, and no
//! file system.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, fchmod, fstat};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::fork::{ProcessKey, this_process};
use crate::wait::Ready;

/// Its end is an event of the pipe's inode. It ends with the first of its clones.
#[derive(Clone)]
pub(super) struct Presence(Arc<Present>);

struct Present {
    pipe: OwnedFd,
    inode: u64,
    /// Whose it is: a forked child has it open as well.
    process: ProcessKey,
    has_ended: AtomicBool,
}

impl Presence {
    /// `None` where there is no room for another open file.
    pub(super) fn begin() -> Option<Self> {
        let (_, pipe) = pipe_with(PipeFlags::CLOEXEC).ok()?;
        let inode = fstat(&pipe).ok()?.st_ino;
        let (process, has_ended) = (this_process(), AtomicBool::new(false));
        Some(Self(Arc::new(Present { pipe, inode, process, has_ended })))
    }

    pub(super) fn ready(&self) -> Option<Ready> {
        let Present { pipe, inode, process, .. } = &*self.0;
        let descriptor = u32::try_from(pipe.as_raw_fd()).ok()?;
        Some(Ready { process: process.pid, descriptor, inode: *inode })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The close is no event as long as a forked child has a copy. This is.
        if self.0.process == this_process() && !self.0.has_ended.swap(true, Ordering::AcqRel) {
            let _ = fchmod(&self.0.pipe, Mode::RUSR | Mode::WUSR);
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
        let same = presence.as_ref().unwrap().0.pipe.try_clone().unwrap();
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
