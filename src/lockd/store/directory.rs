//! The directory of the locks: the only place that opens, links and unlinks in it.
//!
//! Everything is relative to one descriptor, and no symbolic link in the
//! directory is ever followed, so nothing outside is touched.

#![expect(clippy::disallowed_methods, reason = "the room of the daemon's files")]

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps,
};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use crate::lockd::name;
use crate::wire::CLIENT_MAX_BYTES;

/// A directory that is open.
#[derive(Debug)]
pub(crate) struct LockDirectory {
    descriptor: OwnedFd,
    path: PathBuf,
    publishing: Publishing,
    /// The mode and owners of new files; `None` where these are unknown.
    made: Option<Made>,
    drafts: AtomicU64,
}

/// The mode and the owners of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    mode: u32,
    owners: (u32, u32),
}

/// The way in which a complete file gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Publishing {
    /// Linked by its descriptor.
    Descriptor,
    /// Linked through `/proc`.
    Process,
    /// Linked from a hidden name.
    Draft,
}

/// A file with its contents that has no name a lock has.
#[derive(Debug)]
pub(crate) struct Prepared {
    origin: PreparedFrom,
    directory: Arc<LockDirectory>,
}

#[derive(Debug)]
enum PreparedFrom {
    Unnamed(OwnedFd),
    Draft(String),
    /// The file of a lock that ended.
    Spare(String),
    Published,
}

/// What is at a lock's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameState {
    Nothing,
    /// A file that names a client; when it was written, in milliseconds since 1970.
    Lock {
        client: String,
        since: u64,
    },
    /// A file that names no holder, what is wrong with it, and whether an administrator may
    /// remove it.
    Bad {
        why: String,
        is_file: bool,
    },
}

/// Files of a grant that was not finished.
pub(crate) const DRAFT: &str = ".lockkeeper-new";

const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Opening must not hang on a fifo, adopt a terminal or follow a link.
const OPEN_FLAGS: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

impl LockDirectory {
    /// Whether nothing can be written there, as the file system says.
    pub(crate) fn is_full(&self) -> bool {
        let Ok(room) = fs::fstatvfs(&self.descriptor) else { return false };
        let is_root = rustix::process::geteuid().is_root();
        let blocks = if is_root { room.f_bfree } else { room.f_bavail };
        // Some file systems have no fixed size or number of files, and say 0 of 0.
        (room.f_blocks > 0 && blocks == 0) || (room.f_files > 0 && room.f_ffree == 0)
    }

    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = retry_on_intr(|| fs::open(path, flags, Mode::empty()))?;
        let (path, drafts) = (path.to_owned(), AtomicU64::new(0));
        let (publishing, made) = (Publishing::Draft, None);
        let mut directory = Self { descriptor, path, publishing, made, drafts };
        directory.publishing = directory.find_publishing()?;
        let made = directory.create_unnamed().ok().and_then(|file| fs::fstat(&file).ok());
        directory.made = made.as_ref().map(made_as);
        Ok(Arc::new(directory))
    }

    /// Try each way once, with a name that no lock has.
    fn find_publishing(&self) -> Result<Publishing, Errno> {
        self.remove(DRAFT)?;
        let Ok(file) = self.create_unnamed() else {
            return Ok(Publishing::Draft);
        };
        for publishing in [Publishing::Descriptor, Publishing::Process] {
            if self.link_unnamed(publishing, &file, DRAFT).is_ok() {
                self.remove(DRAFT)?;
                return Ok(publishing);
            }
        }
        Ok(Publishing::Draft)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path_of(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    fn create_unnamed(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        retry_on_intr(|| fs::openat(&self.descriptor, c".", flags, FILE_MODE))
    }

    fn link_unnamed(&self, by: Publishing, file: &OwnedFd, to: &str) -> Result<(), Errno> {
        if by == Publishing::Descriptor {
            return fs::linkat(file, c"", &self.descriptor, to, AtFlags::EMPTY_PATH);
        }
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::linkat(CWD, from, &self.descriptor, to, AtFlags::SYMLINK_FOLLOW)
    }

    /// Write a file that has no name yet. A failure leaves nothing.
    pub(crate) fn prepare(self: &Arc<Self>, contents: &[u8]) -> Result<Prepared, Errno> {
        let directory = Arc::clone(self);
        if self.publishing != Publishing::Draft {
            let file = self.create_unnamed()?;
            write_all(&file, contents, 0)?;
            return Ok(Prepared { origin: PreparedFrom::Unnamed(file), directory });
        }
        let (name, file) = self.create_draft()?;
        let prepared = Prepared { origin: PreparedFrom::Draft(name), directory };
        write_all(&file, contents, 0)?;
        Ok(prepared)
    }

    /// Under a name that is free: a killed daemon's drafts stay until the directory is
    /// known to be whole.
    fn create_draft(&self) -> Result<(String, OwnedFd), Errno> {
        loop {
            let name = format!("{DRAFT}-{}", self.drafts.fetch_add(1, Ordering::Relaxed));
            match self.open_own(&name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL) {
                Err(Errno::EXIST) => {}
                file => return Ok((name, file?)),
            }
        }
    }

    /// Give a lock's file the name of a spare, if it looks like one; whether it does. Its
    /// contents are looked at when it is used again.
    pub(crate) fn set_aside(&self, name: &str, length: usize, spare: &str) -> bool {
        let here = &self.descriptor;
        let Ok(stat) = fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return false;
        };
        self.could_be_spare(&stat, length)
            && fs::renameat_with(here, name, here, spare, RenameFlags::NOREPLACE).is_ok()
    }

    fn could_be_spare(&self, stat: &Stat, length: usize) -> bool {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_nlink == 1
            && u64::try_from(stat.st_size).is_ok_and(|size| size == length as u64)
            && self.made == Some(made_as(stat))
    }

    /// Whether a spare is as a new file with these contents would be. If so, its time is set
    /// to now.
    pub(crate) fn is_as_new(&self, spare: &str, contents: &[u8]) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW };
        let now = Timestamps { last_access: now, last_modification: now };
        self.open_own(spare, OFlags::RDONLY).is_ok_and(|file| {
            fs::fstat(&file).is_ok_and(|stat| self.could_be_spare(&stat, contents.len()))
                && contains(&file, contents)
                && fs::futimens(&file, &now).is_ok()
        })
    }

    /// Open a file of the daemon's own.
    pub(crate) fn open_own(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        retry_on_intr(|| fs::openat(&self.descriptor, name, flags | OPEN_FLAGS, FILE_MODE))
    }

    /// Copy a file of the daemon's own beside it, for good; what the copy is called.
    /// A file that cannot be read is moved there.
    pub(crate) fn keep_aside(self: &Arc<Self>, name: &str) -> Result<String, Errno> {
        let mut names = (1..).map(|number| format!("{name}.damaged-{number}"));
        let aside = names.find(|aside| !self.has(aside)).ok_or(Errno::EXIST)?;
        match self.copy(name, &aside) {
            Err(Errno::IO) => fs::renameat(&self.descriptor, name, &self.descriptor, &*aside)?,
            copied => copied?,
        }
        self.sync()?;
        Ok(aside)
    }

    fn copy(self: &Arc<Self>, name: &str, to: &str) -> Result<(), Errno> {
        let copy = self.prepare(&read(&self.open_own(name, OFlags::RDONLY)?, usize::MAX)?)?;
        copy.sync()?;
        copy.publish(to)
    }

    /// Unlink; whether there was something.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Errno> {
        match fs::unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether there is anything. What cannot be looked at is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        let look = || fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW);
        retry_on_intr(look).err() != Some(Errno::NOENT)
    }

    /// Read what is at a lock's name.
    pub(crate) fn look(&self, name: &str) -> NameState {
        let bad = |why: String, is_file| NameState::Bad { why, is_file };
        let file = match self.open_own(name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Errno::NOENT) => return NameState::Nothing,
            Err(Errno::LOOP) => {
                let why = "it is a symbolic link, and those are never followed: remove it";
                return bad(why.to_owned(), false);
            }
            Err(error) => {
                return bad(format!("it cannot be opened ({error}): see to its mode"), false);
            }
        };
        let stat = match fs::fstat(&file) {
            Ok(stat) => stat,
            Err(error) => return bad(format!("it cannot be looked at: {error}"), false),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return bad("it is not a file: move it away".to_owned(), false);
        }
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        let since = seconds.saturating_mul(1000).saturating_add(stat.st_mtime_nsec / 1_000_000);
        match read(&file, CLIENT_MAX_BYTES + 1).map(name::client) {
            Ok(Ok(client)) => NameState::Lock { client, since },
            Ok(Err(why)) => {
                bad(format!("{why}: remove it, or write the client's name into it"), true)
            }
            Err(error) => bad(format!("it cannot be read: {error}"), true),
        }
    }

    /// The contents of a file that [`look`](Self::look) took for one.
    pub(crate) fn contents(&self, name: &str) -> Result<Vec<u8>, Errno> {
        read(&self.open_own(name, OFlags::RDONLY)?, CLIENT_MAX_BYTES + 1)
    }

    /// The names of all entries. Drafts of a killed daemon are removed.
    pub(crate) fn scan(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.descriptor)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name.starts_with(DRAFT.as_bytes()) {
                let _ = fs::unlinkat(&self.descriptor, name, AtFlags::empty());
            } else {
                names.push(name.to_vec());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Make the names durable.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        retry_on_intr(|| fs::fsync(&self.descriptor))
    }

    /// Make everything durable that is on this file system.
    pub(crate) fn sync_file_system(&self) -> Result<(), Errno> {
        retry_on_intr(|| fs::syncfs(&self.descriptor))
    }

    /// Make the contents of one file durable.
    pub(crate) fn sync_file(&self, name: &str) -> Result<(), Errno> {
        let file = self.open_own(name, OFlags::RDONLY)?;
        retry_on_intr(|| fs::fsync(&file))
    }
}

impl Prepared {
    /// A file that [`LockDirectory::is_as_new`].
    pub(crate) fn from_spare(directory: &Arc<LockDirectory>, spare: String) -> Self {
        Self { origin: PreparedFrom::Spare(spare), directory: Arc::clone(directory) }
    }

    /// Make the contents durable. A spare's are from before.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        match &self.origin {
            PreparedFrom::Unnamed(file) => retry_on_intr(|| fs::fsync(file)),
            PreparedFrom::Draft(name) => self.directory.sync_file(name),
            PreparedFrom::Spare(_) | PreparedFrom::Published => Ok(()),
        }
    }

    /// Give the file its name, where none may be: `EEXIST`.
    pub(crate) fn publish(mut self, name: &str) -> Result<(), Errno> {
        let (directory, here) = (&self.directory, &self.directory.descriptor);
        match &self.origin {
            PreparedFrom::Unnamed(file) => directory.link_unnamed(directory.publishing, file, name),
            PreparedFrom::Draft(draft) => {
                fs::linkat(here, draft.as_str(), here, name, AtFlags::empty())
            }
            PreparedFrom::Spare(spare) => {
                fs::renameat_with(here, spare.as_str(), here, name, RenameFlags::NOREPLACE)?;
                self.origin = PreparedFrom::Published;
                Ok(())
            }
            PreparedFrom::Published => unreachable!("BUG: a file was published twice"),
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let (PreparedFrom::Draft(name) | PreparedFrom::Spare(name)) = &self.origin else {
            return;
        };
        if let Err(error) = self.directory.remove(name) {
            let path = self.directory.path_of(name);
            tracing::warn!("{} could not be removed: {error}", path.display());
        }
    }
}

fn made_as(stat: &Stat) -> Made {
    Made { mode: stat.st_mode & 0o7777, owners: (stat.st_uid, stat.st_gid) }
}

/// Whether a file contains exactly this.
fn contains(file: &OwnedFd, contents: &[u8]) -> bool {
    let mut bytes = vec![0; contents.len() + 1];
    let length = retry_on_intr(|| pread(file, &mut bytes, 0));
    length.is_ok_and(|length| bytes[..length] == *contents)
}

/// Write all bytes at this place.
pub(crate) fn write_all(file: &OwnedFd, bytes: &[u8], place: u64) -> Result<(), Errno> {
    let mut written = 0;
    while written < bytes.len() {
        let place = place + written as u64;
        match retry_on_intr(|| pwrite(file, &bytes[written..], place))? {
            0 => return Err(Errno::IO),
            more => written += more,
        }
    }
    Ok(())
}

/// Read from the start, at most so much.
pub(crate) fn read(file: &OwnedFd, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut part = vec![0; limit.min(1 << 16)];
    while bytes.len() < limit {
        let most = part.len().min(limit - bytes.len());
        match retry_on_intr(|| pread(file, &mut part[..most], bytes.len() as u64))? {
            0 => break,
            more => bytes.extend_from_slice(&part[..more]),
        }
    }
    Ok(bytes)
}

impl NameState {
    pub(crate) fn as_client(&self) -> Option<&str> {
        match self {
            Self::Lock { client, .. } => Some(client),
            _ => None,
        }
    }
}

/// A name in the directory, shown.
pub(crate) fn shown(name: &[u8]) -> String {
    Path::new(OsStr::from_bytes(name)).display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::{read, read_dir};

    use super::*;

    /// Unprivileged processes and older file systems cannot do it every way.
    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let place = tempfile::TempDir::new().unwrap();
        for publishing in [Publishing::Descriptor, Publishing::Process, Publishing::Draft] {
            let mut directory =
                Arc::into_inner(LockDirectory::open(place.path()).unwrap()).unwrap();
            directory.publishing = publishing;
            let directory = Arc::new(directory);
            let count = || read_dir(place.path()).unwrap().count();
            directory.prepare(b"client").unwrap().publish("r").unwrap();
            assert_eq!(read(place.path().join("r")).unwrap(), b"client");
            let second = directory.prepare(b"other").unwrap();
            assert_eq!(second.publish("r"), Err(Errno::EXIST));
            drop(directory.prepare(b"third").unwrap());
            std::os::unix::fs::symlink("nowhere", place.path().join("link")).unwrap();
            assert_eq!(directory.prepare(b"c").unwrap().publish("link"), Err(Errno::EXIST));
            assert_eq!(read(place.path().join("r")).unwrap(), b"client");
            assert_eq!(count(), 2, "{publishing:?}");
            assert!(directory.remove("r").unwrap() && directory.remove("link").unwrap());
            assert_eq!((directory.remove("r"), directory.has("r")), (Ok(false), false));
        }
    }

    /// A killed daemon leaves drafts behind, and they stay until its damage is accepted.
    #[test]
    fn a_draft_of_a_killed_daemon_is_in_nobodys_way() {
        let place = tempfile::TempDir::new().unwrap();
        let left = [0, 1, 2].map(|number| place.path().join(format!("{DRAFT}-{number}")));
        left.iter().for_each(|path| std::fs::write(path, "left").unwrap());
        let mut directory = Arc::into_inner(LockDirectory::open(place.path()).unwrap()).unwrap();
        directory.publishing = Publishing::Draft;
        let directory = Arc::new(directory);
        super::super::token_counter::TokenCounter::create(&directory).unwrap();
        std::fs::write(place.path().join("own"), "damaged").unwrap();
        let aside = directory.keep_aside("own").unwrap();
        assert_eq!(read(place.path().join(aside)).unwrap(), b"damaged");
        assert!(left.iter().all(|path| read(path).unwrap() == b"left"));
        assert_eq!(read_dir(place.path()).unwrap().count(), left.len() + 3);
    }
}
