//! What a lock is called.

use std::fmt;
use std::path::{Path, PathBuf};

/// What a lock is called: a path, or a name at a server. Shown as one shows it to people.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LockName(Named);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Named {
    Path(PathBuf),
    At(Box<Remote>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Remote {
    name: String,
    server: String,
}

impl LockName {
    /// A lock that a server keeps.
    #[must_use]
    pub fn at(name: &str, server: &str) -> Self {
        let (name, server) = (name.to_owned(), server.to_owned());
        Self(Named::At(Box::new(Remote { name, server })))
    }

    /// The file of a lock of this machine.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Named::Path(path) => Some(path),
            Named::At(_) => None,
        }
    }

    /// The name of a lock that a server keeps.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.0 {
            Named::Path(_) => None,
            Named::At(remote) => Some(&remote.name),
        }
    }

    /// The server that keeps the lock, as a URL.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        match &self.0 {
            Named::Path(_) => None,
            Named::At(remote) => Some(&remote.server),
        }
    }
}

impl From<PathBuf> for LockName {
    fn from(path: PathBuf) -> Self {
        Self(Named::Path(path))
    }
}

impl From<&Path> for LockName {
    fn from(path: &Path) -> Self {
        Self(Named::Path(path.to_owned()))
    }
}

impl From<&str> for LockName {
    fn from(path: &str) -> Self {
        Path::new(path).into()
    }
}

impl PartialEq<Path> for LockName {
    fn eq(&self, path: &Path) -> bool {
        self.path() == Some(path)
    }
}

impl PartialEq<PathBuf> for LockName {
    fn eq(&self, path: &PathBuf) -> bool {
        *self == **path
    }
}

/// A path as it is, and a name quoted: it may hold anything.
impl fmt::Display for LockName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Named::Path(path) => path.display().fmt(out),
            Named::At(remote) => write!(out, "{:?} at {}", remote.name, remote.server),
        }
    }
}

/// Quoted.
impl fmt::Debug for LockName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Named::Path(path) => fmt::Debug::fmt(path, out),
            Named::At(_) => fmt::Display::fmt(self, out),
        }
    }
}
