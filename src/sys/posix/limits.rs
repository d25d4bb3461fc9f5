//! How much of something this process may have.

use rustix::process::{Resource, getrlimit};
#[cfg(feature = "cli")]
use rustix::process::{Rlimit, setrlimit};

/// How many files may be open.
pub(crate) fn open_files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Let as many files be open as this process may have, but no more than `most`.
#[cfg(feature = "cli")]
pub(crate) fn raise_open_files_to(most: Option<u64>) -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let current = match (limit.maximum, most) {
        (Some(maximum), Some(most)) => Some(maximum.min(most)),
        (maximum, most) => maximum.or(most),
    };
    let is_high_enough =
        limit.current.is_none_or(|now| current.is_some_and(|current| current <= now));
    if is_high_enough {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current, ..limit })?)
}
