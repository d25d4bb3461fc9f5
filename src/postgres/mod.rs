//! Locks that a PostgreSQL server keeps, for all machines that can reach it.
//!
//! A lock is an advisory lock, held by a session. So every program that takes the same
//! advisory lock takes turns with this crate.
//!
//! P1. A text is read as libpq reads it. What libpq would take and this crate cannot do is
//!     an error and never left out.
//! P2. What a text leaves out is said by a service, then by the environment, then by
//!     libpq's defaults. Only the default of `sslmode` is another, see `ssl_mode`.
//! P3. Nothing secret is shown, neither by `Debug` nor by an error. A text that cannot be
//!     read is not shown at all: any part of it may be a piece of a password.
//! P4. A session is one that can write, of a PostgreSQL that is not too old. What is in
//!     recovery or read-only is passed over, and so is what stores no write in time: a former
//!     primary takes sessions and answers reads.
//! P5. Connecting needs no named statement, and a session is changed by nothing: so a
//!     pooler may stand between.
//! P6. Sessions belong to the thread of `lease::io`, and end with their connection's task.
//! P7. A session that holds locks has a name that no other has, which is looked for and set
//!     in one statement. Every statement that takes or gives back a lock compares it. A pooler
//!     that gives several clients one session is so seen before a lock is taken, as each
//!     process begins with two sessions. Neither is set for locks before both have a name.
//! P8. A session is relied on up to D (L3), counted from before the last probe was sent that
//!     was answered. A probe writes: a former primary answers reads. The server ends a
//!     session that is not probed for the length of the lease. This side ends it at D, and
//!     with it what still waits for an answer. A session that waits for a lock is not probed.
//! P9. The server frees a lock with its session, and the client may hear of that later: so
//!     the next holder waits for the lease of one that left no clean row, before its guard
//!     is returned. Where it waits already, it keeps the lock meanwhile.
//! P10. A row says who holds the lock, and by `clean` that the holder left in order. An
//!     acquisition that is given up leaves the row as it was before. A release that the
//!     server cancels is repeated some times with its row, and then without.
//! P11. A statement that waits is cancelled by a request that is read to its end, and its
//!     session is closed after that: no later statement is hit, and nothing is granted to
//!     nobody. A request that comes before its statement cancels nothing, so it is repeated.
//! P12. A session whose lock statement failed takes no other lock, nor does one in which a
//!     holder ran statements. A session that holds a lock waits for none.
//! P13. The fencing token is a counter of the lock's row below the server's timeline. Both
//!     are as durable as the commit that wrote them.

mod access;
mod acquire;
mod as_lock;
mod connect;
mod connection_string;
mod environment;
mod failure;
mod guard;
mod hold;
mod key;
mod keys;
mod lock;
mod lock_session;
mod locks;
mod options;
mod password_file;
mod place;
mod record;
pub(crate) mod schema;
mod server;
mod service_file;
mod ssl_mode;
mod statements;
mod status;
mod stream;
mod target;
#[cfg(test)]
#[path = "../../tests/postgres_access/mod.rs"]
mod tests;
pub(crate) mod url;
mod watch;

pub use guard::PostgresGuard;
pub use key::LockKey;
pub use lock::AsyncPostgresLock;
pub use locks::PostgresLocks;
pub use options::{PostgresOptions, Table, Takeover};
