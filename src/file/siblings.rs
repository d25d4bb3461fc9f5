//! The names of the files that the protocol puts beside a lock file.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::local::hold_id::HoldId;
use crate::sys::path::LockPath;

/// Files that the protocol puts beside a lock file, as `<name>.<word>.<hold id>`.
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

impl LockPath {
    /// A candidate that has to have a name before it is linked to the path.
    pub(crate) fn candidate(&self, hold_id: HoldId) -> PathBuf {
        self.beside(Sibling::Candidate, hold_id)
    }

    /// The claim on the stale generation with this id.
    pub(crate) fn claim(&self, hold_id: HoldId) -> PathBuf {
        self.beside(Sibling::Claim, hold_id)
    }

    /// The request that the hold with this id be released.
    pub(crate) fn revocation(&self, hold_id: HoldId) -> PathBuf {
        self.beside(Sibling::Revocation, hold_id)
    }

    fn beside(&self, sibling: Sibling, hold_id: HoldId) -> PathBuf {
        let mut name = self.name().to_owned();
        name.push(format!(".{}.{hold_id}", sibling.word()));
        self.directory().join(name)
    }

    /// What every sibling's name begins with.
    pub(crate) fn sibling_prefix(&self) -> OsString {
        let mut prefix = self.name().to_owned();
        prefix.push(".");
        prefix
    }

    /// Which sibling of this lock a name in its directory is.
    pub(crate) fn parse_sibling(&self, name: &OsStr) -> Option<(Sibling, HoldId)> {
        let prefix = self.sibling_prefix();
        let rest = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes())?;
        let (word, hold_id) = std::str::from_utf8(rest).ok()?.split_once('.')?;
        let sibling = Sibling::ALL.into_iter().find(|sibling| sibling.word() == word)?;
        Some((sibling, hold_id.parse().ok()?))
    }
}
