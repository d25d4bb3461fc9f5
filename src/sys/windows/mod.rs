//! Windows.

pub(crate) mod clock;
pub(crate) mod cpu;
mod errno;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod fork_count;
pub(crate) mod host;
pub(crate) mod process;
pub(crate) mod process_key;
pub(crate) mod random;

#[cfg(any(feature = "etcd", feature = "lockd-client", feature = "postgres"))]
pub(crate) use super::absent::boot_clock;
pub(crate) use super::absent::{byte_ranges, lock_list, tickets, wait_pipe};

// For the features.
#[cfg(feature = "cli")]
pub(crate) mod child;
#[cfg(feature = "postgres")]
pub(crate) mod libpq;
#[cfg(feature = "postgres")]
pub(crate) mod local_socket;
#[cfg(feature = "postgres")]
pub(crate) mod permissions;
#[cfg(feature = "cli")]
pub(crate) mod signals;
#[cfg(any(feature = "etcd", feature = "lockd-client", feature = "postgres"))]
pub(crate) mod socket;
#[cfg(feature = "cli")]
pub(crate) mod standard_output;
#[cfg(any(feature = "etcd", feature = "lockd-client", feature = "postgres"))]
pub(crate) mod suspended_time;
#[cfg(feature = "postgres")]
pub(crate) mod user;
