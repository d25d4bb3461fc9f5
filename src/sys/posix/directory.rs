//! A directory by its descriptor, and the files in it. No symbolic link is followed.

#![expect(clippy::disallowed_methods, reason = "the room of system calls on files")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, Access, AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};

use super::files::{Errno, OPEN_FLAGS, call};

/// A directory that is open.
#[derive(Debug)]
pub(crate) struct Directory(pub(in crate::sys) OwnedFd);

/// What is known of a file, without its contents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileState {
    /// And no link, directory or device.
    pub(crate) is_file: bool,
    pub(crate) inode: u64,
    pub(crate) links: u64,
    pub(crate) length: u64,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) owner: u32,
    pub(crate) group: u32,
    /// When it was written, in milliseconds since 1970.
    pub(crate) modified_ms: u64,
}

pub(in crate::sys) const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        call(|| fs::open(path, flags, Mode::empty())).map(Self)
    }

    pub(crate) fn open_to_read(&self, name: &str) -> Result<File, Errno> {
        self.open_file(name, OFlags::RDONLY)
    }

    /// To read and write; an empty file where there is none.
    pub(crate) fn open_or_create(&self, name: &str) -> Result<File, Errno> {
        self.open_file(name, OFlags::RDWR | OFlags::CREATE)
    }

    /// To write, where there is none.
    pub(crate) fn create(&self, name: &str) -> Result<File, Errno> {
        self.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }

    fn open_file(&self, name: &str, flags: OFlags) -> Result<File, Errno> {
        let opened = call(|| fs::openat(&self.0, name, flags | OPEN_FLAGS, FILE_MODE));
        match opened {
            // So FreeBSD says that it is a symbolic link.
            #[cfg(target_os = "freebsd")]
            Err(Errno::MLINK) => Err(Errno::LOOP),
            opened => opened.map(File::from),
        }
    }

    /// `lstat`.
    pub(crate) fn look(&self, name: &str) -> Result<FileState, Errno> {
        call(|| fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)).map(FileState::from)
    }

    /// A further name, where there is none.
    pub(crate) fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())
    }

    /// Over what is there.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        fs::renameat(&self.0, from, &self.0, to)
    }

    pub(crate) fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        fs::unlinkat(&self.0, name, AtFlags::empty())
    }

    /// The names of all entries, without order.
    pub(crate) fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let entries = Dir::read_from(&self.0)?;
        entries.map(|entry| Ok(entry?.file_name().to_bytes().to_vec())).collect()
    }

    /// Whether nothing can be written there, as the file system says.
    pub(crate) fn is_full(&self) -> bool {
        let Ok(room) = fs::fstatvfs(&self.0) else { return false };
        let is_root = rustix::process::geteuid().is_root();
        let blocks = if is_root { room.f_bfree } else { room.f_bavail };
        // Some file systems have no fixed size or number of files, and say 0 of 0.
        (room.f_blocks > 0 && blocks == 0) || (room.f_files > 0 && room.f_ffree == 0)
    }
}

/// Whether this process may read and write a directory: `access`.
///
/// # Errors
/// It may not.
pub(crate) fn may_use(path: &Path) -> Result<(), Errno> {
    fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
}

/// `fstat`.
pub(crate) fn inspect(file: &File) -> Result<FileState, Errno> {
    call(|| fs::fstat(file)).map(FileState::from)
}

/// One `pread`; the number of bytes read.
pub(crate) fn read_at(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    call(|| rustix::io::pread(file, &mut *into, offset))
}

/// Say that the file was written now.
pub(crate) fn touch(file: &File) -> Result<(), Errno> {
    let now = Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW as _ };
    fs::futimens(file, &Timestamps { last_access: now, last_modification: now })
}

pub(crate) fn truncate(file: &File, length: u64) -> Result<(), Errno> {
    fs::ftruncate(file, length)
}

/// Make a file durable.
pub(crate) fn sync(file: &File) -> Result<(), Errno> {
    or_as_far_as_it_goes(file, call(|| file.sync_all().map_err(errno)))
}

/// Make the contents of a file durable.
pub(crate) fn sync_data(file: &File) -> Result<(), Errno> {
    or_as_far_as_it_goes(file, call(|| file.sync_data().map_err(errno)))
}

/// macOS asks the disk by a call that not every file system has, nor a directory everywhere.
fn or_as_far_as_it_goes(file: &File, synced: Result<(), Errno>) -> Result<(), Errno> {
    match synced {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => call(|| fs::fsync(file)),
        synced => synced,
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

impl From<Stat> for FileState {
    fn from(stat: Stat) -> Self {
        // The widths of these depend on the system and the processor.
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        let nanoseconds: u64 = stat.st_mtime_nsec as _;
        Self {
            is_file: FileType::from_raw_mode(stat.st_mode as _) == FileType::RegularFile,
            inode: stat.st_ino as _,
            links: stat.st_nlink as _,
            length: u64::try_from(stat.st_size).unwrap_or(0),
            mode: u32::from(stat.st_mode as u16) & 0o7777,
            owner: stat.st_uid,
            group: stat.st_gid,
            modified_ms: seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000),
        }
    }
}
