//! The reader of standard output.

use std::future::pending;
use std::io;
use std::os::fd::AsFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Resolves when standard output is a pipe without a reader any more.
pub(crate) async fn end_of_reader() {
    let out = io::stdout().as_fd().try_clone_to_owned();
    #[allow(deprecated, reason = "an OwnedFd is what AsyncFd::new is sound for")]
    let out = out.and_then(|out| AsyncFd::with_interest(out, Interest::WRITABLE));
    // A regular file has no reader that could go.
    let Ok(out) = out else {
        return pending().await;
    };
    while let Ok(mut ready) = out.writable().await {
        if ready.ready().is_write_closed() {
            return;
        }
        // There is room again. The end is another event.
        ready.clear_ready();
    }
}
