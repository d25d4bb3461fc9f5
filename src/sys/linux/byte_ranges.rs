//! Locks of ranges of bytes: fcntl(2), with offsets of 64 bits on every target.
//!
//! On 32-bit glibc the C library's `fcntl` takes offsets of 32 bits, also for
//! `F_OFD_SETLK`: too few for tickets. So the kernel itself is called, the same
//! way on all targets. Nothing here waits.

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use rustix::io::{Errno, retry_on_intr};

#[cfg(target_pointer_width = "64")]
use libc::{SYS_fcntl as FCNTL, flock as Record};
#[cfg(target_pointer_width = "32")]
use libc::{SYS_fcntl64 as FCNTL, flock64 as Record};

/// Whether the system has them.
pub(crate) const ARE_THERE: bool = true;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Excludes [`Kind::Write`]; needs a file that is open for reading.
    Read,
    /// Excludes both; needs a file that is open for writing.
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) start: i64,
    /// Zero reaches to the end of any file.
    pub(crate) length: i64,
}

impl Bytes {
    /// From the first byte to the last that there can be.
    pub(crate) const ALL: Self = Self { start: 0, length: 0 };
}

/// A lock of another open file, or of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InTheWay {
    pub(crate) bytes: Bytes,
    /// `None` for a lock of an open file, and for a process that cannot be seen
    /// from this pid namespace.
    pub(crate) pid: Option<u32>,
}

/// Lock the bytes, or change the lock that this open file has there.
///
/// # Errors
///
/// `EAGAIN` or `EACCES` if a lock is in the way.
pub(crate) fn try_lock(file: impl AsFd, kind: Kind, bytes: Bytes) -> Result<(), Errno> {
    set(file, kind.number(), bytes)
}

pub(crate) fn unlock(file: impl AsFd, bytes: Bytes) -> Result<(), Errno> {
    set(file, libc::F_UNLCK, bytes)
}

/// A lock that keeps this open file from having that one.
pub(crate) fn in_the_way(
    file: impl AsFd,
    kind: Kind,
    bytes: Bytes,
) -> Result<Option<InTheWay>, Errno> {
    let answer = fcntl(file, libc::F_OFD_GETLK, record(kind.number(), bytes))?;
    if libc::c_int::from(answer.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let bytes = Bytes { start: answer.l_start, length: answer.l_len };
    let pid = u32::try_from(answer.l_pid).ok().filter(|pid| *pid > 0);
    Ok(Some(InTheWay { bytes, pid }))
}

fn set(file: impl AsFd, number: libc::c_int, bytes: Bytes) -> Result<(), Errno> {
    fcntl(file, libc::F_OFD_SETLK, record(number, bytes)).map(drop)
}

impl Kind {
    fn number(self) -> libc::c_int {
        match self {
            Self::Read => libc::F_RDLCK,
            Self::Write => libc::F_WRLCK,
        }
    }
}

fn record(number: libc::c_int, bytes: Bytes) -> Record {
    Record {
        l_type: number as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start,
        l_len: bytes.length,
        // `F_OFD_` commands refuse anything else.
        l_pid: 0,
    }
}

fn fcntl(file: impl AsFd, command: libc::c_int, mut record: Record) -> Result<Record, Errno> {
    let file = file.as_fd().as_raw_fd();
    retry_on_intr(|| {
        // SAFETY: the commands above take a pointer to a `Record`, in which the
        // kernel may write before it returns.
        #[allow(unsafe_code)]
        let answer = unsafe { libc::syscall(FCNTL, file, command, &raw mut record) };
        match answer {
            0 => Ok(()),
            _ => Err(Errno::from_raw_os_error(nix::errno::Errno::last_raw())),
        }
    })?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[cfg(target_pointer_width = "64")]
    use libc::F_SETLK;
    /// `F_SETLK64` of the kernel's asm-generic/fcntl.h, which libc does not name.
    #[cfg(target_pointer_width = "32")]
    const F_SETLK: libc::c_int = 13;

    /// More bits than a 32-bit `off_t` has, and their lower halves are the same.
    const FAR: Bytes = Bytes { start: (1 << 62) + 5, length: 1 << 61 };
    const NEAR: Bytes = Bytes { start: 5, length: 1 };

    fn two_openings() -> (File, File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        (file.reopen().unwrap(), file.reopen().unwrap())
    }

    #[test]
    fn all_bits_of_an_offset_count_and_are_told() {
        let (one, other) = two_openings();
        try_lock(&one, Kind::Write, FAR).unwrap();
        try_lock(&other, Kind::Write, NEAR).unwrap();
        let refused = try_lock(&other, Kind::Read, FAR);
        assert_eq!(refused, Err(Errno::AGAIN));
        let rest = Bytes { start: 6, length: 0 };
        let found = in_the_way(&other, Kind::Read, rest).unwrap();
        assert_eq!(found, Some(InTheWay { bytes: FAR, pid: None }));
        unlock(&one, FAR).unwrap();
        assert_eq!(in_the_way(&other, Kind::Write, rest), Ok(None));
    }

    #[test]
    fn a_lock_of_a_process_names_it() {
        let (one, other) = two_openings();
        fcntl(&one, F_SETLK, record(Kind::Read.number(), FAR)).unwrap();
        let found = in_the_way(&other, Kind::Write, FAR).unwrap();
        assert_eq!(found, Some(InTheWay { bytes: FAR, pid: Some(std::process::id()) }));
        assert_eq!(in_the_way(&other, Kind::Read, FAR), Ok(None));
    }
}
