//! The directory of the locks: the only place that opens, links and unlinks in it.
//!
//! Everything is relative to one descriptor, and no symbolic link in the
//! directory is ever followed, so nothing outside is touched.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lockd::name;
use crate::sys::directory::{self, Directory, FileState};
use crate::sys::files::{Errno, write_at};
use crate::wire::CLIENT_MAX_BYTES;

/// A directory that is open.
#[derive(Debug)]
pub(crate) struct LockDirectory {
    entries: Directory,
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
    Unnamed(File),
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

impl LockDirectory {
    /// Whether nothing can be written there, as the file system says.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.is_full()
    }

    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, Errno> {
        let entries = Directory::open(path)?;
        let (path, drafts) = (path.to_owned(), AtomicU64::new(0));
        let (publishing, made) = (Publishing::Draft, None);
        let mut directory = Self { entries, path, publishing, made, drafts };
        directory.publishing = directory.find_publishing()?;
        directory.made = directory.entries.new_file(DRAFT).ok().as_ref().map(made_as);
        Ok(Arc::new(directory))
    }

    /// Try each way once, with a name that no lock has.
    fn find_publishing(&self) -> Result<Publishing, Errno> {
        self.remove(DRAFT)?;
        let Ok(file) = self.entries.create_unnamed() else {
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

    fn link_unnamed(&self, by: Publishing, file: &File, to: &str) -> Result<(), Errno> {
        match by {
            Publishing::Descriptor => self.entries.link_by_descriptor(file, to),
            _ => self.entries.link_by_process(file, to),
        }
    }

    /// Write a file that has no name yet. A failure leaves nothing.
    pub(crate) fn prepare(self: &Arc<Self>, contents: &[u8]) -> Result<Prepared, Errno> {
        let directory = Arc::clone(self);
        if self.publishing != Publishing::Draft {
            let file = self.entries.create_unnamed()?;
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
    fn create_draft(&self) -> Result<(String, File), Errno> {
        loop {
            let name = format!("{DRAFT}-{}", self.drafts.fetch_add(1, Ordering::Relaxed));
            match self.entries.create(&name) {
                Err(Errno::EXIST) => {}
                file => return Ok((name, file?)),
            }
        }
    }

    /// Give a lock's file the name of a spare, if it looks like one; whether it does. Its
    /// contents are looked at when it is used again.
    pub(crate) fn set_aside(&self, name: &str, length: usize, spare: &str) -> bool {
        let Ok(found) = self.entries.look(name) else {
            return false;
        };
        self.could_be_spare(&found, length) && self.entries.rename_to_free(name, spare).is_ok()
    }

    fn could_be_spare(&self, found: &FileState, length: usize) -> bool {
        found.is_file
            && found.links == 1
            && found.length == length as u64
            && self.made == Some(made_as(found))
    }

    /// Whether a spare is as a new file with these contents would be. If so, its time is set
    /// to now.
    pub(crate) fn is_as_new(&self, spare: &str, contents: &[u8]) -> bool {
        self.open_to_read(spare).is_ok_and(|file| {
            directory::inspect(&file).is_ok_and(|it| self.could_be_spare(&it, contents.len()))
                && contains(&file, contents)
                && directory::touch(&file).is_ok()
        })
    }

    pub(crate) fn open_to_read(&self, name: &str) -> Result<File, Errno> {
        self.entries.open_to_read(name)
    }

    /// Open a file of the daemon's own, which is made if it is not there.
    pub(crate) fn open_own(&self, name: &str) -> Result<File, Errno> {
        self.entries.open_or_create(name)
    }

    /// Copy a file of the daemon's own beside it, for good; what the copy is called.
    /// A file that cannot be read is moved there.
    pub(crate) fn keep_aside(self: &Arc<Self>, name: &str) -> Result<String, Errno> {
        let mut names = (1..).map(|number| format!("{name}.damaged-{number}"));
        let aside = names.find(|aside| !self.has(aside)).ok_or(Errno::EXIST)?;
        match self.copy(name, &aside) {
            Err(Errno::IO) => self.entries.rename(name, &aside)?,
            copied => copied?,
        }
        self.sync()?;
        Ok(aside)
    }

    fn copy(self: &Arc<Self>, name: &str, to: &str) -> Result<(), Errno> {
        let copy = self.prepare(&read(&self.open_to_read(name)?, usize::MAX)?)?;
        copy.sync()?;
        copy.publish(to)
    }

    /// Unlink; whether there was something.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Errno> {
        match self.entries.unlink(name.as_bytes()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether there is anything. What cannot be looked at is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.look(name).err() != Some(Errno::NOENT)
    }

    /// Read what is at a lock's name.
    pub(crate) fn look(&self, name: &str) -> NameState {
        let bad = |why: String, is_file| NameState::Bad { why, is_file };
        let file = match self.open_to_read(name) {
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
        let found = match directory::inspect(&file) {
            Ok(found) => found,
            Err(error) => return bad(format!("it cannot be looked at: {error}"), false),
        };
        if !found.is_file {
            return bad("it is not a file: move it away".to_owned(), false);
        }
        let since = found.modified_ms;
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
        read(&self.open_to_read(name)?, CLIENT_MAX_BYTES + 1)
    }

    /// The names of all entries. Drafts of a killed daemon are removed.
    pub(crate) fn scan(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = Vec::new();
        for name in self.entries.names()? {
            if name.starts_with(DRAFT.as_bytes()) {
                let _ = self.entries.unlink(&name);
            } else {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Make the names durable.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        self.entries.sync()
    }

    /// Make all files and names durable.
    pub(crate) fn sync_all(&self) -> Result<(), Errno> {
        self.entries.sync_all()
    }

    /// Make the contents of one file durable.
    pub(crate) fn sync_file(&self, name: &str) -> Result<(), Errno> {
        directory::sync(&self.open_to_read(name)?)
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
            PreparedFrom::Unnamed(file) => directory::sync(file),
            PreparedFrom::Draft(name) => self.directory.sync_file(name),
            PreparedFrom::Spare(_) | PreparedFrom::Published => Ok(()),
        }
    }

    /// Give the file its name, where none may be: `EEXIST`.
    pub(crate) fn publish(mut self, name: &str) -> Result<(), Errno> {
        let directory = &self.directory;
        match &self.origin {
            PreparedFrom::Unnamed(file) => directory.link_unnamed(directory.publishing, file, name),
            PreparedFrom::Draft(draft) => directory.entries.link(draft, name),
            PreparedFrom::Spare(spare) => {
                directory.entries.rename_to_free(spare, name)?;
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

fn made_as(found: &FileState) -> Made {
    Made { mode: found.mode, owners: (found.owner, found.group) }
}

/// Whether a file contains exactly this.
fn contains(file: &File, contents: &[u8]) -> bool {
    let mut bytes = vec![0; contents.len() + 1];
    let length = directory::read_at(file, &mut bytes, 0);
    length.is_ok_and(|length| bytes[..length] == *contents)
}

/// Write all bytes at this place.
pub(crate) fn write_all(file: &File, bytes: &[u8], place: u64) -> Result<(), Errno> {
    let mut written = 0;
    while written < bytes.len() {
        let place = place + written as u64;
        match write_at(file, &bytes[written..], place)? {
            0 => return Err(Errno::IO),
            more => written += more,
        }
    }
    Ok(())
}

/// Read from the start, at most so much.
pub(crate) fn read(file: &File, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut part = vec![0; limit.min(1 << 16)];
    while bytes.len() < limit {
        let most = part.len().min(limit - bytes.len());
        match directory::read_at(file, &mut part[..most], bytes.len() as u64)? {
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
    String::from_utf8_lossy(name).into_owned()
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
            let has_unnamed = directory.entries.create_unnamed().is_ok();
            if publishing != Publishing::Draft && !has_unnamed {
                continue;
            }
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
