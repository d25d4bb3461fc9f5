//! A close that drops none of this process's POSIX locks.
//!
//! Such a lock belongs to a table of open files, which the threads of a process
//! share, and every close in that table of the file drops it (`locks_remove_posix` in
//! fs/locks.c). A thread can have a table of its own, unshare(2), and its closes are
//! events as all others are.
//!
//! 1. The thread is made when it is first needed and stays: the kernel copies the
//!    lowest 64 descriptors for the new table before they are closed in it, which
//!    makes each of them be flushed once (an `mq_notify` of this process is lost then).
//! 2. Nobody waits for it: to flush a file of a server that does not answer takes for
//!    ever. It is told a path, as it has none of the open files.
//! 3. It takes no signals, whose handlers would find no open files.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use std::thread;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};

use super::syscalls;
use crate::sys::mutex::Mutex;
use crate::sys::process_key::{ProcessKey, this_process};

/// Who is told. By process: a forked child has no such thread.
static APART: Mutex<Option<(ProcessKey, Sender<PathBuf>)>> = Mutex::new(None);

/// An event for those who wait for a lock of the file that is at `path`, soon. Where no
/// thread is to be had, or the kernel is older than 5.9, there is none.
pub(super) fn signal(path: &Path) {
    let process = this_process();
    let mut apart = APART.lock();
    if apart.as_ref().is_none_or(|(owner, _)| *owner != process) {
        *apart = Some((process, begin()));
    }
    if let Some((_, paths)) = &*apart {
        // An error if it could not begin, which is not tried again.
        let _ = paths.send(path.to_owned());
    }
}

fn begin() -> Sender<PathBuf> {
    let (sender, paths) = channel();
    // (3) It begins with the mask of whoever makes it.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let thread = thread::Builder::new().name("lockkeeper".to_owned());
    let _ = thread.spawn(move || work(&paths));
    if let Ok(mask) = mask {
        let _ = mask.thread_set_mask();
    }
    sender
}

fn work(paths: &Receiver<PathBuf>) {
    if !leave_table() {
        return;
    }
    for path in paths {
        let _ = syscalls::open_to_close(&path);
    }
}

/// Have an empty table of open files from now on.
fn leave_table() -> bool {
    let (first, last) = (0_u32, u32::MAX);
    // SAFETY: it closes nothing in the table that other threads have, and this thread
    // has nothing open.
    let outcome =
        unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) };
    outcome == 0
}
