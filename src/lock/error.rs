//! One variant for each thing a caller does differently.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::holder::Holder;

/// Why a lock could not be had, kept or given back.
///
/// Every variant that concerns a file names its path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else had the lock until the limit. Try later, or tell the user who has it.
    #[error("{} was not free within {}{}", path.display(), rounded(*waited), held_by(holder.as_deref()))]
    Timeout {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// Who had it at the last look, where that can be told.
        holder: Option<Box<Holder>>,
    },

    /// The token given to [`acquire_with`](crate::AsyncFileLock::acquire_with) was cancelled.
    #[error("waiting for {} was cancelled", path.display())]
    Cancelled {
        /// The lock file.
        path: PathBuf,
    },

    /// What is at the path is not a lock file; it stays as it is. Choose
    /// another path, or move the file away after looking at it.
    #[error("{} is not a lock file ({found}) and was left as it is: choose another path or move it away", path.display())]
    NotALockFile {
        /// The path asked for.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },

    /// The path cannot name a lock file. Correct it.
    #[error("{:?} cannot be used as a lock file: {why}", path.as_os_str())]
    BadPath {
        /// The path asked for.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// The directory of the lock file does not exist. Make it; this crate does not.
    #[error("{} cannot be made: its directory does not exist, make that first", path.display())]
    NoDirectory {
        /// The lock file.
        path: PathBuf,
    },

    /// This process could not acquire the lock even if it were free: it may neither
    /// make a file in the directory nor write the lock file. Found when it would have
    /// to wait. Let it write there, or run it as a user who may.
    #[error(
        "{} cannot be acquired by this process, now or when it is free: it may neither write that file nor make one in {} \
         (owned by user id {owner}, mode {mode:04o}): let it write there, or run it as a user who may",
        path.display(),
        directory.display()
    )]
    MayNotWrite {
        /// The lock file.
        path: PathBuf,
        /// Where a file would have to be made.
        directory: PathBuf,
        /// User id that owns the directory.
        owner: u32,
        /// Permission bits of the directory.
        mode: u32,
    },

    /// This process may not open the file of a kernel lock, without which it can
    /// neither lock it nor wait for it. Make it readable for this process.
    #[error(
        "{} may not be opened by this process, and so not be locked (owned by user id {owner}, mode {mode:04o}): \
         make it readable for this process, or let its user make it with another mode",
        path.display()
    )]
    MayNotOpen {
        /// The file to lock.
        path: PathBuf,
        /// User id that owns the file.
        owner: u32,
        /// Permission bits of the file.
        mode: u32,
        /// What the kernel said.
        source: io::Error,
    },

    /// The holder is dead, but this user may neither rewrite nor remove its
    /// file. Its owner, or root, must remove it.
    #[error(
        "{} is stale (left by {stale}), but it belongs to user id {owner} and may neither be rewritten nor removed by this user",
        path.display()
    )]
    CannotTakeOver {
        /// The lock file.
        path: PathBuf,
        /// User id that owns the file.
        owner: u32,
        /// Who left it.
        stale: Box<Holder>,
        /// Why it could not be removed.
        source: io::Error,
    },

    /// A lock file that must be watched for `race_delay` was removed, or replaced
    /// by something that is no lock file, `tries` times over. Only programs that do not
    /// keep to the protocol do that, so it happens only after taking over a
    /// foreign file or with `openlock_compat`.
    #[error("{} was removed or replaced {tries} times while it was being acquired: some program does not respect the lock", path.display())]
    InvalidLockFile {
        /// The lock file.
        path: PathBuf,
        /// How often it was tried, see [`FileOptions::tries`](crate::FileOptions::tries).
        tries: u32,
    },

    /// Writing took so long that `race_delay` is no protection. Raise it. Only
    /// with [`SlowSystem::Error`](crate::SlowSystem::Error).
    #[error("writing {} took {took}, too long for a race_delay of {race_delay:?}: raise it", path.display(), took = rounded(*took))]
    SlowSystem {
        /// The lock file.
        path: PathBuf,
        /// How long the write took.
        took: Duration,
        /// The delay in force.
        race_delay: Duration,
    },

    /// With `openlock_compat`: Python openlock would not see this process as
    /// alive and would take its lock away. Start it with an `argv[0]` that
    /// contains "python".
    #[error(
        "{} cannot be shared with openlock: it sees a holder only if \"python\" and {name:?} are in its command line, and ours is {command_line:?}",
        path.display()
    )]
    InvisibleToOpenlock {
        /// The lock file.
        path: PathBuf,
        /// Name that the lock file would carry.
        name: String,
        /// Command line of this process.
        command_line: String,
    },

    /// [`Proof::KernelLock`](crate::Proof::KernelLock) was asked for, and the file
    /// system cannot lock files.
    #[error("{} cannot be pinned: its file system has no flock", path.display())]
    KernelLockUnavailable {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The file system has neither hard links nor a rename that does not replace, or
    /// takes a file under a second name for another file. Use another directory, or a
    /// kernel lock ([`AsyncKernelLock`](crate::AsyncKernelLock)), which needs neither.
    #[error(
        "{} cannot be used as a lock file: its file system has no hard links that keep a file what it is, nor a rename that does not replace; a kernel lock works there (AsyncKernelLock, `lockkeeper run --kernel flock`)",
        path.display()
    )]
    NoHardLinks {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said at last.
        source: io::Error,
    },

    /// An option has an impossible value.
    #[error("option {option}: {why}")]
    InvalidOption {
        /// Name of the option.
        option: &'static str,
        /// What is wrong with the value.
        why: String,
    },

    /// The lock was lost while it was held. What it guards may have been
    /// entered by somebody else.
    #[error(transparent)]
    Lost(#[from] Lost),

    /// The lock is given up, and the next contender can have it, but its file
    /// could not be removed.
    #[error("the lock {} is released, but its file could not be removed{}", path.display(), way_out(source))]
    NotRemoved {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The guard was made by another process, before a fork. Only that process
    /// may release it; here its descriptor was closed and nothing else.
    #[error("{} is held by process {holder}, from which this process was forked", path.display())]
    Forked {
        /// The lock file.
        path: PathBuf,
        /// Process that holds it.
        holder: u32,
    },

    /// One lock was to be acquired twice at once: it would wait for itself.
    #[error("{} was asked for twice at once", path.display())]
    SameLockTwice {
        /// The lock file.
        path: PathBuf,
    },

    /// The holder is another program's, or its file cannot be read, so it cannot be
    /// asked to let go. End that program, or wait.
    #[error("{} is held by {holder}, which cannot be asked to release it ({evidence}): end it, or wait", path.display(), evidence = holder.evidence)]
    CannotAsk {
        /// The lock file.
        path: PathBuf,
        /// Who has it.
        holder: Box<Holder>,
    },

    /// The process may have no more open files, or the system has no more files or
    /// memory. Close some, or raise the limit. A wait outlasts this: only a single try
    /// and a limit end with it.
    #[error("{doing} {} failed, as {}", path.display(), shortage_of(source))]
    Shortage {
        /// What was being done, as in "opening".
        doing: &'static str,
        /// The path it was done to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The system refused something. The path may need other permissions, or
    /// the machine attention.
    #[error("{doing} {} failed{}", path.display(), way_out(source))]
    Io {
        /// What was being done, as in "opening".
        doing: &'static str,
        /// The path it was done to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The path the error is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::InvalidOption { .. } => None,
            Error::Timeout { path, .. }
            | Error::Cancelled { path }
            | Error::NotALockFile { path, .. }
            | Error::BadPath { path, .. }
            | Error::NoDirectory { path }
            | Error::MayNotWrite { path, .. }
            | Error::MayNotOpen { path, .. }
            | Error::CannotTakeOver { path, .. }
            | Error::InvalidLockFile { path, .. }
            | Error::SlowSystem { path, .. }
            | Error::InvisibleToOpenlock { path, .. }
            | Error::KernelLockUnavailable { path, .. }
            | Error::NoHardLinks { path, .. }
            | Error::Lost(Lost { path, .. })
            | Error::NotRemoved { path, .. }
            | Error::Forked { path, .. }
            | Error::SameLockTwice { path }
            | Error::CannotAsk { path, .. }
            | Error::Shortage { path, .. }
            | Error::Io { path, .. } => Some(path),
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.to_owned(), source.into());
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                Error::Shortage { doing, path, source }
            }
            _ => Error::Io { doing, path, source },
        }
    }

    /// The directory of `path` could not be looked at.
    pub(crate) fn of_directory(path: &Path, error: Errno) -> Self {
        match error {
            Errno::NOENT => Error::NoDirectory { path: path.to_owned() },
            Errno::NOTDIR => Self::not_a_directory(path),
            error => Self::io("looking at the directory of", path, error),
        }
    }

    pub(crate) fn not_a_directory(path: &Path) -> Self {
        Error::BadPath { path: path.to_owned(), why: NOT_A_DIRECTORY.to_owned() }
    }

    /// What is in the way, if that may pass by itself.
    pub(crate) fn hindrance(&self) -> Option<Hindrance> {
        match self {
            Error::Shortage { .. } => Some(Hindrance::Shortage),
            Error::NoDirectory { .. } => Some(Hindrance::NoDirectory),
            Error::BadPath { why, .. } if why == NOT_A_DIRECTORY => Some(Hindrance::NoDirectory),
            Error::Io { source, .. } => {
                let error = source.raw_os_error().map(Errno::from_raw_os_error);
                let is_away = matches!(error, Some(Errno::NOENT | Errno::NOTDIR | Errno::STALE));
                is_away.then_some(Hindrance::NoDirectory)
            }
            _ => None,
        }
    }
}

/// What is in the way of a look and may pass by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// Of descriptors, or of memory.
    Shortage,
    /// Or a part of the way to it is gone, or is no directory.
    NoDirectory,
}

const NOT_A_DIRECTORY: &str = "a part of it is not a directory";

fn shortage_of(source: &io::Error) -> &'static str {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE) => {
            "this process may open no more files: close some, or raise its limit (ulimit -n)"
        }
        Some(Errno::NFILE) => {
            "the system may open no more files: close some, or raise fs.file-max (sysctl)"
        }
        _ => "the system is short of memory: free some",
    }
}

/// A duration for people: whole milliseconds below a second, tenths below a minute,
/// then whole seconds, as in `2s`, `1.5s` and `2m 5s`.
pub(crate) fn rounded(time: Duration) -> String {
    const MINUTE: Duration = Duration::from_secs(60);
    let millis = time.as_millis();
    match time {
        _ if millis == 0 => "0s".to_owned(),
        _ if millis < 1000 => format!("{millis}ms"),
        _ if time < MINUTE && millis % 1000 >= 100 => {
            format!("{}.{}s", millis / 1000, millis % 1000 / 100)
        }
        _ => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
    }
}

/// A lock that was lost while it was held, as [`FileGuard::lost`](crate::FileGuard::lost)
/// and [`FileGuard::release`](crate::FileGuard::release) tell it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock {} was lost: {reason}", path.display())]
#[non_exhaustive]
pub struct Lost {
    /// The lock file.
    pub path: PathBuf,
    /// What happened to it.
    pub reason: LostReason,
}

/// Why a held lock is not, or should no longer be, ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lock file was removed: somebody else can acquire at any moment.
    Removed,
    /// Another file is at the path: somebody else may be inside.
    Replaced,
    /// Somebody asked for the lock with [`revoke`](crate::AsyncFileLock::revoke).
    /// It is still held; stop and release it.
    Revoked,
}

impl fmt::Display for LostReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            LostReason::Removed => "its file was removed",
            LostReason::Replaced => "another file is at its path",
            LostReason::Revoked => "somebody asked for it to be released",
        })
    }
}

/// What to do about what the system said, where that is known.
fn way_out(said: &io::Error) -> &'static str {
    match said.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOLCK) => {
            " (the lock manager of its file system does not answer: for NFS, start rpc.statd \
             here and on the server, or mount with local_lock=flock where no other machine \
             shares the directory)"
        }
        Some(Errno::ROFS) => {
            " (its file system is read-only: use a directory that can be written, such as \
             one on /run)"
        }
        Some(Errno::NOSPC) => " (its file system is full: make room, or use another directory)",
        Some(Errno::DQUOT) => {
            " (the quota of its file system is used up: make room, or use another directory)"
        }
        Some(Errno::STALE) => {
            " (its directory is gone from the server: make it again, or mount it anew)"
        }
        Some(Errno::BUSY) => " (it is itself a mount point: mount its directory instead)",
        _ => "",
    }
}

fn held_by(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| format!(": held by {holder} ({})", holder.evidence))
}
