//! What every kind of lock promises, once, for each kind.
//!
//! A kind is one `impl Kind` and one line of the list in `kinds.rs`. Each test here is
//! generic over it, and runs once for each line: `order::tasks_are_served_in_order::flock`.
//! A promise that a kind does not make stands in its `impl Kind`, with the reason.
//! Without the features of the daemon the kinds that need them are left out.

#![allow(unreachable_pub)]

#[macro_use]
mod kinds;

mod another_process;
mod cancellation;
#[cfg(all(feature = "cli", feature = "lockd", feature = "lockd-client"))]
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod death;
mod drops;
#[cfg(feature = "etcd")]
mod etcd_kinds;
#[cfg(feature = "etcd")]
#[path = "../etcd_support/mod.rs"]
mod etcd_support;
mod exclusion;
mod futures_of_locks;
mod limits;
#[cfg(all(feature = "cli", feature = "lockd", feature = "lockd-client"))]
mod list;
mod local_kinds;
mod lost;
mod order;
mod paused;
#[cfg(feature = "postgres")]
mod postgres_kinds;
#[cfg(feature = "postgres")]
#[path = "../postgres_support/mod.rs"]
mod postgres_support;
mod readers;
#[cfg(all(feature = "cli", feature = "lockd", feature = "lockd-client"))]
mod remote_kinds;
#[cfg(all(feature = "cli", feature = "lockd", feature = "lockd-client"))]
#[path = "../remote_support/mod.rs"]
mod remote_support;
#[cfg(any(feature = "etcd", feature = "postgres"))]
#[path = "../server_support/mod.rs"]
mod server_support;
mod status;
#[path = "../support/mod.rs"]
mod support;
mod work;
