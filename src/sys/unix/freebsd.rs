//! What FreeBSD tells of its processes.

use std::io;

use nix::libc;

use super::sysctl;

/// What names this boot of the kernel: since FreeBSD 13.
pub(super) fn boot_id() -> io::Result<String> {
    sysctl::read_text(c"kern.boot_id")
}

/// Whether this process sees those of all users and jails. A process that is hidden
/// answers `ESRCH`, as one that is not there.
pub(super) fn sees_all_processes() -> bool {
    let is = |name, wanted: i32| match sysctl::read(name) {
        Ok(value) => value == wanted.to_ne_bytes(),
        // Older systems hide nothing by a rule that they do not know.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    is(c"security.jail.jailed", 0)
        && is(c"security.bsd.see_other_uids", 1)
        && is(c"security.bsd.see_other_gids", 1)
        && is(c"security.bsd.see_jail_proc", 1)
}

/// In microseconds since the boot. The kernel tells the time of day, which it computes
/// from that and from the time of the boot: both change when the clock is set, and their
/// difference does not.
pub(super) fn start_of(pid: u32) -> Option<u64> {
    /// So often the clock may be set while this looks.
    const TRIES: usize = 3;
    let boot = || {
        sysctl::read_struct::<libc::timeval, 2>([libc::CTL_KERN, libc::KERN_BOOTTIME])
            .ok()
            .map(microseconds)
    };
    for _ in 0..TRIES {
        let before = boot()?;
        let start = ask(pid)?.ki_start;
        if boot()? == before {
            return Some(microseconds(start).saturating_sub(before));
        }
    }
    None
}

/// Whether it is a zombie.
pub(super) fn is_over(pid: u32) -> Option<bool> {
    Some(ask(pid)?.ki_stat == libc::SZOMB)
}

/// What the kernel says of one process.
fn ask(pid: u32) -> Option<libc::kinfo_proc> {
    let pid = i32::try_from(pid).ok()?;
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    sysctl::read_struct::<libc::kinfo_proc, 4>(name).ok()
}

fn microseconds(time: libc::timeval) -> u64 {
    let (seconds, microseconds) = (time.tv_sec as u64, time.tv_usec as u64);
    seconds.saturating_mul(1_000_000).saturating_add(microseconds)
}
