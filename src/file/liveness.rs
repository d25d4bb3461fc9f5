//! Does that process still run?
//!
//! Unknown is never taken for dead. A process is dead only if the kernel says
//! that there is none (`ESRCH`), or shows something that cannot be it: a
//! zombie without living threads, another process or a thread under the same
//! number. What may not be looked at (`EPERM`, a `/proc` mounted with
//! `hidepid`) is alive.

use std::sync::{Arc, OnceLock};

use super::record::{Contents, ProcessIdentity, Record};
use crate::sys::files::Errno;
use crate::sys::host;
use crate::sys::process::{
    HAS_PID_NAMESPACES, boot_id, judge_pid, own_start, pidfs_inode, start_of,
};
use crate::sys::process_key::{ProcessKey, pid_namespace, this_process};
use crate::sys::program::{command_line, host_name, my_name};
use crate::sys::verdict::Verdict;

/// This process, as its records describe it.
#[derive(Clone, Debug)]
pub(crate) struct Myself {
    pub(crate) process: ProcessKey,
    pub(crate) name: Arc<str>,
    pub(crate) host: Option<Arc<str>>,
    pub(crate) identity: ProcessIdentity,
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
        let boot = boot_id();
        let boot = boot.map_err(|error| is_short(error.raw_os_error())).ok();
        let started = own_start();
        let started = started.map_err(|error| is_short(error.raw_os_error())).ok();
        let pidfs_inode = pidfs_inode(process.pid);
        let pidfs_inode = pidfs_inode.map_err(|error| is_short(Some(error.raw_os_error()))).ok();
        let host = host_name(&host::name());
        let myself = Myself {
            process,
            name: my_name().into(),
            host: Some(host).filter(|host| !host.is_empty()).map(Arc::from),
            identity: ProcessIdentity {
                boot: boot.map(Arc::from),
                pid_namespace: pid_namespace(),
                started,
                pidfs_inode: pidfs_inode.flatten(),
            },
        };
        (myself, is_all)
    }
}

/// Whether the process that wrote `contents` lives. `local` says that only
/// this machine can have the file's file system mounted.
pub(crate) fn judge(contents: &Contents, local: bool) -> Verdict {
    match contents {
        Contents::Ours(record) => judge_record(record, local && record.is_local),
        // NFS keeps what a machine writes from the others for a while: theirs
        // may look empty here.
        _ if !local => Verdict::Unknown("it may run on another machine".to_owned()),
        Contents::Empty => Verdict::Dead("the file names no holder".to_owned()),
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
        // A system that names no boots.
        (None, None) if local => {}
        _ => return Verdict::Unknown(may_be_elsewhere(record)),
    }
    match (mine.pid_namespace, theirs.pid_namespace) {
        (Some(mine), Some(theirs)) if mine == theirs => {}
        (None, None) if !HAS_PID_NAMESPACES => {}
        _ => return unknown("its process is in another pid namespace"),
    }
    match judge_pid(record.pid) {
        Verdict::Alive => judge_identity(record.pid, theirs, mine.boot == theirs.boot),
        verdict => verdict,
    }
}

/// With what is left to do: only a person knows that a machine is down for good.
fn may_be_elsewhere(record: &Record) -> String {
    let host = record.host.as_deref().unwrap_or("one without a name");
    format!("it may run on another machine ({host}); if that is down for good, remove the file")
}

/// Whether the process that has this number is the one that was recorded.
fn judge_identity(pid: u32, recorded: &ProcessIdentity, is_of_this_boot: bool) -> Verdict {
    let another = || Verdict::Dead(format!("pid {pid} is another process now"));
    match (recorded.pidfs_inode, pidfs_inode(pid)) {
        (Some(recorded), Ok(Some(running))) if recorded != running => return another(),
        // Exact, but only within a boot.
        (Some(_), Ok(Some(_))) if is_of_this_boot => return Verdict::Alive,
        _ => {}
    }
    match (recorded.started, start_of(pid)) {
        (Some(recorded), Some(running)) if recorded != running => another(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_another_start_or_name_is_another_process() {
        let myself = Myself::with(this_process(), Myself::clone);
        let pid = myself.process.pid;
        assert_eq!(judge_pid(pid), Verdict::Alive);
        assert_eq!(judge_identity(pid, &myself.identity, true), Verdict::Alive);
        assert_eq!(judge_foreign(pid, &myself.name), Verdict::Alive);

        let by_start =
            ProcessIdentity { started: Some(1), pidfs_inode: None, ..ProcessIdentity::default() };
        assert!(matches!(judge_identity(pid, &by_start, true), Verdict::Dead(_)));
        let by_pidfd = ProcessIdentity { pidfs_inode: Some(1), ..myself.identity };
        if pidfs_inode(pid).unwrap().is_some() {
            assert!(matches!(judge_identity(pid, &by_pidfd, true), Verdict::Dead(_)));
        }
        let foreign = judge_foreign(pid, "no program has this name");
        assert!(matches!(foreign, Verdict::Dead(_)));
    }

    #[test]
    fn on_a_network_file_system_no_foreign_process_is_known_to_be_dead() {
        for contents in [Contents::BarePid(4_194_304), Contents::Empty] {
            assert!(matches!(judge(&contents, true), Verdict::Dead(_)));
            assert!(matches!(judge(&contents, false), Verdict::Unknown(_)));
        }
    }
}
