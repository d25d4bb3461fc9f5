//! The stream below a session: TCP, a socket of this machine, or TLS.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::client::TlsStream;

use super::access::{Host, Place};
use super::failure::{Failure, ForeignProtocol, Kind};
use crate::lease::{HeardOut, Socket, Tls};
use crate::sys::local_socket::{self, LocalStream};

/// Asks whether the server speaks TLS.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// How the first message of a server begins: authentication, an error, a notice, or the
/// version that it speaks.
const FIRST: &[u8] = b"RENv";

/// What a server may say before a session begins: many times what one does. If larger, what
/// is no server fills that much memory.
const MOST_AT_START: usize = 1024 * 1024;

/// Where a stream leads to.
#[derive(Clone)]
pub(super) struct Peer {
    at: At,
    tls: Option<Tls>,
}

#[derive(Clone)]
enum At {
    File(PathBuf),
    Address(String, u16),
}

pub(super) struct Stream {
    inner: Inner,
    /// So many bytes were read before the session began.
    heard: usize,
    has_begun: Arc<AtomicBool>,
}

enum Inner {
    Local(LocalStream),
    Tcp(Socket),
    Tls(Box<HeardOut<TlsStream<Socket>>>),
}

impl Peer {
    pub(super) fn new(host: &Host, tls: Option<&Tls>) -> Self {
        let at = match &host.place {
            Place::Directory(directory) => At::File(host.socket(directory)),
            Place::Name(name, address) => {
                let name = address.map_or_else(|| name.clone(), |address| address.to_string());
                At::Address(name, host.port)
            }
        };
        Self { at, tls: tls.cloned() }
    }

    /// A stream, and the same peer by the address that answered: the others that a host's
    /// name has may be other servers.
    pub(super) async fn open(&self) -> Result<(Stream, Peer), Failure> {
        let failed = |error: io::Error| Failure::of_io(&error);
        let (host, port) = match &self.at {
            At::File(path) => {
                let stream = local_socket::connect(path).await.map_err(failed)?;
                return Ok((Stream::over(Inner::Local(stream)), self.clone()));
            }
            At::Address(host, port) => (host, *port),
        };
        let socket = Socket::connect(host, port).await.map_err(failed)?;
        let address = socket.peer().map_err(failed)?;
        let at = At::Address(address.ip().to_string(), address.port());
        let peer = Peer { at, tls: self.tls.clone() };
        let inner = match &self.tls {
            None => Inner::Tcp(socket),
            Some(tls) => Inner::Tls(Box::new(over_tls(socket, tls).await?)),
        };
        Ok((Stream::over(inner), peer))
    }
}

async fn over_tls(mut socket: Socket, tls: &Tls) -> Result<HeardOut<TlsStream<Socket>>, Failure> {
    let failed = |error: io::Error| Failure::of_io(&error);
    socket.write_all(&TLS_REQUEST).await.map_err(failed)?;
    let mut answer = [0];
    // One byte: what were to follow it would be read as TLS.
    socket.read_exact(&mut answer).await.map_err(failed)?;
    match answer {
        [b'S'] => tls.connect(socket).await.map_err(failed),
        [b'N'] => Err(Failure::new(
            Kind::NoTls,
            "the server speaks no TLS: turn it on there (ssl = on), or say sslmode=disable where \
             no third party can listen",
        )),
        [b'E'] => Err(Failure::new(Kind::Passing, "the server cannot take a session now")),
        _ => Err(Failure::new(Kind::Foreign, ForeignProtocol.to_string())),
    }
}

impl Stream {
    fn over(inner: Inner) -> Self {
        Self { inner, heard: 0, has_begun: Arc::default() }
    }

    /// Set it when the session has begun: then the server may say as much as it likes.
    pub(super) fn has_begun(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_begun)
    }

    /// Whether what was read may be the beginning of a session.
    fn is_sane(&mut self, read: &[u8]) -> bool {
        if self.has_begun.load(Ordering::Relaxed) {
            return true;
        }
        let is_first = self.heard == 0;
        self.heard += read.len();
        let begins_well = read.first().is_none_or(|first| FIRST.contains(first));
        (begins_well || !is_first) && self.heard <= MOST_AT_START
    }

    /// Read until the other side has closed it.
    pub(super) async fn read_to_end(&mut self) {
        let mut bytes = [0; 256];
        // An error is an end as well: what was sent has been read before.
        while self.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
    }

    fn inner(&mut self) -> Pin<&mut dyn Duplex> {
        match &mut self.inner {
            Inner::Local(stream) => Pin::new(stream),
            Inner::Tcp(stream) => Pin::new(stream),
            Inner::Tls(stream) => Pin::new(&mut **stream),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.inner().poll_read(context, buffer))?;
        if !self.is_sane(&buffer.filled()[before..]) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, ForeignProtocol)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(context)
    }
}

/// A stream on which this side goes on listening: a pooler takes a client that has closed
/// its half for gone, and drops what it asked for.
pub(super) struct StaysOpen<'a>(pub(super) &'a mut Stream);

impl AsyncRead for StaysOpen<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for StaysOpen<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
