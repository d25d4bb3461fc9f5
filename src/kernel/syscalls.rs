//! The system calls of kernel locks, each asked without waiting.
//!
//! What leads to them is inlined. A call of the kernel's leaves nothing of the
//! processor's memory of where functions return to, so that each function which
//! then returns costs a wrong guess: an acquisition took 0.06 times its system
//! calls longer without (`cargo bench --bench kernel -- uncontended`).

#![expect(clippy::disallowed_methods, reason = "the room of locked files")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::options::{Primitive, Range};
use crate::sys::byte_ranges::{self, Bytes, InTheWay, Kind};
use crate::sys::files::{self, Inode};
pub(super) use crate::sys::tickets::Sharing;

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
/// in the way. A `flock` that is refused leaves the open file without any.
#[inline(always)]
pub(super) fn try_lock(file: &File, spec: KernelSpec) -> Result<bool, Errno> {
    let outcome = match (spec.primitive, spec.sharing) {
        (Primitive::Flock, Sharing::Exclusive) => {
            flock(file, FlockOperation::NonBlockingLockExclusive)
        }
        (Primitive::Flock, Sharing::Shared) => flock(file, FlockOperation::NonBlockingLockShared),
        (Primitive::Ofd, _) => byte_ranges::try_lock(file, kind(spec.sharing), spec.range.bytes()),
    };
    match outcome {
        Ok(()) => Ok(true),
        // fcntl(2): POSIX allows either.
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error),
    }
}

#[inline(always)]
pub(super) fn unlock(file: &File, spec: KernelSpec) -> Result<(), Errno> {
    match spec.primitive {
        Primitive::Flock => flock(file, FlockOperation::Unlock),
        Primitive::Ofd => byte_ranges::unlock(file, spec.range.bytes()),
    }
}

/// What is in the way of a spec; not for `flock`, which cannot be asked.
pub(super) fn conflict(file: &File, spec: KernelSpec) -> Result<Option<InTheWay>, Errno> {
    byte_ranges::in_the_way(file, kind(spec.sharing), spec.range.bytes())
}

#[inline(always)]
fn flock(file: &File, operation: FlockOperation) -> Result<(), Errno> {
    files::call(|| rustix::fs::flock(file, operation))
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

/// Opening must not hang on a fifo, adopt a terminal or follow a link.
const OPEN: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Open the file at `path`, and make it if there is none. For writing where
/// that is allowed, so that its close is an event for waiters, and
/// because network file systems want it for an exclusive lock.
#[inline(always)]
pub(super) fn open_or_create(path: impl Arg + Copy, mode: u32) -> Result<File, Errno> {
    let open =
        |flags| files::call(|| rustix::fs::open(path, OPEN | flags, Mode::from_raw_mode(mode)));
    let refused = match open(OFlags::RDWR | OFlags::CREATE) {
        Ok(file) => return Ok(file.into()),
        Err(error) => error,
    };
    let opened = match refused {
        // Also if others may write in a sticky directory: proc(5), protected_regular.
        Errno::ACCESS => open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)),
        Errno::ROFS | Errno::PERM | Errno::TXTBSY | Errno::ISDIR => open(OFlags::RDONLY),
        _ => Err(refused),
    };
    opened.map(File::from).map_err(|_| refused)
}

/// Open what is at `path` to ask about it. For writing if possible: should the
/// question have been in a contender's way, the close is an event.
pub(super) fn open_existing(path: &Path) -> Result<File, Errno> {
    let open = |flags| files::call(|| rustix::fs::open(path, OPEN | flags, Mode::empty()));
    open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).map(File::from)
}

/// An event for waiters, where the lock was given up without a close: the
/// close of this same file, opened once more.
pub(super) fn signal(file: &File) {
    let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    // The link is to be followed.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |access| files::call(|| rustix::fs::open(&path, access | flags, Mode::empty()));
    let _ = open(OFlags::WRONLY).or_else(|_| open(OFlags::RDONLY));
}

#[inline(always)]
pub(super) fn inspect(file: &File) -> Result<Inode, Errno> {
    files::call(|| rustix::fs::fstat(file.as_fd())).map(Inode::from)
}

/// How many names the file has.
pub(super) fn links(file: &File) -> Result<u64, Errno> {
    inspect(file).map(|inode| inode.links)
}

/// The identity of what is at `path`, if anything is.
#[inline(always)]
pub(super) fn identity_at(path: impl Arg + Copy) -> Result<Option<(u64, u64)>, Errno> {
    Ok(look_at(path)?.map(|inode| inode.identity))
}

/// What is at `path`, if anything is.
#[inline(always)]
pub(super) fn look_at(path: impl Arg + Copy) -> Result<Option<Inode>, Errno> {
    match files::call(|| rustix::fs::lstat(path)) {
        Ok(stat) => Ok(Some(Inode::from(stat))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file that its path names is itself mounted there. A kernel that does not
/// tell shows it when the file was removed elsewhere, and still has a name here.
pub(super) fn is_mounted(file: &File) -> bool {
    files::inspect(file.as_fd()).is_ok_and(|inode| inode.is_mount.unwrap_or(inode.links == 0))
}

pub(super) use crate::sys::files::unlink;
