//! What a lock is called.

use std::fmt;
use std::path::{Path, PathBuf};

/// What a lock is called: a path, or a name at a server. Shown as one shows it to people.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LockName(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    Path(PathBuf),
    At(Box<AtServer>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct AtServer {
    name: String,
    server: String,
}

impl LockName {
    /// A lock that a server keeps.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::LockName;
    ///
    /// let name = LockName::at("import", "http://locks:8000");
    /// assert_eq!(name.to_string(), "\"import\" at http://locks:8000");
    /// ```
    #[must_use]
    pub fn at(name: &str, server: &str) -> Self {
        let (name, server) = (name.to_owned(), server.to_owned());
        Self(Form::At(Box::new(AtServer { name, server })))
    }

    /// The file of a lock of this machine.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Form::Path(path) => Some(path),
            Form::At(_) => None,
        }
    }

    /// The name of a lock that a server keeps.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.0 {
            Form::Path(_) => None,
            Form::At(at) => Some(&at.name),
        }
    }

    /// The server that keeps the lock, as a URL.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        match &self.0 {
            Form::Path(_) => None,
            Form::At(at) => Some(&at.server),
        }
    }
}

impl From<PathBuf> for LockName {
    fn from(path: PathBuf) -> Self {
        Self(Form::Path(path))
    }
}

impl From<&Path> for LockName {
    fn from(path: &Path) -> Self {
        Self(Form::Path(path.to_owned()))
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
            Form::Path(path) => path.display().fmt(out),
            Form::At(at) => write!(out, "{:?} at {}", at.name, at.server),
        }
    }
}

/// Quoted.
impl fmt::Debug for LockName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Path(path) => fmt::Debug::fmt(path, out),
            Form::At(_) => fmt::Display::fmt(self, out),
        }
    }
}
