//! Settings of TCP connections.

use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt;

use crate::sys::keep_alive::KeepAlive;
#[cfg(any(
    feature = "etcd",
    feature = "lockd-client",
    feature = "postgres",
    feature = "lockd"
))]
pub(crate) use crate::sys::posix::socket::end_writing;
#[cfg(feature = "lockd")]
pub(crate) use crate::sys::posix::socket::prepare;
use crate::sys::posix::socket::set_probes;

/// Notice a machine that is gone. Without `TCP_USER_TIMEOUT` the kernel sends what is not
/// acknowledged again for a quarter of an hour, and makes no probe meanwhile.
pub(crate) fn keep_alive(socket: impl AsFd, keep_alive: &KeepAlive) -> io::Result<()> {
    set_probes(&socket, keep_alive)?;
    let limit = u32::try_from(keep_alive.unacknowledged.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(&socket, limit)?)
}
