//! Keeps [`Lock`](super::Lock) and [`Guard`](super::guard::Guard) for the kinds of this crate, until enough different ones
//! stand on them.

/// Implemented by what this crate makes.
pub trait Sealed {}
