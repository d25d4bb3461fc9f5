//! The system calls of kernel locks, each asked without waiting.
//!
//! What leads to them is inlined. A call of the kernel's leaves nothing of the
//! processor's memory of where functions return to, so that each function which
//! then returns costs a wrong guess: an acquisition took 0.06 times its system
//! calls longer without (`cargo bench --bench kernel -- uncontended`).

use std::fs::File;

use super::options::{Primitive, Range};
use crate::sys::byte_ranges::{self, Bytes, InTheWay, Kind};
use crate::sys::files::{self, Errno};
pub(super) use crate::sys::files::{
    SystemPath, inspect_at_once as inspect, links, look_at, open_existing, open_or_create, signal,
    unlink,
};
use crate::sys::path::LockPath;
pub(super) use crate::sys::sharing::Sharing;

/// What is asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelSpec {
    pub(super) primitive: Primitive,
    pub(super) range: Range,
    pub(super) sharing: Sharing,
}

impl KernelSpec {
    pub(super) fn with(self, sharing: Sharing) -> Self {
        Self { sharing, ..self }
    }
}

/// Lock, or change the lock this open file has; `false` when another holder is
/// in the way. A `flock` that is refused leaves the open file without any on Linux, and with
/// what it had elsewhere.
#[inline(always)]
pub(super) fn try_lock(file: &File, spec: KernelSpec) -> Result<bool, Errno> {
    match spec.primitive {
        Primitive::Flock => files::try_flock(file, spec.sharing),
        Primitive::Ofd => {
            match byte_ranges::try_lock(file, kind(spec.sharing), spec.range.bytes()) {
                Ok(()) => Ok(true),
                // fcntl(2): POSIX allows either.
                Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
                Err(error) => Err(error),
            }
        }
    }
}

/// From shared to exclusive; `false` when another holder is in the way.
pub(super) fn upgrade(file: &File, spec: KernelSpec) -> Result<bool, Errno> {
    match spec.primitive {
        Primitive::Flock => files::upgrade(file),
        Primitive::Ofd => try_lock(file, spec.with(Sharing::Exclusive)),
    }
}

/// From exclusive to shared; `false` if the lock is lost.
pub(super) fn downgrade(file: &File, spec: KernelSpec) -> Result<bool, Errno> {
    match spec.primitive {
        Primitive::Flock => files::downgrade(file),
        Primitive::Ofd => try_lock(file, spec.with(Sharing::Shared)),
    }
}

#[inline(always)]
pub(super) fn unlock(file: &File, spec: KernelSpec) -> Result<(), Errno> {
    match spec.primitive {
        Primitive::Flock => files::unlock(file),
        Primitive::Ofd => byte_ranges::unlock(file, spec.range.bytes()),
    }
}

/// What is in the way of a spec; not for `flock`, which cannot be asked.
pub(super) fn conflict(file: &File, spec: KernelSpec) -> Result<Option<InTheWay>, Errno> {
    byte_ranges::in_the_way(file, kind(spec.sharing), spec.range.bytes())
}

fn kind(sharing: Sharing) -> Kind {
    match sharing {
        Sharing::Exclusive => Kind::Write,
        Sharing::Shared => Kind::Read,
    }
}

impl Range {
    fn bytes(self) -> Bytes {
        let length = self.end.map_or(0, |end| end - self.start);
        Bytes { start: self.start as i64, length: length as i64 }
    }
}

/// The identity of what is at `path`, if anything is.
#[inline(always)]
pub(super) fn identity_at(path: &SystemPath) -> Result<Option<(u64, u64)>, Errno> {
    Ok(look_at(path)?.map(|inode| inode.identity))
}

/// Whether the file of a path that named it is itself mounted there. Where the kernel does not
/// tell, it shows when the file was removed elsewhere, and still has a name here. So has one
/// whose removal is under way, but not once the directory could be listed: both take the lock
/// of the directory.
pub(super) fn is_mounted(file: &File, path: &LockPath) -> bool {
    let Ok(inode) = files::inspect(file) else { return false };
    inode.is_mount.unwrap_or_else(|| {
        inode.links == 0 && {
            let _ = files::list(path.directory(), path.name());
            files::look(path.path()).is_ok_and(|named| named.identity == inode.identity)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_was_removed_is_not_mounted() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        let file = fs::File::create(path.path()).unwrap();
        assert!(!is_mounted(&file, &path));
        fs::remove_file(path.path()).unwrap();
        assert!(!is_mounted(&file, &path));
        let _successor = fs::File::create(path.path()).unwrap();
        assert!(!is_mounted(&file, &path));
    }
}
