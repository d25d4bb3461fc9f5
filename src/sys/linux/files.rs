//! System calls on files, in the way that the protocol needs them.

#![expect(clippy::disallowed_methods, reason = "the room of system calls on files")]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::LazyLock;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
pub(crate) use rustix::io::Errno;
use rustix::io::{fcntl_dupfd_cloexec, retry_on_intr};
use rustix::process::{Resource, getrlimit};

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

/// Opening must not hang on a fifo, adopt a terminal or follow a link.
pub(crate) const OPEN_FLAGS: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The way to the kernel for all calls on files but those of `byte_ranges`, which asks
/// again as well. A signal whose handler was installed without `SA_RESTART` interrupts
/// them, on network file systems and FUSE also those that signal(7) does not list:
/// then they are made again.
#[inline(always)]
pub(crate) fn call<T>(ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    retry_on_intr(ask)
}

pub(crate) fn look(path: &Path) -> Result<Inode, Errno> {
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

pub(crate) fn open(path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    call(|| rustix::fs::open(path, flags, Mode::from_raw_mode(mode)))
}

/// Above the descriptors that most programs open. At most so high, as a fork
/// copies the table of descriptors up to the highest.
const LIFTED_MAX: u64 = 16 * 1024;

/// The same description under a high number. When a process is killed its
/// files are closed from the highest descriptor to the lowest: a service with
/// thousands of sockets would otherwise release its locks last, many
/// milliseconds later. With a limit that allows few descriptors there is
/// nothing to gain.
pub(crate) fn lifted(file: OwnedFd) -> OwnedFd {
    static LOWEST: LazyLock<Option<i32>> = LazyLock::new(|| {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let lowest = (limit > 2 * FEW_DESCRIPTORS).then_some(LIFTED_MAX.min(limit / 2))?;
        i32::try_from(lowest).ok()
    });
    let lifted = LOWEST.and_then(|lowest| call(|| fcntl_dupfd_cloexec(&file, lowest)).ok());
    lifted.unwrap_or(file)
}

/// The usual limit; processes that need more have raised it.
const FEW_DESCRIPTORS: u64 = 1024;

impl Inode {
    /// A fifo wakes a process that waits for a reader, and a device may do anything.
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
