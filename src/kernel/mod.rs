//! Locks of the kernel's: `flock` and `fcntl`.
//!
//! `lock` has the verbs, `acquire` is where a try (`attempt`) and waiting meet, `guard`
//! is what a user has and `hold` what ends with it. `shared` is what clones of a lock
//! share, `local_queue` the contenders of this process and the file that is kept for
//! them, which `idle_files` closes. `open_file` is what the kernel locks, by `syscalls`.
//! `holder` asks for the holder, `follow_holder` hears of its end, and `loss_watch` of the
//! end of the file at its path.

mod acquire;
mod as_lock;
mod attempt;
mod follow_holder;
mod guard;
mod hold;
mod holder;
mod idle_files;
mod local_queue;
mod lock;
mod loss_watch;
mod open_file;
mod options;
mod shared;
mod syscalls;

pub use guard::KernelGuard;
pub use lock::AsyncKernelLock;
pub use options::{KernelOptions, Primitive};
