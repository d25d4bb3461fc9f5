//! Taking a directory over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::api::OpenError;
use crate::lockd::store::{DiskError, Unopened};
use crate::sys::directory::may_use;
use crate::sys::process::boot_id;
use crate::{AsyncFileLock, Error, FileGuard, FileOptions};

/// The directory's own lock, as long as a daemon serves it.
pub(super) const DAEMON_LOCK: &str = ".lockkeeper-daemon.lock";

/// How long to wait for a daemon that was there before. A killed one is gone in less. With
/// more, a second daemon on one directory is refused later.
const PREDECESSOR: Duration = Duration::from_secs(1);

pub(super) async fn take_directory(path: &Path) -> Result<FileGuard, OpenError> {
    let options = FileOptions::default().note("a lock daemon serves this directory");
    let lock = AsyncFileLock::with_options(path.join(DAEMON_LOCK), options)?;
    match lock.acquire_timeout(PREDECESSOR).await {
        Ok(guard) => Ok(guard),
        Err(Error::Timeout { holder, .. }) => {
            let holder = holder
                .map_or_else(|| "it does not name its holder".to_owned(), |it| it.to_string());
            Err(OpenError::InUse { directory: path.to_owned(), holder })
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn check_directory(path: &Path) -> Result<(), OpenError> {
    let unusable = |doing, advice: &str| {
        let (path, advice) = (PathBuf::from(path), advice.to_owned());
        move |source| OpenError::Unusable { path, doing, advice, source }
    };
    let metadata = std::fs::metadata(path)
        .map_err(unusable("looking at the directory", "make it, or name another"))?;
    if !metadata.is_dir() {
        let error = std::io::Error::from(std::io::ErrorKind::NotADirectory);
        return Err(unusable("looking at the directory", "name a directory")(error));
    }
    may_use(path).map_err(|errno| {
        unusable("asking to write it", "let the daemon's user read and write it")(errno.into())
    })
}

/// What tells one boot from another.
pub(super) fn this_boot() -> [u8; 36] {
    let boot = boot_id().unwrap_or_default();
    // A boot that cannot be told is like no other: what the files say is checked.
    boot.as_bytes().try_into().unwrap_or([0; 36])
}

pub(super) fn not_opened(directory: &Path, unopened: Unopened) -> OpenError {
    match unopened {
        Unopened::Failed(failure) => {
            let advice = failure.advice();
            let DiskError { path, doing, errno } = failure;
            OpenError::Unusable { path, doing, advice, source: errno.into() }
        }
        Unopened::Damaged { found, remedy } => {
            OpenError::Damaged { directory: directory.to_owned(), found, remedy }
        }
    }
}
