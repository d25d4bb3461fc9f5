//! What the kernel knows of the peer of a connection.
//!
//! A peer whose machine refuses what came behind its own end is known by `EPIPE` on Linux
//! alone. Elsewhere that error is the one of any reset.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::time::sleep;

pub(crate) use crate::sys::posix::peer::receive;

/// Between two looks where no more files can be open. If larger, the end is noticed later.
const LOOK: Duration = Duration::from_secs(1);

/// Resolves when the peer has closed its side, or the connection is broken. Nothing is
/// read for that.
///
/// # Cancel safety
/// Dropping the future loses nothing.
pub(crate) async fn hangs_up(tcp: &TcpStream) {
    let Ok(watched) = apart(tcp) else {
        while !has_hung_up(tcp) {
            sleep(LOOK).await;
        }
        return;
    };
    while let Ok(mut ready) = watched.readable().await {
        if ready.ready().is_read_closed() {
            return;
        }
        // Bytes came. Another event comes with the end.
        ready.clear_ready();
    }
}

/// A copy with a readiness of its own: the connection's is for its reader.
fn apart(tcp: &TcpStream) -> io::Result<AsyncFd<OwnedFd>> {
    let copy = tcp.as_fd().try_clone_to_owned()?;
    #[allow(deprecated, reason = "sound for an owned descriptor")]
    AsyncFd::with_interest(copy, Interest::READABLE)
}

/// The same, at this moment.
#[cfg(not(target_os = "linux"))]
#[allow(unsafe_code)]
pub(crate) fn has_hung_up(tcp: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;

    use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent, kqueue};

    let Ok(queue) = kqueue() else { return false };
    let read = EventFilter::Read(tcp.as_raw_fd());
    let watch = [Event::new(read, EventFlags::ADD, std::ptr::null_mut())];
    let mut events = Vec::with_capacity(1);
    let buffer = rustix::buffer::spare_capacity(&mut events);
    // SAFETY: the descriptor is open as long as `tcp`, and longer than the queue.
    let asked = unsafe { kevent(&queue, &watch, buffer, Some(Duration::ZERO)) };
    asked.is_ok() && events.iter().any(|event: &Event| event.flags().contains(EventFlags::EOF))
}

/// The same, at this moment.
#[cfg(target_os = "linux")]
pub(crate) fn has_hung_up(tcp: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut asked = [PollFd::new(tcp, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&at_once)).is_ok_and(|count| count > 0)
}

/// Bytes that were written and not acknowledged.
#[cfg(target_os = "linux")]
pub(crate) fn unacknowledged(tcp: &TcpStream) -> io::Result<i32> {
    use nix::libc::TIOCOUTQ;

    crate::sys::posix::peer::queued::<{ TIOCOUTQ as rustix::ioctl::Opcode }>(tcp)
}

/// Bytes that were written and not acknowledged: `FIONWRITE`, tty(4).
#[cfg(target_os = "freebsd")]
pub(crate) fn unacknowledged(tcp: &TcpStream) -> io::Result<i32> {
    use nix::libc::FIONWRITE;

    crate::sys::posix::peer::queued::<{ FIONWRITE as rustix::ioctl::Opcode }>(tcp)
}

/// Bytes that were written and not acknowledged: `SO_NWRITE`, getsockopt(2).
#[cfg(target_vendor = "apple")]
#[allow(unsafe_code)]
pub(crate) fn unacknowledged(tcp: &TcpStream) -> io::Result<i32> {
    use std::os::fd::AsRawFd;

    use nix::libc;

    let mut bytes: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is a `c_int`, and `length` says how much room is there.
    let asked = unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NWRITE,
            std::ptr::from_mut(&mut bytes).cast(),
            &mut length,
        )
    };
    if asked == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// The system does not say.
#[cfg(not(any(target_os = "linux", target_os = "freebsd", target_vendor = "apple")))]
pub(crate) fn unacknowledged(_: &TcpStream) -> io::Result<i32> {
    Err(io::ErrorKind::Unsupported.into())
}
