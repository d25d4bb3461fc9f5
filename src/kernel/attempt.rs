//! One look at a kernel lock, and one try for it.
//!
//! 1. The lock is the kernel's, on the inode that the path names. So an open
//!    file is locked first, and then `lstat(path)` must be the inode that
//!    `fstat` gave; else it is closed, and the path opened again.
//!    Or it was had within a share from the last task of this process, locked,
//!    in which it was seen so: then only the number of its names is looked at,
//!    which tells that it was removed or replaced, but for a millisecond not that
//!    it was moved. Nobody has used that file: it has no position, and no copies.
//! 2. Inode numbers are compared only while the file is open: a freed one is
//!    given to the next file at once.
//! 3. Who removes the file at release does it while it holds the lock, and
//!    exclusively: whoever had it open is refused, or finds by (1) that the
//!    path names something else.
//! 4. The file stays open between two looks of one contender, and nobody who
//!    waits is woken by its close.
//! 5. A hold is made by the call that locked, so that a result nobody takes
//!    any more gives the lock back, at the place where calls are made.
//! 6. A hold acts only in the process that made it: a forked child shares the
//!    open file, and its `LOCK_UN` would free its parent's lock.

use std::ffi::CStr;
use std::fs::File;
use std::ops::Deref;
use std::sync::Arc;

use rustix::fs::FileType;

use super::open_files::{OpenFile, PosixUse};
use super::options::Primitive;
use super::shared::{LockState, Terms};
use super::syscalls::{self, LockSpec, Sharing};
use crate::lock::error::Error;
use crate::sys::files::{Errno, Inode};
use crate::sys::tickets::Waiters;

/// How often the path may name another file after the lock was had, before
/// this counts as one look. Each time somebody else got further.
const REPLACED_MAX: u32 = 100;

/// The file of a contender, and then of a holder.
pub(super) enum LockHandle {
    Open(OpenFile),
    /// On the heap: it is the larger one by far, and seldom.
    Posix(Box<PosixUse>),
}

impl Deref for LockHandle {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            LockHandle::Open(file) => file,
            LockHandle::Posix(file) => file,
        }
    }
}

impl LockHandle {
    #[inline]
    pub(super) fn inode(&self) -> Inode {
        match self {
            LockHandle::Open(file) => file.inode,
            LockHandle::Posix(file) => file.inode,
        }
    }

    /// The directory, where the last release asked there who waits.
    pub(super) fn waiters(&self) -> Option<&Waiters> {
        match self {
            LockHandle::Open(file) => file.waiters.as_deref(),
            LockHandle::Posix(_) => None,
        }
    }

    #[inline(always)]
    pub(super) fn open(terms: &Terms, site: &LockState) -> Result<Self, Error> {
        let (path, mode) = (terms.path.path(), terms.options.mode);
        let opened = match terms.options.primitive {
            Primitive::Posix => {
                let is_local = site.executor.is_local();
                PosixUse::open(&site.register, path, mode, is_local)
                    .map(|file| LockHandle::Posix(Box::new(file)))
            }
            _ => match site.register.reuse(terms.c_path.as_c_str()) {
                Some(file) => Ok(LockHandle::Open(file)),
                None => {
                    let open = || syscalls::open_or_create(terms.c_path.as_c_str(), mode);
                    OpenFile::open(&site.register, open).map(LockHandle::Open)
                }
            },
        };
        let carrier = opened.map_err(|error| cannot_open(terms, error))?;
        check_kind(terms, carrier.inode().kind)?;
        Ok(carrier)
    }

    #[inline(always)]
    pub(super) fn try_lock(&mut self, claim: LockSpec) -> Result<bool, Errno> {
        match self {
            LockHandle::Open(file) => syscalls::try_lock(file, claim),
            LockHandle::Posix(file) => file.try_lock(claim),
        }
    }

    #[inline(always)]
    pub(super) fn unlock(&mut self, claim: LockSpec) -> Result<(), Errno> {
        match self {
            LockHandle::Open(file) => syscalls::unlock(file, claim.primitive, claim.range),
            LockHandle::Posix(file) => file.unlock(),
        }
    }

    /// From exclusive to shared.
    pub(super) fn downgrade(&self, claim: LockSpec) -> Result<(), Errno> {
        match self {
            LockHandle::Open(file) => match syscalls::try_lock(file, claim) {
                Ok(true) => Ok(()),
                Ok(false) => Err(Errno::WOULDBLOCK),
                Err(error) => Err(error),
            },
            LockHandle::Posix(file) => file.downgrade(claim),
        }
    }

    /// Whether the path names this file (2).
    #[inline]
    pub(super) fn is_at(&self, path: &CStr) -> Result<bool, Errno> {
        Ok(syscalls::identity_at(path)? == Some(self.inode().identity))
    }
}

/// How one try ended.
pub(super) enum Tried {
    Locked(LockHandle),
    /// Somebody else has it. The file is open for the next look (4).
    Busy(LockHandle),
}

/// One try.
pub(super) struct Attempt<'a> {
    pub(super) terms: &'a Terms,
    pub(super) site: &'a Arc<LockState>,
    pub(super) claim: LockSpec,
    /// Whether a shared lock is wanted only if nobody has the lock at all.
    pub(super) only_if_free: bool,
}

impl Attempt<'_> {
    /// `carrier` is the file of the last look, or one that was left open.
    #[inline(always)]
    pub(super) fn run(&self, mut carrier: Option<LockHandle>) -> Result<Tried, Error> {
        let path = self.terms.path.path();
        let fail = |doing| move |error: Errno| Error::io(doing, path, error);
        for _ in 0..REPLACED_MAX {
            let mut file = match carrier.take() {
                Some(file) => file,
                None => LockHandle::open(self.terms, self.site)?,
            };
            let is_locked = self.lock(&mut file).map_err(fail("locking"))?;
            // (1), and a file that was replaced while its holder goes on is nobody's obstacle.
            let is_at = file.is_at(&self.terms.c_path);
            if is_at == Ok(true) {
                self.refuse_mounted(&mut file, is_locked)?;
                return Ok(if is_locked { Tried::Locked(file) } else { Tried::Busy(file) });
            }
            if is_locked {
                // Its close may be put off.
                let _ = file.unlock(self.claim);
            }
            is_at.map_err(fail("looking at"))?;
        }
        LockHandle::open(self.terms, self.site).map(Tried::Busy)
    }

    /// A file that is itself mounted in a container cannot be removed there. Removed
    /// elsewhere, it goes on in the container, beside its successor.
    #[inline(always)]
    fn refuse_mounted(&self, file: &mut LockHandle, is_locked: bool) -> Result<(), Error> {
        if !self.terms.options.delete_on_release || !syscalls::is_mounted(file) {
            return Ok(());
        }
        if is_locked {
            // Its close may be put off.
            let _ = file.unlock(self.claim);
        }
        let why = "it is itself a mount point, so that its removal is seen on one side only: \
                   mount its directory instead, or do not delete it on release";
        let path = self.terms.path.path().to_owned();
        Err(Error::BadPath { lock: path.into(), why: why.to_owned() })
    }

    #[inline(always)]
    fn lock(&self, file: &mut LockHandle) -> Result<bool, Errno> {
        if !self.only_if_free {
            return file.try_lock(self.claim);
        }
        match file.try_lock(self.claim.with(Sharing::Exclusive)) {
            Ok(true) => {
                let shared = file.downgrade(self.claim);
                if shared.is_err() {
                    let _ = file.unlock(self.claim);
                }
                shared.map(|()| true)
            }
            // Not open for writing.
            Err(Errno::BADF) => file.try_lock(self.claim),
            other => other,
        }
    }
}

#[inline]
pub(super) fn check_kind(terms: &Terms, kind: FileType) -> Result<(), Error> {
    let found = match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Directory if terms.options.primitive == Primitive::Flock => {
            if !terms.options.delete_on_release {
                return Ok(());
            }
            "a directory, which is not deleted"
        }
        FileType::Directory => "a directory, of which only flock can have an exclusive lock",
        FileType::Fifo => "a fifo",
        _ => "not a regular file",
    };
    Err(Error::NotALockFile { lock: terms.path.path().into(), found: found.to_owned() })
}

pub(super) fn cannot_open(terms: &Terms, error: Errno) -> Error {
    let path = terms.path.path().to_owned();
    match error {
        Errno::NOENT | Errno::NOTDIR => Error::of_directory(&path, error),
        Errno::ACCESS | Errno::PERM => match syscalls::look_at(&path) {
            Ok(Some(Inode { owner, mode, .. })) => {
                Error::MayNotOpen { lock: path.into(), owner, mode, source: error.into() }
            }
            // It may not be made.
            _ => Error::io("opening", &path, error),
        },
        Errno::LOOP => {
            Error::NotALockFile { lock: path.into(), found: "a symbolic link".to_owned() }
        }
        Errno::NXIO => Error::NotALockFile { lock: path.into(), found: "a socket".to_owned() },
        error => Error::io("opening", &path, error),
    }
}
