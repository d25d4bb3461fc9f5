//! [`PostgresGuard`]: what a user has while holding a server's lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::hold::Hold;
use super::options::Table;
use crate::lock::error::{Error, Lost};
use crate::lock::fencing_token::FencingToken;
use crate::lock::holder::Holder;

/// A server's lock that is held. Dropping it releases the lock.
///
/// While it lives, a thread of this crate (`lockkeeper-io`, one for the process) probes
/// the session that holds it. A runtime of the caller that is blocked or gone changes
/// nothing.
///
/// The drop schedules the release on that thread, and
/// [`AsyncPostgresLock::flush`](crate::AsyncPostgresLock::flush) waits for it. A process that
/// returns from `main` or calls `exit` waits for such releases too, at most for one
/// second. A process that ends otherwise leaves the lock to the end of its session.
///
/// A forked child has lost the lock: it is its parent's. Dropping the child's copy of the
/// guard does nothing.
///
/// No clock can stop a process that was suspended inside and goes on. What the lock guards
/// can protect itself: let it refuse a [`fencing_token`](Self::fencing_token) that is
/// smaller than one before, or work in the session that holds the lock: see
/// [`client`](Self::client).
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct PostgresGuard {
    hold: Hold,
}

impl PostgresGuard {
    pub(super) fn new(hold: Hold) -> Self {
        Self { hold }
    }

    /// Release the lock and report how that went.
    ///
    /// What the server does not carry out is asked again up to the end of the lease.
    ///
    /// # Cancel safety
    /// Once polled, the release goes on in the background.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock was lost before: another may have been inside.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// if let Err(error) = guard.release().await {
    ///     println!("another may have been inside: {error}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "unlock")]
    pub async fn release(self) -> Result<(), Error> {
        self.hold.release().await
    }

    /// Resolves when the lock is lost.
    ///
    /// Its session has ended then, or could not be probed in time. Else it never resolves.
    ///
    /// A lease of the length T may be relied on for T × 10/11 − 0.25 s, counted from before
    /// the last probe was sent that was answered, on a clock that runs while the machine
    /// is suspended. So this resolves before the lock goes to another, though the caller's
    /// runtime is blocked; if the process was stopped, as soon as it runs again. With
    /// [`Takeover::AtOnce`](crate::Takeover::AtOnce) another may be inside before.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncPostgresLock) -> Result<(), lockkeeper::Error> {
    /// # async fn work() {}
    /// let guard = lock.acquire().await?;
    /// tokio::select! {
    ///     () = work() => {}
    ///     lost = guard.lost() => return Err(lost.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lost(&self) -> Lost {
        self.hold.state.lost().await
    }

    /// Whether the lock is lost, by the clock of this moment.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.hold.state.look().is_some()
    }

    /// A token that is cancelled when [`lost`](Self::lost) would resolve, for code that
    /// takes tokens. Cancelling it affects no other code, and the release of the guard
    /// does not cancel it.
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        match self.hold.state.look() {
            // A forked child must not touch its parent's. (C2)
            Some(_) => {
                let cancelled = CancellationToken::new();
                cancelled.cancel();
                cancelled
            }
            None => self.hold.state.lost.child_token(),
        }
    }

    /// Up to when the lock may be relied on as things are: renewals move it on. Past if it
    /// is lost. This clock stands still while the machine is suspended, so ask anew after
    /// each wait, or use [`lost`](Self::lost).
    #[must_use]
    pub fn valid_until(&self) -> Instant {
        let now = Instant::now();
        match self.hold.state.look() {
            Some(_) => now,
            None => now + self.hold.state.session.state.remaining(),
        }
    }

    /// The fencing token: the server's timeline, and a counter of the lock.
    ///
    /// It is greater than that of every earlier hold. Its domain is `postgres:`, the
    /// server's system identifier and the database. It goes back only if an older state of
    /// the database is restored, or a standby is promoted that has not all of it.
    #[must_use]
    pub fn fencing_token(&self) -> FencingToken {
        let target = &self.hold.state.target;
        let server = &self.hold.state.session.raw.server;
        let domain = match server.system {
            Some(system) => format!("postgres:{system}/{}", server.database),
            None => format!("postgres:{}/{}", target.server.url, server.database),
        };
        FencingToken::new(self.hold.token, &domain)
    }

    /// The session that holds the lock, for statements of the holder's own.
    ///
    /// What is done in it ends with the lock: no fence is as good. `None` without
    /// [`own_session`](crate::PostgresOptions::own_session), as others' locks are in that
    /// session. The lock is lost by `pg_advisory_unlock` and `DISCARD ALL`, and by a
    /// statement that takes longer than the lease: no probe comes between. A transaction that
    /// has failed must be ended in that time too. One that is open at the release is rolled
    /// back. The `search_path` is `pg_catalog` alone, so name schemas.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use lockkeeper::{AsyncPostgresLock, PostgresOptions};
    ///
    /// let options = PostgresOptions::default().own_session(true);
    /// let lock = AsyncPostgresLock::with_options("host=db dbname=app", "import", options)?;
    /// let guard = lock.acquire().await?;
    /// if let Some(client) = guard.client() {
    ///     client.batch_execute("DELETE FROM app.jobs WHERE done").await?;
    /// }
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn client(&self) -> Option<&tokio_postgres::Client> {
        let is_own = self.hold.is_alone && self.hold.state.target.options().has_own_session;
        is_own.then(|| self.hold.state.session.lend())
    }

    /// The previous holder, if it vanished.
    ///
    /// Its work may be half done. `None` also without a table.
    #[must_use]
    pub fn recovered_from(&self) -> Option<&Holder> {
        self.hold.recovered_from.as_ref()
    }

    /// What no other hold has; `None` without a table, where no other would see it. It is as [`Holder::hold_id`] shows it.
    #[must_use]
    pub fn hold_id(&self) -> Option<&str> {
        let has_table = self.hold.state.target.options().table == Table::Own;
        has_table.then_some(&self.hold.id)
    }
}

// A panic leaves no hold half changed.
impl UnwindSafe for PostgresGuard {}
impl RefUnwindSafe for PostgresGuard {}

impl fmt::Debug for PostgresGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PostgresGuard")
            .field("lock", &self.hold.state.target.name())
            .field("fencing_token", &self.hold.token)
            .field("is_lost", &self.is_lost())
            .finish()
    }
}
