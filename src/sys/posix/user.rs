//! The user that this process runs as.

use std::path::PathBuf;

use nix::unistd::{User, geteuid};

/// The user's name, or why it is unknown.
pub(crate) fn name() -> Result<String, String> {
    match User::from_uid(geteuid()) {
        Ok(Some(user)) => Ok(user.name),
        Ok(None) => Err(format!("user id {} has no name here", geteuid())),
        Err(error) => Err(error.desc().to_owned()),
    }
}

/// The user's home, by the system's list of users.
pub(crate) fn home() -> Option<PathBuf> {
    User::from_uid(geteuid()).ok().flatten().map(|user| user.dir)
}
