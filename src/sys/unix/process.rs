//! Processes: whether one runs, and which it is.
//!
//! Unknown is never taken for dead. A process is dead only if the kernel says that there is
//! none (`ESRCH`) and hides none, or shows that it is over: a zombie without living
//! threads. Where a zombie cannot be looked at, it is alive until its parent has reaped it.

use std::io::{self, ErrorKind};

use rustix::process::Pid;
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System};

use super::files::Errno;
use super::system;
pub(crate) use crate::sys::posix::at_exit::{HAS_EXIT_HANDLERS, at_exit};
use crate::sys::verdict::Verdict;

/// The highest process id that any Unix gives: Linux's, whose records may be seen here over
/// a network. A number beyond it is no process id, and its file another program's data.
pub(crate) const PID_MAX: u32 = 1 << 22;

/// A process is known by its id alone.
pub(crate) const HAS_PID_NAMESPACES: bool = false;

/// What names this boot of the kernel.
///
/// # Errors
/// That there is no such name.
pub(crate) fn boot_id() -> io::Result<String> {
    system::boot_id()
}

/// Whether any process, zombies aside, has this number.
pub(crate) fn judge_pid(pid: u32) -> Verdict {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Verdict::Dead(format!("{pid} is not a process id"));
    };
    if rustix::process::test_kill_process(number) == Err(Errno::SRCH) {
        return match system::sees_all_processes() {
            true => Verdict::Dead(format!("there is no process {pid}")),
            false => Verdict::Unknown(format!("process {pid} may be hidden from this one")),
        };
    }
    match system::is_over(pid) {
        Some(true) => Verdict::Dead(format!("process {pid} is a zombie")),
        _ => Verdict::Alive,
    }
}

/// There are no numbers of processes that are not used again.
pub(crate) fn pidfs_inode(_: u32) -> Result<Option<u64>, Errno> {
    Ok(None)
}

/// When this process started, in numbers that setting the clock does not change.
pub(crate) fn own_start() -> io::Result<u64> {
    start_of(std::process::id()).ok_or_else(|| ErrorKind::Unsupported.into())
}

/// The same of another; `None` where that cannot be seen.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    system::start_of(pid)
}

/// The name that ps shows.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    with_process(pid, |process| process.name().to_string_lossy().into_owned())
}

pub(super) fn with_process<T>(pid: u32, look: impl FnOnce(&Process) -> T) -> Option<T> {
    let pid = sysinfo::Pid::from_u32(pid);
    let mut system = System::new();
    let kind = ProcessRefreshKind::nothing().with_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
    system.process(pid).map(look)
}
