//! Children of this process that other processes left to it.
#![cfg_attr(target_vendor = "apple", allow(unsafe_code))]

use nix::unistd::Pid;

/// Wait for the children that have ended, but for CMD: its status stays for the
/// runtime. One look may show CMD before others that have ended too. They need no
/// further look, as this process ends with CMD.
pub(super) fn reap(command: Option<Pid>) {
    while let Some(ended) = ended_child() {
        if command == Some(ended) {
            return;
        }
        let _ = nix::sys::wait::waitpid(ended, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    }
}

/// A child that has ended and was not waited for. It is left as it is.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn ended_child() -> Option<Pid> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, look).ok().and_then(|status| status.pid())
}

/// A child that has ended and was not waited for. It is left as it is.
#[cfg(target_vendor = "apple")]
fn ended_child() -> Option<Pid> {
    use nix::libc;

    let mut found = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `found` has room for what waitid(2) says.
    let asked = unsafe { libc::waitid(libc::P_ALL, 0, found.as_mut_ptr(), look) };
    // SAFETY: all zeros are a value of it, and waitid writes one over them or none.
    let pid = unsafe { found.assume_init() }.si_pid;
    (asked == 0 && pid != 0).then(|| Pid::from_raw(pid))
}

/// The system does not say without waiting for it: orphans stay as zombies until this
/// process ends.
#[cfg(not(any(target_os = "linux", target_os = "freebsd", target_vendor = "apple")))]
fn ended_child() -> Option<Pid> {
    None
}
