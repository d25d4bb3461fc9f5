//! [`RemoteGuard`]: what a user has while holding a daemon's lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

use tokio_util::sync::CancellationToken;

use super::hold::Hold;
use crate::lock::error::{Error, Lost};
use crate::lock::fencing_token::FencingToken;

/// A daemon's lock that is held. Dropping it releases the lock.
///
/// While it lives, a thread of this crate (`lockkeeper-io`, one for the process)
/// renews the lease. A runtime of the caller that is blocked or gone changes nothing.
///
/// The drop schedules the release on that thread, and
/// [`AsyncRemoteLock::flush`](crate::AsyncRemoteLock::flush) waits for it. A process
/// that returns from `main` or calls `exit` waits for such releases too, at most for
/// one second. A process that ends otherwise leaves the lock to the end of its lease;
/// one without a lease stays held, until it is unlocked by force.
///
/// A forked child has lost the lock: it is its parent's. Dropping the child's copy of
/// the guard does nothing.
///
/// No clock can stop a process that was suspended inside and goes on, and the
/// clock of a virtual machine may stand still while its host does not run it.
/// What the lock guards can protect itself: let it refuse a
/// [`fencing_token`](Self::fencing_token) that is smaller than one before.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct RemoteGuard {
    hold: Hold,
}

impl RemoteGuard {
    pub(super) fn new(hold: Hold) -> Self {
        Self { hold }
    }

    /// Release the lock and report how that went.
    ///
    /// While the daemon cannot be reached it is tried again, for as long as
    /// [`reconnect`](crate::RemoteOptions::reconnect) says.
    ///
    /// # Cancel safety
    /// Once polled, the release goes on in the background.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock was lost before: another client may have
    /// been inside. [`Error::Unreachable`] if the daemon could not be
    /// told: the lock is held there until its lease ends.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// if let Err(error) = guard.release().await {
    ///     println!("another client may have been inside: {error}");
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
    /// Its lease could not be renewed in time then, or the daemon says that it is not held
    /// any more. Else it never resolves.
    ///
    /// A lease of the length T may be relied on for T × 10/11 − 0.25 s, counted from
    /// before the last request was sent that was answered, on a clock that runs while
    /// the machine is suspended. (Below 1.1 s a quarter is kept back instead of 0.25 s.)
    /// So this resolves before the daemon can give the lock to another, though the
    /// caller's runtime is blocked; if the process was stopped, as soon as it runs
    /// again. What an administrator ended is noticed at the next renewal.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncRemoteLock) -> Result<(), lockkeeper::Error> {
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
        self.hold.lease.lost().await
    }

    /// Whether the lock is lost, by the clock of this moment.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.hold.lease.look().is_some()
    }

    /// A token that is cancelled when [`lost`](Self::lost) would resolve, for
    /// code that takes tokens. Cancelling it affects no other code, and the release of
    /// the guard does not cancel it.
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        self.hold.lease.state.lost_token()
    }

    /// The fencing token: greater than that of every earlier hold.
    ///
    /// That counts for all grants of the daemon's directory, whatever was locked.
    #[must_use]
    pub fn fencing_token(&self) -> FencingToken {
        FencingToken::new(self.hold.lease.token.0, self.server())
    }

    /// The daemon's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        self.hold.lease.target.endpoint.url()
    }

    /// What is locked.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.hold.lease.target.resource
    }

    /// The name of the client.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.hold.lease.target.client
    }
}

// A panic leaves no hold half changed.
impl UnwindSafe for RemoteGuard {}
impl RefUnwindSafe for RemoteGuard {}

impl fmt::Debug for RemoteGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RemoteGuard")
            .field("server", &self.server())
            .field("resource", &self.resource())
            .field("client", &self.client())
            .field("fencing_token", &self.fencing_token())
            .field("is_lost", &self.is_lost())
            .finish()
    }
}
