//! Locks of ranges of bytes. Those that belong to an open file and can be asked for,
//! `F_OFD_SETLK`, are Linux's own.

use std::fs::File;

use crate::sys::files::Errno;

/// Whether the system has them.
pub(crate) const ARE_THERE: bool = false;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) start: i64,
    /// Zero reaches to the end of any file.
    pub(crate) length: i64,
}

/// A lock of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InTheWay {
    pub(crate) pid: Option<u32>,
}

/// # Errors
/// That the system has no such locks.
pub(crate) fn try_lock(_: &File, _: Kind, _: Bytes) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// # Errors
/// As [`try_lock`].
pub(crate) fn unlock(_: &File, _: Bytes) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// # Errors
/// As [`try_lock`].
pub(crate) fn in_the_way(_: &File, _: Kind, _: Bytes) -> Result<Option<InTheWay>, Errno> {
    Err(Errno::OPNOTSUPP)
}
