//! A directory that is open to stand in line in it, once for all contenders of a
//! process; closed when the last of them has left.
//!
//! 1. The locks belong to the open file description (fcntl(2), `F_OFD_SETLK`), which is
//!    what a process's contenders share: each unlocks exactly what it locked.
//! 2. The kernel does not tell a description of its own locks. Tickets of this process
//!    are remembered here instead.
//! 3. It tells of neighbouring locks of one description as of one.

#![expect(clippy::disallowed_methods, reason = "the room of locks on directories")]

use std::collections::{BTreeSet, HashMap};
#[cfg(test)]
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, LazyLock, Weak};

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;

use super::byte_ranges::{Bytes, Kind, in_the_way, try_lock, unlock};
use super::files::directory_identity;
use super::process_key::{ProcessKey, this_process};
use crate::sys::inode::Inode;

use crate::sys::mutex::Mutex;

/// One that is open.
#[derive(Debug)]
pub(crate) struct Directory {
    /// A forked child has the description as well, and opens its own.
    process: ProcessKey,
    /// `None` if only questions are asked here, and it is not shared.
    identity: Option<Identity>,
    file: OwnedFd,
    /// Offsets of this process's tickets (2).
    own: Mutex<BTreeSet<i64>>,
}

/// Device and inode.
type Identity = (u64, u64);

/// By process: a forked child finds nothing of its parent's.
type Key = (ProcessKey, Identity);

/// What is open.
static OPEN: LazyLock<Mutex<HashMap<Key, Weak<Directory>>>> = LazyLock::new(Mutex::default);

impl Directory {
    /// The one that the path leads to now. `None` where it may not be read, or there are
    /// too many open files at the moment.
    pub(crate) fn of(path: &Path) -> Option<Arc<Self>> {
        let process = this_process();
        let identity = directory_identity(path).ok()?;
        let known = OPEN.lock().get(&(process, identity)).and_then(Weak::upgrade);
        known.or_else(|| Self::open(path, process))
    }

    /// The same to ask for waiters, for less where this process has none.
    pub(crate) fn to_ask(path: &Path) -> Option<Arc<Self>> {
        if OPEN.lock().is_empty() { Self::apart(path).map(Arc::new) } else { Self::of(path) }
    }

    fn open(path: &Path, process: ProcessKey) -> Option<Arc<Self>> {
        let mut directory = Self::apart(path)?;
        let identity = rustix::fs::fstat(&directory.file).map(Inode::from).ok()?.identity;
        let mut open = OPEN.lock();
        let known = open.entry((process, identity)).or_default();
        if let Some(directory) = known.upgrade() {
            drop(open);
            return Some(directory);
        }
        directory.identity = Some(identity);
        let directory = Arc::new(directory);
        *known = Arc::downgrade(&directory);
        Some(directory)
    }

    /// A description that is not shared. Tickets of this process are others' to it.
    pub(crate) fn apart(path: &Path) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())).ok()?;
        Some(Self { process: this_process(), identity: None, file, own: Mutex::default() })
    }

    #[cfg(test)]
    pub(crate) fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Whether this process opened it, and not the one it was forked from.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == this_process()
    }

    pub(crate) fn is_at(&self, path: &Path) -> bool {
        directory_identity(path).ok() == self.identity
    }

    /// Stand at this offset; `false` if a contender of this process does already.
    pub(crate) fn begin(&self, offset: i64) -> bool {
        self.own.lock().insert(offset)
    }

    pub(crate) fn end(&self, offset: i64) {
        self.unlock(offset, 1);
        self.own.lock().remove(&offset);
    }

    /// The last offset in the range of some contender's ticket, of this process or
    /// another. Of several, the kernel tells as a rule of that process's which came first.
    pub(crate) fn ticket_in(&self, start: i64, length: i64) -> Option<i64> {
        if length <= 0 {
            return None;
        }
        let end = start.saturating_add(length);
        let of_another = self.locked_in(start, length).map(|(found, of)| {
            // (3); and what is longer is not of this crate.
            let found_end = if of == 0 { end } else { end.min(found.saturating_add(of)) };
            (found_end - 1).max(start)
        });
        of_another.or_else(|| self.own.lock().range(start..end).next_back().copied())
    }

    /// Start and length of some other process's lock that has to do with this range.
    pub(crate) fn locked_in(&self, start: i64, length: i64) -> Option<(i64, i64)> {
        let bytes = Bytes { start, length };
        let found = in_the_way(&self.file, Kind::Write, bytes).ok()??;
        Some((found.bytes.start, found.bytes.length))
    }

    pub(crate) fn lock(&self, start: i64, length: i64) -> Option<()> {
        try_lock(&self.file, Kind::Read, Bytes { start, length }).ok()
    }

    pub(crate) fn unlock(&self, start: i64, length: i64) {
        let _ = unlock(&self.file, Bytes { start, length });
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The map was copied by a fork, perhaps in the middle of a change.
        let Some(identity) = self.identity.filter(|_| self.is_ours()) else {
            return;
        };
        let mut open = OPEN.lock();
        let key = (self.process, identity);
        // A newcomer may have opened it since.
        if open.get(&key).is_some_and(|directory| directory.strong_count() == 0) {
            open.remove(&key);
        }
    }
}
