//! Requests to the table of locks, and its answers.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::lockd::histogram::Histogram;
use crate::lockd::store::Syncs;

/// How the locks of a directory are kept.
#[derive(Clone, Debug)]
pub(crate) struct LockTableOptions {
    /// Whether an answer waits until the disk has what it says. Default: yes.
    pub(crate) sync: bool,
    /// Whether to go on without what a damaged journal has lost. Default: no.
    pub(crate) accept_damage: bool,
    /// No token up to this one is given. Default: none.
    pub(crate) tokens_above: Option<u64>,
    /// How many requests may wait at a time. Default: 100 000.
    pub(crate) waiting_limit: usize,
    /// How many locks one client may hold. Default: any number.
    pub(crate) locks_per_client: Option<usize>,
    /// How many requests of one client may wait. Default: any number.
    pub(crate) waiters_per_client: Option<usize>,
}

impl Default for LockTableOptions {
    fn default() -> Self {
        Self {
            sync: true,
            accept_damage: false,
            tokens_above: None,
            waiting_limit: 100_000,
            locks_per_client: None,
            waiters_per_client: None,
        }
    }
}

/// How long a request may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitLimit {
    /// One try.
    No,
    /// At most this long, counted from the call.
    Until(Duration),
    /// Without a limit.
    Forever,
}

/// A request for a lock.
#[derive(Clone, Debug)]
pub(crate) struct LockRequest {
    /// What to lock.
    pub(crate) resource: Arc<str>,
    /// The client.
    pub(crate) client: Arc<str>,
    /// How long to wait for the lock.
    pub(crate) wait: WaitLimit,
    /// How long the grant lasts unless it is renewed; `None`: until it is unlocked.
    pub(crate) lease: Option<Duration>,
    /// A name of the client's own choice for this request. A repetition is answered with
    /// the grant of the first time, and the lease runs anew.
    pub(crate) request_id: Option<Arc<str>>,
}

/// A lock that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GrantReply {
    /// The fencing token: greater than every one before it in this directory.
    pub(crate) token: u64,
    /// The time to its end without a renewal.
    pub(crate) lease: Option<Duration>,
}

/// Why a request was not fulfilled. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The name or the client is none that can be kept.
    BadName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The lease or the request id is none.
    Invalid {
        /// What is wrong with it.
        why: String,
    },
    /// The lock is held, perhaps by the same client.
    LockedBy {
        /// The holder, without white space around.
        client: String,
    },
    /// Another client holds it.
    NotYours {
        /// The holder, without white space around.
        holder: String,
        /// The client of the request.
        client: String,
    },
    /// The lock is not held.
    NotLocked,
    /// The client holds the lock by another grant.
    WrongToken,
    /// The lock was not free in time.
    TimedOut {
        /// The holder.
        holder: String,
    },
    /// The request with this id was granted before, and that grant is over.
    RequestOver,
    /// The file in the directory names no holder.
    Poisoned {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The directory could not be written; what was asked was not done.
    Storage {
        /// The file or the directory.
        path: PathBuf,
        /// What the kernel said, as `errno`.
        errno: i32,
        /// What was tried, and what to do.
        why: String,
    },
    /// Too many wait already.
    TooMany {
        /// How many may.
        limit: usize,
    },
    /// The client holds as many locks as it may.
    LocksPerClient {
        /// The client, without white space around.
        client: String,
        /// How many it may hold.
        limit: usize,
    },
    /// As many requests of the client wait as may.
    WaitersPerClient {
        /// The client, without white space around.
        client: String,
        /// How many may wait.
        limit: usize,
    },
    /// The daemon stops, or may not go on.
    ShuttingDown,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName { name, why } => write!(out, "{name:?} cannot be used: {why}"),
            Self::Invalid { why } => out.write_str(why),
            Self::LockedBy { client } => write!(out, "already locked by {client:?}"),
            Self::NotYours { holder, client } => {
                write!(out, "locked by {holder:?}, cannot be unlocked by {client:?}")
            }
            Self::NotLocked => out.write_str("not locked"),
            Self::WrongToken => out.write_str("the client has it by another grant"),
            Self::TimedOut { holder } => write!(out, "not free in time, locked by {holder:?}"),
            Self::RequestOver => out.write_str("the grant of this request is over"),
            Self::Poisoned { path, why } => write!(out, "{}: {why}", in_directory(path)),
            Self::Storage { path, errno, why } => {
                let error = io::Error::from_raw_os_error(*errno);
                write!(out, "{}: {why}: {error}", in_directory(path))
            }
            Self::TooMany { limit } => {
                write!(out, "{limit} requests wait already: try again later")
            }
            Self::LocksPerClient { client, limit } => write!(
                out,
                "the client {client:?} holds all the locks that one client may hold here \
                 (--locks-per-client {limit}): release one first"
            ),
            Self::WaitersPerClient { client, limit } => write!(
                out,
                "as many requests of the client {client:?} wait as may of one client here \
                 (--waiters-per-client {limit})"
            ),
            Self::ShuttingDown => out.write_str("the daemon is stopping"),
        }
    }
}

/// The name of a file for clients, without the path of the directory.
pub(crate) fn in_directory(path: &Path) -> impl fmt::Display + '_ {
    Path::new(path.file_name().unwrap_or(path.as_os_str())).display()
}

/// A lock that is held, or has a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockStatus {
    /// What is locked.
    pub(crate) resource: String,
    /// The holder, without white space around.
    pub(crate) client: String,
    /// The fencing token of the grant; 0 where there is a problem.
    pub(crate) token: u64,
    /// When it was granted, by the machine's clock.
    pub(crate) since: SystemTime,
    /// The lease, if it has one.
    pub(crate) lease: Option<LeaseStatus>,
    /// The waiters in the order of their turns; of many, the first
    /// [`WAITING_SHOWN`].
    pub(crate) waiting: Vec<WaiterStatus>,
    /// How many waiters there are.
    pub(crate) waiting_in_all: usize,
    /// The reason why no client can lock or unlock it.
    pub(crate) problem: Option<ProblemStatus>,
}

/// Waiters of one lock that are named. A client's name has up to 8 KiB, so the answer for
/// one lock is less than a megabyte; with more names it grows with them.
pub(crate) const WAITING_SHOWN: usize = 100;

/// What is in the place of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProblemStatus {
    /// The file.
    pub(crate) path: PathBuf,
    /// What is wrong with it, and what to do.
    pub(crate) why: String,
    /// Whether an administrator can remove it by force.
    pub(crate) is_removable: bool,
}

/// What there is to list, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// In the order of the list.
    pub(crate) names: Vec<Arc<str>>,
    pub(crate) held: usize,
    pub(crate) problems: usize,
    pub(crate) waiting: usize,
}

/// A lease that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseStatus {
    /// The time from each renewal to its end.
    pub(crate) length: Duration,
    /// What is left of it.
    pub(crate) remaining: Duration,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaiterStatus {
    /// Its client.
    pub(crate) client: String,
    /// Since when, by the machine's clock.
    pub(crate) since: SystemTime,
}

/// Counts since the start, and how many there are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Held now.
    pub(crate) held: u64,
    /// Waiting now.
    pub(crate) waiting: u64,
    /// Locks that were granted.
    pub(crate) granted: u64,
    /// Locks that their clients released.
    pub(crate) released: u64,
    /// Requests for a lock that were refused or ran out of time.
    pub(crate) refused: u64,
    /// Leases that ran out.
    pub(crate) expired: u64,
    /// Locks that an administrator ended.
    pub(crate) forced: u64,
    /// The greatest fencing token that was given.
    pub(crate) last_token: u64,
    /// How long requests waited for their grants.
    pub(crate) waits: Times,
    /// How long locks were held that ended.
    pub(crate) holds: Times,
    /// Files now that name no holder.
    pub(crate) problems: u64,
    /// Changes that the disk refused.
    pub(crate) disk_errors: u64,
    /// How long the journal's syncs took.
    pub(crate) syncs: Syncs,
}

/// How long something took that may be a moment or a day.
pub(crate) type Times = Histogram<{ TIME_BOUNDS.len() }>;

/// From locks that were free at once to locks that were left behind.
pub(crate) const TIME_BOUNDS: [Duration; 11] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(24 * 3600),
];

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another daemon serves it.
    #[error("{} is served by another daemon: {holder}", directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// The other daemon.
        holder: String,
    },
    /// The directory cannot be read or written.
    #[error("{}: {doing} failed: {advice}", path.display())]
    Unusable {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What to do.
        advice: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory's journal or its counter of tokens has lost something.
    #[error("{found}: {remedy}")]
    Damaged {
        /// The directory.
        directory: PathBuf,
        /// What was found, in which file, and at which byte.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// The directory's own lock could not be acquired.
    #[error("the directory's own lock could not be acquired")]
    Lock(#[from] crate::Error),
}
