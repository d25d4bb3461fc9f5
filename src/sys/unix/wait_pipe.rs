//! What later contenders watch to hear that a contender has left the line. There are no
//! lines here.

/// Of one contender in its line, where none stands.
#[derive(Clone, Debug)]
pub(crate) enum Presence {}
