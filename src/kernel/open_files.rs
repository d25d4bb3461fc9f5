//! Open files, and the one thing that can go wrong when they are closed.
//!
//! A POSIX lock belongs to the process and the inode: closing *any* descriptor
//! of the inode drops it, fcntl(2). So each file system has a register, by
//! inode, of what this process has locked that way.
//!
//! 1. A registered inode has one open file, shared by all that contend for it
//!    or hold some of it, and closed when there is none of them.
//! 2. Another open file of it is not closed but kept until then, unlocked, and used
//!    again by whoever would open one more: there are never more than were in use at
//!    a time. But not one that a user had: whoever was given a copy would share its
//!    lock.
//! 3. Opening, locking and closing are done under the register's lock, so that
//!    no close of ours falls between.
//! 4. Within the process the register excludes, as the kernel does not.
//! 5. Unlocking a range leaves those parts of it locked that another holder
//!    shares.
//! 6. Other processes wait for a close. When nobody holds any of an inode any more,
//!    its file is closed, or another of it if tasks of this process still contend.
//!    Where that would drop locks, or a copy of the file may be open elsewhere, the
//!    holder makes the event: by a close `apart` where there are locks to drop.
//! 7. An inode is in the register of its own file system, whatever directory it
//!    was reached by: a file can be mounted at another.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockWriteGuard, TryLockError};

use rustix::io::Errno;
use rustix::path::Arg;
use tokio::sync::watch;

use super::close_elsewhere;
use super::options::{Primitive, Range};
use super::syscalls::{self, LockSpec, Sharing};
use crate::sys::files::Inode;
use crate::sys::fork_count::forks;
use crate::sys::mutex::Mutex;
use crate::sys::process_key::{ProcessKey, this_process};
use crate::sys::tickets::Waiters;

/// Device and inode.
type Identity = (u64, u64);

/// The open files of one file system (7) that share a fate.
pub(super) struct Register {
    process: ProcessKey,
    device: u64,
    inodes: RwLock<HashMap<Identity, PosixInode>>,
}

/// By process: a forked child has none of its parent's locks.
type RegisterKey = (ProcessKey, u64);

static REGISTERS: LazyLock<Mutex<HashMap<RegisterKey, Arc<Register>>>> =
    LazyLock::new(Mutex::default);

/// How many inodes there are in all registers: in most processes there never is one.
static REGISTERED: AtomicUsize = AtomicUsize::new(0);

impl Register {
    pub(super) fn of(process: ProcessKey, device: u64) -> Arc<Self> {
        let mut registers = REGISTERS.lock();
        let new = || Arc::new(Self { process, device, inodes: RwLock::default() });
        Arc::clone(registers.entry((process, device)).or_insert_with(new))
    }

    /// The register for this file (7).
    #[inline]
    fn of_file(self: &Arc<Self>, identity: Identity) -> Arc<Self> {
        match identity.0 == self.device {
            true => Arc::clone(self),
            false => Self::of(self.process, identity.0),
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Identity, PosixInode>> {
        self.inodes.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Close `file`, or keep it (2).
    #[inline]
    fn close(&self, file: File, origin: Origin, identity: Identity) {
        match self.inodes.try_read() {
            Ok(inodes) if !inodes.contains_key(&identity) => return drop(file), // (3)
            Ok(_) | Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {}
        }
        self.close_or_keep(file, origin, identity);
    }

    #[cold]
    fn close_or_keep(&self, file: File, origin: Origin, identity: Identity) {
        // The parent's register says nothing of a forked child, whose unlock would
        // free its parent's lock.
        if self.process != this_process() {
            return drop(file);
        }
        let mut inodes = self.write();
        let Some(posix) = inodes.get_mut(&identity) else {
            return drop(file); // (3)
        };
        posix.kept.push((file, origin));
    }

    /// A file of what is at the path that was kept (2), to be used again.
    #[inline]
    pub(super) fn reuse(self: &Arc<Self>, path: impl Arg + Copy) -> Option<OpenFile> {
        if REGISTERED.load(Ordering::Relaxed) == 0 { None } else { self.take_kept(path) }
    }

    #[cold]
    fn take_kept(self: &Arc<Self>, path: impl Arg + Copy) -> Option<OpenFile> {
        let identity = syscalls::identity_at(path).ok()??;
        let register = self.of_file(identity);
        let mut inodes = register.write();
        let posix = inodes.get_mut(&identity)?;
        let may_write = syscalls::may_write(path);
        let is_fit = |(file, origin): &(File, Origin)| {
            origin.is_some() && (!may_write || syscalls::is_writable(file))
        };
        let index = posix.kept.iter().position(is_fit)?;
        let ((file, origin), inode) = (posix.kept.swap_remove(index), posix.inode);
        drop(inodes);
        Some(OpenFile { file: Some(file), origin, inode, register, waiters: None })
    }
}

/// How often this process had forked when a file was opened; `None` once a user had
/// it. Others may have copies if that is not so any more, and then its close is no
/// event (6).
type Origin = Option<u64>;

/// An open file that is not of the register, for the locks that belong to it.
pub(super) struct OpenFile {
    file: Option<File>,
    origin: Origin,
    pub(super) inode: Inode,
    register: Arc<Register>,
    /// The directory, where its last release asked who waits. The next asks there, for
    /// less than at the station's desk, and it stays open no longer than the file.
    pub(super) waiters: Option<Arc<Waiters>>,
}

impl OpenFile {
    #[inline(always)]
    pub(super) fn open(
        register: &Arc<Register>,
        open: impl FnOnce() -> Result<File, Errno>,
    ) -> Result<Self, Errno> {
        let origin = Some(forks());
        let file = open()?;
        // Should this fail, there is no identity to keep it by.
        let inode = syscalls::inspect(&file)?;
        let register = register.of_file(inode.identity);
        Ok(Self { file: Some(file), origin, inode, register, waiters: None })
    }

    /// A user had it.
    pub(super) fn was_used(&mut self) {
        self.origin = None;
    }

    /// Whether its close may be no event (6).
    pub(super) fn closes_unheard(&self) -> bool {
        self.origin != Some(forks())
            || REGISTERED.load(Ordering::Relaxed) > 0 && self.is_registered()
    }

    #[cold]
    fn is_registered(&self) -> bool {
        self.register.write().contains_key(&self.inode.identity)
    }

    /// An event for those who wait for a lock of the file at `path`, which is this (6).
    pub(super) fn signal(&self, path: &Path) {
        let inodes = self.register.inodes.read().unwrap_or_else(PoisonError::into_inner);
        match inodes.contains_key(&self.inode.identity) {
            true => close_elsewhere::signal(path),
            false => syscalls::signal(self), // (3)
        }
    }

    /// Close it in a forked child, which has no POSIX locks to lose and must
    /// not wait for what another thread of its parent did.
    pub(super) fn close_in_child(mut self) {
        self.file = None;
    }
}

impl Deref for OpenFile {
    type Target = File;

    #[inline]
    fn deref(&self) -> &File {
        self.file.as_ref().expect("BUG: a closed file was used")
    }
}

impl Drop for OpenFile {
    #[inline]
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.register.close(file, self.origin, self.inode.identity);
        }
    }
}

/// An inode that this process contends for, or holds, by POSIX locks.
struct PosixInode {
    file: Arc<File>,
    origin: Origin,
    inode: Inode,
    users: usize,
    holds: Vec<PosixHold>,
    last_hold: u64,
    /// Other open files of the same inode (2).
    kept: Vec<(File, Origin)>,
    /// Something was unlocked.
    changes: watch::Sender<()>,
}

impl Drop for PosixInode {
    fn drop(&mut self) {
        REGISTERED.fetch_sub(1, Ordering::Relaxed);
    }
}

struct PosixHold {
    number: u64,
    range: Range,
    sharing: Sharing,
}

/// Somebody who uses a registered inode.
pub(super) struct PosixUse {
    register: Arc<Register>,
    pub(super) inode: Inode,
    file: Option<Arc<File>>,
    changes: watch::Receiver<()>,
    hold: Option<u64>,
    /// It ended a hold, and others may wait for an event (6).
    owes_event: bool,
    is_local: bool,
}

/// What came of opening a file with one register.
enum Opened {
    Here(PosixUse),
    /// It is of the file system of this one (7).
    Elsewhere(Arc<Register>),
}

impl PosixUse {
    /// `is_local` says whether the kernel tells others of what is done there.
    pub(super) fn open(
        register: &Arc<Register>,
        path: &Path,
        mode: u32,
        is_local: bool,
    ) -> Result<Self, Errno> {
        // With another it would be opened, and kept (2), once more each time.
        let mut register = match syscalls::identity_at(path)? {
            Some(identity) => register.of_file(identity),
            None => Arc::clone(register),
        };
        loop {
            match Self::open_in(&register, path, mode, is_local)? {
                Opened::Here(file) => return Ok(file),
                Opened::Elsewhere(other) => register = other,
            }
        }
    }

    fn open_in(
        register: &Arc<Register>,
        path: &Path,
        mode: u32,
        is_local: bool,
    ) -> Result<Opened, Errno> {
        let mut inodes = register.write();
        let known = syscalls::identity_at(path)?.filter(|identity| inodes.contains_key(identity));
        let identity = match known {
            Some(identity) => identity,
            None => {
                let origin = Some(forks());
                let file = syscalls::open_or_create(path, mode)?;
                let inode = syscalls::inspect(&file)?;
                if inode.identity.0 != register.device {
                    drop(inodes);
                    let other = register.of_file(inode.identity);
                    other.close(file, origin, inode.identity); // (2)
                    return Ok(Opened::Elsewhere(other));
                }
                match inodes.entry(inode.identity) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(PosixInode::new(file, origin, inode));
                    }
                    // It came to the path since the look.
                    Entry::Occupied(mut known) => known.get_mut().kept.push((file, origin)),
                }
                inode.identity
            }
        };
        let posix = inodes.get_mut(&identity).expect("BUG: a registered inode is gone");
        posix.users += 1;
        let (file, changes) = (Some(Arc::clone(&posix.file)), posix.changes.subscribe());
        Ok(Opened::Here(Self {
            register: Arc::clone(register),
            inode: posix.inode,
            file,
            changes,
            hold: None,
            owes_event: false,
            is_local,
        }))
    }

    /// As [`syscalls::try_lock`], within the process too (4).
    pub(super) fn try_lock(&mut self, claim: LockSpec) -> Result<bool, Errno> {
        self.changes.borrow_and_update();
        let mut inodes = self.register.write();
        let posix = inodes.get_mut(&self.inode.identity).expect("BUG: a used inode is gone");
        let excludes = |hold: &PosixHold| {
            hold.range.overlaps(claim.range)
                && (hold.sharing == Sharing::Exclusive || claim.sharing == Sharing::Exclusive)
        };
        if posix.holds.iter().any(excludes) || !syscalls::try_lock(&posix.file, claim)? {
            return Ok(false);
        }
        posix.last_hold += 1;
        let number = posix.last_hold;
        posix.holds.push(PosixHold { number, range: claim.range, sharing: claim.sharing });
        self.hold = Some(number);
        Ok(true)
    }

    /// From exclusive to shared; the kernel does that in one step, fcntl(2).
    pub(super) fn downgrade(&self, claim: LockSpec) -> Result<(), Errno> {
        let mut inodes = self.register.write();
        let posix = inodes.get_mut(&self.inode.identity).expect("BUG: a used inode is gone");
        if !syscalls::try_lock(&posix.file, claim)? {
            return Err(Errno::WOULDBLOCK);
        }
        let mine = posix.holds.iter_mut().find(|hold| Some(hold.number) == self.hold);
        mine.expect("BUG: a hold is gone").sharing = Sharing::Shared;
        posix.changes.send_replace(());
        Ok(())
    }

    /// A user had the file.
    pub(super) fn was_used(&self) {
        if let Some(posix) = self.register.write().get_mut(&self.inode.identity) {
            posix.origin = None;
        }
    }

    /// Nothing is used any more; whether that was unheard by others (6).
    pub(super) fn end(mut self) -> bool {
        self.leave()
    }

    fn leave(&mut self) -> bool {
        let _ = self.unlock();
        let mut inodes = self.register.write();
        if self.file.take().is_none() {
            return false; // (3)
        }
        let Entry::Occupied(mut posix) = inodes.entry(self.inode.identity) else {
            return false;
        };
        posix.get_mut().users -= 1;
        let (is_last, is_held) = (posix.get().users == 0, !posix.get().holds.is_empty());
        let is_copied = posix.get().origin != Some(forks());
        if self.owes_event && !is_held && (!is_last || is_copied) {
            syscalls::signal(&posix.get().file); // (6)
        }
        if is_last {
            posix.remove();
        }
        self.owes_event && is_held
    }

    /// From shared to exclusive, for the only hold there is in this process and
    /// elsewhere; whether it is that. In one step, or another of this process
    /// could come in between.
    pub(super) fn become_sole(&self, claim: LockSpec) -> bool {
        let mut inodes = self.register.write();
        let Some(posix) = inodes.get_mut(&self.inode.identity) else {
            return false;
        };
        let [mine] = posix.holds.as_mut_slice() else {
            return false;
        };
        let exclusive = claim.with(Sharing::Exclusive);
        if Some(mine.number) != self.hold || syscalls::try_lock(&posix.file, exclusive) != Ok(true)
        {
            return false;
        }
        mine.sharing = Sharing::Exclusive;
        true
    }

    pub(super) fn unlock(&mut self) -> Result<(), Errno> {
        let Some(number) = self.hold.take() else {
            return Ok(());
        };
        self.owes_event = self.is_local;
        let mut inodes = self.register.write();
        let posix = inodes.get_mut(&self.inode.identity).expect("BUG: a used inode is gone");
        posix.unlock(number)
    }

    /// Who in this process has any of the claim.
    pub(super) fn is_held_here(
        register: &Arc<Register>,
        identity: Identity,
        claim: LockSpec,
    ) -> bool {
        register.of_file(identity).write().get(&identity).is_some_and(|inode| {
            inode.holds.iter().any(|hold| {
                hold.range.overlaps(claim.range)
                    && (hold.sharing == Sharing::Exclusive || claim.sharing == Sharing::Exclusive)
            })
        })
    }

    /// Until something of the inode was unlocked in this process since the
    /// last try.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Deref for PosixUse {
    type Target = File;

    fn deref(&self) -> &File {
        self.file.as_ref().expect("BUG: a closed file was used")
    }
}

impl Drop for PosixUse {
    fn drop(&mut self) {
        self.leave();
    }
}

impl PosixInode {
    fn new(file: File, origin: Origin, inode: Inode) -> Self {
        REGISTERED.fetch_add(1, Ordering::Relaxed);
        let (file, changes) = (Arc::new(file), watch::Sender::new(()));
        let (holds, kept) = (Vec::new(), Vec::new());
        Self { file, origin, inode, users: 0, holds, last_hold: 0, kept, changes }
    }

    fn unlock(&mut self, number: u64) -> Result<(), Errno> {
        let index = self.holds.iter().position(|hold| hold.number == number);
        let hold = self.holds.swap_remove(index.expect("BUG: a hold is gone"));
        let others = self.holds.iter().map(|other| other.range);
        let pieces = without(hold.range, others); // (5)
        let mut unlock = |piece| syscalls::unlock(&self.file, Primitive::Posix, piece);
        let outcome = pieces.into_iter().map(&mut unlock).fold(Ok(()), Result::and);
        self.changes.send_replace(());
        outcome
    }
}

/// The parts of `range` that none of the others covers.
fn without(range: Range, others: impl Iterator<Item = Range>) -> Vec<Range> {
    let mut pieces = vec![range];
    for other in others {
        let cut = |piece: Range| {
            let before = Range { start: piece.start, end: Some(other.start) };
            let after = other.end.map(|start| Range { start, end: piece.end });
            let before = Some(before).filter(|before| before.start < other.start);
            let after = after.filter(|after| after.end.is_none_or(|end| after.start < end));
            match piece.overlaps(other) {
                true => [before, after],
                false => [Some(piece), None],
            }
        };
        pieces = pieces.into_iter().flat_map(cut).flatten().collect();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: impl Into<Option<u64>>) -> Range {
        Range { start, end: end.into() }
    }

    /// As where one file is mounted in directories of two file systems.
    #[test]
    fn a_file_that_is_reached_by_two_file_systems_is_one() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("lock");
        let claim = LockSpec {
            primitive: Primitive::Posix,
            range: Range::default(),
            sharing: Sharing::Exclusive,
        };
        let process = crate::sys::process_key::this_process();
        // The file is made by way of a register that is not its own.
        let registers = [1, 2].map(|device| Register::of(process, device));
        let open = |register| PosixUse::open(register, &path, 0o644, true).unwrap();
        let mut holder = open(&registers[0]);
        assert!(holder.try_lock(claim).unwrap());
        let mut other = open(&registers[1]);
        assert!(!other.try_lock(claim).unwrap(), "tasks exclude each other");
        let kept = || {
            let inodes = Register::of(process, holder.inode.identity.0);
            inodes.write().get(&holder.inode.identity).expect("it is held").kept.len()
        };
        let before = kept();
        drop(open(&registers[1]));
        assert_eq!(kept(), before, "it was opened once more");
        assert!(PosixUse::is_held_here(&registers[1], holder.inode.identity, claim));
        let open = || syscalls::open_or_create(&path, 0o644);
        drop(OpenFile::open(&registers[1], open).unwrap());
        let is_free_for_others = || {
            let lock = "import fcntl, sys; \
                fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)";
            let mut python = std::process::Command::new("python3");
            python.args(["-c", lock]).arg(&path).stderr(std::process::Stdio::null());
            python.status().expect("python").success()
        };
        assert!(!is_free_for_others(), "a close of another open file gave the lock up");
        holder.unlock().unwrap();
        assert!(is_free_for_others());
        assert!(other.try_lock(claim).unwrap());
    }

    #[test]
    fn what_others_share_stays_locked() {
        let left = |range, others: &[Range]| without(range, others.iter().copied());
        assert_eq!(left(range(0, 10), &[]), [range(0, 10)]);
        assert_eq!(left(range(0, 10), &[range(5, 15)]), [range(0, 5)]);
        assert_eq!(left(range(5, 15), &[range(0, 10)]), [range(10, 15)]);
        assert_eq!(left(range(0, None), &[range(3, 4)]), [range(0, 3), range(4, None)]);
        assert_eq!(left(range(2, 8), &[range(0, None)]), []);
        assert_eq!(left(range(0, 9), &[range(1, 2), range(2, 5)]), [range(0, 1), range(5, 9)]);
        assert_eq!(left(range(0, 5), &[range(5, 9)]), [range(0, 5)]);
    }
}
