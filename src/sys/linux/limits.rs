//! How much of something this process may have.

pub(crate) use crate::sys::posix::limits::open_files;

/// Let as many files be open as this process may have.
#[cfg(feature = "cli")]
pub(crate) fn raise_open_files() -> std::io::Result<()> {
    crate::sys::posix::limits::raise_open_files_to(None)
}
