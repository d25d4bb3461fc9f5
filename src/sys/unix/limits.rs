//! How much of something this process may have.

pub(crate) use crate::sys::posix::limits::open_files;

/// macOS refuses more without a word of it in `getrlimit`: `OPEN_MAX` of
/// sys/syslimits.h.
#[cfg(target_vendor = "apple")]
const MOST: Option<u64> = Some(10_240);
#[cfg(not(target_vendor = "apple"))]
const MOST: Option<u64> = None;

/// Let as many files be open as this process may have.
#[cfg(feature = "cli")]
pub(crate) fn raise_open_files() -> std::io::Result<()> {
    crate::sys::posix::limits::raise_open_files_to(MOST)
}
