//! What stands in, on every other system, for means that only Linux has.

pub(crate) mod lock_list;
pub(crate) mod tickets;
pub(crate) mod wait_pipe;
