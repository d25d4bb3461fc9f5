//! A stream whose other side is heard out before a write fails.
//!
//! A server that refuses a client says why and closes the connection. What the client sends
//! meanwhile is answered by a reset, so that its next write fails. TLS 1.3 has a server
//! refuse a certificate of the client only after the handshake (RFC 8446, 4.4.2.4).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::Error as TlsError;

/// How much is heard out. If larger, a peer that goes on talking fills that much memory.
const MOST: usize = 64 * 1024;

/// One task reads it and writes to it.
///
/// 1. A write fails for a connection that is gone only once nothing is left to be read.
/// 2. It fails with what TLS has said by then, or else with its own error.
/// 3. What was heard meanwhile is read as if it came later.
pub(crate) struct HeardOut<S> {
    stream: S,
    heard: Vec<u8>,
    /// Why nothing can be written any more.
    unwritten: Option<io::Error>,
}

impl<S> HeardOut<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, heard: Vec::new(), unwritten: None }
    }
}

fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<TlsError>())
}

/// Whether the other side has closed the connection.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl<S: AsyncRead + Unpin> HeardOut<S> {
    /// What the write comes to.
    fn poll_written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let error = match written {
            Err(error) if is_gone(&error) => error,
            written => return Poll::Ready(written),
        };
        let mut bytes = [0; 1024];
        while self.heard.len() < MOST {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => {
                    // (1) The stream wakes this task when there is more.
                    self.unwritten = Some(error);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.heard.extend_from_slice(buffer.filled()); // (3)
                }
                Poll::Ready(Err(said)) if is_of_tls(&said) => return Poll::Ready(Err(said)), // (2)
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(Err(error))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeardOut<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.heard.is_empty() {
            let length = self.heard.len().min(buffer.remaining());
            buffer.put_slice(&self.heard[..length]);
            self.heard.drain(..length);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        let says_nothing = match &read {
            Ok(()) => is_end,
            Err(error) => !is_of_tls(error),
        };
        // The reader may be told of the end before the writer.
        let unwritten = if says_nothing { self.unwritten.take() } else { None };
        Poll::Ready(unwritten.map_or(read, Err))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeardOut<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.unwritten.take() {
            Some(error) => Err(error),
            None => ready!(Pin::new(&mut self.stream).poll_write(context, bytes)),
        };
        self.poll_written(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match self.unwritten.take() {
            Some(error) => Err(error),
            None => ready!(Pin::new(&mut self.stream).poll_flush(context)),
        };
        self.poll_written(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const WORDS: &[u8] = b"go away";

    /// TLS as it is when the other side has refused this one and closed the connection.
    struct Refused;

    impl AsyncRead for Refused {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let said = TlsError::General("a certificate is wanted".to_owned());
            Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, said)))
        }
    }

    impl AsyncWrite for Refused {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_tls_has_said_is_the_error_of_a_write() {
        let mut stream = HeardOut::new(Refused);
        let errors =
            [stream.write_all(b"more").await, stream.flush().await].map(Result::unwrap_err);
        assert!(errors.iter().all(is_of_tls), "{errors:?}");
    }

    /// Says so and closes, with what this side sends unread: the next write is refused.
    async fn refused() -> HeardOut<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        // What the runtime knows of the stream is from before.
        let nothing = tokio::time::timeout(Duration::ZERO, stream.read(&mut [0])).await;
        assert!(nothing.is_err());
        stream.write_all(b"hello").await.unwrap();
        server.readable().await.unwrap();
        server.write_all(WORDS).await.unwrap();
        drop(server);
        HeardOut::new(stream)
    }

    #[tokio::test]
    async fn a_write_fails_once_the_other_side_was_heard_out() {
        let mut stream = refused().await;
        // The first may go into the void.
        while stream.write_all(b"more").await.is_ok() {}
        assert_eq!(stream.heard, WORDS);
        let mut said = [0; WORDS.len()];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(said, WORDS);
    }

    #[tokio::test]
    async fn a_reader_beside_it_is_told_all() {
        let (mut reader, mut writer) = tokio::io::split(refused().await);
        let writes = async { while writer.write_all(b"more").await.is_ok() {} };
        let mut said = Vec::new();
        let (read, ()) = tokio::join!(reader.read_to_end(&mut said), writes);
        assert_eq!(said, WORDS);
        // The end, or why it is.
        assert!(read.is_ok() || read.is_err_and(|error| is_gone(&error)));
    }
}
