//! What the kernel knows of the peer of a connection.
//!
//! K1. A peer that closes its side is noticed whatever it sent before, and
//!     nothing is read for that: the kernel says so (`EPOLLRDHUP`).
//! K2. Of what is written, the kernel keeps [`SEND_BYTES`] for each peer.
//! K3. What the peer's machine has acknowledged came there, whatever came after.

use std::time::Duration;

use futures_util::FutureExt;
use rustix::net::sockopt;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

/// What the kernel keeps for a peer that reads slowly. Without a bound it is up
/// to 4 MiB for each connection. The kernel doubles the number for its own needs.
const SEND_BYTES: usize = 128 * 1024;

/// How long a machine may be away without a word, in milliseconds: as long as
/// the keep-alive needs, also while an answer is on its way there.
const SILENCE_MS: u32 = 60_000;

/// Resolves when the peer has closed its side, or the connection is broken.
/// The peer may still read. (K1)
///
/// # Cancel safety
/// Dropping the future loses nothing.
pub(super) async fn hangs_up(tcp: &TcpStream) {
    // This interest has no readiness that bytes bring, only that of the end:
    // for urgent data the socket is not registered.
    let _ = tcp.ready(Interest::PRIORITY).await;
}

/// The same, at this moment.
pub(super) fn has_hung_up(tcp: &TcpStream) -> bool {
    hangs_up(tcp).now_or_never().is_some()
}

/// Whether the peer's machine has all that was written. (K3)
pub(super) fn has_acknowledged(tcp: &TcpStream) -> bool {
    unacknowledged(tcp).is_ok_and(|bytes| bytes == 0)
}

/// Bytes that were written and not acknowledged, tcp(7).
#[allow(unsafe_code, reason = "no safe call of the crates in use asks for this number")]
fn unacknowledged(tcp: &TcpStream) -> rustix::io::Result<i32> {
    type OutQueue = rustix::ioctl::Getter<{ nix::libc::TIOCOUTQ as rustix::ioctl::Opcode }, i32>;
    // SAFETY: for a TCP socket the kernel writes one `int` there.
    unsafe { rustix::ioctl::ioctl(tcp, OutQueue::new()) }
}

/// Settings that every connection takes over from its listener.
pub(super) fn prepare(listener: &TcpListener) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(listener, true)?;
    sockopt::set_socket_send_buffer_size(listener, SEND_BYTES)?;
    // A machine that went away without a word is found out in a minute, also by
    // a request that only waits.
    sockopt::set_socket_keepalive(listener, true)?;
    sockopt::set_tcp_keepidle(listener, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(listener, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(listener, 3)?;
    sockopt::set_tcp_user_timeout(listener, SILENCE_MS)
}
