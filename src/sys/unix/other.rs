//! What a Unix of which nothing more is known tells of its processes.

#![cfg_attr(target_os = "linux", expect(clippy::disallowed_methods, reason = "reads /proc"))]

use std::io;

use sysinfo::{Process, ProcessStatus, System};

use super::process::with_process;

/// What names this boot of the kernel.
#[cfg(target_os = "linux")]
pub(super) fn boot_id() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// What names this boot of the kernel.
///
/// # Errors
/// That there is no such name. Then a process that is recorded on a local file system is
/// looked for by its id and its start alone.
#[cfg(not(target_os = "linux"))]
pub(super) fn boot_id() -> io::Result<String> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn sees_all_processes() -> bool {
    true
}

/// In seconds since the boot: both times of day change when the clock is set, and their
/// difference does not.
pub(super) fn start_of(pid: u32) -> Option<u64> {
    /// So often the clock may be set while this looks.
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        let before = System::boot_time();
        let start = with_process(pid, Process::start_time)?;
        if System::boot_time() == before {
            return start.checked_sub(before);
        }
    }
    None
}

/// Whether it is a zombie. One whose leader only went first still has threads at work.
pub(super) fn is_over(pid: u32) -> Option<bool> {
    with_process(pid, |process| {
        let has_threads = process.tasks().is_some_and(|tasks| !tasks.is_empty());
        let is_dead = matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
        is_dead && !has_threads
    })
}
