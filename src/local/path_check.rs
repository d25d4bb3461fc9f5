//! How long a look at the path of a held lock counts.

use std::time::Duration;

/// For so long after a look at the path, whether the file was removed or
/// replaced is seen by its number of names, for half the price; that it, or a
/// directory above it, was moved is then not seen. It is about what a task takes
/// to wake, so also what a look before a hand-over is worth after it.
pub(crate) const LOOK_LASTS: Duration = Duration::from_millis(1);
