//! What macOS tells of its processes.

use std::io;

use sysinfo::{Process, ProcessStatus};

use super::process::with_process;
use super::sysctl;

/// What names this boot of the kernel.
pub(super) fn boot_id() -> io::Result<String> {
    sysctl::read_text(c"kern.bootsessionuuid")
}

/// Other users' processes cannot be asked about, and are not hidden.
pub(super) fn sees_all_processes() -> bool {
    true
}

/// By the time of day at its start, in seconds. The kernel keeps what it noted then. Of
/// another user's process it may say nothing.
pub(super) fn start_of(pid: u32) -> Option<u64> {
    with_process(pid, Process::start_time).filter(|start| *start > 0)
}

/// Whether it is a zombie, where that can be seen.
pub(super) fn is_over(pid: u32) -> Option<bool> {
    let is_dead = |status| matches!(status, ProcessStatus::Zombie | ProcessStatus::Dead);
    with_process(pid, |process| is_dead(process.status()))
}
