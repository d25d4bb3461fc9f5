//! What stands in, on every other system, for means that only Linux has.

#[cfg(any(feature = "etcd", feature = "lockd", feature = "lockd-client", feature = "postgres"))]
pub(crate) mod boot_clock;
pub(crate) mod byte_ranges;
pub(crate) mod lock_list;
pub(crate) mod tickets;
pub(crate) mod wait_pipe;
