//! Locks of the kernel's: `flock` and `fcntl`. `lock` is where tries
//! (`attempt`) and waiting (`wakeup`) meet; `shared` is what the contenders of one
//! lock in a process share, `open_files` what must not be closed, `close_elsewhere` a
//! close that does no harm, `idle_files` closes what is not used, `syscalls` the calls.

mod as_lock;
mod attempt;
mod close_elsewhere;
mod guard;
mod holder;
mod idle_files;
mod lock;
mod open_files;
mod options;
mod shared;
mod syscalls;
mod wakeup;

pub use guard::KernelGuard;
pub use lock::AsyncKernelLock;
pub use options::{KernelOptions, Primitive};
