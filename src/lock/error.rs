//! One variant for each thing a caller does differently.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::holder::Holder;
use super::name::LockName;
use crate::sys::files::Errno;
use crate::sys::path::BadPath;

/// Why a lock could not be acquired, kept or released.
///
/// Every variant but [`InvalidOption`](Error::InvalidOption) names the lock.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another held the lock until the limit. Try later, or tell the user its holder.
    #[error("{} was not free within {}{}", lock, rounded(*waited), held_by(holder.as_deref()))]
    Timeout {
        /// The lock.
        lock: LockName,
        /// How long was waited.
        waited: Duration,
        /// The holder at the last look, where that can be told.
        holder: Option<Box<Holder>>,
    },

    /// The token given to [`acquire_with`](crate::AsyncFileLock::acquire_with) was cancelled.
    #[error("waiting for {} was cancelled", lock)]
    Cancelled {
        /// The lock.
        lock: LockName,
    },

    /// What is at the path is not a lock file; it stays as it is. Choose
    /// another path, or move the file away after looking at it.
    #[error(
        "{} is not a lock file ({found}) and was left as it is: choose another path or move it away",
        lock
    )]
    NotALockFile {
        /// The lock.
        lock: LockName,
        /// What is there instead.
        found: String,
    },

    /// The path cannot name a lock file. Correct it.
    #[error("{lock:?} cannot be used as a lock file: {why}")]
    BadPath {
        /// The lock.
        lock: LockName,
        /// What is wrong with it.
        why: String,
    },

    /// The directory of the lock file does not exist. Make it; this crate does not.
    #[error("{} cannot be made: its directory does not exist, make that first", lock)]
    NoDirectory {
        /// The lock.
        lock: LockName,
    },

    /// This process could not acquire the lock even if it were free.
    ///
    /// It may neither make a file in the directory nor write the lock file. That is found
    /// when it would have to wait. Let it write there, or run it as a user that may.
    #[error(
        "{} cannot be acquired by this process, now or when it is free: it may neither write that file nor make one in {} \
         (owned by user id {owner}, mode {mode:04o}): let it write there, or run it as a user who may",
        lock,
        directory.display()
    )]
    MayNotWrite {
        /// The lock.
        lock: LockName,
        /// Where a file would have to be made.
        directory: PathBuf,
        /// User id that owns the directory.
        owner: u32,
        /// Permission bits of the directory.
        mode: u32,
    },

    /// This process may not open the file of a kernel lock.
    ///
    /// Without that it can neither lock the file nor wait for it. Make it readable for
    /// this process.
    #[error(
        "{} may not be opened by this process, and so not be locked (owned by user id {owner}, mode {mode:04o}): \
         make it readable for this process, or let its user make it with another mode",
        lock
    )]
    MayNotOpen {
        /// The file to lock.
        lock: LockName,
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
        lock
    )]
    CannotTakeOver {
        /// The lock.
        lock: LockName,
        /// User id that owns the file.
        owner: u32,
        /// The holder that left it.
        stale: Box<Holder>,
        /// Why it could not be removed.
        source: io::Error,
    },

    /// A lock file was removed or replaced while it was being acquired, `tries` times over.
    ///
    /// Only programs that do not keep to the protocol do that, while the file is watched
    /// for `race_delay`. So it happens only after a foreign file was taken over, or with
    /// `openlock_compat`.
    #[error(
        "{} was removed or replaced {tries} times while it was being acquired: some program does not respect the lock",
        lock
    )]
    InvalidLockFile {
        /// The lock.
        lock: LockName,
        /// How often it was tried, see [`FileOptions::tries`](crate::FileOptions::tries).
        tries: u32,
    },

    /// Writing took so long that `race_delay` is no protection. Raise it. Only
    /// with [`SlowSystem::Error`](crate::SlowSystem::Error).
    #[error("writing {} took {took}, too long for a race_delay of {race_delay:?}: raise it", lock, took = rounded(*took))]
    SlowSystem {
        /// The lock.
        lock: LockName,
        /// How long the write took.
        took: Duration,
        /// The delay in force.
        race_delay: Duration,
    },

    /// With `openlock_compat`: Python openlock would take this process for dead.
    ///
    /// It would take the lock away. Start the process under a name with "python" in it. In a shell that is
    /// `exec -a python-worker PROGRAM`, in a unit of systemd
    /// `ExecStart=@PROGRAM python-worker`.
    #[error(
        "{} cannot be shared with openlock: it sees a holder only if \"python\" and {name:?} are in its command line, and ours is {command_line:?}: \
         start this program as `exec -a python-{name} PROGRAM`, or with systemd by `ExecStart=@PROGRAM python-{name}`",
        lock
    )]
    InvisibleToOpenlock {
        /// The lock.
        lock: LockName,
        /// Name that the lock file would carry.
        name: String,
        /// Command line of this process.
        command_line: String,
    },

    /// [`Proof::KernelLock`](crate::Proof::KernelLock) was asked for, and the file
    /// system cannot lock files.
    #[error("{} cannot be pinned: its file system has no flock", lock)]
    KernelLockUnavailable {
        /// The lock.
        lock: LockName,
        /// What the kernel said.
        source: io::Error,
    },

    /// The file system can hold no lock file.
    ///
    /// It has neither hard links nor a rename that does not replace, or it takes a file
    /// under a second name for another file. Use another directory, or a kernel lock ([`AsyncKernelLock`](crate::AsyncKernelLock)), which needs neither.
    #[error(
        "{} cannot be used as a lock file: its file system has no hard links that keep a file what it is, nor a rename that does not replace; a kernel lock works there (AsyncKernelLock, `lockkeeper run --kernel flock`)",
        lock
    )]
    NoHardLinks {
        /// The lock.
        lock: LockName,
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
    /// entered by another.
    #[error(transparent)]
    Lost(#[from] Lost),

    /// The lock is released, but its file could not be removed.
    ///
    /// The next contender can acquire it all the same.
    #[error("the lock {} is released, but its file could not be removed{}", lock, way_out(source))]
    NotRemoved {
        /// The lock.
        lock: LockName,
        /// Why not.
        source: io::Error,
    },

    /// The guard was made by another process, before a fork. Only that process
    /// may release it; here its descriptor was closed and nothing else.
    #[error("{} is held by process {holder}, from which this process was forked", lock)]
    Forked {
        /// The lock.
        lock: LockName,
        /// Process that holds it.
        holder: u32,
    },

    /// One lock was to be acquired twice at once: it would wait for itself.
    #[error("{} was asked for twice at once", lock)]
    SameLockTwice {
        /// The lock.
        lock: LockName,
    },

    /// The holder cannot be asked to release the lock. End that program, or wait.
    ///
    /// It is of another program, or its file cannot be read.
    #[error("{} is held by {holder}, which cannot be asked to release it ({evidence}): end it, or wait", lock, evidence = holder.evidence)]
    CannotAsk {
        /// The lock.
        lock: LockName,
        /// The holder.
        holder: Box<Holder>,
    },

    /// The process may have no more open files, or the system has no more files or
    /// memory. Close some, or raise the limit. A wait outlasts this: only a single try
    /// and a limit end with it.
    #[error("{doing} {} failed, as {}", lock, shortage_of(source))]
    Shortage {
        /// What was being done, as in "opening".
        doing: &'static str,
        /// The path it was done to.
        lock: LockName,
        /// What the system said.
        source: io::Error,
    },

    /// The server did not answer: nothing is known of the lock.
    ///
    /// That was so for as long as the options say (`reconnect`), or up to the limit of the
    /// wait. Start the server, or correct the URL.
    #[error("{doing} {lock}: the server could not be reached for {}", rounded(*tried))]
    Unreachable {
        /// The lock.
        lock: LockName,
        /// What was being done, as in "locking".
        doing: &'static str,
        /// How long it was tried, in whole milliseconds.
        tried: Duration,
        /// What went wrong at last.
        source: io::Error,
    },

    /// The server's certificate, or what stands for it, cannot be trusted. Name its
    /// authority in the options.
    #[error("{doing} {lock}: the server cannot be trusted")]
    Untrusted {
        /// The lock.
        lock: LockName,
        /// What was being done.
        doing: &'static str,
        /// What is wrong.
        source: io::Error,
    },

    /// The server does not know the credentials, or they are not good for this lock.
    #[error("{doing} {lock}: the server refused these credentials: {message}")]
    Forbidden {
        /// The lock.
        lock: LockName,
        /// What was being done.
        doing: &'static str,
        /// What the server said.
        message: String,
    },

    /// The server refused for another reason, which its message tells.
    #[error("{doing} {lock}: the server refused: {message}")]
    Refused {
        /// The lock.
        lock: LockName,
        /// What was being done.
        doing: &'static str,
        /// The server's word for the reason, for programs.
        code: String,
        /// What the server said.
        message: String,
    },

    /// What answered is no server of this kind. Correct the URL.
    ///
    /// Or it speaks TLS where the URL says that it does not, or the other way round.
    #[error("{doing} {lock}: what answers there is no lock server: {found}")]
    NotAServer {
        /// The lock.
        lock: LockName,
        /// What was being done.
        doing: &'static str,
        /// What came.
        found: String,
    },

    /// A key of another program stands first, and no release removes it.
    ///
    /// It would be waited for without end. Remove it, or name the lock otherwise.
    #[error(
        "{lock} cannot be acquired: the key {key:?} stands first ({why}): remove it if it belongs to no program, or choose another name"
    )]
    Foreign {
        /// The lock.
        lock: LockName,
        /// The key.
        key: String,
        /// What shows that.
        why: String,
    },

    /// The system refused something. The path may need other permissions, or
    /// the machine attention.
    #[error("{doing} {} failed{}", lock, way_out(source))]
    Io {
        /// What was being done, as in "opening".
        doing: &'static str,
        /// The path it was done to.
        lock: LockName,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn of_path(BadPath { path, why }: BadPath) -> Self {
        Error::BadPath { lock: path.into(), why }
    }

    /// The lock that the error is about.
    #[must_use]
    pub fn lock(&self) -> Option<&LockName> {
        match self {
            Error::InvalidOption { .. } => None,
            Error::Timeout { lock, .. }
            | Error::Cancelled { lock }
            | Error::NotALockFile { lock, .. }
            | Error::BadPath { lock, .. }
            | Error::NoDirectory { lock }
            | Error::MayNotWrite { lock, .. }
            | Error::MayNotOpen { lock, .. }
            | Error::CannotTakeOver { lock, .. }
            | Error::InvalidLockFile { lock, .. }
            | Error::SlowSystem { lock, .. }
            | Error::InvisibleToOpenlock { lock, .. }
            | Error::KernelLockUnavailable { lock, .. }
            | Error::NoHardLinks { lock, .. }
            | Error::Lost(Lost { lock, .. })
            | Error::NotRemoved { lock, .. }
            | Error::Forked { lock, .. }
            | Error::SameLockTwice { lock }
            | Error::CannotAsk { lock, .. }
            | Error::Shortage { lock, .. }
            | Error::Unreachable { lock, .. }
            | Error::Untrusted { lock, .. }
            | Error::Forbidden { lock, .. }
            | Error::Refused { lock, .. }
            | Error::NotAServer { lock, .. }
            | Error::Foreign { lock, .. }
            | Error::Io { lock, .. } => Some(lock),
        }
    }

    /// The file of the lock that the error is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.lock()?.path()
    }

    /// Whether the lock was held by another until the limit.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::Timeout { .. })
    }

    /// Whether the lock was lost while it was held.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::Lost(_))
    }

    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let (lock, source) = (path.into(), source.into());
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                Error::Shortage { doing, lock, source }
            }
            _ => Error::Io { doing, lock, source },
        }
    }

    /// The directory of `path` could not be looked at.
    pub(crate) fn of_directory(path: &Path, error: Errno) -> Self {
        match error {
            Errno::NOENT => Error::NoDirectory { lock: path.into() },
            Errno::NOTDIR => Self::not_a_directory(path),
            error => Self::io("looking at the directory of", path, error),
        }
    }

    pub(crate) fn not_a_directory(path: &Path) -> Self {
        Error::BadPath { lock: path.into(), why: NOT_A_DIRECTORY.to_owned() }
    }

    /// What is in the way, if that may pass by itself.
    pub(crate) fn hindrance(&self) -> Option<Hindrance> {
        match self {
            Error::Shortage { .. } => Some(Hindrance::Shortage),
            Error::NoDirectory { .. } => Some(Hindrance::NoDirectory),
            Error::BadPath { why, .. } if why == NOT_A_DIRECTORY => Some(Hindrance::NoDirectory),
            Error::Io { source, .. } => {
                let error = source.raw_os_error().map(Errno::from_raw_os_error);
                match error? {
                    Errno::NOENT | Errno::NOTDIR | Errno::STALE => Some(Hindrance::NoDirectory),
                    Errno::AGAIN => Some(Hindrance::InUse),
                    _ => None,
                }
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
    /// Another program has the file open in a way that keeps others out: on Linux by a lease,
    /// fcntl(2); on Windows without sharing, or it is being removed.
    InUse,
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

/// A lock that was lost while it was held, as `lost` and `release` of each guard tell it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock {lock} was lost: {reason}")]
#[non_exhaustive]
pub struct Lost {
    /// The lock.
    pub lock: LockName,
    /// What happened to it.
    pub reason: LostReason,
}

/// Why a held lock is not, or should no longer be, ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lock file was removed: another can acquire at any moment.
    Removed,
    /// Another file is at the path: another may be inside.
    Replaced,
    /// The release was asked for with [`revoke`](crate::AsyncFileLock::revoke).
    /// It is still held; stop and release it.
    Revoked,
    /// The lease was not renewed in time.
    ///
    /// The server was out of reach, or this process was stopped. The server may give the
    /// lock to another now.
    Expired,
    /// The server says that the lock is not held any more.
    ///
    /// An administrator ended the hold, its record was removed, or its lease had run out
    /// there.
    Ended,
    /// The lock is held by the process from which this one was forked, and only there.
    Forked,
}

impl fmt::Display for LostReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            LostReason::Removed => "its file was removed",
            LostReason::Replaced => "another file is at its path",
            LostReason::Revoked => "its release was asked for",
            LostReason::Expired => "its lease was not renewed in time",
            LostReason::Ended => "the server has ended it",
            LostReason::Forked => "it is that of the process from which this one was forked",
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
