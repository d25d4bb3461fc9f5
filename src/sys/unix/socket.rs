//! Settings of TCP connections.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

use crate::sys::keep_alive::KeepAlive;
pub(crate) use crate::sys::posix::socket::end_writing;
#[cfg(feature = "lockd")]
pub(crate) use crate::sys::posix::socket::prepare;
use crate::sys::posix::socket::set_probes;

/// Notice a machine that is gone.
pub(crate) fn keep_alive(socket: impl AsFd, keep_alive: &KeepAlive) -> io::Result<()> {
    set_probes(&socket, keep_alive)?;
    limit_unacknowledged(&socket, keep_alive)
}

/// For how long what was sent is sent again: an option of TCP, and its unit in
/// milliseconds.
#[cfg(target_vendor = "apple")]
const UNACKNOWLEDGED: Option<(c_int, u128)> = Some((TCP_RXT_CONNDROPTIME, 1000));
#[cfg(target_os = "freebsd")]
const UNACKNOWLEDGED: Option<(c_int, u128)> = Some((libc::TCP_MAXUNACKTIME, 1000));
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Option<(c_int, u128)> = Some((libc::TCP_USER_TIMEOUT, 1));
/// The other systems have a limit of their own, of some minutes.
#[cfg(not(any(target_vendor = "apple", target_os = "freebsd", target_os = "linux")))]
const UNACKNOWLEDGED: Option<(c_int, u128)> = None;

/// netinet/tcp.h of macOS.
#[cfg(target_vendor = "apple")]
const TCP_RXT_CONNDROPTIME: c_int = 0x80;

fn limit_unacknowledged(socket: impl AsFd, keep_alive: &KeepAlive) -> io::Result<()> {
    let Some((option, unit_ms)) = UNACKNOWLEDGED else { return Ok(()) };
    let limit = keep_alive.unacknowledged.as_millis() / unit_ms;
    let limit = c_int::try_from(limit).unwrap_or(c_int::MAX);
    let length = size_of::<c_int>() as libc::socklen_t;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the option is a `c_int`, which setsockopt(2) only reads.
    let set = unsafe {
        libc::setsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_ref(&limit).cast(),
            length,
        )
    };
    match set {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // An older system: it has a limit of its own.
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
            error => Err(error),
        },
    }
}
