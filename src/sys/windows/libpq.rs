//! Where libpq looks for files.

/// There are no sockets of this machine: `localhost` is spoken to.
pub(crate) const SOCKETS: &str = "";

/// There is none for the whole machine: libpq looks beside its own program.
pub(crate) const OF_THE_MACHINE: Option<&str> = None;

/// The variable that says below which directory a user's files are.
pub(crate) const BASE_VARIABLE: &str = "APPDATA";

/// The directory of certificates and keys.
pub(crate) const CERTIFICATES: &str = "postgresql";

/// The same as it is written for people.
pub(crate) const CERTIFICATES_SHOWN: &str = "%APPDATA%\\postgresql";

/// The file of passwords.
pub(crate) const PASSWORDS: &str = "postgresql\\pgpass.conf";

/// The file of services.
pub(crate) const SERVICES: &str = "postgresql\\.pg_service.conf";
