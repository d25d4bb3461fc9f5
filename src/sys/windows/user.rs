//! The user that this process runs as.

use std::env::VarError;
use std::path::PathBuf;

/// The user's name, or why it is unknown.
pub(crate) fn name() -> Result<String, String> {
    std::env::var("USERNAME").map_err(|error| match error {
        VarError::NotPresent => "USERNAME is not set".to_owned(),
        VarError::NotUnicode(_) => "USERNAME is no Unicode".to_owned(),
    })
}

/// Unknown but for the environment.
pub(crate) fn home() -> Option<PathBuf> {
    None
}
