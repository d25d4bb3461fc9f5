//! Which process is which, and whether it still runs: by its time of creation.

#![allow(unsafe_code)]

use std::fmt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::str::FromStr;

use windows_sys::Win32::Foundation::{FILETIME, HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessTimes, OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION,
    PROCESS_SYNCHRONIZE, WaitForSingleObject,
};

/// A process for ever: its id may be given to another, its time of creation not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    /// In units of 100 ns.
    started: u64,
}

impl Identity {
    pub fn mine() -> Self {
        // SAFETY: it is a constant that stands for this process.
        let this = unsafe { GetCurrentProcess() };
        Self { pid: std::process::id(), started: created(this) }
    }

    /// Whether it has closed its files, as the system says when all else is done.
    pub fn is_gone(self) -> bool {
        let access = PROCESS_SYNCHRONIZE | PROCESS_QUERY_LIMITED_INFORMATION;
        // SAFETY: the call takes numbers only.
        let process = unsafe { OpenProcess(access, 0, self.pid) };
        if process.is_null() {
            return true;
        }
        // SAFETY: the handle was made here, and is no other's.
        let process = unsafe { OwnedHandle::from_raw_handle(process) };
        // SAFETY: the handle is open, and the call does not wait.
        let has_ended = unsafe { WaitForSingleObject(process.as_raw_handle(), 0) } == WAIT_OBJECT_0;
        has_ended || created(process.as_raw_handle()) != self.started
    }

    /// What the system says of it, for a report.
    pub fn describe(self) -> String {
        format!("gone: {}", self.is_gone())
    }
}

fn created(process: HANDLE) -> u64 {
    let [mut created, mut ended, mut kernel, mut user] = [FILETIME::default(); 4];
    let times = [&raw mut created, &raw mut ended, &raw mut kernel, &raw mut user];
    // SAFETY: the handle is open, and the four places are there until the call is over.
    unsafe { GetProcessTimes(process, times[0], times[1], times[2], times[3]) };
    u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime)
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.pid, self.started)
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} names no process");
        let (pid, started) = text.split_once('.').ok_or_else(wrong)?;
        match (pid.parse(), started.parse()) {
            (Ok(pid), Ok(started)) => Ok(Self { pid, started }),
            _ => Err(wrong()),
        }
    }
}
