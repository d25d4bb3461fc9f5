//! Settings of TCP connections.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::net::TcpStream;

use crate::sys::keep_alive::KeepAlive;

/// All of it but the limit of what is unacknowledged.
pub(crate) fn set_probes(socket: impl AsFd, keep_alive: &KeepAlive) -> io::Result<()> {
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, keep_alive.idle)?;
    sockopt::set_tcp_keepintvl(&socket, keep_alive.interval)?;
    Ok(sockopt::set_tcp_keepcnt(&socket, keep_alive.probes)?)
}

/// Nothing more is written.
pub(crate) fn end_writing(socket: &TcpStream) -> io::Result<()> {
    Ok(shutdown(socket, Shutdown::Write)?)
}

/// Send what is written at once, on each connection that is accepted here. Of what a peer
/// does not read, the kernel keeps so many bytes.
#[cfg(feature = "lockd")]
pub(crate) fn prepare(listener: impl AsFd, send_bytes: usize) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&listener, true)?;
    Ok(sockopt::set_socket_send_buffer_size(&listener, send_bytes)?)
}
