//! What comes from the peer of a connection.

use std::io;

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;

/// One `recv`.
pub(crate) fn receive(tcp: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
    let (received, _) = recv(tcp, bytes, RecvFlags::empty())?;
    Ok(received)
}

/// A number of bytes in the queue of what was written: `CODE` says of which.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
#[allow(unsafe_code, reason = "no safe call of the crates in use asks for this number")]
pub(crate) fn queued<const CODE: Opcode>(tcp: &TcpStream) -> io::Result<i32> {
    // SAFETY: for a TCP socket the kernel writes one `int` there.
    Ok(unsafe { ioctl(tcp, Getter::<CODE, i32>::new()) }?)
}
