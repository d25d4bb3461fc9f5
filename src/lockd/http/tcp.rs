//! What the kernel knows of the peer of a connection.
//!
//! K1. A peer that closes its side is noticed whatever it sent before, and
//!     nothing is read for that: the kernel says so ([`peer::hangs_up`]).
//! K2. Of what is written, the kernel keeps [`SEND_BYTES`] for each peer.
//! K3. What the peer's machine has acknowledged came there, whatever came after.

use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::sys::keep_alive::KeepAlive;
use crate::sys::{peer, socket};

/// What the kernel keeps for a peer that reads slowly. Without a bound it is up
/// to 4 MiB for each connection. The kernel doubles the number for its own needs.
const SEND_BYTES: usize = 128 * 1024;

/// A machine that went away without a word is found out in a minute, also by a request
/// that only waits, and while an answer is on its way there.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    probes: 3,
    unacknowledged: Duration::from_secs(60),
};

/// Whether the peer's machine has all that was written. (K3)
pub(super) fn has_acknowledged(tcp: &TcpStream) -> bool {
    peer::unacknowledged(tcp).is_ok_and(|bytes| bytes == 0)
}

/// Settings that every connection takes over from its listener.
pub(super) fn prepare(listener: &TcpListener) -> io::Result<()> {
    socket::prepare(listener, SEND_BYTES)?;
    socket::keep_alive(listener, &KEEP_ALIVE)
}
