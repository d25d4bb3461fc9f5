//! What the tests of locks in PostgreSQL share: servers that crash, freeze, restart and fail
//! over, PgBouncer before them, and sessions of clients that know nothing of lockkeeper.
//!
//! A test begins with `if !is_there() { return }`, which says what is missing.

#![allow(dead_code, unreachable_pub, unused_imports)]

mod home;
mod pgbouncer;
mod programs;
mod server;
mod session;
mod template;

pub use pgbouncer::{PgBouncer, Pooling};
pub use programs::{is_there, psql};
pub use server::{Builder, PASSWORD, ROLE, Replication, Server, Shutdown, Tls};
pub use session::{Rows, Session, Statement};

pub use crate::server_support::{Certificates, Proxy, To};
