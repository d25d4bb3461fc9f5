//! Closing so that the last answer arrives.
//!
//! A socket that is closed with unread bytes in it sends a reset. A client that is still
//! sending its refused request gets an error from that, and may never see the answer. So
//! the answer is followed by its end, and later bytes are read and dropped, within limits.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

/// How long the other side may go on sending. With more, a client that never ends keeps its
/// descriptor longer.
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Bytes that the other side may send. With more, it costs more traffic.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Waits until the other side ends, which was told that this side did.
pub(crate) async fn drain(stream: impl AsyncRead + Unpin) {
    // A client that goes on for longer does not listen.
    let _ = timeout(LINGER_TIME, read_and_drop(stream)).await;
}

async fn read_and_drop(mut stream: impl AsyncRead + Unpin) {
    let mut left = LINGER_BYTES;
    while left > 0 {
        let length = poll_fn(|context| {
            let mut bytes = [MaybeUninit::uninit(); 8 * 1024];
            let mut part = ReadBuf::uninit(&mut bytes);
            let read = Pin::new(&mut stream).poll_read(context, &mut part);
            read.map_ok(|()| part.filled().len())
        });
        match length.await {
            Ok(0) | Err(_) => return,
            Ok(length) => left = left.saturating_sub(length),
        }
    }
}
