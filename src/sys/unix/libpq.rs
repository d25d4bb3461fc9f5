//! Where libpq looks for files, as PostgreSQL builds it.

/// The directory of the server's sockets, if there are any.
#[cfg(not(target_os = "linux"))]
pub(crate) const SOCKETS: &str = "/tmp";
#[cfg(target_os = "linux")]
pub(crate) const SOCKETS: &str = "/var/run/postgresql";

/// The directory of `pg_service.conf` for the whole machine, if there is one.
#[cfg(not(target_os = "linux"))]
pub(crate) const OF_THE_MACHINE: Option<&str> = Some("/usr/local/etc/postgresql");
#[cfg(target_os = "linux")]
pub(crate) const OF_THE_MACHINE: Option<&str> = Some("/etc/postgresql-common");

pub(crate) use crate::sys::posix::libpq::*;
