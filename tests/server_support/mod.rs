//! What the tests with servers of others share, etcd and PostgreSQL: addresses of their own,
//! certificates, and a network that fails before them.

#![allow(dead_code, unreachable_pub, unused_imports)]

mod certificates;
mod claim;
mod guarded;
mod proxy;
mod substitution;

pub use certificates::Certificates;
pub use claim::Claim;
pub use guarded::Guarded;
pub use proxy::{Proxy, Source, To};
pub use substitution::Substitution;
