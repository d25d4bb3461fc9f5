//! Locks of the kernel's: `flock` and `fcntl`. `lock` is where tries
//! (`attempt`) and waiting (`pause`) meet; `site` is what the contenders of one
//! lock in a process share, `file` what must not be closed, `apart` a close that does no
//! harm, `idle` closes what is not used, `call` the system calls.

mod apart;
mod attempt;
mod call;
mod file;
mod guard;
mod holder;
mod idle;
mod lock;
mod options;
mod pause;
mod site;

pub use guard::KernelGuard;
pub use lock::AsyncKernelLock;
pub use options::{KernelOptions, Primitive};
