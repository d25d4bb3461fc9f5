//! The socket of a connection: read and written by the connection, watched by
//! the request that is being answered.
//!
//! A peer that takes nothing for [`Limits::write_time`] is cut off: what is on the way to
//! it is dropped, here and in the kernel.
//!
//! [`Limits::write_time`]: super::limits::Limits::write_time

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::delivery::Deliveries;
use crate::sys::{peer, socket};

/// Where a request comes from; every request has it as an extension.
#[derive(Clone)]
pub(crate) struct Peer(Arc<PeerInner>);

struct PeerInner {
    address: SocketAddr,
    tcp: TcpStream,
    deliveries: Deliveries,
}

impl Peer {
    pub(super) fn new(tcp: TcpStream, address: SocketAddr) -> Self {
        Self(Arc::new(PeerInner { address, tcp, deliveries: Deliveries::default() }))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub(crate) fn deliveries(&self) -> &Deliveries {
        &self.0.deliveries
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.0.tcp
    }

    /// [`peer::hangs_up`].
    pub(crate) async fn hangs_up(&self) {
        peer::hangs_up(&self.0.tcp).await;
    }

    pub(super) fn has_hung_up(&self) -> bool {
        peer::has_hung_up(&self.0.tcp)
    }
}

/// What a connection reads and writes.
pub(crate) struct Socket {
    peer: Peer,
    write_time: Duration,
    /// Runs while the peer takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(peer: Peer, write_time: Duration) -> Self {
        Self { peer, write_time, stall: None }
    }

    fn poll_written(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while self.peer.tcp().poll_write_ready(context)?.is_ready() {
            match write(self.peer.tcp()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.stall = None;
                    return Poll::Ready(written);
                }
            }
        }
        let time = self.write_time;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(stall.as_mut().poll(context));
        // It stays over: nothing more is written.
        let _ = self.peer.tcp().set_zero_linger();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tcp = self.peer.tcp();
        loop {
            ready!(tcp.poll_read_ready(context))?;
            let bytes = buffer.initialize_unfilled();
            let mut length = None;
            let read = tcp.try_io(Interest::READABLE, || {
                let received = peer::receive(tcp, bytes)?;
                length = Some(received);
                // Less than there was room for is all that there was: with edges
                // for events, another look would only be told so.
                let is_all = 0 < received && received < bytes.len();
                if is_all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (length, read) {
                (Some(length), _) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                _ => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |tcp| tcp.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |tcp| tcp.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is above has nothing left by now, and the kernel has all of it.
        self.peer.deliveries().hand_over();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket::end_writing(self.peer.tcp()))
    }
}
