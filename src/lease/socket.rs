//! A TCP connection to a server, on which a machine that is gone is noticed.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::sys::keep_alive::KeepAlive;
use crate::sys::socket;

/// A silent machine is noticed after 25 s, also where something was sent to it. If larger,
/// a dead one is noticed later.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    idle: Duration::from_secs(10),
    interval: Duration::from_secs(5),
    probes: 3,
    unacknowledged: Duration::from_secs(25),
};

/// How long an address is tried alone before the next is tried beside it, as RFC 8305
/// recommends. If larger, a dead address holds all callers up.
const HEAD_START: Duration = Duration::from_millis(250);

/// One end of a TCP connection.
#[derive(Clone)]
pub(crate) struct Socket(Arc<TcpStream>);

impl Socket {
    /// A machine that is gone is noticed within half a minute, though a waiter sends
    /// nothing.
    pub(crate) async fn connect(host: &str, port: u16) -> io::Result<Self> {
        let tcp = connect_to_one_of(lookup_host((host, port)).await?.collect()).await?;
        tcp.set_nodelay(true)?;
        socket::keep_alive(&tcp, &KEEP_ALIVE)?;
        Ok(Self(Arc::new(tcp)))
    }

    /// The address that answered, of those that the host has.
    #[cfg(feature = "postgres")]
    pub(crate) fn peer(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    /// Nothing more is written.
    pub(crate) fn end_writing(&self) {
        // The peer may have closed it already.
        let _ = socket::end_writing(&self.0);
    }
}

/// The first that answers, of those that the host has.
async fn connect_to_one_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut tries = JoinSet::new();
    let mut addresses = addresses.into_iter();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    loop {
        match addresses.next() {
            Some(address) => drop(tries.spawn(TcpStream::connect(address))),
            None if tries.is_empty() => return Err(failed),
            None => {}
        }
        let head_start = async {
            if addresses.len() == 0 {
                return pending().await;
            }
            sleep(HEAD_START).await;
        };
        tokio::select! {
            Some(tried) = tries.join_next() => match tried.map_err(io::Error::other).and_then(|tried| tried) {
                Ok(connected) => return Ok(connected),
                Err(error) => failed = error,
            },
            () = head_start => {}
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end_writing();
        Poll::Ready(Ok(()))
    }
}
