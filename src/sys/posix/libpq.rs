//! Where libpq looks for the files of a user.

/// The variable that says below which directory.
pub(crate) const BASE_VARIABLE: &str = "HOME";

/// The directory of certificates and keys.
pub(crate) const CERTIFICATES: &str = ".postgresql";

/// The same as it is written for people.
pub(crate) const CERTIFICATES_SHOWN: &str = "~/.postgresql";

/// The file of passwords.
pub(crate) const PASSWORDS: &str = ".pgpass";

/// The file of services.
pub(crate) const SERVICES: &str = ".pg_service.conf";
