//! A connection to one member: HTTP/2, many requests at a time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tower_service::Service;

use crate::lease::{HeardOut, Outlook, Remedies, Socket, Tls, TlsError, explained};
use crate::sys::mutex::Mutex;

/// A member that is silent for so long is asked for a sign of life. etcd closes connections
/// that ask more often than each 5 s. If larger, a dead one is noticed later.
const PING: Duration = Duration::from_secs(10);

/// How long that sign may take. If larger, the same.
const PONG: Duration = Duration::from_secs(5);

/// What a user of etcd can do about TLS.
pub(super) const REMEDIES: Remedies =
    Remedies { plain: "without TLS the URL begins with etcd:// or http://", ca: "--ca, ca_file" };

/// Clones share it. It is closed when the last one is dropped.
#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Body>,
    shared: Arc<Shared>,
}

struct Shared {
    heard: Arc<Heard>,
    /// The client goes on with another member.
    left: CancellationToken,
    _driver: AbortOnDropHandle<()>,
}

/// What the stream below HTTP/2 tells, and HTTP/2 keeps to itself.
#[derive(Default)]
struct Heard {
    /// The first two bytes that the other side sent.
    first: AtomicU16,
    /// What TLS said when it broke off.
    tls: Mutex<Option<(Outlook, String)>>,
}

impl Connection {
    pub(super) async fn open(host: &str, port: u16, tls: Option<&Tls>) -> io::Result<Self> {
        let socket = Socket::connect(host, port).await?;
        match tls {
            None => Self::over(HeardOut::new(socket)).await,
            Some(tls) => Self::over(tls.connect(socket).await?).await,
        }
    }

    async fn over<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let heard = Arc::new(Heard::default());
        let stream = Overheard { stream, heard: Arc::clone(&heard) };
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(io::Error::other)?;
        let drive = async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to etcd ended");
            }
        };
        let driver = AbortOnDropHandle::new(tokio::spawn(drive));
        let left = CancellationToken::new();
        Ok(Self { sender, shared: Arc::new(Shared { heard, left, _driver: driver }) })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(super) fn leave(&self) {
        self.shared.left.cancel();
    }

    /// Resolves when the client goes on with another member.
    pub(super) fn left(&self) -> impl Future<Output = ()> + use<> {
        self.shared.left.clone().cancelled_owned()
    }

    /// What TLS said when the connection ended, as of a certificate that the member does
    /// not take: that comes after the handshake.
    pub(super) fn tls_failure(&self) -> Option<(Outlook, String)> {
        self.shared.heard.tls.lock().clone()
    }

    /// Whether the other side sent anything.
    pub(super) fn is_heard(&self) -> bool {
        self.shared.heard.first.load(Ordering::Relaxed) != 0
    }

    /// What the other side speaks, if that is not HTTP/2.
    pub(super) fn foreign(&self) -> Option<&'static str> {
        match self.shared.heard.first.load(Ordering::Relaxed).to_be_bytes() {
            // An alert of TLS: RFC 8446, 5.1.
            [0x15, 0x03] => Some("it speaks TLS: the URL begins with etcd+tls:// or https://"),
            [b'H', b'T'] => Some("it speaks HTTP/1, as no etcd does at its client port"),
            _ => None,
        }
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}

struct Overheard<S> {
    stream: S,
    heard: Arc<Heard>,
}

impl Heard {
    fn note(&self, error: io::Error) -> io::Error {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        if let Some(tls) = tls.cloned() {
            let (outlook, error) = explained(io::Error::new(error.kind(), tls), &REMEDIES);
            self.tls.lock().get_or_insert((outlook, error.to_string()));
        }
        error
    }
}

impl<S: AsyncRead + Unpin> Overheard<S> {
    /// HTTP/2 reads no more after that: here is noted what was heard by then.
    fn failed(&mut self, context: &mut Context<'_>, error: io::Error) -> io::Error {
        let _ = Pin::new(&mut *self).poll_read(context, &mut ReadBuf::new(&mut [0; 2]));
        self.heard.note(error)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        read.map_err(|error| self.heard.note(error))?;
        if self.heard.first.load(Ordering::Relaxed) == 0 {
            if let Some([one, two]) = buffer.filled().get(before..before + 2) {
                self.heard.first.store(u16::from_be_bytes([*one, *two]).max(1), Ordering::Relaxed);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(written.map_err(|error| self.failed(context, error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        Poll::Ready(flushed.map_err(|error| self.failed(context, error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
