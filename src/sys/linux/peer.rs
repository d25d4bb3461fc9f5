//! What the kernel knows of the peer of a connection.

use std::io;

use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::sys::posix::peer::queued;
pub(crate) use crate::sys::posix::peer::receive;

/// Resolves when the peer has closed its side, or the connection is broken: `EPOLLRDHUP`.
/// Nothing is read for that.
///
/// # Cancel safety
/// Dropping the future loses nothing.
pub(crate) async fn hangs_up(tcp: &TcpStream) {
    // This interest has no readiness that bytes bring, only that of the end:
    // for urgent data the socket is not registered.
    let _ = tcp.ready(Interest::PRIORITY).await;
}

/// The same, at this moment.
pub(crate) fn has_hung_up(tcp: &TcpStream) -> bool {
    hangs_up(tcp).now_or_never().is_some()
}

/// Bytes that were written and not acknowledged: `TIOCOUTQ`, tcp(7).
pub(crate) fn unacknowledged(tcp: &TcpStream) -> io::Result<i32> {
    queued::<{ nix::libc::TIOCOUTQ as rustix::ioctl::Opcode }>(tcp)
}
