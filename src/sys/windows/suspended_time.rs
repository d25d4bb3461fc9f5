//! A clock that goes on while the machine is suspended and never jumps: the performance
//! counter, which counts sleep and hibernation. Rust's `Instant` reads it.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Since it was first read.
pub(crate) fn time() -> Duration {
    BEGUN.elapsed()
}
