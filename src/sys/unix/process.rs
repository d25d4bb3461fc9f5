//! Processes: whether one runs, and which it is.
//!
//! Unknown is never taken for dead. A process is dead only if the kernel says
//! that there is none (`ESRCH`).

use std::io::{self, ErrorKind};

use rustix::process::Pid;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use super::files::Errno;
pub(crate) use crate::sys::posix::at_exit::{HAS_EXIT_HANDLERS, at_exit};
use crate::sys::verdict::Verdict;

/// The highest process id: `pid_t` has 31 bits.
pub(crate) const PID_MAX: u32 = i32::MAX as u32;

/// A process is known by its id alone.
pub(crate) const HAS_PID_NAMESPACES: bool = false;

/// What names this boot of the kernel.
///
/// # Errors
/// That there is no such name.
pub(crate) fn boot_id() -> io::Result<String> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether any process has this number.
pub(crate) fn judge_pid(pid: u32) -> Verdict {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Verdict::Dead(format!("{pid} is not a process id"));
    };
    match rustix::process::test_kill_process(number) {
        Err(Errno::SRCH) => Verdict::Dead(format!("there is no process {pid}")),
        _ => Verdict::Alive,
    }
}

/// There are no numbers of processes that are not used again.
pub(crate) fn pidfs_inode(_: u32) -> Result<Option<u64>, Errno> {
    Ok(None)
}

/// When this process started.
pub(crate) fn own_start() -> io::Result<u64> {
    start_of(std::process::id()).ok_or_else(|| ErrorKind::Unsupported.into())
}

/// The same of another.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    with_process(pid, sysinfo::Process::start_time)
}

/// The name that ps shows.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    with_process(pid, |process| process.name().to_string_lossy().into_owned())
}

fn with_process<T>(pid: u32, look: impl FnOnce(&sysinfo::Process) -> T) -> Option<T> {
    let pid = sysinfo::Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing(),
    );
    system.process(pid).map(look)
}
