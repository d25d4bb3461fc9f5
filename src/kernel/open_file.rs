//! The open file of one contender, and then of one holder. The kernel's locks belong
//! to it.

use std::fs::File;
use std::ops::Deref;
use std::sync::Arc;

use super::syscalls::{self, KernelSpec, SystemPath};
use crate::sys::files::Errno;
use crate::sys::fork_count::forks;
use crate::sys::inode::{FileKind, Inode};
use crate::sys::tickets::Waiters;

/// An open file, locked or not.
pub(super) struct OpenFile {
    file: File,
    /// How often this process had forked when the file was opened; `None` once a user
    /// had it. Else there may be copies, and then its close is no event for waiters.
    origin: Option<u64>,
    pub(super) kind: FileKind,
    /// Device and inode.
    pub(super) identity: (u64, u64),
    /// The directory, where its last release looked for waiters. The next looks there, for
    /// less than at the queue's, and it stays open no longer than the file.
    pub(super) waiters: Option<Arc<Waiters>>,
}

impl OpenFile {
    #[inline(always)]
    pub(super) fn open(open: impl FnOnce() -> Result<File, Errno>) -> Result<Self, Errno> {
        let origin = Some(forks());
        let file = open()?;
        let Inode { kind, identity, .. } = syscalls::inspect(&file)?;
        Ok(Self { file, origin, kind, identity, waiters: None })
    }

    /// As [`syscalls::try_lock`].
    #[inline(always)]
    pub(super) fn try_lock(&self, spec: KernelSpec) -> Result<bool, Errno> {
        syscalls::try_lock(self, spec)
    }

    #[inline(always)]
    pub(super) fn unlock(&self, spec: KernelSpec) -> Result<(), Errno> {
        syscalls::unlock(self, spec)
    }

    /// As [`syscalls::upgrade`].
    pub(super) fn upgrade(&self, spec: KernelSpec) -> Result<bool, Errno> {
        syscalls::upgrade(self, spec)
    }

    /// From exclusive to shared.
    pub(super) fn downgrade(&self, spec: KernelSpec) -> Result<(), Errno> {
        match syscalls::downgrade(self, spec) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::AGAIN),
            Err(error) => Err(error),
        }
    }

    /// Whether the path names this file, (2) of [`attempt`](super::attempt).
    #[inline]
    pub(super) fn is_at(&self, path: &SystemPath) -> Result<bool, Errno> {
        Ok(syscalls::identity_at(path)? == Some(self.identity))
    }

    /// A user had it.
    pub(super) fn was_used(&mut self) {
        self.origin = None;
    }

    /// Whether its close may be no event, as a copy of it may be open elsewhere.
    pub(super) fn closes_unheard(&self) -> bool {
        self.origin != Some(forks())
    }
}

impl Deref for OpenFile {
    type Target = File;

    #[inline]
    fn deref(&self) -> &File {
        &self.file
    }
}
