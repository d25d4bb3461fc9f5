//! CMD: how it is started, what it inherits, and how it ends.
//!
//! A lock of this machine ends with the process that acquired it: no handle carries it on.
//! So that CMD does not go on without the lock, both are in one job, which ends with this
//! process: Windows ends CMD then, and all that it started. It closes this process's files
//! first, so for a moment the next holder may run beside CMD.
#![allow(unsafe_code)]

use std::ffi::{OsString, c_void};
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::process::{Command, ExitCode, ExitStatus};

use tokio::process::Child;
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT,
    JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectExtendedLimitInformation, SetInformationJobObject,
};
use windows_sys::Win32::System::Threading::GetCurrentProcess;

use super::files::BorrowedFile;
use super::signals::Arrived;

/// For `run --help`.
pub(crate) const ABOUT: &str = "\
CMD:
  It is found and started as by Windows: in the directories of PATH, where .exe
  may be left out, and a batch file by its whole name. While it runs, the lock
  file shows its name and lockkeeper's process id. Arguments are not shown, as
  passwords may be among them; --note adds what should be seen.
  The lock ends with CMD. What CMD left running in the background does not keep
  it. If lockkeeper is killed, Windows ends CMD and all that it started, as the
  lock is gone; --close turns that off. The next holder may begin a moment
  before CMD has ended.
  Where the lock is lost, CMD is ended at once: there is no SIGTERM. lockkeeper
  ends with the exit code of CMD, which may be larger than 255.";

/// Start CMD. `prepare` gives it what it needs.
pub(crate) fn start(words: &[OsString], prepare: impl Fn(&mut Command)) -> io::Result<Child> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    prepare(&mut command);
    tokio::process::Command::from(command).spawn()
}

/// # Errors
/// Always: a program is called as its file is.
pub(crate) fn start_again(_: &str, _: impl Iterator<Item = OsString>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "on Windows a program is called as its file is")
}

/// What ends CMD together with a lock that ends with this process.
#[derive(Default)]
pub(crate) struct Carrier(Option<OwnedHandle>);

impl Carrier {
    /// No file carries a lock. `ends_with_process`: the lock ends with this process.
    pub(crate) fn new(_: Option<BorrowedFile<'_>>, ends_with_process: bool) -> io::Result<Self> {
        if !ends_with_process {
            return Ok(Self::default());
        }
        let job = new_job()?;
        set_limit(&job, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)?;
        // SAFETY: both handles are open.
        let assigned =
            unsafe { AssignProcessToJobObject(job.as_raw_handle(), GetCurrentProcess()) };
        match assigned {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(Self(Some(job))),
        }
    }

    /// CMD is in the job: what a process of it starts is.
    pub(crate) fn is_handed_over(&mut self) {}
}

impl Drop for Carrier {
    /// CMD has ended. What it left running goes on, and so does this process.
    fn drop(&mut self) {
        let Some(job) = self.0.take() else { return };
        if set_limit(&job, 0).is_err() {
            // Its end would be the end of this process before the lock is released.
            std::mem::forget(job);
        }
    }
}

fn new_job() -> io::Result<OwnedHandle> {
    // SAFETY: neither a descriptor nor a name has to be given.
    let job = unsafe { CreateJobObjectW(std::ptr::null(), std::ptr::null()) };
    if job.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle is new, and of no other owner. No child inherits it.
    Ok(unsafe { OwnedHandle::from_raw_handle(job) })
}

fn set_limit(job: &OwnedHandle, limit: JOB_OBJECT_LIMIT) -> io::Result<()> {
    let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
    limits.BasicLimitInformation.LimitFlags = limit;
    let length = size_of_val(&limits) as u32;
    let limits: *const c_void = std::ptr::from_ref(&limits).cast();
    // SAFETY: `limits` is what this class of information is, and as long as is said.
    let set = unsafe {
        SetInformationJobObject(
            job.as_raw_handle(),
            JobObjectExtendedLimitInformation,
            limits,
            length,
        )
    };
    if set == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// CMD has the console's events itself.
pub(crate) fn pass_on(_: &Child, _: Arrived) -> io::Result<()> {
    Ok(())
}

/// CMD has the console's events itself, from its start on.
pub(crate) fn pass_on_anyway(_: &Child, _: Arrived) -> io::Result<()> {
    Ok(())
}

/// CMD cannot be asked: it is ended.
pub(crate) fn ask_to_end(command: &mut Child) -> io::Result<()> {
    kill(command)
}

/// `TerminateProcess`.
pub(crate) fn kill(command: &mut Child) -> io::Result<()> {
    // One that is gone has no number any more.
    if command.id().is_none() { Ok(()) } else { command.start_kill() }
}

/// The code that a shell has for the end of its command.
pub(crate) fn code(status: ExitStatus) -> u32 {
    status.code().map_or(u32::MAX, |code| code as u32)
}

/// How this process ends with such a code.
pub(crate) fn exit_code(code: u32) -> ExitCode {
    match u8::try_from(code) {
        Ok(code) => code.into(),
        Err(_) => std::process::exit(code as i32),
    }
}
