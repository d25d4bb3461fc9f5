//! Connections: which are let in, for how long, and which make room.
//!
//! C1. A connection costs a task and its socket until its first byte comes.
//! C2. While there is no room for a new connection, the one that is idle longest is
//!     closed. If none is idle, the one that has been sending its request longest is. A
//!     connection is never closed while its request is answered.
//! C3. Heads and bodies have a time within which they must come ([`Limits`]).
//! C4. A connection's tasks end with it. A peer that closes its side for writing
//!     gets its answer; a request that waits for a lock watches for that itself
//!     (see `socket`).
//! C5. A peer that is refused before all it sent was read gets the answer (see `linger`),
//!     unless the daemon stops or the place is needed.
//! C6. An idle connection that is closed gets a proper end, in TLS too, and a request that
//!     is on its way then meets no reset. Clients that keep connections take that for a
//!     sign to ask again.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use tracing::{debug, warn};

use super::connections::{ANSWERED, ConnectionPermit, Connections, IDLE, OpenConnection, SENDING};
use super::limits::{Limits, TooSlow};
use super::linger;
use super::socket::{Peer, Socket};
use super::tcp;

/// How long no connection is accepted after that failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 21\r\n\r\ntoo many connections\n";

/// What makes a stream out of a connection: nothing, or TLS.
pub(crate) trait Handshake: Clone + Send + Sync + 'static {
    /// What is read and written.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Makes the stream, within the time for a head.
    fn handshake(&self, socket: Socket) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// No handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain;

impl Handshake for Plain {
    type Stream = Socket;

    async fn handshake(&self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }
}

/// Answers what comes in, until `stop` is cancelled; then what is being
/// answered, at most for [`Limits::grace`]. `connections` says how many are open.
pub(crate) async fn serve<H: Handshake>(
    listener: TcpListener,
    handshake: H,
    router: Router,
    limits: Limits,
    connections: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let grace = limits.grace;
    let connections = Arc::new(Connections::new(limits, connections));
    let tracker = TaskTracker::new();
    if let Err(error) = tcp::prepare(&listener) {
        warn!(%error, "connections are without some settings");
    }
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let Some(permit) = connections.admit(peer) else {
                    debug!(%peer, "no room for another connection");
                    if let Some(place) = connections.linger() {
                        tokio::spawn(turn_away(tcp, place, stop.clone()));
                    }
                    continue;
                };
                let peer = Peer::new(tcp, peer);
                let task = ConnectionTask {
                    permit,
                    peer,
                    handshake: handshake.clone(),
                    router: router.clone(),
                };
                tracker.spawn(task.hold(stop.clone()));
            }
            Err(error) if is_of_one_connection(&error) => debug!(%error, "a connection was lost"),
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                connections.make_room(|_| true);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    if timeout(grace, tracker.wait()).await.is_err() {
        connections.close_all();
        tracker.wait().await;
    }
}

/// C5. Nothing of this connection is looked at.
async fn turn_away(mut tcp: TcpStream, place: OwnedSemaphorePermit, stop: CancellationToken) {
    // It fits: nothing was written before.
    let _ = tcp.try_write(NO_ROOM);
    if poll_fn(|context| Pin::new(&mut tcp).poll_shutdown(context)).await.is_ok() {
        stop.run_until_cancelled(linger::drain(tcp)).await;
    }
    drop(place);
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One connection, from its first byte to its end.
struct ConnectionTask<H> {
    permit: ConnectionPermit,
    peer: Peer,
    handshake: H,
    router: Router,
}

impl<H: Handshake> ConnectionTask<H> {
    async fn hold(self, stop: CancellationToken) {
        let close = self.permit.connection.close.clone();
        let head_time = self.permit.connections.limits.head_time;
        tokio::select! {
            () = close.cancelled() => return,
            () = stop.cancelled() => return,
            ready = timeout(head_time, self.peer.tcp().readable()) => match ready {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            },
        }
        // C1. Only now is anything more made for it.
        Box::pin(self.answer(stop, close)).await;
    }

    async fn answer(self, stop: CancellationToken, close: CancellationToken) {
        let limits = &self.permit.connections.limits;
        let socket = Socket::new(self.peer.clone(), limits.write_time);
        let handshake = timeout(limits.head_time, self.handshake.handshake(socket));
        let Some(Ok(Ok(stream))) = close.run_until_cancelled(handshake).await else {
            debug!(peer = %self.peer.address(), "no handshake");
            return;
        };
        let service = RequestService {
            peer: self.peer.clone(),
            connection: Arc::clone(&self.permit.connection),
            body_time: limits.body_time,
            router: self.router.clone(),
        };
        let mut conversation = http1::Builder::new()
            .timer(TokioTimer::new())
            .half_close(true)
            .header_read_timeout(limits.head_time)
            .max_buf_size(limits.head_bytes.max(8 * 1024))
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| conversation.poll_without_shutdown(context)) => ended,
            () = close.cancelled() => Ok(()),
            () = stop.cancelled() => {
                Pin::new(&mut conversation).graceful_shutdown();
                let rest = poll_fn(|context| conversation.poll_without_shutdown(context));
                close.run_until_cancelled(rest).await.unwrap_or(Ok(()))
            }
        };
        let stream = conversation.into_parts().io.into_inner();
        self.end(stream, &ended, &stop, &close).await;
        if let Err(error) = ended {
            debug!(peer = %self.peer.address(), %error, "a connection ended early");
        }
    }

    async fn end(
        &self,
        mut stream: H::Stream,
        ended: &hyper::Result<()>,
        stop: &CancellationToken,
        close: &CancellationToken,
    ) {
        let is_cut = close.is_cancelled();
        if self.peer.deliveries().has_some() {
            stop.run_until_cancelled(self.peer.deliveries().end(self.peer.tcp(), ended)).await;
        }
        let shutdown = poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context));
        let is_shut = if is_cut {
            // Its place is needed: no more is said than goes at once.
            shutdown.now_or_never().is_some_and(|shut| shut.is_ok())
        } else {
            close.run_until_cancelled(shutdown).await.is_some_and(|shut| shut.is_ok())
        };
        let place = if is_cut { self.permit.connections.linger() } else { None };
        if is_shut && (place.is_some() || (!is_cut && self.may_be_sending(ended))) {
            let drained = stop.run_until_cancelled(linger::drain(stream));
            if is_cut {
                drained.await;
            } else {
                close.run_until_cancelled(drained).await;
            }
        }
    }

    /// Whether something was left unread, or may be on its way. (C5, C6)
    fn may_be_sending(&self, ended: &hyper::Result<()>) -> bool {
        match ended {
            Ok(()) => self.permit.connection.is_unread.load(Ordering::Relaxed),
            Err(error) => error.is_parse() || error.is_timeout(),
        }
    }
}

/// The requests of one connection, on their way to the router.
struct RequestService {
    peer: Peer,
    connection: Arc<OpenConnection>,
    body_time: Duration,
    router: Router,
}

impl hyper::service::Service<Request<Incoming>> for RequestService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let at_work = RequestAtWork::on(&self.connection);
        self.connection.is_unread.store(false, Ordering::Relaxed);
        self.peer.deliveries().ask_for_more(self.peer.tcp());
        let (mut head, body) = request.into_parts();
        head.extensions.insert(self.peer.clone());
        let connection = Arc::clone(&self.connection);
        let body = TimedBody { body, time: self.body_time, limit: None, connection };
        let body =
            if http_body::Body::is_end_stream(&body) { Body::empty() } else { Body::new(body) };
        let answer = self.router.clone().call(Request::from_parts(head, body));
        Box::pin(async move {
            let answer = answer.await;
            drop(at_work);
            answer
        })
    }
}

/// While a request is on its way; then its connection is idle.
struct RequestAtWork(Arc<OpenConnection>);

impl RequestAtWork {
    fn on(connection: &Arc<OpenConnection>) -> Self {
        connection.is(SENDING);
        Self(Arc::clone(connection))
    }
}

impl Drop for RequestAtWork {
    fn drop(&mut self) {
        self.0.is(IDLE);
    }
}

/// C3. A body that must have come within a time, counted from when it was first
/// waited for.
struct TimedBody {
    body: Incoming,
    time: Duration,
    limit: Option<Pin<Box<Sleep>>>,
    connection: Arc<OpenConnection>,
}

/// The body has come, or is not wanted.
impl Drop for TimedBody {
    fn drop(&mut self) {
        if !http_body::Body::is_end_stream(&self.body) {
            self.connection.is_unread.store(true, Ordering::Relaxed);
        }
        let state = &self.connection.state;
        // Unless its request was answered before it was read.
        let _ = state.compare_exchange(SENDING, ANSWERED, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let time = this.time;
        let limit = this.limit.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        limit.as_mut().poll(context).map(|()| Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// Serves on a thread of its own until `stop` is cancelled; where.
    fn serving(router: Router, limits: Limits, stop: &CancellationToken) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("a setting");
        let stop = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                serve(listener, Plain, router, limits, Arc::default(), stop).await;
            });
        });
        address
    }

    /// Sends the rest only once the answer is there to its end.
    fn answer_to(address: SocketAddr, start: &str, rest_bytes: usize) -> io::Result<String> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.write_all(start.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        stream.write_all(&vec![b'x'; rest_bytes])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        Ok(answer)
    }

    /// More than the buffers between the two take.
    const REST_BYTES: usize = 3_500_000;

    #[test]
    fn who_is_refused_while_sending_gets_the_answer() {
        let stop = CancellationToken::new();
        let limits = Limits { head_bytes: 8 * 1024, ..Limits::default() };
        let refuse = || std::future::ready(axum::http::StatusCode::FORBIDDEN);
        let address = serving(Router::new().fallback(refuse), limits, &stop);
        let head = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(64 * 1024));
        let body = "POST / HTTP/1.1\r\ncontent-length: 4000000\r\n\r\nx";
        for (start, status) in [(head.as_str(), "431"), ("\u{1}", "400"), (body, "403")] {
            let answer = answer_to(address, start, REST_BYTES).expect("an answer, to its end");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        stop.cancel();
    }

    #[test]
    fn for_whom_there_is_no_room_is_told_so() {
        let stop = CancellationToken::new();
        let limits = Limits { connections: 1, grace: Duration::ZERO, ..Limits::default() };
        let (entered, is_entered) = std::sync::mpsc::channel();
        let router = Router::new().fallback(move || {
            entered.send(()).expect("a test");
            std::future::pending::<()>()
        });
        let address = serving(router, limits, &stop);
        let first = std::thread::spawn(move || {
            let _ = answer_to(address, "GET / HTTP/1.1\r\n\r\n", 0);
        });
        is_entered.recv().expect("a request");
        let answer = answer_to(address, "POST / HTTP/1.1\r\n", REST_BYTES);
        assert!(answer.expect("an answer, to its end").contains("too many connections"));
        stop.cancel();
        first.join().expect("a thread");
    }
}
