//! The limits on what one client may cost, and the reading of bodies within these.
//!
//! L1. A body is kept up to [`Limits::body_bytes`], also after it was unpacked;
//!     of longer ones nothing is kept.
//! L2. Bodies of more than [`SMALL_BYTES`] share [`Limits::bodies_bytes`]: so
//!     however many clients send however slowly, memory is bounded by that and
//!     by [`SMALL_BYTES`] for each connection.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lockd::xmlrpc::Shape;

/// A body of this length is always read: a call with its names is far shorter. With more,
/// many slow clients cost more memory.
const SMALL_BYTES: usize = 8 * 1024;

/// Bytes of an unwanted body that are let in before the connection is closed, so that the
/// sender gets the answer. With more, a sender that never ends costs more traffic.
const IGNORED_BYTES: usize = 64 * 1024 * 1024;

/// The limits on what clients may cost.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Connections at a time; the one that is idle longest makes room for a new
    /// one. Never more than the process may have files open. Default: 16 384.
    pub(crate) connections: usize,
    /// The same for each peer but this machine: an IPv4 address or an IPv6
    /// network of 64 bits. Default: 1024.
    pub(crate) connections_per_peer: usize,
    /// How long a connection may take for the head of its next request, idle
    /// time included. Default: 30 s.
    pub(crate) head_time: Duration,
    /// How long a body may take. Default: 10 s.
    pub(crate) body_time: Duration,
    /// How long a peer may take nothing of what it is sent. Default: 30 s.
    pub(crate) write_time: Duration,
    /// How long a head may be. Default: 16 KiB.
    pub(crate) head_bytes: usize,
    /// How long a body may be. Default: 1 MiB.
    pub(crate) body_bytes: usize,
    /// How long all bodies may be that are read at a time. Default: 32 MiB.
    pub(crate) bodies_bytes: usize,
    /// What the XML of a call may be. Default: see [`Shape`].
    pub(crate) shape: Shape,
    /// How long requests that are being answered are waited for at the end.
    /// Default: 10 s.
    pub(crate) grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16 * 1024,
            connections_per_peer: 1024,
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(30),
            head_bytes: 16 * 1024,
            body_bytes: 1024 * 1024,
            bodies_bytes: 32 * 1024 * 1024,
            shape: Shape::default(),
            grace: Duration::from_secs(10),
        }
    }
}

/// The rest of a body did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body was not sent in time")]
pub(crate) struct TooSlow;

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request is longer than {0} bytes")]
    TooLong(usize),
    #[error("the request was not sent in time")]
    TooSlow,
    #[error("too many long requests at a time: try again later")]
    TooMany,
    #[error("the request ended before it was complete")]
    HalfSent,
    #[error("the request is not the gzip that its Content-Encoding says")]
    NotGzip,
    #[error("a Content-Encoding but gzip is not known here")]
    Encoding,
}

impl BodyError {
    /// The HTTP status that says the same.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::TooLong(_) => 413,
            Self::TooSlow => 408,
            Self::TooMany => 503,
            Self::HalfSent | Self::NotGzip => 400,
            Self::Encoding => 415,
        }
    }
}

/// Reads bodies. Clones share the memory for long ones.
#[derive(Clone, Debug)]
pub(crate) struct BodyReader {
    body_bytes: usize,
    memory: Arc<Semaphore>,
}

/// A body that was read; its share of the memory goes with it.
pub(crate) struct Received {
    bytes: Vec<u8>,
    share: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl BodyReader {
    pub(crate) fn new(limits: &Limits) -> Self {
        let memory = limits.bodies_bytes.min(Semaphore::MAX_PERMITS);
        Self { body_bytes: limits.body_bytes, memory: Arc::new(Semaphore::new(memory)) }
    }

    /// The whole body, unpacked if it is packed with gzip. How long it may take
    /// is seen to where the connection is.
    ///
    /// # Cancel safety
    /// Nothing is left behind; what was read is lost.
    pub(crate) async fn read(&self, head: &HeaderMap, body: Body) -> Result<Received, BodyError> {
        let is_packed = is_packed(head)?;
        if declared_length(head) > self.body_bytes as u64 {
            ignore(body);
            return Err(BodyError::TooLong(self.body_bytes));
        }
        let mut received = Received { bytes: Vec::new(), share: None };
        self.collect(body, &mut received).await?;
        if is_packed {
            self.unpack(&mut received)?;
        }
        Ok(received)
    }

    async fn collect(&self, mut body: Body, received: &mut Received) -> Result<(), BodyError> {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| why(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = received.bytes.len() + data.len();
            if length > self.body_bytes {
                received.bytes = Vec::new();
                ignore(body);
                return Err(BodyError::TooLong(self.body_bytes));
            }
            self.reserve(received, length)?;
            received.bytes.extend_from_slice(&data);
        }
        Ok(())
    }

    /// L2. A long body gets the memory for the longest at once: for one that
    /// grows, buffers of twice its length come and go.
    fn reserve(&self, received: &mut Received, length: usize) -> Result<(), BodyError> {
        if length > SMALL_BYTES && received.share.is_none() {
            let share = u32::try_from(self.body_bytes).unwrap_or(u32::MAX);
            let permit = Arc::clone(&self.memory).try_acquire_many_owned(share);
            received.share = Some(permit.map_err(|_| BodyError::TooMany)?);
            received.bytes.reserve_exact(self.body_bytes - received.bytes.len());
        }
        Ok(())
    }

    fn unpack(&self, received: &mut Received) -> Result<(), BodyError> {
        let packed = std::mem::take(&mut received.bytes);
        let limit = self.body_bytes as u64 + 1;
        let mut unpacked = MultiGzDecoder::new(packed.as_slice()).take(limit);
        let length = unpacked.read_to_end(&mut received.bytes).map_err(|_| BodyError::NotGzip)?;
        if length > self.body_bytes {
            return Err(BodyError::TooLong(self.body_bytes));
        }
        Ok(())
    }
}

fn is_packed(head: &HeaderMap) -> Result<bool, BodyError> {
    let Some(encoding) = head.get(header::CONTENT_ENCODING) else { return Ok(false) };
    match encoding.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" => Ok(true),
        "identity" | "" => Ok(false),
        _ => Err(BodyError::Encoding),
    }
}

fn declared_length(head: &HeaderMap) -> u64 {
    let length = head.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

fn why(error: &axum::Error) -> BodyError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<TooSlow>() {
            return BodyError::TooSlow;
        }
        cause = error.source();
    }
    BodyError::HalfSent
}

/// Lets the rest of a body in, so that its sender listens to the answer. Ends
/// with the connection, and within the time that a body may take.
pub(crate) fn ignore(mut body: Body) {
    tokio::spawn(async move {
        let mut left = IGNORED_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, |data| data.len());
            let Some(rest) = left.checked_sub(length) else { return };
            left = rest;
        }
    });
}
