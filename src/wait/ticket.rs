//! Who came first, among processes: tickets that the kernel keeps.
//!
//! A contender that has to wait takes a read lock of one byte on the lock
//! file's *directory* (an open file description lock, fcntl(2)). The byte's
//! offset is made of the name of the lock and the time of arrival, so that one
//! question to the kernel tells whether anybody came earlier. A ticket outlives
//! every lock file, vanishes with its process and leaves nothing behind.
//!
//! Tickets are a courtesy, exclusion does not rest on them. A tie, or two names
//! with one hash, costs a little fairness; where a directory cannot be opened
//! for reading there are none, and whoever looks first gets the lock.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::path::LockPath;

/// Bits of an offset that are the time in microseconds: three days, then the
/// order is wrong once.
const TIME_BITS: u32 = 38;

/// Bits that are the name's. With the time they stay within a positive offset.
const NAME_BITS: u32 = 24;

/// A place in the order of arrival; given up when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    directory: OwnedFd,
    /// First offset of this lock's tickets.
    base: i64,
    arrived: i64,
}

impl Ticket {
    pub(crate) fn take(path: &LockPath) -> Option<Self> {
        let ticket = Self { directory: open(path)?, base: base(path), arrived: now() };
        let lock = range(libc::F_RDLCK, ticket.base + ticket.arrived, 1);
        fcntl(&ticket.directory, FcntlArg::F_OFD_SETLK(&lock)).ok()?;
        Some(ticket)
    }

    /// Whether somebody waits who came before.
    pub(crate) fn is_preceded(&self) -> bool {
        // A length of zero would reach to the end.
        self.arrived > 0 && has_ticket(&self.directory, self.base, self.arrived)
    }
}

/// Whether any process waits for this lock.
pub(crate) fn is_awaited(path: &LockPath) -> bool {
    open(path).is_some_and(|directory| has_ticket(&directory, base(path), 1 << TIME_BITS))
}

fn open(path: &LockPath) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path.directory(), flags, Mode::empty()).ok()
}

/// Whether another description has a lock in the range.
fn has_ticket(directory: &OwnedFd, start: i64, length: i64) -> bool {
    let mut conflict = range(libc::F_WRLCK, start, length);
    let asked = fcntl(directory, FcntlArg::F_OFD_GETLK(&mut conflict));
    asked.is_ok() && i32::from(conflict.l_type) != libc::F_UNLCK
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// The same in every process: the hasher has no key.
fn base(path: &LockPath) -> i64 {
    let hash = BuildHasherDefault::<DefaultHasher>::new().hash_one(path.name());
    ((hash >> (64 - NAME_BITS)) << TIME_BITS) as i64
}

/// The clock that all processes of the machine share.
fn now() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec * 1_000_000 + now.tv_nsec / 1000) & ((1 << TIME_BITS) - 1)
}
