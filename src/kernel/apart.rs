//! A close that drops none of this process's POSIX locks.
//!
//! Such a lock belongs to a table of open files, which the threads of a process
//! share, and every close in that table of the file drops it (`locks_remove_posix` in
//! fs/locks.c). A thread can have a table of its own, unshare(2), and its closes are
//! events as all others are.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;

use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::thread::gettid;

/// As [`call::signal`](super::call::signal), where this process has POSIX locks in the
/// file. It takes as long as a thread's life. Where no thread is to be had, or the
/// kernel is older than 5.9, there is no event.
pub(super) fn signal(file: &File) {
    // By this thread, as the other will have nothing open.
    let tid = gettid().as_raw_nonzero();
    let path = format!("/proc/self/task/{tid}/fd/{}", file.as_raw_fd());
    let signal = || {
        if leave_table() {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let _ = rustix::fs::open(path, flags, Mode::empty());
        }
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("lockkeeper".to_owned());
        // Waited for at the end of the scope: until then the file is open here.
        let _ = thread.spawn_scoped(scope, signal);
    });
}

/// Have an empty table of open files from now on; close_range(2) copies nothing for
/// that, so that no file of the others lives longer by it.
fn leave_table() -> bool {
    let all = (0_u32, u32::MAX);
    // SAFETY: it closes nothing in the table that other threads have, and this thread
    // has nothing open and ends soon.
    let outcome =
        unsafe { libc::syscall(libc::SYS_close_range, all.0, all.1, libc::CLOSE_RANGE_UNSHARE) };
    outcome == 0
}
