//! Processes: whether one runs, what it is called, what happens at its exit. The only
//! user of sysinfo and `/proc/<pid>`.
//!
//! Unknown is never taken for dead. A process is dead only if the kernel says
//! that there is none (`ESRCH`), or shows something that cannot be it: a
//! zombie without living threads, or a thread under the same number. What may not be
//! looked at (`EPERM`, a `/proc` mounted with `hidepid`) is alive.

#![expect(clippy::disallowed_methods, reason = "the room of /proc")]

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use super::files::call;

/// Longest program name in a record.
pub(crate) const NAME_MAX_BYTES: usize = 64;

/// Longest host name in a record, as Linux has it (`HOST_NAME_MAX`).
const HOST_MAX_BYTES: usize = 64;

/// What can be said of a recorded process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Alive,
    /// And how that shows.
    Dead(String),
    /// And why it cannot be known.
    Unknown(String),
}

/// The file stem of `argv[0]`: what openlock would record and look for.
pub(crate) fn my_name() -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    let stem = Path::new(&program).file_stem().unwrap_or_default();
    program_name(&stem.to_string_lossy())
}

/// The command line of this process as `ps` shows it.
pub(crate) fn my_command_line() -> String {
    let words: Vec<_> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

/// A name as it may stand in a record: one line, not too long, never empty.
pub(crate) fn program_name(name: &str) -> String {
    let name = one_line(name, NAME_MAX_BYTES);
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// A host name as it may stand in a record.
pub(crate) fn host_name(name: &str) -> String {
    one_line(name, HOST_MAX_BYTES)
}

pub(crate) fn one_line(text: &str, max_bytes: usize) -> String {
    let mut line = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if line.len() + character.len_utf8() > max_bytes {
            break;
        }
        line.push(character);
    }
    line.trim().to_owned()
}

pub(crate) fn command_line(pid: u32) -> String {
    let pid = sysinfo::Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always),
    );
    let words = system.process(pid).map(|process| process.cmd().join(std::ffi::OsStr::new(" ")));
    words.unwrap_or_default().to_string_lossy().into_owned()
}

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

/// What is needed of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProcStat {
    state: u8,
    threads: u64,
    pub(crate) started: u64,
}

impl ProcStat {
    /// `None` where it cannot be read, or `/proc` shows another pid namespace.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let proc_is_ours = fs::read_link("/proc/self")
            .is_ok_and(|link| link.as_os_str() == std::process::id().to_string().as_str());
        if !proc_is_ours {
            return None;
        }
        Self::read(&format!("/proc/{pid}/stat")).ok()
    }

    pub(crate) fn read(path: &str) -> std::io::Result<Self> {
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

/// Have this run in `exit`; whether that could be arranged. A forked child has the
/// handlers of its parent.
// std offers no exit handler; C's is given a function and cannot fail but for
// want of memory.
#[allow(unsafe_code)]
pub(crate) fn at_exit(handler: extern "C" fn()) -> bool {
    unsafe extern "C" {
        safe fn atexit(handler: extern "C" fn()) -> std::ffi::c_int;
    }
    atexit(handler) == 0
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
