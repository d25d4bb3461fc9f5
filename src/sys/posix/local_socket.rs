//! Streams to servers of this machine.

use std::io;
use std::path::Path;

/// A stream to a server of this machine.
pub(crate) type LocalStream = tokio::net::UnixStream;

/// To the server that listens at this path.
///
/// # Errors
/// Of `connect(2)`.
pub(crate) async fn connect(path: &Path) -> io::Result<LocalStream> {
    LocalStream::connect(path).await
}
