//! Linux.

#[cfg(any(feature = "etcd", feature = "lockd", feature = "lockd-client", feature = "postgres"))]
pub(crate) mod boot_clock;
pub(crate) mod byte_ranges;
pub(crate) mod clock;
pub(crate) mod events;
mod file_system;
pub(crate) mod files;
pub(crate) mod lock_list;
pub(crate) mod process;
pub(crate) mod process_key;
pub(crate) mod random;
mod ticket_directory;
pub(crate) mod ticket_offsets;
pub(crate) mod tickets;
pub(crate) mod wait_pipe;
mod wipe_page;

pub(crate) use super::posix::{cpu, fork_count, host};

// For the features.
#[cfg(feature = "cli")]
pub(crate) mod child;
#[cfg(feature = "lockd")]
pub(crate) mod directory;
#[cfg(feature = "postgres")]
pub(crate) mod libpq;
#[cfg(feature = "lockd")]
pub(crate) mod limits;
#[cfg(feature = "lockd")]
pub(crate) mod peer;
#[cfg(any(feature = "etcd", feature = "lockd", feature = "lockd-client", feature = "postgres"))]
pub(crate) mod socket;
#[cfg(feature = "cli")]
pub(crate) mod standard_output;
#[cfg(all(feature = "cli", feature = "lockd"))]
pub(crate) mod systemd;

#[cfg(any(feature = "lockd", feature = "postgres"))]
pub(crate) use super::posix::permissions;
#[cfg(feature = "cli")]
pub(crate) use super::posix::signals;
#[cfg(feature = "postgres")]
pub(crate) use super::posix::{local_socket, user};
