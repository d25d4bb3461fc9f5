//! What later contenders watch to hear that a contender has left the line: the
//! process's one end of a pipe, which is never written to. Its inode has an event when a
//! contender of the process gets its lock or gives up, and when the process dies.
//!
//! The pipe is there as long as any contender of the process stands in a line. An event
//! is for all that wait behind any of them: those that need not act sleep on.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, fchmod, fstat};
use rustix::pipe::{PipeFlags, pipe_with};

use super::process_key::{ProcessKey, this_process};

use crate::sys::mutex::Mutex;

/// What a contender has open as long as it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PublishedFd {
    pub(crate) process: u32,
    pub(crate) descriptor: u32,
    pub(crate) inode: u64,
}

/// Of one contender in its line. Its end is an event, once for all of its clones, and to
/// come after its ticket's.
#[derive(Clone, Debug)]
pub(crate) struct Presence(Arc<Present>);

#[derive(Debug)]
struct Present {
    pipe: Arc<Pipe>,
    has_ended: AtomicBool,
}

#[derive(Debug)]
struct Pipe {
    end: OwnedFd,
    inode: u64,
    /// Whose it is: a forked child has it open as well.
    process: ProcessKey,
}

/// The pipe of this process, or of the one it was forked from.
static PIPE: Mutex<Weak<Pipe>> = Mutex::new(Weak::new());

impl Presence {
    /// `None` where there is no room for another open file at the moment.
    pub(crate) fn begin() -> Option<Self> {
        Some(Self::with(Pipe::of_this_process()?))
    }

    fn with(pipe: Arc<Pipe>) -> Self {
        Self(Arc::new(Present { pipe, has_ended: AtomicBool::new(false) }))
    }

    /// `None` if its numbers are larger than any that are known of.
    pub(crate) fn published(&self) -> Option<PublishedFd> {
        let Pipe { end, inode, process } = &*self.0.pipe;
        let descriptor = u32::try_from(end.as_raw_fd()).ok()?;
        Some(PublishedFd { process: process.pid, descriptor, inode: *inode })
    }
}

impl Pipe {
    fn of_this_process() -> Option<Arc<Self>> {
        let process = this_process();
        let mut shared = PIPE.lock();
        if let Some(pipe) = shared.upgrade().filter(|pipe| pipe.process == process) {
            return Some(pipe);
        }
        let pipe = Arc::new(Self::new(process)?);
        *shared = Arc::downgrade(&pipe);
        Some(pipe)
    }

    fn new(process: ProcessKey) -> Option<Self> {
        let (_, end) = pipe_with(PipeFlags::CLOEXEC).ok()?;
        let inode = fstat(&end).ok()?.st_ino;
        Some(Self { end, inode, process })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let Present { pipe, has_ended } = &*self.0;
        // The close is no event as long as there are others, or a forked child has a
        // copy. This is.
        if pipe.process == this_process() && !has_ended.swap(true, Ordering::AcqRel) {
            let _ = fchmod(&pipe.end, Mode::RUSR | Mode::WUSR);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::waitpid;
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn the_contenders_of_a_process_have_one_pipe() {
        let [first, second] = [(); 2].map(|()| Presence::begin().unwrap());
        assert_eq!(first.published(), second.published());
    }

    #[test]
    fn its_end_is_seen_once_and_not_that_of_a_forked_child() {
        // Other tests of this process have the shared one.
        let pipe = Arc::new(Pipe::new(this_process()).unwrap());
        let same = pipe.end.try_clone().unwrap();
        let mut presence = Some(Presence::with(pipe));
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
        let clone = presence.clone();
        drop(presence.take());
        let ended = changed();
        assert_ne!(ended, before);
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(clone);
        assert_eq!(changed(), ended, "it ended twice");
    }
}
