//! The few file-system operations the protocol needs: the seam between
//! [`attempt`](crate::attempt) and the kernel, and the only place that links,
//! locks, unlinks.
//!
//! Each method is one system call, so that a driver that stops, fails or
//! reorders them sees every step the shipped protocol takes.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::LazyLock;

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, Statx, StatxAttributes,
    StatxFlags,
};
pub(crate) use rustix::io::Errno;
use rustix::io::{fcntl_dupfd_cloexec, retry_on_intr};
use rustix::process::{Resource, getrlimit};

use crate::proof;
use crate::ranges::{self, Bytes, Kind, Owner};

/// How a file that exists is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Closing it wakes nobody who watches for a writer's close.
    Read,
    /// Needed to rewrite the record.
    ReadWrite,
}

/// A `flock`, always asked for without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flock {
    Shared,
    Exclusive,
}

/// What a file is, by `fstat` or `lstat`.
///
/// The identity compares only while one of the two files is open: file systems
/// give a freed inode number to the next file at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) identity: (u64, u64),
    pub(crate) kind: FileType,
    pub(crate) owner: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// How many names it has.
    pub(crate) links: u64,
    /// Whether the file itself is mounted where it was opened. `None` where the
    /// kernel does not tell: `lstat`, and kernels before 5.8.
    pub(crate) is_mount: Option<bool>,
}

/// File-system operations. None waits for another process.
pub(crate) trait Disk: Clone + Send + Sync + 'static {
    /// An open file description. Dropping it closes it.
    type File: AsFd + Send + Sync + 'static;

    /// Open what is at `path`, if it is there; a symbolic link is `ELOOP`.
    fn open(&self, path: &Path, access: Access) -> Result<Self::File, Errno>;
    /// Make a file that has no name.
    fn create_unnamed(&self, directory: &Path, mode: u32) -> Result<Self::File, Errno>;
    /// Make a file at `path`, where none may be.
    fn create(&self, path: &Path, mode: u32) -> Result<Self::File, Errno>;
    /// `statx`.
    fn inspect(&self, file: &Self::File) -> Result<Inode, Errno>;
    /// `fstat`: how many names the file has.
    fn links(&self, file: &Self::File) -> Result<u64, Errno>;
    /// `lstat`.
    fn look(&self, path: &Path) -> Result<Inode, Errno>;
    /// One `pread` at the start; the number of bytes read.
    fn read(&self, file: &Self::File, into: &mut [u8]) -> Result<usize, Errno>;
    /// One `pwrite`; the number of bytes written.
    fn write(&self, file: &Self::File, bytes: &[u8], offset: u64) -> Result<usize, Errno>;
    /// `flock` without waiting; `false` when somebody else has it.
    fn try_flock(&self, file: &Self::File, flock: Flock) -> Result<bool, Errno>;
    /// `LOCK_UN`, which also ends what forked children inherited.
    fn unlock(&self, file: &Self::File) -> Result<(), Errno>;
    /// Give an unnamed file a name that may not exist yet.
    fn link_unnamed(&self, file: &Self::File, to: &Path) -> Result<(), Errno>;
    /// `link`, to a name that may not exist yet.
    fn link(&self, from: &Path, to: &Path) -> Result<(), Errno>;
    /// `rename`, over what is there.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno>;
    /// `renameat2` with `RENAME_NOREPLACE`: to a name that may not exist yet.
    fn rename_to_free(&self, from: &Path, to: &Path) -> Result<(), Errno>;
    /// `unlink`.
    fn unlink(&self, path: &Path) -> Result<(), Errno>;
    /// The names in a directory that begin with `prefix`.
    fn list(&self, directory: &Path, prefix: &[u8]) -> Result<Vec<OsString>, Errno>;
    /// Whether a free `flock` on this file proves that nobody holds it:
    /// `statfs` names a local file system known to do it right.
    fn trusts_flock(&self, file: &Self::File) -> Result<bool, Errno>;
    /// Whether anybody has a range of this file locked by `fcntl`. The NFS server
    /// of a machine has such a lock for each `flock` of its clients.
    fn is_range_locked(&self, file: &Self::File) -> Result<bool, Errno>;
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OsDisk;

/// Opening must not hang on a fifo, adopt a terminal or follow a link.
const OPEN_FLAGS: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

impl Disk for OsDisk {
    type File = OwnedFd;

    fn open(&self, path: &Path, access: Access) -> Result<OwnedFd, Errno> {
        proof::step();
        match access {
            Access::Read => match look(path) {
                Err(Errno::NOENT) => Err(Errno::NOENT),
                Ok(inode) if inode.does_more_when_opened() => {
                    open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0)
                }
                _ => open(path, OPEN_FLAGS | OFlags::RDONLY, 0),
            },
            Access::ReadWrite => open(path, OPEN_FLAGS | OFlags::RDWR, 0).map(lifted),
        }
    }

    fn create_unnamed(&self, directory: &Path, mode: u32) -> Result<OwnedFd, Errno> {
        proof::step();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        open(directory, flags, mode).map(lifted)
    }

    fn create(&self, path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
        proof::step();
        let flags = OPEN_FLAGS | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        open(path, flags, mode).map(lifted)
    }

    fn inspect(&self, file: &OwnedFd) -> Result<Inode, Errno> {
        proof::step();
        inspect(file.as_fd())
    }

    fn links(&self, file: &OwnedFd) -> Result<u64, Errno> {
        proof::step();
        call(|| rustix::fs::fstat(file)).map(|stat| Inode::from(stat).links)
    }

    fn look(&self, path: &Path) -> Result<Inode, Errno> {
        proof::step();
        look(path)
    }

    fn read(&self, file: &OwnedFd, into: &mut [u8]) -> Result<usize, Errno> {
        proof::step();
        call(|| rustix::io::pread(file, &mut *into, 0))
    }

    fn write(&self, file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        proof::step();
        call(|| rustix::io::pwrite(file, bytes, offset))
    }

    fn try_flock(&self, file: &OwnedFd, flock: Flock) -> Result<bool, Errno> {
        proof::step();
        let operation = match flock {
            Flock::Shared => FlockOperation::NonBlockingLockShared,
            Flock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match call(|| rustix::fs::flock(file, operation)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unlock(&self, file: &OwnedFd) -> Result<(), Errno> {
        proof::step();
        call(|| rustix::fs::flock(file, FlockOperation::Unlock))
    }

    /// By descriptor where the kernel lets its opener do that (6.10, or with
    /// CAP_DAC_READ_SEARCH), else through /proc, as open(2) has it.
    fn link_unnamed(&self, file: &OwnedFd, to: &Path) -> Result<(), Errno> {
        proof::step();
        match call(|| rustix::fs::linkat(file, c"", CWD, to, AtFlags::EMPTY_PATH)) {
            Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {}
            result => return result,
        }
        use std::os::fd::AsRawFd;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        call(|| rustix::fs::linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        proof::step();
        call(|| rustix::fs::link(from, to))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        proof::step();
        call(|| rustix::fs::rename(from, to))
    }

    fn rename_to_free(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        proof::step();
        call(|| rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        proof::step();
        unlink(path)
    }

    fn list(&self, directory: &Path, prefix: &[u8]) -> Result<Vec<OsString>, Errno> {
        proof::step();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // All of it again: a listing that was interrupted is over.
        call(|| {
            let directory = open(directory, flags, 0)?;
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(directory)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name.starts_with(prefix) {
                    names.push(OsString::from_vec(name));
                }
            }
            Ok(names)
        })
    }

    fn trusts_flock(&self, file: &OwnedFd) -> Result<bool, Errno> {
        proof::step();
        file_system(file.as_fd()).map(FileSystem::is_local)
    }

    fn is_range_locked(&self, file: &OwnedFd) -> Result<bool, Errno> {
        proof::step();
        let found = ranges::in_the_way(file, Owner::OpenFile, Kind::Write, Bytes::ALL)?;
        Ok(found.is_some())
    }
}

/// The way to the kernel for all calls on files but those of [`ranges`], which asks
/// again as well. A signal whose handler was installed without `SA_RESTART` interrupts
/// them, on network file systems and FUSE also those that signal(7) does not list:
/// then they are made again.
#[inline(always)]
pub(crate) fn call<T>(ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    retry_on_intr(ask)
}

fn look(path: &Path) -> Result<Inode, Errno> {
    call(|| rustix::fs::lstat(path)).map(Inode::from)
}

/// By `statx`, which also tells of mounts; by `fstat` where a sandbox refuses it.
pub(crate) fn inspect(file: BorrowedFd<'_>) -> Result<Inode, Errno> {
    let answer =
        call(|| rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS));
    match answer {
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => {
            call(|| rustix::fs::fstat(file)).map(Inode::from)
        }
        answer => answer.map(Inode::from),
    }
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

fn open(path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    call(|| rustix::fs::open(path, flags, Mode::from_raw_mode(mode)))
}

/// Above the descriptors that most programs open. At most so high, as a fork
/// copies the table of descriptors up to the highest.
const LIFTED_MAX: u64 = 16 * 1024;

/// The same description under a high number. When a process is killed its
/// files are let go from the highest descriptor to the lowest: a service with
/// thousands of sockets would otherwise let go of its locks last, many
/// milliseconds later. With a limit that allows few descriptors there is
/// nothing to gain.
fn lifted(file: OwnedFd) -> OwnedFd {
    static LOWEST: LazyLock<Option<i32>> = LazyLock::new(|| {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let lowest = (limit > 2 * FEW_DESCRIPTORS).then_some(LIFTED_MAX.min(limit / 2))?;
        i32::try_from(lowest).ok()
    });
    let lifted = LOWEST.and_then(|lowest| call(|| fcntl_dupfd_cloexec(&file, lowest)).ok());
    lifted.unwrap_or(file)
}

/// The usual limit; who needs more has raised it.
const FEW_DESCRIPTORS: u64 = 1024;

impl Inode {
    /// A fifo lets go of whoever waits for a reader, and a device may do anything.
    pub(crate) fn does_more_when_opened(self) -> bool {
        matches!(self.kind, FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice)
    }
}

impl From<rustix::fs::Stat> for Inode {
    fn from(stat: rustix::fs::Stat) -> Self {
        Inode {
            identity: (stat.st_dev, stat.st_ino),
            kind: FileType::from_raw_mode(stat.st_mode),
            owner: stat.st_uid,
            mode: Mode::from_raw_mode(stat.st_mode).bits(),
            // Its width depends on the processor.
            links: stat.st_nlink as _,
            is_mount: None,
        }
    }
}

impl From<Statx> for Inode {
    fn from(stat: Statx) -> Self {
        let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let tells = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        let is_mount = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        Inode {
            identity: (device, stat.stx_ino),
            kind: FileType::from_raw_mode(stat.stx_mode.into()),
            owner: stat.stx_uid,
            mode: Mode::from_raw_mode(stat.stx_mode.into()).bits(),
            links: stat.stx_nlink.into(),
            is_mount: tells.then_some(is_mount),
        }
    }
}

/// The kind of a file system, by its magic number, statfs(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileSystem(u32);

impl FileSystem {
    /// Local file systems whose `flock` is the kernel's own: it holds for
    /// every process that can reach the file, and ends with its holder.
    const LOCAL: [u32; 8] = [
        0x0000_ef53, // ext2, ext3, ext4
        0x5846_5342, // xfs
        0x9123_683e, // btrfs
        0x0102_1994, // tmpfs
        0xf2f5_2010, // f2fs
        0x2fc1_2fc1, // zfs
        0xca45_1a4e, // bcachefs
        0x794c_7630, // overlayfs
    ];

    pub(crate) fn is_local(self) -> bool {
        Self::LOCAL.contains(&self.0)
    }
}

/// `fstatfs`.
pub(crate) fn file_system(file: BorrowedFd<'_>) -> Result<FileSystem, Errno> {
    // The magic numbers have 32 bits; the field is wider and may be sign-extended.
    call(|| rustix::fs::fstatfs(file)).map(|answer| FileSystem(answer.f_type as u32))
}

/// What a path names and on what file system: `stat`, then `statfs`.
pub(crate) fn look_at_directory(path: &Path) -> Result<(Inode, FileSystem), Errno> {
    let inode = call(|| rustix::fs::stat(path)).map(Inode::from)?;
    let answer = call(|| rustix::fs::statfs(path))?;
    Ok((inode, FileSystem(answer.f_type as u32)))
}

/// `stat` of a directory.
pub(crate) fn directory_identity(path: &Path) -> Result<(u64, u64), Errno> {
    let inode = inspect_directory(path)?;
    if inode.kind == FileType::Directory { Ok(inode.identity) } else { Err(Errno::NOTDIR) }
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
