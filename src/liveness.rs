//! Does that process still run? The only user of sysinfo and `/proc`.
//!
//! Unknown is never taken for dead. A process is dead only if the kernel says
//! that there is none (`ESRCH`), or shows something that cannot be it: a
//! zombie without living threads, another process or a thread under the same
//! number. What may not be looked at (`EPERM`, a `/proc` mounted with
//! `hidepid`) is alive.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use crate::disk::call;
use crate::fork::{ProcessKey, pid_namespace, this_process};
use crate::record::{Contents, Identity, Record, host_name, program_name};

/// What can be said of a recorded process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Alive,
    /// And how that shows.
    Dead(String),
    /// And why it cannot be known.
    Unknown(String),
}

/// This process, as its records describe it.
#[derive(Clone, Debug)]
pub(crate) struct Myself {
    pub(crate) process: ProcessKey,
    pub(crate) name: Arc<str>,
    pub(crate) host: Option<Arc<str>>,
    pub(crate) identity: Identity,
}

impl Myself {
    /// Run `look` on this process: as found out once, or anew in a forked child.
    pub(crate) fn with<T>(process: ProcessKey, look: impl FnOnce(&Myself) -> T) -> T {
        static MYSELF: OnceLock<Myself> = OnceLock::new();
        if let Some(known) = MYSELF.get().filter(|known| known.process == process) {
            return look(known);
        }
        let (found, is_all) = Myself::look(process);
        match MYSELF.get() {
            // What could not be seen just now is looked for again.
            None if is_all => look(MYSELF.get_or_init(|| found)),
            _ => look(&found),
        }
    }

    /// And whether that is all that there is, and not what descriptors or memory
    /// were left for.
    fn look(process: ProcessKey) -> (Self, bool) {
        let mut is_all = true;
        let mut is_short = |error: Option<i32>| {
            let error = error.map(Errno::from_raw_os_error);
            is_all &= !matches!(error, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM));
        };
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = boot.map_err(|error| is_short(error.raw_os_error())).ok();
        let stat = ProcStat::read("/proc/self/stat");
        let started = stat.map_err(|error| is_short(error.raw_os_error())).ok();
        let pidfs_inode = pidfs_inode(process.pid);
        let pidfs_inode = pidfs_inode.map_err(|error| is_short(Some(error.raw_os_error()))).ok();
        let host = host_name(&rustix::system::uname().nodename().to_string_lossy());
        let myself = Myself {
            process,
            name: my_name().into(),
            host: Some(host).filter(|host| !host.is_empty()).map(Arc::from),
            identity: Identity {
                boot: boot.map(|id| id.trim().into()),
                pid_namespace: pid_namespace(),
                started: started.map(|stat| stat.started),
                pidfs_inode: pidfs_inode.flatten(),
            },
        };
        (myself, is_all)
    }
}

/// The file stem of `argv[0]`: what openlock would record and look for.
fn my_name() -> String {
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

/// Whether the process that wrote `contents` lives. `local` says that only
/// this machine can have the file's file system mounted.
pub(crate) fn judge(contents: &Contents, local: bool) -> Verdict {
    match contents {
        Contents::Ours(record) => judge_record(record, local && record.is_local),
        // NFS keeps what a machine writes from the others for a while: theirs
        // may look empty here.
        _ if !local => Verdict::Unknown("it may run on another machine".to_owned()),
        Contents::Empty => Verdict::Dead("the file names nobody".to_owned()),
        Contents::Torn { pid, name } | Contents::OpenLock { pid, name } => {
            judge_foreign(*pid, name)
        }
        Contents::BarePid(pid) => judge_foreign(*pid, ""),
    }
}

fn judge_record(record: &Record, local: bool) -> Verdict {
    let unknown = |why: &str| Verdict::Unknown(why.to_owned());
    let mine = Myself::with(this_process(), |myself| myself.identity.clone());
    let theirs = &record.identity;
    match (&mine.boot, &theirs.boot) {
        (Some(mine), Some(theirs)) if mine == theirs => {}
        // An older boot, or a container with a boot id of its own: ask for the
        // process all the same.
        (Some(_), Some(_)) if local => {}
        _ => return Verdict::Unknown(may_be_elsewhere(record)),
    }
    match (mine.pid_namespace, theirs.pid_namespace) {
        (Some(mine), Some(theirs)) if mine == theirs => {}
        _ => return unknown("its process is in another pid namespace"),
    }
    match judge_pid(record.pid) {
        Verdict::Alive => judge_identity(record.pid, theirs, mine.boot == theirs.boot),
        verdict => verdict,
    }
}

/// With what is left to do: nobody but a person knows that a machine is down for good.
fn may_be_elsewhere(record: &Record) -> String {
    let host = record.host.as_deref().unwrap_or("one without a name");
    format!("it may run on another machine ({host}); if that is down for good, remove the file")
}

/// Whether the process that has this number is the one that was recorded.
fn judge_identity(pid: u32, recorded: &Identity, is_of_this_boot: bool) -> Verdict {
    let another = || Verdict::Dead(format!("pid {pid} is another process now"));
    match (recorded.pidfs_inode, pidfs_inode(pid)) {
        (Some(recorded), Ok(Some(running))) if recorded != running => return another(),
        // Exact, but only within a boot.
        (Some(_), Ok(Some(_))) if is_of_this_boot => return Verdict::Alive,
        _ => {}
    }
    let same_time_namespace = fs::read_link("/proc/self/ns/time").ok()
        == fs::read_link(format!("/proc/{pid}/ns/time")).ok();
    match (recorded.started, ProcStat::of(pid)) {
        (Some(recorded), Some(running)) if same_time_namespace && recorded != running.started => {
            another()
        }
        _ => Verdict::Alive,
    }
}

/// openlock's rule: its pid runs and its name is in the command line. Unlike
/// openlock's, any program counts, not only Python.
fn judge_foreign(pid: u32, name: &str) -> Verdict {
    match judge_pid(pid) {
        Verdict::Alive => {}
        verdict => return verdict,
    }
    let command_line = command_line(pid).to_lowercase();
    if command_line.is_empty() || command_line.contains(&name.to_lowercase()) {
        return Verdict::Alive;
    }
    Verdict::Dead(format!("pid {pid} is another program now, not {name}"))
}

fn command_line(pid: u32) -> String {
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

/// Whether any process, dead ones that nobody waited for aside, has this number.
fn judge_pid(pid: u32) -> Verdict {
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
fn pidfs_inode(pid: u32) -> Result<Option<u64>, Errno> {
    /// `PID_FS_MAGIC` of linux/magic.h.
    const PID_FS: u32 = 0x5049_4446;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let descriptor = call(|| rustix::process::pidfd_open(pid, PidfdFlags::empty()))?;
    let is_pidfs = call(|| rustix::fs::fstatfs(&descriptor))?.f_type as u32 == PID_FS;
    Ok(if is_pidfs { Some(call(|| rustix::fs::fstat(&descriptor))?.st_ino) } else { None })
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
    fn this_process_lives_and_another_start_or_name_is_another_process() {
        let myself = Myself::with(this_process(), Myself::clone);
        let pid = myself.process.pid;
        assert_eq!(judge_pid(pid), Verdict::Alive);
        assert_eq!(judge_identity(pid, &myself.identity, true), Verdict::Alive);
        assert_eq!(judge_foreign(pid, &myself.name), Verdict::Alive);

        let by_start = Identity { started: Some(1), pidfs_inode: None, ..Identity::default() };
        assert!(matches!(judge_identity(pid, &by_start, true), Verdict::Dead(_)));
        let by_pidfd = Identity { pidfs_inode: Some(1), ..myself.identity };
        if pidfs_inode(pid).unwrap().is_some() {
            assert!(matches!(judge_identity(pid, &by_pidfd, true), Verdict::Dead(_)));
        }
        let foreign = judge_foreign(pid, "no program has this name");
        assert!(matches!(foreign, Verdict::Dead(_)));
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

    #[test]
    fn on_a_network_file_system_no_foreign_process_is_known_to_be_dead() {
        for contents in [Contents::BarePid(4_194_304), Contents::Empty] {
            assert!(matches!(judge(&contents, true), Verdict::Dead(_)));
            assert!(matches!(judge(&contents, false), Verdict::Unknown(_)));
        }
    }
}
