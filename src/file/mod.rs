//! Lock files: [`AsyncFileLock`].

mod acquire;
mod acquire_all;
mod as_lock;
pub(crate) mod at_exit;
mod changes;
mod contender;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod hold;
pub(crate) mod liveness;
mod lock;
pub(crate) mod options;
pub(crate) mod protocol;
pub(crate) mod record;
mod revoke;
pub(crate) mod siblings;
mod spec;

pub use acquire_all::{LockGuards, acquire_all, acquire_all_timeout};
pub use guard::FileGuard;
pub use lock::AsyncFileLock;
pub use options::{AtExit, FileOptions, Proof, SlowSystem};
