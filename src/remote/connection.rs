//! One connection: a request at a time, and its response.

use std::error::Error as _;
use std::io;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use super::response::Response;
use crate::lease::{Socket, Tls, TlsError};

/// Longer responses are not a lock daemon's. If larger, another server can make this
/// process keep more in memory.
const RESPONSE_BYTES: usize = 1 << 20;

/// An open connection; closed when dropped.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    pub(super) socket: Socket,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub(super) async fn open(host: &str, port: u16, tls: Option<&Tls>) -> io::Result<Self> {
        let socket = Socket::connect(host, port).await?;
        let Some(tls) = tls else {
            return Self::over(socket.clone(), socket).await;
        };
        let stream = tls.connect(socket.clone()).await?;
        Self::over(stream, socket).await
    }

    async fn over<S>(stream: S, socket: Socket) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let drive = async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to a lock daemon ended");
            }
        };
        let driver = AbortOnDropHandle::new(tokio::spawn(drive));
        Ok(Self { sender, socket, _driver: driver })
    }

    /// Whether it can take another request.
    pub(super) async fn is_usable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub(super) async fn exchange(&mut self, request: Request<Full<Bytes>>) -> io::Result<Response> {
        collected(self.send(request).await?).await
    }

    /// The head of the response; its body is on its way.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> io::Result<hyper::Response<Incoming>> {
        self.sender.send_request(request).await.map_err(other)
    }
}

/// With all of its body.
pub(super) async fn collected(response: hyper::Response<Incoming>) -> io::Result<Response> {
    let status = response.status();
    let body = Limited::new(response.into_body(), RESPONSE_BYTES).collect().await;
    Ok(Response { status, body: body.map_err(io::Error::other)?.to_bytes() })
}

/// The error with its cause, which hyper's own text does not have. One of TLS is given as
/// it is.
fn other(error: hyper::Error) -> io::Error {
    if error.is_parse() {
        let text = "what answers there speaks no HTTP: with TLS the URL begins with https://";
        return io::Error::new(io::ErrorKind::InvalidData, format!("{text} ({error})"));
    }
    let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) else {
        return io::Error::other(error);
    };
    match cause.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(tls) => io::Error::new(cause.kind(), tls.clone()),
        None => io::Error::new(cause.kind(), format!("{error}: {cause}")),
    }
}
