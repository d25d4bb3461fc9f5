//! System calls on files, in the way that the protocol needs them.
//!
//! 1. The kernel lock of a lock file is that of one byte far behind the record: a locked
//!    range can be read by its owner only.
//! 2. A holder and a contender that may become one have the file open in such a way that
//!    others read and write it, and that no process renames or removes it but they. So
//!    the file of a living holder cannot be removed. Others can open it if they let it be
//!    removed, by FILE_SHARE_DELETE.
//! 3. A file is given its name, and loses it, by its handle. Its name is free at once: the
//!    file is renamed before it is removed, as a removed file keeps its name until the last
//!    process has closed it.
//! 4. A name that cannot be used for the time being is [`Errno::AGAIN`].
#![allow(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "the room of system calls on files")]

use std::ffi::{OsStr, OsString, c_void};
use std::fs::{File, OpenOptions};
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle};
use std::path::{Path, PathBuf};

use windows_sys::Wdk::Storage::FileSystem::{
    FileFsDeviceInformation, NtQueryVolumeInformationFile,
};
use windows_sys::Wdk::System::SystemServices::{
    FILE_FS_DEVICE_INFORMATION, FILE_REMOTE_DEVICE, FILE_REMOTE_DEVICE_VSMB,
};
use windows_sys::Win32::Foundation::{
    GENERIC_READ, GENERIC_WRITE, HANDLE, NTSTATUS, STATUS_DELETE_PENDING,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, DELETE, FILE_ATTRIBUTE_DIRECTORY, FILE_ATTRIBUTE_READONLY,
    FILE_ATTRIBUTE_REPARSE_POINT, FILE_ATTRIBUTE_TAG_INFO, FILE_DEVICE_DISK,
    FILE_DISPOSITION_FLAG_DELETE, FILE_DISPOSITION_FLAG_POSIX_SEMANTICS, FILE_DISPOSITION_INFO,
    FILE_DISPOSITION_INFO_EX, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT,
    FILE_ID_INFO, FILE_READ_ATTRIBUTES, FILE_RENAME_INFO, FILE_SHARE_DELETE, FILE_SHARE_READ,
    FILE_SHARE_WRITE, FILE_TYPE_DISK, FILE_TYPE_PIPE, FileAttributeTagInfo, FileDispositionInfo,
    FileDispositionInfoEx, FileIdInfo, FileRenameInfo, GetFileInformationByHandle,
    GetFileInformationByHandleEx, GetFileType, GetVolumeInformationByHandleW,
    LOCKFILE_EXCLUSIVE_LOCK, LOCKFILE_FAIL_IMMEDIATELY, LockFileEx, SetFileInformationByHandle,
    UnlockFileEx,
};
use windows_sys::Win32::System::IO::{IO_STATUS_BLOCK, OVERLAPPED};

pub(crate) use super::errno::Errno;
use crate::sys::inode::{FileKind, Inode};
use crate::sys::sharing::Sharing;

/// An open file of this process, lent: a descriptor on Unix, a handle on Windows.
pub type BorrowedFile<'a> = BorrowedHandle<'a>;

/// What others may do with a file that this process could remove (2).
const OTHERS_MAY_USE: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE;
const OTHERS_MAY_ALL: u32 = OTHERS_MAY_USE | FILE_SHARE_DELETE;

/// A link is not followed.
const OPEN_FLAGS: u32 = FILE_FLAG_OPEN_REPARSE_POINT;

/// Which byte the kernel lock of a lock file is on (1). Far behind any record, and the
/// ranges of other programs that lock the start of a file.
const LOCKED_BYTE: u64 = 1 << 62;

/// File systems that number a file once and for all. On others, FAT for one, the number
/// is that of a name.
const NUMBERING: [&str; 2] = ["NTFS", "ReFS"];

/// `FILE_DEVICE_DISK_FILE_SYSTEM` of wdm.h.
const DISK_FILE_SYSTEM: u32 = 8;

/// What a disk of this machine is called, by Windows and by wine.
const DISKS: [u32; 2] = [FILE_DEVICE_DISK, DISK_FILE_SYSTEM];

/// A path as system calls want it, not to be made anew for each of them.
#[derive(Clone, Debug)]
pub(crate) struct SystemPath(PathBuf);

impl SystemPath {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

#[link(name = "ntdll")]
unsafe extern "system" {
    /// What the last call of this thread that failed really said.
    safe fn RtlGetLastNtStatus() -> NTSTATUS;
}

/// (4): the system says "access denied" of a file that is being removed.
fn refusal(error: impl Into<Errno>) -> Errno {
    match error.into() {
        Errno::ACCESS if RtlGetLastNtStatus() == STATUS_DELETE_PENDING => Errno::AGAIN,
        error => error,
    }
}

/// The answer of a call that gives zero when it was refused.
fn answer(given: i32) -> Result<(), Errno> {
    if given == 0 { Err(refusal(Errno::last())) } else { Ok(()) }
}

fn handle(file: &File) -> HANDLE {
    file.as_raw_handle()
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, Errno> {
    let opened = options.custom_flags(OPEN_FLAGS).open(path).map_err(refusal)?;
    if !matches!(reparse_tag(&opened), Some(tag) if !names_another(tag)) {
        return Ok(opened);
    }
    // What makes its contents, a driver of a cloud's, was passed by.
    let expected = inspect_at_once(&opened)?.identity;
    drop(opened);
    let opened = options.custom_flags(0).open(path).map_err(refusal)?;
    if inspect_at_once(&opened)?.identity == expected { Ok(opened) } else { Err(Errno::AGAIN) }
}

/// What follows a link or makes the contents of a file, if anything does.
fn reparse_tag(file: &File) -> Option<u32> {
    let mut found = FILE_ATTRIBUTE_TAG_INFO::default();
    let (place, bytes) = ((&raw mut found).cast(), size_of_val(&found) as u32);
    // SAFETY: the handle is open, and the place has that size.
    let is_told =
        unsafe { GetFileInformationByHandleEx(handle(file), FileAttributeTagInfo, place, bytes) }
            != 0;
    let has_tag = is_told && found.FileAttributes & FILE_ATTRIBUTE_REPARSE_POINT != 0;
    has_tag.then_some(found.ReparseTag)
}

/// Whether it is a link's. Others are those of files and directories that a cloud's
/// synchronization keeps, or that are stored without what they have in common.
/// (`IsReparseTagNameSurrogate` of winnt.h.)
fn names_another(tag: u32) -> bool {
    tag & 0x2000_0000 != 0
}

/// Read, write, rename and remove, and no other process the last two.
fn to_hold() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.access_mode(GENERIC_READ | GENERIC_WRITE | DELETE).share_mode(OTHERS_MAY_USE);
    options
}

/// To look at what is there, if anything is, without doing more.
pub(crate) fn open_to_read(path: &Path) -> Result<File, Errno> {
    open(path, OpenOptions::new().read(true).share_mode(OTHERS_MAY_ALL))
}

/// To rewrite what is there, never through a link.
pub(crate) fn open_to_write(path: &Path) -> Result<File, Errno> {
    open(path, &mut to_hold())
}

/// A new file, where there is none. Who may use it is inherited from its directory.
pub(crate) fn create(path: &Path, _: u32) -> Result<File, Errno> {
    open(path, to_hold().create_new(true))
}

/// There are no files without a name.
pub(crate) fn create_unnamed(_: &Path, _: u32) -> Result<File, Errno> {
    Err(Errno::OPNOTSUPP)
}

/// As [`create_unnamed`].
pub(crate) fn link_unnamed(_: &File, _: &Path) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// A second name is not made: a file that has one is renamed.
pub(crate) fn link(_: &Path, _: &Path) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// A file that is open is not renamed over another.
pub(crate) fn rename(_: &Path, _: &Path) -> Result<(), Errno> {
    Err(Errno::ACCESS)
}

/// Rename a file that is open to a name that may not exist yet (3).
pub(crate) fn rename_to_free(file: &File, _: &Path, to: &Path) -> Result<(), Errno> {
    /// Where the name begins in what is given to the call.
    const NAME_AT: usize = std::mem::offset_of!(FILE_RENAME_INFO, FileName);
    let name = verbatim(to);
    let name_bytes = name.len() * size_of::<u16>();
    // As many bytes as the structure has at least, in units that are aligned as it is.
    let bytes = NAME_AT + name_bytes + size_of::<FILE_RENAME_INFO>();
    let mut buffer = vec![0_u64; bytes.div_ceil(size_of::<u64>())];
    let information = buffer.as_mut_ptr().cast::<FILE_RENAME_INFO>();
    // SAFETY: the buffer is as large as the structure with the name behind it, aligned for
    // it, and zero: which stands for not replacing, and for no other directory.
    unsafe {
        (*information).FileNameLength = name_bytes as u32;
        let place = information.cast::<u8>().add(NAME_AT).cast::<u16>();
        std::ptr::copy_nonoverlapping(name.as_ptr(), place, name.len());
    }
    set(file, FileRenameInfo, information.cast(), bytes)
}

/// The path in the form that may be of any length. It is absolute.
fn verbatim(path: &Path) -> Vec<u16> {
    let (prefix, skipped) = match path.as_os_str().as_encoded_bytes() {
        [b'\\', b'\\', b'?' | b'.', ..] => ("", 0),
        [b'\\', b'\\', ..] => (r"\\?\UNC\", 2),
        _ => (r"\\?\", 0),
    };
    prefix.encode_utf16().chain(path.as_os_str().encode_wide().skip(skipped)).collect()
}

fn set(file: &File, class: i32, information: *const c_void, bytes: usize) -> Result<(), Errno> {
    // SAFETY: the handle is open; the callers give what the class wants, of that size.
    answer(unsafe { SetFileInformationByHandle(handle(file), class, information, bytes as u32) })
}

/// Remove a file that this process has open to hold. Its name is free when this returns,
/// also while others read the file (3). `aside` is a name that it has in between, and
/// keeps should the process end there.
pub(crate) fn remove(
    file: &File,
    path: &Path,
    aside: impl FnOnce() -> PathBuf,
) -> Result<(), Errno> {
    let is_aside = rename_to_free(file, path, &aside()).is_ok();
    let removed = dispose(file);
    if is_aside { Ok(()) } else { removed }
}

/// Have the file removed: when this process closes it, where the system knows how to, else
/// when the last one does.
fn dispose(file: &File) -> Result<(), Errno> {
    let flags = FILE_DISPOSITION_FLAG_DELETE | FILE_DISPOSITION_FLAG_POSIX_SEMANTICS;
    let at_close = FILE_DISPOSITION_INFO_EX { Flags: flags };
    let at_last = FILE_DISPOSITION_INFO { DeleteFile: true };
    let given = (&raw const at_close).cast();
    set(file, FileDispositionInfoEx, given, size_of_val(&at_close)).or_else(|_| {
        let given = (&raw const at_last).cast();
        set(file, FileDispositionInfo, given, size_of_val(&at_last))
    })
}

/// Remove what is at the path, if it is not open to be held.
pub(crate) fn unlink(path: &Path) -> Result<(), Errno> {
    match std::fs::remove_file(path).map_err(refusal) {
        // Its removal is on its way.
        Err(Errno::AGAIN) if RtlGetLastNtStatus() == STATUS_DELETE_PENDING => Ok(()),
        answer => answer,
    }
}

/// Open the file at `path`, and make it if there is none. For writing where that is
/// allowed. Others may do all with it: it is the user's.
pub(crate) fn open_or_create(path: &SystemPath, _: u32) -> Result<File, Errno> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).share_mode(OTHERS_MAY_ALL);
    match open(&path.0, &mut options) {
        Err(refused @ (Errno::ACCESS | Errno::ROFS)) => open_to_read(&path.0).map_err(|_| refused),
        opened => opened,
    }
}

/// Open what is at `path` to ask about it.
pub(crate) fn open_existing(path: &SystemPath) -> Result<File, Errno> {
    open_to_read(&path.0)
}

/// What is at the path. A file that is being removed is not.
pub(crate) fn look(path: &Path) -> Result<Inode, Errno> {
    inspect_at(path, FILE_FLAG_OPEN_REPARSE_POINT)
}

fn inspect_at(path: &Path, flags: u32) -> Result<Inode, Errno> {
    inspect_at_once(&open_to_ask(path, flags)?)
}

/// Any file may be opened so, however others have it open.
fn open_to_ask(path: &Path, flags: u32) -> Result<File, Errno> {
    let mut options = OpenOptions::new();
    options.access_mode(FILE_READ_ATTRIBUTES).share_mode(OTHERS_MAY_ALL);
    options.custom_flags(flags | FILE_FLAG_BACKUP_SEMANTICS);
    match options.open(path).map_err(refusal) {
        // It is being removed.
        Err(Errno::AGAIN) if RtlGetLastNtStatus() == STATUS_DELETE_PENDING => Err(Errno::NOENT),
        opened => opened,
    }
}

/// The same for a path that is looked at often; `None` if nothing is there.
pub(crate) fn look_at(path: &SystemPath) -> Result<Option<Inode>, Errno> {
    match look(&path.0) {
        Ok(inode) => Ok(Some(inode)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same, and when the file was written to last, in units of 100 ns.
pub(super) fn look_with_time(path: &Path) -> Result<(Inode, (i64, i64)), Errno> {
    let file = open_to_ask(path, FILE_FLAG_OPEN_REPARSE_POINT)?;
    let written = file.metadata().map_or(0, |metadata| metadata.last_write_time());
    Ok((inspect_at_once(&file)?, (written as i64, 0)))
}

/// What a file that was opened to be used is.
///
/// # Errors
/// [`Errno::LOOP`] if it is a link, which was not followed.
pub(crate) fn inspect(file: &File) -> Result<Inode, Errno> {
    let inode = inspect_at_once(file)?;
    if inode.kind == FileKind::SymbolicLink { Err(Errno::LOOP) } else { Ok(inode) }
}

/// What a file is.
pub(crate) fn inspect_at_once(file: &File) -> Result<Inode, Errno> {
    // SAFETY: the handle is open.
    let kind = match unsafe { GetFileType(handle(file)) } {
        FILE_TYPE_DISK => None,
        FILE_TYPE_PIPE => Some(FileKind::Fifo),
        _ => Some(FileKind::Device),
    };
    if let Some(kind) = kind {
        let (identity, owner, mode, links, is_mount) = ((0, 0), 0, 0, 1, Some(false));
        return Ok(Inode { identity, kind, owner, mode, links, is_mount });
    }
    let mut found = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open, and the place is there until the call is over.
    answer(unsafe { GetFileInformationByHandle(handle(file), &raw mut found) })?;
    let has = |attribute| found.dwFileAttributes & attribute != 0;
    let kind = match () {
        () if has(FILE_ATTRIBUTE_REPARSE_POINT) && reparse_tag(file).is_none_or(names_another) => {
            FileKind::SymbolicLink
        }
        () if has(FILE_ATTRIBUTE_DIRECTORY) => FileKind::Directory,
        () => FileKind::Regular,
    };
    Ok(Inode {
        identity: identity(file).unwrap_or_else(|| narrow_identity(&found)),
        kind,
        owner: 0,
        mode: if has(FILE_ATTRIBUTE_READONLY) { 0o444 } else { 0o666 },
        links: found.nNumberOfLinks.into(),
        is_mount: Some(false),
    })
}

/// Volume and number of a file. ReFS has numbers of 128 bits: their upper half goes into
/// the volume's, so that two files of one volume still differ.
fn identity(file: &File) -> Option<(u64, u64)> {
    let mut found = FILE_ID_INFO::default();
    let (place, bytes) = ((&raw mut found).cast(), size_of::<FILE_ID_INFO>() as u32);
    // SAFETY: the handle is open, and the place has that size.
    let is_told =
        unsafe { GetFileInformationByHandleEx(handle(file), FileIdInfo, place, bytes) } != 0;
    let number = u128::from_le_bytes(found.FileId.Identifier);
    let [upper, lower] = [(number >> 64) as u64, number as u64];
    is_told.then_some((found.VolumeSerialNumber ^ upper, lower))
}

/// The same where numbers have 64 bits.
fn narrow_identity(found: &BY_HANDLE_FILE_INFORMATION) -> (u64, u64) {
    let number = u64::from(found.nFileIndexHigh) << 32 | u64::from(found.nFileIndexLow);
    (found.dwVolumeSerialNumber.into(), number)
}

/// How many names the file has.
pub(crate) fn links(file: &File) -> Result<u64, Errno> {
    inspect_at_once(file).map(|inode| inode.links)
}

/// One read at the start; the number of bytes read.
pub(crate) fn read_start(file: &File, into: &mut [u8]) -> Result<usize, Errno> {
    Ok(file.seek_read(into, 0)?)
}

/// One write; the number of bytes written.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    Ok(file.seek_write(bytes, offset)?)
}

/// A range of bytes that a kernel lock is on.
#[derive(Clone, Copy)]
struct Locked {
    start: u64,
    length: u64,
}

/// What the kernel lock of a lock file is on (1).
const OF_LOCK_FILE: Locked = Locked { start: LOCKED_BYTE, length: 1 };

/// What `std::fs::File::lock` locks.
const WHOLE: Locked = Locked { start: 0, length: u64::MAX };

impl Locked {
    /// Without waiting; `false` when another open file has a lock in the way.
    fn try_lock(self, file: &File, sharing: Sharing) -> Result<bool, Errno> {
        let exclusive = match sharing {
            Sharing::Exclusive => LOCKFILE_EXCLUSIVE_LOCK,
            Sharing::Shared => 0,
        };
        let (flags, mut place) = (LOCKFILE_FAIL_IMMEDIATELY | exclusive, self.place());
        let (low, high) = halves(self.length);
        // SAFETY: the handle is open, and the call is over when it returns: the file was
        // not opened for overlapped calls.
        let locked =
            answer(unsafe { LockFileEx(handle(file), flags, 0, low, high, &raw mut place) });
        match locked {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// One lock of this open file, the exclusive one first.
    fn unlock(self, file: &File) -> Result<(), Errno> {
        let (mut place, (low, high)) = (self.place(), halves(self.length));
        // SAFETY: as above.
        answer(unsafe { UnlockFileEx(handle(file), 0, low, high, &raw mut place) })
    }

    fn place(self) -> OVERLAPPED {
        let (low, high) = halves(self.start);
        let mut place = OVERLAPPED::default();
        place.Anonymous.Anonymous.Offset = low;
        place.Anonymous.Anonymous.OffsetHigh = high;
        place
    }
}

fn halves(number: u64) -> (u32, u32) {
    (number as u32, (number >> 32) as u32)
}

/// Whether a name can be given to another file while the one that has it is open (2).
pub(crate) const MAY_BE_REPLACED: bool = false;

/// The kernel lock of a lock file, without waiting; `false` when another open file has it.
pub(crate) fn try_pin(file: &File, sharing: Sharing) -> Result<bool, Errno> {
    OF_LOCK_FILE.try_lock(file, sharing)
}

/// End it.
pub(crate) fn unpin(file: &File) -> Result<(), Errno> {
    OF_LOCK_FILE.unlock(file)
}

/// Whether a directory can be locked as a file is.
pub(crate) const DIRECTORIES_HAVE_LOCKS: bool = false;

/// The lock that a program has which calls `std::fs::File::lock`, without waiting; `false`
/// when another open file has it.
pub(crate) fn try_flock(file: &File, sharing: Sharing) -> Result<bool, Errno> {
    WHOLE.try_lock(file, sharing)
}

/// End it.
pub(crate) fn unlock(file: &File) -> Result<(), Errno> {
    WHOLE.unlock(file)
}

/// Make an exclusive lock of this open file a shared one. No other gets in between: for a
/// moment it has both.
pub(crate) fn downgrade(file: &File) -> Result<bool, Errno> {
    Ok(WHOLE.try_lock(file, Sharing::Shared)? && WHOLE.unlock(file).is_ok())
}

/// Make a shared lock of this open file an exclusive one. Refused, it has none.
pub(crate) fn upgrade(file: &File) -> Result<bool, Errno> {
    WHOLE.unlock(file)?;
    WHOLE.try_lock(file, Sharing::Exclusive)
}

/// Whether others hear that a lock of a file was given back which was taken to look at it.
pub(crate) const LOOKS_ARE_HEARD: bool = false;

/// Whether another has the kernel lock that proves a holder's life: that cannot be asked
/// without taking it.
pub(crate) fn is_pinned(_: &File) -> Option<bool> {
    None
}

/// No other kind of lock is the kernel lock of a client elsewhere.
pub(crate) fn is_range_locked(_: &File) -> Result<bool, Errno> {
    Ok(false)
}

/// An event for waiters, where a lock was given up without a close. There is none.
pub(crate) fn signal(_: &File) {}

/// The names in a directory that begin with `prefix`.
pub(crate) fn list(directory: &Path, prefix: &OsStr) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether a process that inherits an open file has its lock too. A lock is also that of the
/// process that took it.
pub(crate) const ARE_INHERITED_LOCKED: bool = false;

/// The open file, for a user of this crate.
pub(crate) fn lend(file: &File) -> BorrowedFile<'_> {
    file.as_handle()
}

/// For a guard whose file carries the lock.
macro_rules! lends_its_file {
    ($lender:ty) => {
        /// The handle whose open file carries the lock.
        impl std::os::windows::io::AsHandle for $lender {
            fn as_handle(&self) -> std::os::windows::io::BorrowedHandle<'_> {
                std::os::windows::io::AsHandle::as_handle(self.file())
            }
        }
    };
}
pub(crate) use lends_its_file;

/// Volume and number of a directory.
pub(crate) fn directory_identity(path: &Path) -> Result<(u64, u64), Errno> {
    let inode = inspect_directory(path)?;
    if inode.kind == FileKind::Directory { Ok(inode.identity) } else { Err(Errno::NOTDIR) }
}

/// What is at the path, or where it leads.
pub(crate) fn inspect_directory(path: &Path) -> Result<Inode, Errno> {
    inspect_at(path, 0)
}

/// Whether names can be made in a directory by this process: that cannot be told.
pub(crate) fn may_make_names(_: &Path) -> bool {
    true
}

/// Whether a file can be written by this process, or that cannot be told.
pub(crate) fn may_write(path: &Path) -> bool {
    look(path).map_or(true, |inode| inode.mode & 0o222 != 0)
}

/// Why a file cannot have this name: what follows a colon is the name of a stream in it.
pub(crate) fn refused_name(name: &OsStr) -> Option<&'static str> {
    let has = |signs: &[u8]| name.as_encoded_bytes().iter().any(|sign| signs.contains(sign));
    match () {
        () if has(b":") => Some("it names a stream of a file, not a file"),
        () if has(br#"<>"|?*"#) => Some(r#"no name has one of < > " | ? * in it"#),
        () => None,
    }
}

/// A path that a URL has: text, and without the slash before the letter of a drive.
pub(crate) fn path_of_bytes(bytes: Vec<u8>) -> Option<OsString> {
    let path = String::from_utf8(bytes).ok()?;
    let has_drive = matches!(path.as_bytes(), [b'/', b'a'..=b'z' | b'A'..=b'Z', b':', ..]);
    Some(path[usize::from(has_drive)..].into())
}

/// Whether the file is on a file system whose kernel locks and numbers can be relied on: a
/// disk of this machine, with NTFS or ReFS.
pub(crate) fn is_local(file: &File) -> Result<bool, Errno> {
    Ok(is_local_disk(file)? && NUMBERING.contains(&file_system(file)?.as_str()))
}

/// Whether the file is on a disk of this machine.
fn is_local_disk(file: &File) -> Result<bool, Errno> {
    let mut status = IO_STATUS_BLOCK::default();
    let mut device = FILE_FS_DEVICE_INFORMATION::default();
    let (place, bytes) = ((&raw mut device).cast(), size_of_val(&device) as u32);
    // SAFETY: the handle is open, and the places are there until the call is over.
    let answer = unsafe {
        NtQueryVolumeInformationFile(
            handle(file),
            &raw mut status,
            place,
            bytes,
            FileFsDeviceInformation,
        )
    };
    if answer < 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let is_remote = device.Characteristics & (FILE_REMOTE_DEVICE | FILE_REMOTE_DEVICE_VSMB) != 0;
    Ok(DISKS.contains(&device.DeviceType) && !is_remote)
}

/// What the file system of a file is called.
fn file_system(file: &File) -> Result<String, Errno> {
    let mut name = [0_u16; 64];
    let no_number = std::ptr::null_mut();
    // SAFETY: the handle is open, and the buffer has that length. The others are not wanted.
    answer(unsafe {
        GetVolumeInformationByHandleW(
            handle(file),
            std::ptr::null_mut(),
            0,
            no_number,
            no_number,
            no_number,
            name.as_mut_ptr(),
            name.len() as u32,
        )
    })?;
    let end = name.iter().position(|unit| *unit == 0).unwrap_or(name.len());
    Ok(String::from_utf16_lossy(&name[..end]))
}

/// What a path names, and whether on a file system of this machine that can be relied on.
pub(crate) fn look_at_directory(path: &Path) -> Result<(Inode, bool), Errno> {
    let directory = open_to_ask(path, 0)?;
    Ok((inspect_at_once(&directory)?, is_local(&directory).unwrap_or(false)))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn names_in(directory: &TempDir) -> Vec<OsString> {
        list(directory.path(), "".as_ref()).unwrap()
    }

    #[test]
    fn a_file_stays_itself_when_it_is_renamed_and_no_other_has_its_name() {
        let directory = TempDir::new().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        let file = create(&from, 0).unwrap();
        let before = inspect(&file).unwrap();
        assert!(is_local(&file).unwrap());
        rename_to_free(&file, &from, &to).unwrap();
        assert_eq!(inspect(&file), Ok(before));
        assert_eq!(look(&to), Ok(before));
        assert_eq!(look(&from), Err(Errno::NOENT));
        let other = create(&from, 0).unwrap();
        assert_ne!(inspect(&other).unwrap().identity, before.identity);
        assert_eq!(rename_to_free(&other, &from, &to), Err(Errno::EXIST));
        assert_eq!(look(&to), Ok(before));
    }

    #[test]
    fn a_held_file_is_in_use_for_those_that_would_hold_or_remove_it() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("file");
        let held = create(&path, 0).unwrap();
        assert_eq!(open_to_write(&path).map(drop), Err(Errno::AGAIN));
        assert_eq!(unlink(&path), Err(Errno::AGAIN));
        assert_eq!(create(&path, 0).map(drop), Err(Errno::EXIST));
        open_to_read(&path).unwrap();
        drop(held);
        open_to_write(&path).unwrap();
    }

    #[test]
    fn the_name_of_a_removed_file_is_free_while_others_read_it() {
        let directory = TempDir::new().unwrap();
        let [path, aside] = ["file", "aside"].map(|name| directory.path().join(name));
        let held = create(&path, 0).unwrap();
        let reader = open_to_read(&path).unwrap();
        remove(&held, &path, || aside.clone()).unwrap();
        assert_eq!(look(&path), Err(Errno::NOENT));
        let next = create(&path, 0).unwrap();
        drop((held, reader));
        assert_eq!(names_in(&directory), ["file"]);
        remove(&next, &path, || aside).unwrap();
        drop(next);
        assert!(names_in(&directory).is_empty());
    }

    /// Without it, as where no other name can be made.
    #[test]
    fn a_file_that_cannot_be_put_aside_is_removed_where_it_is() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("file");
        let held = create(&path, 0).unwrap();
        remove(&held, &path, || directory.path().join("no such").join("aside")).unwrap();
        drop(held);
        assert!(names_in(&directory).is_empty());
    }

    #[test]
    fn the_lock_of_a_lock_file_keeps_no_reader_out() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("file");
        let held = create(&path, 0).unwrap();
        assert_eq!(write_at(&held, b"record", 0), Ok(6));
        assert_eq!(try_pin(&held, Sharing::Exclusive), Ok(true));
        let other = open_to_read(&path).unwrap();
        assert_eq!(try_pin(&other, Sharing::Exclusive), Ok(false));
        assert_eq!(try_pin(&other, Sharing::Shared), Ok(false));
        let mut read = [0; 8];
        assert_eq!(read_start(&other, &mut read), Ok(6));
        unpin(&held).unwrap();
        assert_eq!(try_pin(&other, Sharing::Exclusive), Ok(true));
    }

    #[test]
    fn a_lock_of_the_whole_file_is_changed_and_not_added_to() {
        let directory = TempDir::new().unwrap();
        let path = SystemPath::new(&directory.path().join("file"));
        let [one, other] = [(); 2].map(|()| open_or_create(&path, 0).unwrap());
        assert_eq!(try_flock(&one, Sharing::Exclusive), Ok(true));
        assert_eq!(try_flock(&other, Sharing::Shared), Ok(false));
        let first_byte = Locked { start: 0, length: 1 };
        assert_eq!(first_byte.try_lock(&other, Sharing::Shared), Ok(false));
        assert_eq!(downgrade(&one), Ok(true));
        assert_eq!(try_flock(&other, Sharing::Exclusive), Ok(false));
        assert_eq!(try_flock(&other, Sharing::Shared), Ok(true));
        // Refused, it has none.
        assert_eq!(upgrade(&one), Ok(false));
        assert_eq!(upgrade(&other), Ok(true));
        unlock(&other).unwrap();
        assert_eq!(try_flock(&one, Sharing::Exclusive), Ok(true));
    }

    #[test]
    fn paths_of_all_forms_may_be_long() {
        let long = |path: &str| String::from_utf16(&verbatim(path.as_ref())).unwrap();
        assert_eq!(long(r"C:\run\a.lock"), r"\\?\C:\run\a.lock");
        assert_eq!(long(r"\\server\share\a.lock"), r"\\?\UNC\server\share\a.lock");
        assert_eq!(long(r"\\?\C:\run\a.lock"), r"\\?\C:\run\a.lock");
        let directory = TempDir::new().unwrap();
        let deep = directory.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&deep).unwrap();
        let [from, to] = ["from", "to"].map(|name| deep.join(name));
        let file = create(&from, 0).unwrap();
        rename_to_free(&file, &from, &to).unwrap();
        assert_eq!(look(&to).unwrap().identity, inspect(&file).unwrap().identity);
    }

    #[test]
    fn a_path_of_a_url_has_its_drive_first() {
        let path = |bytes: &[u8]| path_of_bytes(bytes.to_vec());
        assert_eq!(path(b"/C:/run"), Some("C:/run".into()));
        assert_eq!(path(b"/run"), Some("/run".into()));
        assert_eq!(path(b"/\xff"), None);
    }

    #[test]
    fn directories_and_devices_are_no_files() {
        let directory = TempDir::new().unwrap();
        assert_eq!(look(directory.path()).unwrap().kind, FileKind::Directory);
        assert_eq!(open_to_read(directory.path()).map(drop), Err(Errno::ACCESS));
        let device = open_to_read("NUL".as_ref()).unwrap();
        assert_eq!(inspect(&device).unwrap().kind, FileKind::Device);
        let identity = directory_identity(directory.path());
        assert_eq!(identity, look(directory.path()).map(|inode| inode.identity));
    }
}
