//! The rights on a file: lists of who may do what, which libpq does not look at either.

use std::fs::Metadata;

/// `None`: rights are kept otherwise.
pub(crate) fn mode(_: &Metadata) -> Option<u32> {
    None
}

/// There is no such user.
#[cfg(feature = "postgres")]
pub(crate) fn is_of_root(_: &Metadata) -> bool {
    false
}
