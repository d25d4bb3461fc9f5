//! Locks of the kernel's: `flock` and `fcntl`. `lock` is where tries
//! (`attempt`) and waiting meet; `shared` is what the contenders of one
//! lock in a process share, `open_file` what the kernel locks, `idle_files` closes what is not used, `syscalls` the calls.

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
