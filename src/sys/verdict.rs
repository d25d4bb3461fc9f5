//! What is known of a process.

/// What can be said of a recorded process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Alive,
    /// And how that shows.
    Dead(String),
    /// And why it cannot be known.
    Unknown(String),
}
