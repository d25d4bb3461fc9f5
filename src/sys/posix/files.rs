//! System calls on files that every Unix has, in the way that the protocol needs them.

#![expect(clippy::disallowed_methods, reason = "the room of system calls on files")]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
pub(crate) use rustix::io::Errno;
use rustix::io::{fcntl_dupfd_cloexec, retry_on_intr};
use rustix::path::Arg;
use rustix::process::{Resource, getrlimit};

use crate::sys::inode::{FileKind, Inode};
use crate::sys::sharing::Sharing;

/// An open file of this process, lent: a descriptor on Unix, a handle on Windows.
pub type BorrowedFile<'a> = BorrowedFd<'a>;

/// Opening must not hang on a fifo, adopt a terminal or follow a link.
pub(crate) const OPEN_FLAGS: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The way to the kernel for all calls on files but those of `byte_ranges`, which asks
/// again as well. A signal whose handler was installed without `SA_RESTART` interrupts
/// them, on network file systems and FUSE also those that signal(7) does not list:
/// then they are made again.
#[inline(always)]
pub(crate) fn call<T>(ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    retry_on_intr(ask).map_err(|error| one_of_two(error, Errno::NOTSUP, Errno::OPNOTSUPP))
}

/// Where a system has another number for what is asked for by this one. Linux has not.
#[inline(always)]
fn one_of_two(error: Errno, other: Errno, asked_for: Errno) -> Errno {
    if error == other { asked_for } else { error }
}

/// A path as system calls want it, not to be made anew for each of them.
#[derive(Clone, Debug)]
pub(crate) struct SystemPath(CString);

impl SystemPath {
    /// # Panics
    /// If it has a NUL byte, as no lock's path has.
    pub(crate) fn new(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes());
        Self(path.expect("BUG: a lock's path with a NUL byte"))
    }
}

/// `lstat`.
pub(crate) fn look(path: &Path) -> Result<Inode, Errno> {
    call(|| rustix::fs::lstat(path)).map(Inode::from)
}

/// The same for a path that is looked at often; `None` if nothing is there.
#[inline(always)]
pub(crate) fn look_at(path: &SystemPath) -> Result<Option<Inode>, Errno> {
    match call(|| rustix::fs::lstat(path.0.as_c_str())) {
        Ok(stat) => Ok(Some(Inode::from(stat))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `fstat`.
#[inline(always)]
pub(crate) fn inspect_at_once(file: &File) -> Result<Inode, Errno> {
    call(|| rustix::fs::fstat(file)).map(Inode::from)
}

/// How many names the file has.
pub(crate) fn links(file: &File) -> Result<u64, Errno> {
    inspect_at_once(file).map(|inode| inode.links)
}

/// `unlink`. A call that was interrupted may have been carried out: asked again, a
/// network file system then says that there is no such name.
pub(crate) fn unlink(path: &Path) -> Result<(), Errno> {
    let mut was_interrupted = false;
    call(|| match rustix::fs::unlink(path) {
        Err(Errno::NOENT) if was_interrupted => Ok(()),
        answer => {
            was_interrupted |= answer == Err(Errno::INTR);
            answer
        }
    })
}

/// Remove the name of a file that this process has open.
pub(crate) fn remove(_: &File, path: &Path, _: impl FnOnce() -> PathBuf) -> Result<(), Errno> {
    unlink(path)
}

/// A link that is not to be followed is `ELOOP`; FreeBSD has `EMLINK` for it, open(2).
#[inline(always)]
pub(crate) fn open(path: impl Arg + Copy, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    call(|| rustix::fs::open(path, flags, Mode::from_raw_mode(mode as _)))
        .map_err(|error| one_of_two(error, Errno::MLINK, Errno::LOOP))
}

/// To rewrite what is there, never through a link.
pub(crate) fn open_to_write(path: &Path) -> Result<File, Errno> {
    open(path, OPEN_FLAGS | OFlags::RDWR, 0).map(lifted)
}

/// A new file, where there is none.
pub(crate) fn create(path: &Path, mode: u32) -> Result<File, Errno> {
    open(path, OPEN_FLAGS | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, mode).map(lifted)
}

/// Open the file at `path`, and make it if there is none. For writing where
/// that is allowed, so that its close is an event for waiters, and
/// because network file systems want it for an exclusive lock.
#[inline(always)]
pub(crate) fn open_or_create(path: &SystemPath, mode: u32) -> Result<File, Errno> {
    let open = |flags| open(path.0.as_c_str(), OPEN_FLAGS | flags, mode);
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
pub(crate) fn open_existing(path: &SystemPath) -> Result<File, Errno> {
    let open = |flags| open(path.0.as_c_str(), OPEN_FLAGS | flags, 0);
    open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).map(File::from)
}

/// One `pread` at the start; the number of bytes read.
pub(crate) fn read_start(file: &File, into: &mut [u8]) -> Result<usize, Errno> {
    call(|| rustix::io::pread(file, &mut *into, 0))
}

/// One `pwrite`; the number of bytes written.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    call(|| rustix::io::pwrite(file, bytes, offset))
}

/// `flock` without waiting; `false` when another open file has it.
#[inline(always)]
pub(crate) fn try_flock(file: &File, sharing: Sharing) -> Result<bool, Errno> {
    let operation = match sharing {
        Sharing::Shared => FlockOperation::NonBlockingLockShared,
        Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match call(|| rustix::fs::flock(file, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `LOCK_UN`, which also ends what forked children inherited.
#[inline(always)]
pub(crate) fn unlock(file: &File) -> Result<(), Errno> {
    call(|| rustix::fs::flock(file, FlockOperation::Unlock))
}

/// The kernel lock that proves a holder's life: on Unix `flock`.
pub(crate) use {try_flock as try_pin, unlock as unpin};

/// Whether a name can be given to another file while the one that has it is open.
pub(crate) const MAY_BE_REPLACED: bool = true;

/// Whether a directory can be locked as a file is.
pub(crate) const DIRECTORIES_HAVE_LOCKS: bool = true;

/// Make a shared `flock` of this open file an exclusive one. Refused, it has none on Linux,
/// flock(2), and still the shared one on macOS and the BSDs (FreeBSD's `lf_setlock`).
pub(crate) fn upgrade(file: &File) -> Result<bool, Errno> {
    try_flock(file, Sharing::Exclusive)
}

/// Make an exclusive `flock` of this open file a shared one.
pub(crate) fn downgrade(file: &File) -> Result<bool, Errno> {
    try_flock(file, Sharing::Shared)
}

/// `link`, to a name that may not exist yet.
pub(crate) fn link(from: &Path, to: &Path) -> Result<(), Errno> {
    call(|| rustix::fs::link(from, to))
}

/// `rename`, over what is there.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Errno> {
    call(|| rustix::fs::rename(from, to))
}

/// The names in a directory that begin with `prefix`.
pub(crate) fn list(directory: &Path, prefix: &OsStr) -> Result<Vec<OsString>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // All of it again: a listing that was interrupted is over.
    call(|| {
        let directory = open(directory, flags, 0)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(directory)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name.starts_with(prefix.as_bytes()) {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    })
}

/// Above the descriptors that most programs open. At most so high, as a fork
/// copies the table of descriptors up to the highest.
const LIFTED_MAX: u64 = 16 * 1024;

/// The same description under a high number. When a process is killed its
/// files are closed from the highest descriptor to the lowest: a service with
/// thousands of sockets would otherwise release its locks last, many
/// milliseconds later. With a limit that allows few descriptors there is
/// nothing to gain, nor on FreeBSD, which begins with the lowest (`fdescfree_fds`).
pub(crate) fn lifted(file: OwnedFd) -> File {
    static LOWEST: LazyLock<Option<i32>> = LazyLock::new(|| {
        if cfg!(target_os = "freebsd") {
            return None;
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let lowest = (limit > 2 * FEW_DESCRIPTORS).then_some(LIFTED_MAX.min(limit / 2))?;
        i32::try_from(lowest).ok()
    });
    let lifted = LOWEST.and_then(|lowest| call(|| fcntl_dupfd_cloexec(&file, lowest)).ok());
    lifted.unwrap_or(file).into()
}

/// The usual limit; processes that need more have raised it.
const FEW_DESCRIPTORS: u64 = 1024;

/// Whether a process that inherits an open file has its lock too.
pub(crate) const ARE_INHERITED_LOCKED: bool = true;

/// The open file, for a user of this crate.
pub(crate) fn lend(file: &File) -> BorrowedFile<'_> {
    file.as_fd()
}

/// For a guard whose method `file` has the file that carries the lock.
macro_rules! lends_its_file {
    ($lender:ty) => {
        /// The descriptor whose open file carries the lock.
        impl std::os::fd::AsFd for $lender {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                std::os::fd::AsFd::as_fd(self.file())
            }
        }
    };
}
pub(crate) use lends_its_file;

/// `stat` of a directory.
pub(crate) fn directory_identity(path: &Path) -> Result<(u64, u64), Errno> {
    let inode = inspect_directory(path)?;
    if inode.kind == FileKind::Directory { Ok(inode.identity) } else { Err(Errno::NOTDIR) }
}

/// `stat`.
pub(crate) fn inspect_directory(path: &Path) -> Result<Inode, Errno> {
    call(|| rustix::fs::stat(path)).map(Inode::from)
}

/// Whether names can be made in a directory by this process, or that cannot be told.
pub(crate) fn may_make_names(directory: &Path) -> bool {
    may(directory, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
}

/// Whether a file can be written by this process, or that cannot be told.
pub(crate) fn may_write(path: &Path) -> bool {
    may(path, rustix::fs::Access::WRITE_OK)
}

/// `faccessat` with the ids that count when a file is opened.
fn may(path: &Path, access: rustix::fs::Access) -> bool {
    let asked = call(|| rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS));
    !matches!(asked, Err(Errno::ACCESS | Errno::PERM | Errno::ROFS))
}

/// Why a file cannot have this name: none that a path has in it is refused.
pub(crate) fn refused_name(_: &OsStr) -> Option<&'static str> {
    None
}

/// A path that a URL has, byte for byte.
pub(crate) fn path_of_bytes(bytes: Vec<u8>) -> Option<OsString> {
    Some(OsString::from_vec(bytes))
}

impl From<FileType> for FileKind {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::Regular,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::SymbolicLink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            _ => Self::Other,
        }
    }
}

impl From<rustix::fs::Stat> for Inode {
    fn from(stat: rustix::fs::Stat) -> Self {
        // The widths of these depend on the system and the processor.
        Inode {
            identity: (stat.st_dev as _, stat.st_ino as _),
            kind: FileType::from_raw_mode(stat.st_mode as _).into(),
            owner: stat.st_uid,
            mode: Mode::from_raw_mode(stat.st_mode as _).bits() as _,
            links: stat.st_nlink as _,
            // macOS mounts directories alone.
            is_mount: cfg!(target_vendor = "apple").then_some(false),
        }
    }
}
