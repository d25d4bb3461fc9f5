//! How a complete file gets the name that makes it the lock, or a claim: in one
//! step, and only if nothing has that name.
//!
//! 1. `link`. The file must then be seen under its name as what it is.
//! 2. Where there are no hard links, or a link counts as another file: `renameat2`
//!    with `RENAME_NOREPLACE`. The file is locked before, so invariant 1 holds.
//! 3. Where neither can be had: [`Error::NoHardLinks`], and nothing stays.
//!
//! A file system that numbers its files by name (FUSE without `use_ino`) gives each
//! link an inode of its own. The holder would then not know its own file again, and
//! a `flock` on one inode would not be seen on the other. So the name is looked at
//! before a user holds it. Until then no contender takes the file: such a file system is
//! none whose `flock` is trusted, and the process that is recorded runs.

use std::path::Path;

use super::disk::Disk;
use super::mutants::{self, Mutant};
use super::{Attempt, Environment, Stop};
use crate::file::record::Record;
use crate::lock::error::Error;
use crate::sys::files::Errno;
use crate::sys::inode::Inode;

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    Named,
    /// Something has it already.
    Taken,
}

/// Whether this is how a file system, or its guard, says that it does not link.
/// `EPERM` is link(2)'s word for it, `EMLINK` that of one with a limit of one,
/// `EXDEV` that of one that does not know both names to be in the same place.
pub(super) fn says_no_links(error: Errno) -> bool {
    matches!(
        error,
        Errno::PERM
            | Errno::ACCESS
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::INVAL
            | Errno::MLINK
            | Errno::XDEV
    )
}

impl<D: Disk, S: Environment> Attempt<'_, D, S> {
    /// Give a file that has the name `from` the name `to`. It may have lost the
    /// first when this returns.
    pub(super) fn name(
        &self,
        file: &D::File,
        from: &Path,
        to: &Path,
        inode: Inode,
        record: &Record,
    ) -> Result<Naming, Stop> {
        match self.disk.link(from, to) {
            Ok(()) if self.is_another_file(to, inode, record) => {
                let _ = self.disk.unlink(to);
            }
            Ok(()) => return Ok(Naming::Named),
            Err(error) if self.is_done(error, to, inode) => return Ok(Naming::Named),
            Err(Errno::EXIST) => return Ok(Naming::Taken),
            // The candidate was swept away.
            Err(Errno::NOENT) => return Err(Stop::FromTheTop),
            Err(error) if says_no_links(error) => {}
            Err(error) => return Err(self.failed("linking", error)),
        }
        self.name_by_rename(file, from, to, inode, record)
    }

    fn name_by_rename(
        &self,
        file: &D::File,
        from: &Path,
        to: &Path,
        inode: Inode,
        record: &Record,
    ) -> Result<Naming, Stop> {
        let renamed = match mutants::is_on(Mutant::RenameOver) {
            true => self.disk.rename(from, to),
            false => self.disk.rename_to_free(file, from, to),
        };
        match renamed {
            Ok(()) if self.is_another_file(to, inode, record) => {
                // It has no other name to get in between.
                let _ = self.disk.remove(file, to, || to.to_owned());
                Err(self.cannot_name(Errno::OPNOTSUPP))
            }
            Ok(()) => Ok(Naming::Named),
            Err(Errno::NOENT) if self.is_named(to, inode) => Ok(Naming::Named),
            Err(error) if self.is_done(error, to, inode) => Ok(Naming::Named),
            Err(Errno::EXIST) => Ok(Naming::Taken),
            Err(Errno::NOENT) => Err(Stop::FromTheTop),
            Err(error) if says_no_links(error) => Err(self.cannot_name(error)),
            Err(error) => Err(self.failed("renaming", error)),
        }
    }

    /// Whether the name that our file was given counts as another file. What is
    /// there may also be that of a program which does not keep to the protocol.
    /// On a local file system a link is the same file, and no look is needed.
    pub(super) fn is_another_file(&self, name: &Path, inode: Inode, record: &Record) -> bool {
        if record.is_local {
            return false;
        }
        match self.disk.look(name) {
            Ok(found) if found.identity != inode.identity => {
                self.token_in(name) == Ok(Some(record.hold_id))
            }
            _ => false,
        }
    }

    fn cannot_name(&self, error: Errno) -> Stop {
        let path = self.path.path().to_owned();
        Stop::Failed(Error::NoHardLinks { lock: path.into(), source: error.into() })
    }
}
