//! What macOS tells of its processes.

use std::io;

use nix::libc;

use super::sysctl;

/// What names this boot of the kernel.
pub(super) fn boot_id() -> io::Result<String> {
    sysctl::read_text(c"kern.bootsessionuuid")
}

/// Other users' processes cannot be asked about, and are not hidden.
pub(super) fn sees_all_processes() -> bool {
    true
}

/// By the time of day at its start, in microseconds. The kernel keeps what it noted then.
pub(super) fn start_of(pid: u32) -> Option<u64> {
    ask(pid).map(|process| process.started)
}

/// Whether it is a zombie.
pub(super) fn is_over(pid: u32) -> Option<bool> {
    ask(pid).map(|process| process.status == libc::SZOMB)
}

struct AtSysctl {
    started: u64,
    status: u32,
}

/// What the kernel says of one process: also of a zombie, and of another user's, of which
/// `proc_pidinfo` says nothing.
fn ask(pid: u32) -> Option<AtSysctl> {
    /// Of `kinfo_proc`, sys/sysctl.h.
    const BYTES: usize = 648;
    let pid = i32::try_from(pid).ok()?;
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    let found = sysctl::read_struct::<[u8; BYTES], 4>(name).ok()?;
    // It begins with `extern_proc`, sys/proc.h: the start as a `timeval`, two pointers, the
    // flags, the status, and the number of the process.
    let (seconds, microseconds) = (number(&found, 0), number(&found, 8));
    let is_of_it = number(&found, 40) as i32 == pid;
    let started = u64::from(seconds) | u64::from(number(&found, 4)) << 32;
    let started = started.saturating_mul(1_000_000).saturating_add(microseconds.into());
    is_of_it.then_some(AtSysctl { started, status: found[36].into() })
}

/// Four bytes, the lowest first, as on every processor of Apple's.
fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
