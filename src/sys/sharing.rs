//! Whether others may have a lock beside oneself.

/// Whether a lock is wanted for oneself alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Exclusive,
    Shared,
}
