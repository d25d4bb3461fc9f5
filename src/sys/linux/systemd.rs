//! What systemd and the daemon tell each other: sd_notify(3) and sd_listen_fds(3).
//!
//! Without `NOTIFY_SOCKET` and `LISTEN_FDS` in the environment none of this does
//! anything. The daemon starts no processes, so no process inherits these variables.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::net::{SocketType, sockopt};
use rustix::time::{ClockId, clock_gettime};

use crate::sys::mutex::Mutex;
use crate::sys::no_listener::NoListener;

/// How long a word to systemd may take. A longer one would hold up the daemon.
const NOTIFY_TIME: Duration = Duration::from_secs(1);

/// `SD_LISTEN_FDS_START`.
const FIRST_FD: RawFd = 3;

/// Where systemd listens, if it does.
pub(crate) struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// Nothing is told after that: systemd would take it for serving again.
    is_stopping: Mutex<bool>,
}

impl Notify {
    /// # Errors
    /// There is no such socket.
    pub(crate) fn from_environment() -> io::Result<Self> {
        match std::env::var("NOTIFY_SOCKET") {
            Ok(name) if !name.is_empty() => Self::connect(&name).map(|to| Self::new(Some(to))),
            _ => Ok(Self::new(None)),
        }
    }

    fn new(to: Option<(UnixDatagram, SocketAddr)>) -> Self {
        Self { to, is_stopping: Mutex::new(false) }
    }

    fn connect(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(NOTIFY_TIME))?;
        Ok((socket, address))
    }

    /// It serves, or serves again.
    pub(crate) fn ready(&self, url: &str) -> io::Result<()> {
        self.tell(format_args!("READY=1\nSTATUS=serving at {url}\n"), false)
    }

    /// It reads its files again.
    pub(crate) fn reloading(&self) -> io::Result<()> {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.tell(format_args!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"), false)
    }

    /// It ends. What is told later is not sent.
    pub(crate) fn stopping(&self) -> io::Result<()> {
        self.tell(format_args!("STOPPING=1\nSTATUS=stopping\n"), true)
    }

    fn tell(&self, state: fmt::Arguments<'_>, is_last: bool) -> io::Result<()> {
        let Some((socket, address)) = &self.to else {
            return Ok(());
        };
        // Locked until it is sent, so that nothing overtakes the last.
        let mut is_stopping = self.is_stopping.lock();
        if *is_stopping {
            return Ok(());
        }
        *is_stopping = is_last;
        socket.send_to_addr(state.to_string().as_bytes(), address).map(drop)
    }
}

/// The socket that systemd listens at for this process, if there is one.
///
/// # Errors
/// It is none that can be served.
pub(crate) fn listener() -> Result<Option<TcpListener>, NoListener> {
    let count = listen_fds();
    if count > 1 {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let message = format!(
            "systemd passed {count} sockets ({names}): give the socket unit one ListenStream"
        );
        return Err(NoListener { message, is_misconfigured: true });
    }
    if count == 0 {
        return Ok(None);
    }
    let socket = first_fd().and_then(|socket| is_tcp_listener(&socket).map(|is| (socket, is)));
    match socket {
        Ok((socket, true)) => Ok(Some(socket.into())),
        Ok((_, false)) => {
            let why = "name an address and a port as its ListenStream";
            let message = format!("the socket that systemd passed is no TCP listener: {why}");
            Err(NoListener { message, is_misconfigured: true })
        }
        Err(error) => {
            let message = format!("the socket that systemd passed cannot be used: {error}");
            Err(NoListener { message, is_misconfigured: false })
        }
    }
}

/// How many sockets were passed to this process: not to one that started it.
fn listen_fds() -> usize {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<usize>().ok());
    let is_ours = number("LISTEN_PID") == usize::try_from(std::process::id()).ok();
    number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0)
}

/// A copy: it is an error where no such file is open.
#[allow(unsafe_code, reason = "a file that was inherited has only its number")]
fn first_fd() -> io::Result<OwnedFd> {
    // SAFETY: nothing in this process owns or closes the file of this number.
    let inherited = unsafe { BorrowedFd::borrow_raw(FIRST_FD) };
    Ok(rustix::io::fcntl_dupfd_cloexec(inherited, FIRST_FD)?)
}

fn is_tcp_listener(socket: &OwnedFd) -> io::Result<bool> {
    let socket = socket.as_fd();
    let address = rustix::net::getsockname(socket)?;
    let is_inet = std::net::SocketAddr::try_from(address).is_ok();
    let is_stream = sockopt::socket_type(socket)? == SocketType::STREAM;
    Ok(is_inet && is_stream && sockopt::socket_acceptconn(socket)?)
}
