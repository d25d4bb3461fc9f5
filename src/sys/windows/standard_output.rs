//! The reader of standard output.

use std::future::pending;

/// Never resolves: that a pipe has no reader any more shows when it is written to.
pub(crate) async fn end_of_reader() {
    pending().await
}
