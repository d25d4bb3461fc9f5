//! Any Unix: what stands in for Linux's own means. Linux itself has it under
//! `--cfg lockkeeper_generic_unix`, where the same tests are to pass.

pub(crate) mod clock;
#[cfg_attr(
    any(
        target_vendor = "apple",
        target_os = "freebsd",
        target_os = "dragonfly",
        target_os = "netbsd",
        target_os = "openbsd"
    ),
    path = "kqueue.rs"
)]
#[cfg_attr(target_os = "linux", path = "no_events.rs")]
pub(crate) mod events;
#[cfg_attr(target_os = "linux", path = "../linux/file_system.rs")]
#[cfg_attr(
    not(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd")),
    path = "any_file_system.rs"
)]
mod file_system;
pub(crate) mod files;
pub(crate) mod process;
pub(crate) mod process_key;
pub(crate) mod random;
#[cfg(any(feature = "etcd", feature = "lockd", feature = "lockd-client", feature = "postgres"))]
#[cfg_attr(target_vendor = "apple", path = "continuous.rs")]
#[cfg_attr(not(target_vendor = "apple"), path = "stepping.rs")]
pub(crate) mod suspended_time;
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
mod sysctl;
#[cfg_attr(target_vendor = "apple", path = "apple.rs")]
#[cfg_attr(target_os = "freebsd", path = "freebsd.rs")]
#[cfg_attr(not(any(target_vendor = "apple", target_os = "freebsd")), path = "other.rs")]
mod system;

#[cfg(any(
    feature = "etcd",
    feature = "lockd",
    feature = "lockd-client",
    feature = "postgres"
))]
pub(crate) use super::absent::boot_clock;
pub(crate) use super::absent::{byte_ranges, lock_list, tickets, wait_pipe};
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
