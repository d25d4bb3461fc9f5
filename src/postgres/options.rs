//! [`PostgresOptions`]: how a PostgreSQL server's lock is asked for and kept.

use std::time::Duration;

use super::key::LockKey;
use crate::lock::error::Error;

/// A shorter lease leaves no time for a probe that comes late.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// The server counts milliseconds in 32 bits.
const LONGEST_LEASE: Duration = Duration::from_millis(i32::MAX as u64);

/// When the lock of a holder that vanished goes to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Takeover {
    /// When the lease of that holder is over: it has been told by then. The default.
    AfterLease,
    /// As soon as the server has ended its session. A holder that is only cut off may go on
    /// for as long as its lease says.
    AtOnce,
}

/// Where fencing tokens and the holder's name are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Table {
    /// In the table that `lockkeeper postgres-schema` prints. The default.
    Own,
    /// Nowhere. Tokens are transaction ids, no holder has a name, and the next holder is
    /// not told of one that vanished. The takeover is always at once.
    None,
}

/// Options of an [`AsyncPostgresLock`](crate::AsyncPostgresLock).
///
/// ```
/// use std::time::Duration;
/// use lockkeeper::{PostgresOptions, Takeover};
///
/// let options = PostgresOptions::default()
///     .lease(Duration::from_secs(10))
///     .takeover(Takeover::AtOnce);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PostgresOptions {
    pub(super) lease: Duration,
    pub(super) takeover: Takeover,
    pub(super) table: Table,
    pub(super) timeout: Option<Duration>,
    pub(super) reconnect: Duration,
    pub(super) most_locks: usize,
    pub(super) has_own_session: bool,
    pub(super) raw_key: Option<LockKey>,
    pub(super) note: Option<String>,
    /// What is shown instead of this program's name: `lockkeeper run` names its command.
    pub(super) name: Option<String>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            takeover: Takeover::AfterLease,
            table: Table::Own,
            timeout: None,
            reconnect: Duration::from_secs(30),
            most_locks: 1000,
            has_own_session: false,
            raw_key: None,
            note: None,
            name: None,
        }
    }
}

impl PostgresOptions {
    /// How long the lock is held without a sign of life from this process.
    ///
    /// In whole milliseconds, at least two seconds. Each session is probed each third of this.
    /// Default: 15 s.
    #[doc(alias = "ttl")]
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// When the lock of a holder that vanished goes to the next.
    /// Default: [`Takeover::AfterLease`].
    #[must_use]
    pub fn takeover(mut self, takeover: Takeover) -> Self {
        self.takeover = takeover;
        self
    }

    /// Where fencing tokens and the holder's name are kept. Default: [`Table::Own`].
    #[must_use]
    pub fn table(mut self, table: Table) -> Self {
        self.table = table;
        self
    }

    /// How long [`acquire`](crate::AsyncPostgresLock::acquire) waits. Default: `None`, for
    /// ever.
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// How long a server that does not answer is asked again. Each answer begins that time
    /// anew. Default: 30 s.
    #[must_use]
    pub fn reconnect(mut self, time: Duration) -> Self {
        self.reconnect = time;
        self
    }

    /// How many locks of one server this process holds or waits for at most.
    ///
    /// Advisory locks are kept in memory that all sessions of a server share
    /// (`max_locks_per_transaction` times `max_connections`). When that is full, no session
    /// gets any lock. Default: 1000.
    #[must_use]
    pub fn most_locks(mut self, locks: usize) -> Self {
        self.most_locks = locks;
        self
    }

    /// Hold the lock in a session of its own, for statements of the holder.
    ///
    /// They are made with [`PostgresGuard::client`](crate::PostgresGuard::client).
    /// Default: no, up to 256 locks share a session.
    #[must_use]
    pub fn own_session(mut self, own: bool) -> Self {
        self.has_own_session = own;
        self
    }

    /// The key of the advisory lock. Default: a hash of the name.
    ///
    /// With it a lock takes turns with a program that calls `pg_advisory_lock(key)`.
    #[must_use]
    pub fn raw_key(mut self, key: i64) -> Self {
        self.raw_key = Some(LockKey::One(key));
        self
    }

    /// The two keys of the advisory lock, as in `pg_advisory_lock(class, object)`.
    /// Default: a hash of the name, which is one key.
    #[must_use]
    pub fn raw_keys(mut self, class: i32, object: i32) -> Self {
        self.raw_key = Some(LockKey::Two(class, object));
        self
    }

    /// A line that is shown with the holder. Default: none.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Whether a holder that vanished is waited for.
    pub(super) fn waits_for_the_lease(&self) -> bool {
        self.table == Table::Own && self.takeover == Takeover::AfterLease
    }

    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |option, why: String| Err(Error::InvalidOption { option, why });
        if self.lease < SHORTEST_LEASE {
            let why = format!("{:?} is too short, at least 2 s are needed", self.lease);
            return wrong("lease", why);
        }
        if self.lease > LONGEST_LEASE {
            return wrong("lease", format!("{:?} is longer than the server counts", self.lease));
        }
        if self.lease.subsec_nanos() % 1_000_000 != 0 {
            return wrong("lease", format!("{:?} is not in whole milliseconds", self.lease));
        }
        if self.most_locks == 0 {
            return wrong("most_locks", "0 would be no lock at all".to_owned());
        }
        Ok(())
    }
}
