//! The names of one lock: its path, and what the protocol puts beside it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::file::record::HoldId;
use crate::lock::error::Error;

/// An absolute path that can name a lock file, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockPath {
    path: PathBuf,
    directory: PathBuf,
    name: OsString,
}

impl LockPath {
    /// Relative paths become absolute here, so that a later change of the
    /// working directory changes nothing.
    pub(crate) fn new(path: &Path) -> Result<Self, Error> {
        let refuse = |why: &str| Error::BadPath { path: path.to_owned(), why: why.to_owned() };
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() {
            return Err(refuse("it is empty"));
        }
        if bytes.contains(&0) {
            return Err(refuse("it contains a NUL byte"));
        }
        let last = bytes.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if matches!(last, b"" | b"." | b"..") {
            return Err(refuse("it names a directory, not a file in one"));
        }
        let absolute = std::path::absolute(path)
            .map_err(|error| refuse(&format!("the working directory is unknown: {error}")))?;
        let directory = absolute.parent().ok_or_else(|| refuse("it has no directory"))?.to_owned();
        let name = absolute.file_name().ok_or_else(|| refuse("it has no file name"))?.to_owned();
        Ok(Self { path: absolute, directory, name })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// A candidate that has to have a name before it is linked to the path.
    pub(crate) fn candidate(&self, token: HoldId) -> PathBuf {
        self.beside(Sibling::Candidate, token)
    }

    /// The claim on the stale generation `token`.
    pub(crate) fn claim(&self, token: HoldId) -> PathBuf {
        self.beside(Sibling::Claim, token)
    }

    /// The request that the holder `token` let go.
    pub(crate) fn revocation(&self, token: HoldId) -> PathBuf {
        self.beside(Sibling::Revocation, token)
    }

    fn beside(&self, sibling: Sibling, token: HoldId) -> PathBuf {
        let mut name = self.name.clone();
        name.push(format!(".{}.{token}", sibling.word()));
        self.directory.join(name)
    }

    /// What every sibling's name begins with.
    pub(crate) fn sibling_prefix(&self) -> Vec<u8> {
        [self.name.as_bytes(), b"."].concat()
    }

    /// Which sibling of this lock a name in its directory is.
    pub(crate) fn parse_sibling(&self, name: &OsStr) -> Option<(Sibling, HoldId)> {
        let rest = name.as_bytes().strip_prefix(self.sibling_prefix().as_slice())?;
        let (word, token) = std::str::from_utf8(rest).ok()?.split_once('.')?;
        let sibling = Sibling::ALL.into_iter().find(|sibling| sibling.word() == word)?;
        Some((sibling, token.parse().ok()?))
    }
}

/// Files that the protocol puts beside a lock file, as `<name>.<word>.<token>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sibling {
    Candidate,
    Claim,
    Revocation,
}

impl Sibling {
    const ALL: [Sibling; 3] = [Sibling::Candidate, Sibling::Claim, Sibling::Revocation];

    fn word(self) -> &'static str {
        match self {
            Sibling::Candidate => "new",
            Sibling::Claim => "break",
            Sibling::Revocation => "revoke",
        }
    }
}
