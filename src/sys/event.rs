//! What can be heard of a lock, whichever system tells it.

#![cfg_attr(
    all(target_os = "linux", lockkeeper_generic_unix, not(test)),
    expect(dead_code, reason = "nothing is heard there")
)]

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the end of a process will be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Following {
    /// Or there is no process whose end would matter.
    Heard,
    Unheard,
    /// It has ended already, or is one of another pid namespace.
    Gone,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A file that may have been the holder's was closed. That comes a little
    /// before its kernel lock is free.
    Close,
    Change,
}

/// Say once that there are no events, and why.
pub(crate) fn tell_of_no_events(error: impl Display) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(%error, "no events: waiting looks again each retry_period");
    }
}
