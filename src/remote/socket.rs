//! A connection to the daemon that can be hung up by somebody else than its user.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A peer that is silent this long is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(10);

/// Between two such questions.
const QUESTION: Duration = Duration::from_secs(5);

/// As many go unanswered.
const QUESTIONS: u32 = 3;

/// One end of a TCP connection.
#[derive(Clone)]
pub(super) struct Socket(Arc<TcpStream>);

impl Socket {
    /// A daemon whose machine is gone is noticed in half a minute, though one
    /// who waits says nothing.
    pub(super) async fn connect(host: &str, port: u16) -> io::Result<Self> {
        let tcp = TcpStream::connect((host, port)).await?;
        sockopt::set_tcp_nodelay(&tcp, true)?;
        sockopt::set_socket_keepalive(&tcp, true)?;
        sockopt::set_tcp_keepidle(&tcp, SILENCE)?;
        sockopt::set_tcp_keepintvl(&tcp, QUESTION)?;
        sockopt::set_tcp_keepcnt(&tcp, QUESTIONS)?;
        Ok(Self(Arc::new(tcp)))
    }

    fn end_writing(&self) {
        // It may be closed already.
        let _ = shutdown(&*self.0, Shutdown::Write);
    }
}

/// Where a request is on its way, for whoever may not want it any more.
#[derive(Default)]
pub(crate) struct Line(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Unused,
    Open(Socket),
    HungUp,
}

impl Line {
    /// Whether it may be used: it was not hung up.
    pub(super) fn open(&self, socket: &Socket) -> bool {
        let mut state = self.state();
        if matches!(*state, State::HungUp) {
            return false;
        }
        *state = State::Open(socket.clone());
        true
    }

    pub(super) fn is_hung_up(&self) -> bool {
        matches!(*self.state(), State::HungUp)
    }

    /// Nothing more is said, now or later. What the other side has said can
    /// still be heard; then it closes the connection.
    pub(super) fn hang_up(&self) {
        if let State::Open(socket) = std::mem::replace(&mut *self.state(), State::HungUp) {
            socket.end_writing();
        }
    }

    /// The answer is there: the connection is free for others.
    pub(super) fn close(&self) {
        let mut state = self.state();
        if matches!(*state, State::Open(_)) {
            *state = State::Unused;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
