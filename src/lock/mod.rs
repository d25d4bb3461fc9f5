//! What every lock is, and nothing of how.

pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod holder;
