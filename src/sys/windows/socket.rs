//! Settings of TCP connections.

use std::io;
use std::net::Shutdown;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::sys::keep_alive::KeepAlive;

/// The system makes so many probes, `SIO_KEEPALIVE_VALS`. Only a late Windows 10 lets them
/// be set.
const PROBES: u32 = 10;

/// Notice a machine that is gone: after as much time as is asked for, by more probes. What
/// is not acknowledged is sent a few times more, and then the system gives up by itself.
pub(crate) fn keep_alive(socket: &TcpStream, keep_alive: &KeepAlive) -> io::Result<()> {
    let interval = keep_alive.interval * keep_alive.probes / PROBES;
    let probes = TcpKeepalive::new().with_time(keep_alive.idle).with_interval(interval);
    SockRef::from(socket).set_tcp_keepalive(&probes)
}

/// Nothing more is written.
pub(crate) fn end_writing(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Write)
}
