//! Settings of TCP connections.
#![allow(unsafe_code)]

use std::io;
use std::net::Shutdown;
use std::os::windows::io::AsRawSocket;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use windows_sys::Win32::Networking::WinSock::{
    IPPROTO_TCP, SOCKET, TCP_MAXRT, WSAENOPROTOOPT, setsockopt,
};

use crate::sys::keep_alive::KeepAlive;

/// The system makes so many probes, `SIO_KEEPALIVE_VALS`. Only a late Windows 10 lets them
/// be set.
const PROBES: u32 = 10;

/// Notice a machine that is gone: after as much time as is asked for, by more probes.
pub(crate) fn keep_alive(socket: &TcpStream, keep_alive: &KeepAlive) -> io::Result<()> {
    let interval = keep_alive.interval * keep_alive.probes / PROBES;
    let probes = TcpKeepalive::new().with_time(keep_alive.idle).with_interval(interval);
    SockRef::from(socket).set_tcp_keepalive(&probes)?;
    limit_unacknowledged(socket, keep_alive)
}

/// For how long what was sent is sent again: `TCP_MAXRT`, in seconds. A system without it
/// gives up after a few times.
fn limit_unacknowledged(socket: &TcpStream, keep_alive: &KeepAlive) -> io::Result<()> {
    let limit = i32::try_from(keep_alive.unacknowledged.as_secs()).unwrap_or(i32::MAX);
    let limit = limit.to_ne_bytes();
    let raw = socket.as_raw_socket() as SOCKET;
    // SAFETY: the socket is open, and the option is four bytes, which are only read.
    let set =
        unsafe { setsockopt(raw, IPPROTO_TCP, TCP_MAXRT, limit.as_ptr(), limit.len() as i32) };
    match set {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(WSAENOPROTOOPT) => Ok(()),
            error => Err(error),
        },
    }
}

/// Nothing more is written.
pub(crate) fn end_writing(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Write)
}
