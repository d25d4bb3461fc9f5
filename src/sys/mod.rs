//! The operating system.

pub(crate) mod mutex;
pub(crate) mod path;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;
