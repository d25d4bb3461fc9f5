//! Processes: whether one runs, and which it is. The only user of `/proc/<pid>`.
//!
//! Unknown is never taken for dead. A process is dead only if the kernel says
//! that there is none (`ESRCH`), or shows something that cannot be it: a
//! zombie without living threads, or a thread under the same number. What may not be
//! looked at (`EPERM`, a `/proc` mounted with `hidepid`) is alive.

#![expect(clippy::disallowed_methods, reason = "the room of /proc")]

use std::fs;
use std::io::{self, ErrorKind};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::files::call;
pub(crate) use crate::sys::posix::at_exit::{HAS_EXIT_HANDLERS, at_exit};
use crate::sys::verdict::Verdict;

/// The highest process id that Linux can be set to give (`PID_MAX_LIMIT`),
/// proc_sys_kernel(5).
pub(crate) const PID_MAX: u32 = 1 << 22;

/// A process is known by its id and a namespace for it.
pub(crate) const HAS_PID_NAMESPACES: bool = true;

/// What names this boot of the kernel.
///
/// # Errors
/// What reading it came to.
pub(crate) fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// Whether any process, zombies aside, has this number.
pub(crate) fn judge_pid(pid: u32) -> Verdict {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Verdict::Dead(format!("{pid} is not a process id"));
    };
    if rustix::process::test_kill_process(number) == Err(Errno::SRCH) {
        return Verdict::Dead(format!("there is no process {pid}"));
    }
    match ProcStat::of(pid) {
        Some(stat) if stat.is_over() => Verdict::Dead(format!("process {pid} is a zombie")),
        Some(_) if is_thread_of_another(pid) => {
            Verdict::Dead(format!("pid {pid} is a thread of another process now"))
        }
        _ => Verdict::Alive,
    }
}

/// Whether a process is seen to be stopped by a signal or a debugger.
pub(crate) fn is_stopped(pid: u32) -> bool {
    ProcStat::of(pid).is_some_and(|stat| matches!(stat.state, b'T' | b't'))
}

/// A number from `Tgid:` that is not the one asked for, proc_pid_status(5).
fn is_thread_of_another(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    leader.and_then(|leader| leader.trim().parse::<u32>().ok()).is_some_and(|leader| leader != pid)
}

/// The inode that pidfs gives this process, if the kernel has pidfs (6.9).
/// Before, every pidfd had the same inode.
pub(crate) fn pidfs_inode(pid: u32) -> Result<Option<u64>, Errno> {
    /// `PID_FS_MAGIC` of linux/magic.h.
    const PID_FS: u32 = 0x5049_4446;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let descriptor = call(|| rustix::process::pidfd_open(pid, PidfdFlags::empty()))?;
    let is_pidfs = call(|| rustix::fs::fstatfs(&descriptor))?.f_type as u32 == PID_FS;
    Ok(if is_pidfs { Some(call(|| rustix::fs::fstat(&descriptor))?.st_ino) } else { None })
}

/// When this process started, in clock ticks since the boot.
pub(crate) fn own_start() -> io::Result<u64> {
    ProcStat::read("/proc/self/stat").map(|stat| stat.started)
}

/// The same of another, in numbers that compare with those of this process: `None` where
/// that is not known, as in another time namespace.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).ok();
    let is_comparable = namespace("self") == namespace(&pid.to_string());
    ProcStat::of(pid).filter(|_| is_comparable).map(|stat| stat.started)
}

/// The name that ps shows: of a program that cannot be read about, none.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok()
}

/// What is needed of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct ProcStat {
    state: u8,
    threads: u64,
    started: u64,
}

impl ProcStat {
    /// `None` where it cannot be read, or `/proc` shows another pid namespace.
    fn of(pid: u32) -> Option<Self> {
        let proc_is_ours = fs::read_link("/proc/self")
            .is_ok_and(|link| link.as_os_str() == std::process::id().to_string().as_str());
        if !proc_is_ours {
            return None;
        }
        Self::read(&format!("/proc/{pid}/stat")).ok()
    }

    fn read(path: &str) -> std::io::Result<Self> {
        let bytes = fs::read(path)?;
        Self::parse(&bytes).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// The command stands second, in parentheses, and may hold anything: the
    /// fields are counted from the last parenthesis on.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(&bytes[end + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let threads = fields.nth(16)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        Some(Self { state, threads, started })
    }

    /// A zombie whose leader only went first still has threads at work.
    fn is_over(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_is_read_past_a_hostile_command_name() {
        let line = b"42 (a) R 1 (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 8273645 0 0";
        let expected = ProcStat { state: b'S', threads: 3, started: 8_273_645 };
        assert_eq!(ProcStat::parse(line), Some(expected));
    }

    #[test]
    fn a_zombie_leader_with_threads_is_not_over() {
        let zombie = |threads| ProcStat { state: b'Z', threads, started: 0 };
        assert!(zombie(1).is_over());
        assert!(!zombie(2).is_over());
    }

    #[test]
    fn the_id_of_a_thread_is_not_a_process() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let link = fs::read_link("/proc/thread-self").unwrap();
            let id: u32 = link.file_name().unwrap().to_str().unwrap().parse().unwrap();
            tell.send(id).unwrap();
            let _ = stopped.recv();
        });
        let id = told.recv().unwrap();
        assert!(matches!(judge_pid(id), Verdict::Dead(_)));
        drop(stop);
        thread.join().unwrap();
    }
}
