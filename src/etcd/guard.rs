//! [`EtcdGuard`]: what a user has while holding a cluster's lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::hold::Hold;
use super::key::EtcdKey;
use crate::lock::error::{Error, Lost};
use crate::lock::fencing_token::FencingToken;
use crate::lock::holder::Holder;

/// A cluster's lock that is held. Dropping it releases the lock.
///
/// While it lives, a thread of this crate (`lockkeeper-io`, one for the process) renews
/// the lease. A runtime of the caller that is blocked or gone changes nothing.
///
/// The drop schedules the release on that thread, and
/// [`AsyncEtcdLock::flush`](crate::AsyncEtcdLock::flush) waits for it. A process that
/// returns from `main` or calls `exit` waits for such releases too, at most for one
/// second. A process that ends otherwise leaves the lock to the end of its lease.
///
/// A forked child has lost the lock: it is its parent's. Dropping the child's copy of the
/// guard does nothing.
///
/// No clock can stop a process that was suspended inside and goes on, and the clock of a
/// virtual machine may stand still while its host does not run it. What the lock guards
/// can protect itself: let it refuse a [`fencing_token`](Self::fencing_token) that is
/// smaller than one before, or, in etcd, compare the [`key`](Self::key).
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct EtcdGuard {
    hold: Hold,
}

impl EtcdGuard {
    pub(super) fn new(hold: Hold) -> Self {
        Self { hold }
    }

    /// Release the lock and report how that went.
    ///
    /// While no member answers it is tried again,
    /// for as long as [`reconnect`](crate::EtcdOptions::reconnect) says, and then in the
    /// background up to the end of the lease.
    ///
    /// # Cancel safety
    /// Once polled, the release goes on in the background.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock was lost before: another may have been inside.
    /// [`Error::Unreachable`] if no member could be told.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
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
    /// Its lease could not be renewed in time then, or its key is gone. Else it never
    /// resolves.
    ///
    /// A lease of the length T may be relied on for T × 10/11 − 0.25 s, counted from before
    /// the last request was sent that was answered, on a clock that runs while the machine
    /// is suspended. So this resolves before the cluster can give the lock to another,
    /// though the caller's runtime is blocked; if the process was stopped, as soon as it
    /// runs again. A key that an operator deleted is noticed as soon as a member tells it.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncEtcdLock) -> Result<(), lockkeeper::Error> {
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

    /// The fencing token: the cluster's revision at which the lock was acquired.
    ///
    /// It is greater than that of every earlier hold, those of etcdctl and Go included. Its
    /// domain is `etcd:` and the cluster's id. It goes back only if an older state of the
    /// cluster is restored under the same id.
    #[must_use]
    pub fn fencing_token(&self) -> FencingToken {
        let state = &self.hold.state;
        FencingToken::new(self.hold.token, &state.session.domain())
    }

    /// The key by which the lock is held, for transactions of the holder's own.
    #[must_use]
    pub fn key(&self) -> &EtcdKey {
        &self.hold.key
    }

    /// The previous holder, if its lease ended while this one waited.
    ///
    /// Its work may be half done. `None` also where that cannot be told: of a holder that died before
    /// the wait began or in its first second, and of other programs' holders.
    #[must_use]
    pub fn recovered_from(&self) -> Option<&Holder> {
        self.hold.recovered_from.as_ref()
    }

    /// What no other hold has, as [`Holder::hold_id`] shows it.
    #[must_use]
    pub fn hold_id(&self) -> &str {
        let name = &self.hold.key.name;
        name.rsplit_once('/').map_or(name.as_str(), |(_, id)| id)
    }
}

// A panic leaves no hold half changed.
impl UnwindSafe for EtcdGuard {}
impl RefUnwindSafe for EtcdGuard {}

impl fmt::Debug for EtcdGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("EtcdGuard")
            .field("lock", &self.hold.state.target.name())
            .field("key", &self.hold.key)
            .field("fencing_token", &self.hold.token)
            .field("is_lost", &self.is_lost())
            .finish()
    }
}
