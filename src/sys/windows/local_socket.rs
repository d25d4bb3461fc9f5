//! Streams to servers of this machine: there are none.

use std::io;
use std::path::Path;

/// None is ever made.
pub(crate) type LocalStream = tokio::io::Empty;

/// # Errors
/// Always: servers of this machine are spoken to by TCP.
pub(crate) async fn connect(_: &Path) -> io::Result<LocalStream> {
    let why = "a socket that is a file is not spoken to on Windows: name localhost as the host";
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}
