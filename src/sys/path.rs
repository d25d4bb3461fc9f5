//! The path of a lock, taken apart.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf, is_separator};

use super::files;

/// Why a path can name no lock file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadPath {
    pub(crate) path: PathBuf,
    pub(crate) why: String,
}

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
    pub(crate) fn new(path: &Path) -> Result<Self, BadPath> {
        let refuse = |why: &str| BadPath { path: path.to_owned(), why: why.to_owned() };
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.is_empty() {
            return Err(refuse("it is empty"));
        }
        if bytes.contains(&0) {
            return Err(refuse("it contains a NUL byte"));
        }
        let last = bytes.rsplit(|&byte| is_separator(byte.into())).next().unwrap_or_default();
        if matches!(last, b"" | b"." | b"..") {
            return Err(refuse("it names a directory, not a file in one"));
        }
        let absolute = std::path::absolute(path)
            .map_err(|error| refuse(&format!("the working directory is unknown: {error}")))?;
        let directory = absolute.parent().ok_or_else(|| refuse("it has no directory"))?.to_owned();
        let name = absolute.file_name().ok_or_else(|| refuse("it has no file name"))?.to_owned();
        if let Some(why) = files::refused_name(&name) {
            return Err(refuse(why));
        }
        Ok(Self { path: absolute, directory, name })
    }

    /// A name in the same directory that no file is to have: it stands for something of this
    /// lock.
    pub(crate) fn labelled(&self, label: &str) -> Self {
        let mut name = self.name.clone();
        name.push(label);
        Self { path: self.directory.join(&name), directory: self.directory.clone(), name }
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
}
