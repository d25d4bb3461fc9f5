//! Processes: whether one runs, and which it is.
//!
//! Unknown is never taken for dead. A process is dead only if the system says that there
//! is none of this id, or that it has ended. One that may not be looked at is alive.
//!
//! An id is given again soon. The time at which a process was created tells it from the
//! next one that has its id.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::Path;

use windows_sys::Win32::Foundation::{FILETIME, HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessId, GetProcessTimes, OpenProcess, PROCESS_NAME_WIN32,
    PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE, QueryFullProcessImageNameW,
    WaitForSingleObject,
};

use super::files::Errno;
use crate::sys::verdict::Verdict;

/// A process is known by its id alone.
pub(crate) const HAS_PID_NAMESPACES: bool = false;

/// The system gives multiples of four, of 32 bits.
pub(crate) const PID_MAX: u32 = u32::MAX;

/// There is no handler that runs at every end a program chooses.
pub(crate) const HAS_EXIT_HANDLERS: bool = false;

/// Longest path that is asked for, in units of 16 bits: the system knows no longer one.
const PATH_MAX: usize = 32 * 1024;

/// A process that is open.
pub(super) struct Process(OwnedHandle);

impl Process {
    /// # Errors
    /// [`Errno::INVAL`] if there is no process of this id; [`Errno::ACCESS`] if there is one
    /// that may not be opened.
    pub(super) fn open(pid: u32) -> Result<Self, Errno> {
        let access = PROCESS_SYNCHRONIZE | PROCESS_QUERY_LIMITED_INFORMATION;
        // SAFETY: the call takes numbers only.
        let handle = unsafe { OpenProcess(access, 0, pid) };
        if handle.is_null() {
            return Err(Errno::last());
        }
        // SAFETY: the handle was made here, and is no other's.
        let process = Self(unsafe { OwnedHandle::from_raw_handle(handle) });
        // The system opens a process also by the three numbers after its id.
        // SAFETY: the handle is open.
        let is_it = unsafe { GetProcessId(process.handle()) } == pid;
        if is_it { Ok(process) } else { Err(Errno::INVAL) }
    }

    pub(super) fn handle(&self) -> HANDLE {
        self.0.as_raw_handle()
    }

    pub(super) fn has_ended(&self) -> bool {
        // SAFETY: the handle is open, and the call does not wait.
        unsafe { WaitForSingleObject(self.handle(), 0) == WAIT_OBJECT_0 }
    }

    fn name(&self) -> Option<String> {
        let mut path = vec![0_u16; PATH_MAX];
        let mut length = PATH_MAX as u32;
        let (handle, buffer) = (self.handle(), path.as_mut_ptr());
        // SAFETY: the handle is open, and the buffer has that length.
        let is_told = unsafe {
            QueryFullProcessImageNameW(handle, PROCESS_NAME_WIN32, buffer, &raw mut length)
        };
        let path = String::from_utf16_lossy(path.get(..length as usize)?);
        let name = Path::new(&path).file_stem()?.to_string_lossy().into_owned();
        (is_told != 0).then_some(name)
    }
}

/// When a process was created, in units of 100 ns since 1601.
///
/// # Safety
/// The handle is of a process, and open.
unsafe fn created(process: HANDLE) -> Result<u64, Errno> {
    let [mut created, mut ended, mut kernel, mut user] = [FILETIME::default(); 4];
    let times = [&raw mut created, &raw mut ended, &raw mut kernel, &raw mut user];
    // SAFETY: the caller's handle; and the four places are there until the call is over.
    let is_told = unsafe { GetProcessTimes(process, times[0], times[1], times[2], times[3]) };
    match is_told {
        0 => Err(Errno::last()),
        _ => Ok(u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime)),
    }
}

/// What names this boot of the system.
///
/// # Errors
/// That there is no such name.
pub(crate) fn boot_id() -> io::Result<String> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether any process has this id.
pub(crate) fn judge_pid(pid: u32) -> Verdict {
    match Process::open(pid) {
        Ok(process) if process.has_ended() => Verdict::Dead(format!("process {pid} has ended")),
        Ok(_) | Err(Errno::ACCESS) => Verdict::Alive,
        Err(Errno::INVAL) => Verdict::Dead(format!("there is no process {pid}")),
        Err(error) => Verdict::Unknown(format!("process {pid} cannot be asked for: {error}")),
    }
}

/// There are no numbers of processes that are not used again.
pub(crate) fn pidfs_inode(_: u32) -> Result<Option<u64>, Errno> {
    Ok(None)
}

/// When this process started.
pub(crate) fn own_start() -> io::Result<u64> {
    // SAFETY: it is a constant that stands for this process.
    let this = unsafe { GetCurrentProcess() };
    // SAFETY: as above.
    Ok(unsafe { created(this) }?)
}

/// The same of another.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    let process = Process::open(pid).ok()?;
    // SAFETY: the handle is open.
    unsafe { created(process.handle()) }.ok()
}

/// The name of its program, without what the name ends in.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    Process::open(pid).ok()?.name()
}

/// None is registered.
pub(crate) fn at_exit(_: extern "C" fn()) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn this_process_runs_and_has_a_start_and_a_name() {
        let pid = std::process::id();
        assert_eq!(judge_pid(pid), Verdict::Alive);
        assert_eq!(start_of(pid), own_start().ok());
        let program = std::env::current_exe().unwrap();
        assert_eq!(
            name_of(pid),
            program.file_stem().map(|name| name.to_string_lossy().into_owned())
        );
    }

    #[test]
    fn a_process_that_has_ended_is_dead_though_it_can_be_opened() {
        let mut child =
            Command::new("cmd").args(["/c", "exit"]).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(Process::open(pid).is_ok(), "the child's handle keeps its id");
        assert!(matches!(judge_pid(pid), Verdict::Dead(_)));
    }

    #[test]
    fn the_numbers_after_an_id_are_no_processes() {
        for more in 1..4 {
            assert!(matches!(judge_pid(std::process::id() + more), Verdict::Dead(_)));
        }
        assert!(matches!(judge_pid(0), Verdict::Dead(_)));
    }
}
