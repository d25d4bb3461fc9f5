//! Locks that a PostgreSQL server keeps: how that server is found and reached.
//!
//! P1. A text is read as libpq reads it. What libpq would take and this crate cannot do is
//!     an error and never left out.
//! P2. What a text leaves out is said by a service, then by the environment, then by
//!     libpq's defaults. Only the default of `sslmode` is another, see `ssl_mode`.
//! P3. Nothing secret is shown, neither by `Debug` nor by an error. A text that cannot be
//!     read is not shown at all: any part of it may be a piece of a password.
//! P4. A session is one that can write, of a PostgreSQL that is not too old. What is in
//!     recovery or read-only is passed over.
//! P5. Connecting needs no named statement, and a session is changed by nothing: so a
//!     pooler may stand between.
//! P6. Sessions belong to the thread of `lease::io`, and end with their connection's task.

mod access;
mod connect;
mod connection_string;
mod environment;
mod failure;
mod keys;
mod password_file;
mod service_file;
mod ssl_mode;
mod stream;
#[cfg(test)]
#[path = "../../tests/postgres_access/mod.rs"]
mod tests;
