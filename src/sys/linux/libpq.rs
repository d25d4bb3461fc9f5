//! Where libpq looks for files, as Debian and Red Hat build it.

/// The directory of the server's sockets, if there are any.
pub(crate) const SOCKETS: &str = "/var/run/postgresql";

/// The directory of `pg_service.conf` for the whole machine, if there is one.
pub(crate) const OF_THE_MACHINE: Option<&str> = Some("/etc/postgresql-common");

pub(crate) use crate::sys::posix::libpq::*;
