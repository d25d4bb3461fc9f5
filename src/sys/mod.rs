//! The operating system. Each system's folder has the same names in it, and no other
//! file of this crate names a system.

#[cfg(any(not(target_os = "linux"), lockkeeper_generic_unix))]
mod absent;
mod event;
pub(crate) mod inode;
#[cfg(any(feature = "etcd", feature = "lockd", feature = "lockd-client", feature = "postgres"))]
pub(crate) mod keep_alive;
#[cfg(any(not(target_os = "linux"), test))]
mod listeners;
pub(crate) mod mutex;
#[cfg(all(feature = "cli", feature = "lockd"))]
pub(crate) mod no_listener;
pub(crate) mod path;
pub(crate) mod program;
pub(crate) mod sharing;
pub(crate) mod verdict;

#[cfg(unix)]
mod posix;

#[cfg(all(target_os = "linux", not(lockkeeper_generic_unix)))]
mod linux;
#[cfg(all(target_os = "linux", not(lockkeeper_generic_unix)))]
pub(crate) use linux::*;

#[cfg(all(unix, any(not(target_os = "linux"), lockkeeper_generic_unix)))]
mod unix;
#[cfg(all(unix, any(not(target_os = "linux"), lockkeeper_generic_unix)))]
pub(crate) use unix::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::*;
