//! Who waits for a kernel lock, and who came first: tickets as those of
//! [`AsyncFileLock`](crate::AsyncFileLock), except that writers and readers
//! have their own. A ticket is a byte of the lock's *directory* that a waiting
//! contender keeps read-locked (an open file description lock), at an offset
//! made of the lock, of whether it wants the lock for itself, and of the time
//! of its arrival. It vanishes with its process and leaves nothing behind.
//!
//! Tickets keep an order and tell a holder that somebody listens. Exclusion
//! does not rest on them.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

use super::call::Sharing;
use crate::path::LockPath;

/// Bits of an offset that are the time in microseconds: three days, then the
/// order is wrong once.
const TIME_BITS: u32 = 38;

/// How many offsets the writers of a lock have, and then its readers.
const OFFSETS: i64 = 1 << TIME_BITS;

/// Bits that are the lock's. With the time, and one that tells writers from
/// readers, they stay within a positive offset.
const LOCK_BITS: u32 = 23;

/// The directory of a lock, to ask who waits there.
#[derive(Debug)]
pub(super) struct Arrivals {
    directory: OwnedFd,
    /// First offset of this lock's writers.
    base: i64,
}

impl Arrivals {
    /// `None` where the directory may not be read. `label` tells the lock from
    /// others in its directory.
    pub(super) fn of(directory: &Path, label: &LockPath) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
        Some(Self { directory, base: base(label) })
    }

    /// Whether anybody waits.
    pub(super) fn are_any(&self) -> bool {
        self.has_ticket(self.base, 2 * OFFSETS)
    }

    /// Whether anybody waits whom a newcomer would get in the way of: readers
    /// do not mind each other.
    pub(super) fn precede(&self, newcomer: Sharing) -> bool {
        match newcomer {
            Sharing::Exclusive => self.are_any(),
            Sharing::Shared => self.has_ticket(self.base, OFFSETS),
        }
    }

    /// Whether another open file has a lock in the range.
    fn has_ticket(&self, start: i64, length: i64) -> bool {
        let mut conflict = record(libc::F_WRLCK, start, length);
        let asked = fcntl(&self.directory, FcntlArg::F_OFD_GETLK(&mut conflict));
        asked.is_ok() && i32::from(conflict.l_type) != libc::F_UNLCK
    }
}

/// A place in the order of arrival; given up when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    /// Its own: a description does not see its own locks.
    arrivals: Arrivals,
    sharing: Sharing,
    arrived: i64,
}

impl Ticket {
    pub(super) fn take(directory: &Path, label: &LockPath, sharing: Sharing) -> Option<Self> {
        let arrivals = Arrivals::of(directory, label)?;
        let arrived = now();
        let kind = match sharing {
            Sharing::Exclusive => 0,
            Sharing::Shared => OFFSETS,
        };
        let lock = record(libc::F_RDLCK, arrivals.base + kind + arrived, 1);
        fcntl(&arrivals.directory, FcntlArg::F_OFD_SETLK(&lock)).ok()?;
        Some(Self { arrivals, sharing, arrived })
    }

    /// Whether somebody waits who came before and does not mind us less than
    /// we mind it.
    pub(super) fn is_preceded(&self) -> bool {
        let Arrivals { base, .. } = self.arrivals;
        // A length of zero would reach to the end.
        let before = |first| self.arrived > 0 && self.arrivals.has_ticket(first, self.arrived);
        before(base) || self.sharing == Sharing::Exclusive && before(base + OFFSETS)
    }
}

fn record(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// The same in every process: the hasher has no key.
fn base(label: &LockPath) -> i64 {
    let hash = BuildHasherDefault::<DefaultHasher>::new().hash_one(label.name());
    ((hash >> (64 - LOCK_BITS)) << (TIME_BITS + 1)) as i64
}

/// The clock that all processes of the machine share.
fn now() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec * 1_000_000 + now.tv_nsec / 1000) & (OFFSETS - 1)
}
