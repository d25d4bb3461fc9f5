//! What the system says when it refuses something.

use std::fmt;
use std::io;

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_ALREADY_EXISTS, ERROR_BAD_DEV_TYPE, ERROR_BAD_NET_NAME,
    ERROR_BAD_NETPATH, ERROR_BAD_UNIT, ERROR_BUFFER_OVERFLOW, ERROR_BUSY,
    ERROR_CANT_RESOLVE_FILENAME, ERROR_DIRECTORY, ERROR_DIRECTORY_NOT_SUPPORTED, ERROR_DISK_FULL,
    ERROR_DISK_QUOTA_EXCEEDED, ERROR_FILE_EXISTS, ERROR_FILE_NOT_FOUND, ERROR_FILENAME_EXCED_RANGE,
    ERROR_HANDLE_DISK_FULL, ERROR_INVALID_DRIVE, ERROR_INVALID_FUNCTION, ERROR_INVALID_HANDLE,
    ERROR_INVALID_NAME, ERROR_INVALID_PARAMETER, ERROR_IO_DEVICE, ERROR_LOCK_VIOLATION,
    ERROR_NETNAME_DELETED, ERROR_NO_SYSTEM_RESOURCES, ERROR_NOT_ENOUGH_MEMORY,
    ERROR_NOT_SAME_DEVICE, ERROR_NOT_SUPPORTED, ERROR_OUTOFMEMORY, ERROR_PATH_NOT_FOUND,
    ERROR_PRIVILEGE_NOT_HELD, ERROR_SHARING_BUFFER_EXCEEDED, ERROR_SHARING_VIOLATION,
    ERROR_TOO_MANY_LINKS, ERROR_TOO_MANY_OPEN_FILES, ERROR_WRITE_PROTECT,
};

/// A system error code, under the names that the protocol has for them. Codes that mean
/// the same to it are one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(u32);

impl Errno {
    pub(crate) const ACCESS: Self = Self(ERROR_ACCESS_DENIED);
    /// Another open file, or the removal of this one, is in the way for now.
    pub(crate) const AGAIN: Self = Self(ERROR_SHARING_VIOLATION);
    pub(crate) const BADF: Self = Self(ERROR_INVALID_HANDLE);
    pub(crate) const BUSY: Self = Self(ERROR_BUSY);
    pub(crate) const DQUOT: Self = Self(ERROR_DISK_QUOTA_EXCEEDED);
    pub(crate) const EXIST: Self = Self(ERROR_ALREADY_EXISTS);
    pub(crate) const INVAL: Self = Self(ERROR_INVALID_PARAMETER);
    pub(crate) const IO: Self = Self(ERROR_IO_DEVICE);
    pub(crate) const ISDIR: Self = Self(ERROR_DIRECTORY_NOT_SUPPORTED);
    pub(crate) const LOOP: Self = Self(ERROR_CANT_RESOLVE_FILENAME);
    pub(crate) const MFILE: Self = Self(ERROR_TOO_MANY_OPEN_FILES);
    pub(crate) const MLINK: Self = Self(ERROR_TOO_MANY_LINKS);
    pub(crate) const NAMETOOLONG: Self = Self(ERROR_FILENAME_EXCED_RANGE);
    pub(crate) const NFILE: Self = Self(ERROR_NO_SYSTEM_RESOURCES);
    pub(crate) const NODEV: Self = Self(ERROR_BAD_DEV_TYPE);
    pub(crate) const NOENT: Self = Self(ERROR_FILE_NOT_FOUND);
    pub(crate) const NOLCK: Self = Self(ERROR_SHARING_BUFFER_EXCEEDED);
    pub(crate) const NOMEM: Self = Self(ERROR_NOT_ENOUGH_MEMORY);
    pub(crate) const NOSPC: Self = Self(ERROR_DISK_FULL);
    pub(crate) const NOSYS: Self = Self(ERROR_INVALID_FUNCTION);
    pub(crate) const NOTDIR: Self = Self(ERROR_DIRECTORY);
    pub(crate) const NXIO: Self = Self(ERROR_BAD_UNIT);
    pub(crate) const OPNOTSUPP: Self = Self(ERROR_NOT_SUPPORTED);
    pub(crate) const PERM: Self = Self(ERROR_PRIVILEGE_NOT_HELD);
    pub(crate) const ROFS: Self = Self(ERROR_WRITE_PROTECT);
    pub(crate) const STALE: Self = Self(ERROR_NETNAME_DELETED);
    pub(crate) const XDEV: Self = Self(ERROR_NOT_SAME_DEVICE);

    pub(crate) fn from_raw_os_error(code: i32) -> Self {
        Self(match code as u32 {
            ERROR_PATH_NOT_FOUND | ERROR_INVALID_DRIVE | ERROR_BAD_NETPATH | ERROR_BAD_NET_NAME => {
                ERROR_FILE_NOT_FOUND
            }
            ERROR_LOCK_VIOLATION => ERROR_SHARING_VIOLATION,
            ERROR_FILE_EXISTS => ERROR_ALREADY_EXISTS,
            ERROR_OUTOFMEMORY => ERROR_NOT_ENOUGH_MEMORY,
            ERROR_HANDLE_DISK_FULL => ERROR_DISK_FULL,
            // A name of more than 255 units. Signs that no name has are refused before.
            ERROR_BUFFER_OVERFLOW | ERROR_INVALID_NAME => ERROR_FILENAME_EXCED_RANGE,
            code => code,
        })
    }

    pub(crate) fn raw_os_error(self) -> i32 {
        self.0 as i32
    }

    /// Of the call of this thread that failed last.
    pub(super) fn last() -> Self {
        io::Error::last_os_error().into()
    }
}

/// An error that is not the system's is taken for one of the device.
impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or(Self::IO, Self::from_raw_os_error)
    }
}

impl From<Errno> for io::Error {
    fn from(error: Errno) -> Self {
        io::Error::from_raw_os_error(error.raw_os_error())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Errno({})", self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(formatter)
    }
}

impl std::error::Error for Errno {}
