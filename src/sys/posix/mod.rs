//! What every Unix has. The folders of Linux and of the other systems name it again.

pub(crate) mod at_exit;
pub(crate) mod cpu;
pub(crate) mod files;
pub(crate) mod fork_count;
pub(crate) mod host;

// For the features.
#[cfg(feature = "cli")]
pub(crate) mod child;
#[cfg(feature = "lockd")]
pub(crate) mod directory;
#[cfg(feature = "cli")]
mod inherited;
#[cfg(feature = "postgres")]
pub(crate) mod libpq;
#[cfg(feature = "lockd")]
pub(crate) mod limits;
#[cfg(feature = "postgres")]
pub(crate) mod local_socket;
#[cfg(feature = "cli")]
mod orphans;
#[cfg(feature = "lockd")]
pub(crate) mod peer;
#[cfg(any(feature = "lockd", feature = "postgres"))]
pub(crate) mod permissions;
#[cfg(feature = "cli")]
pub(crate) mod signals;
#[cfg(any(feature = "etcd", feature = "lockd", feature = "lockd-client", feature = "postgres"))]
pub(crate) mod socket;
#[cfg(feature = "postgres")]
pub(crate) mod user;
