//! One look at a kernel lock, and one try for it.
//!
//! 1. The lock is the kernel's, on the inode that the path names. So an open
//!    file is locked first, and then `lstat(path)` must be the inode that
//!    `fstat` gave; else it is closed, and the path opened again.
//!    Or the last task of this process handed it over, locked, within the share in
//!    which it was seen so. Then only the number of its names is looked at: that
//!    shows a removal or replacement, but for a millisecond no move. That file
//!    was not used: it has no position, and no copies.
//! 2. Inode numbers are compared only while the file is open: a freed one is
//!    given to the next file at once.
//! 3. A holder that removes the file at release does it while it holds the lock,
//!    exclusively. A contender that had it open is refused, or finds by (1) that the
//!    path names something else.
//! 4. The file stays open between two looks of one contender, so that no waiter
//!    is woken by its close.
//! 5. A hold is made by the call that locked, so that a result which is not taken
//!    any more releases the lock, at the place where calls are made.
//! 6. A hold acts only in the process that made it: a forked child shares the
//!    open file, and its `LOCK_UN` would free its parent's lock.

use super::open_file::OpenFile;
use super::options::Primitive;
use super::shared::LockInner;
use super::syscalls::{self, KernelSpec, Sharing};
use crate::lock::error::Error;
use crate::sys::files::{DIRECTORIES_HAVE_LOCKS, Errno};
use crate::sys::inode::{FileKind, Inode};

/// How often the path may name another file after the file was locked, before
/// this counts as one look. Each time another holder got further. If larger, a try
/// beside such holders keeps its thread longer.
const REPLACED_MAX: u32 = 100;

/// How one try ended.
pub(super) enum Tried {
    Locked(OpenFile),
    /// Another holder has it. The file is open for the next look (4).
    Busy(OpenFile),
}

/// What the next try may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayTry {
    /// Others go first.
    None,
    /// Try for a shared lock only if the file is not locked at all.
    IfFree,
    Full,
}

impl MayTry {
    /// For a try after which there is no other.
    pub(super) fn at_last(self, sharing: Sharing) -> Self {
        match self {
            MayTry::None => Self::barging(sharing),
            may_try => may_try,
        }
    }

    /// Past its predecessors. A reader lets earlier writers pass as long as the lock is held
    /// at all. So readers that come all the time cannot keep a writer out, and a writer that
    /// is stopped while it waits cannot keep readers out.
    pub(super) fn barging(sharing: Sharing) -> Self {
        match sharing {
            Sharing::Shared => MayTry::IfFree,
            Sharing::Exclusive => MayTry::Full,
        }
    }
}

/// One try.
pub(super) struct Attempt<'a> {
    pub(super) lock: &'a LockInner,
    pub(super) spec: KernelSpec,
    /// Whether a shared lock is wanted only if the file is not locked at all.
    pub(super) only_if_free: bool,
}

impl Attempt<'_> {
    /// `last` is the file of the last look, or one that was left open.
    #[inline(always)]
    pub(super) fn run(&self, mut last: Option<OpenFile>) -> Result<Tried, Error> {
        let path = self.lock.path.path();
        let fail = |doing| move |error: Errno| Error::io(doing, path, error);
        for _ in 0..REPLACED_MAX {
            let file = match last.take() {
                Some(file) => file,
                None => open(self.lock)?,
            };
            let is_locked = self.lock(&file).map_err(fail("locking"))?;
            // (1), and a replaced file whose holder goes on is in no contender's way.
            let is_at = file.is_at(&self.lock.system_path);
            if is_at == Ok(true) {
                self.refuse_mounted(&file, is_locked)?;
                return Ok(if is_locked { Tried::Locked(file) } else { Tried::Busy(file) });
            }
            if is_locked {
                // A forked child may have a copy.
                let _ = file.unlock(self.spec);
            }
            is_at.map_err(fail("looking at"))?;
        }
        open(self.lock).map(Tried::Busy)
    }

    /// A file that is itself mounted in a container cannot be removed there. Removed
    /// elsewhere, it goes on in the container, beside its successor.
    #[inline(always)]
    fn refuse_mounted(&self, file: &OpenFile, is_locked: bool) -> Result<(), Error> {
        if !self.lock.options.delete_on_release || !syscalls::is_mounted(file, &self.lock.path) {
            return Ok(());
        }
        if is_locked {
            // A forked child may have a copy.
            let _ = file.unlock(self.spec);
        }
        let why = "it is itself a mount point, so that its removal is seen on one side only: \
                   mount its directory instead, or do not delete it on release";
        let path = self.lock.path.path().to_owned();
        Err(Error::BadPath { lock: path.into(), why: why.to_owned() })
    }

    #[inline(always)]
    fn lock(&self, file: &OpenFile) -> Result<bool, Errno> {
        if !self.only_if_free {
            return file.try_lock(self.spec);
        }
        match file.try_lock(self.spec.with(Sharing::Exclusive)) {
            Ok(true) => {
                let shared = file.downgrade(self.spec);
                if shared.is_err() {
                    let _ = file.unlock(self.spec);
                }
                shared.map(|()| true)
            }
            // Not open for writing.
            Err(Errno::BADF) => file.try_lock(self.spec),
            other => other,
        }
    }
}

#[inline(always)]
fn open(lock: &LockInner) -> Result<OpenFile, Error> {
    let (path, mode) = (&lock.system_path, lock.options.mode);
    let opened = OpenFile::open(|| syscalls::open_or_create(path, mode));
    let file = opened.map_err(|error| cannot_open(lock, error))?;
    check_kind(lock, file.kind)?;
    Ok(file)
}

#[inline]
pub(super) fn check_kind(lock: &LockInner, kind: FileKind) -> Result<(), Error> {
    let found = match kind {
        FileKind::Regular => return Ok(()),
        FileKind::Directory if lock.options.primitive == Primitive::Flock => {
            if !lock.options.delete_on_release {
                return Ok(());
            }
            "a directory, which is not deleted"
        }
        FileKind::Directory => "a directory, of which only flock can have an exclusive lock",
        FileKind::Fifo => "a fifo",
        _ => "not a regular file",
    };
    Err(Error::NotALockFile { lock: lock.path.path().into(), found: found.to_owned() })
}

pub(super) fn cannot_open(lock: &LockInner, error: Errno) -> Error {
    let path = lock.path.path().to_owned();
    match error {
        Errno::NOENT | Errno::NOTDIR => Error::of_directory(&path, error),
        Errno::ACCESS | Errno::PERM => match syscalls::look_at(&lock.system_path) {
            Ok(Some(Inode { kind: FileKind::Directory, .. })) if !DIRECTORIES_HAVE_LOCKS => {
                let found = "a directory, of which this system has no locks".to_owned();
                Error::NotALockFile { lock: path.into(), found }
            }
            Ok(Some(Inode { owner, mode, .. })) => {
                Error::MayNotOpen { lock: path.into(), owner, mode, source: error.into() }
            }
            // It may not be made.
            _ => Error::io("opening", &path, error),
        },
        Errno::LOOP => {
            Error::NotALockFile { lock: path.into(), found: "a symbolic link".to_owned() }
        }
        // The second is the word of macOS and the BSDs.
        Errno::NXIO | Errno::OPNOTSUPP => {
            Error::NotALockFile { lock: path.into(), found: "a socket".to_owned() }
        }
        error => Error::io("opening", &path, error),
    }
}
