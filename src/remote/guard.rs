//! What a user has while holding a daemon's lock.

use std::fmt;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::error::{RemoteError, RemoteLost};
use super::tenure::Hold;

/// A daemon's lock that is held. Dropping it gives the lock back.
///
/// While it lives, a task on the runtime that the lock was acquired on renews
/// the lease; without that runtime the lease runs out.
///
/// The drop schedules the release on that runtime, and
/// [`AsyncRemoteLock::flush`](crate::AsyncRemoteLock::flush) waits for it. A
/// process that ends first leaves the lock to the end of its lease; one without
/// a lease stays held, until somebody unlocks it by force.
///
/// No clock can stop a process that was suspended inside and goes on, and the
/// clock of a virtual machine may stand still while its host does not run it.
/// What the lock guards can help itself: let it refuse a
/// [`token`](Self::token) that is smaller than one it has seen.
#[must_use = "the lock is given back as soon as the guard is dropped"]
pub struct RemoteGuard {
    // First: a renewal that comes after the release would be in vain.
    _renewing: AbortOnDropHandle<()>,
    hold: Hold,
}

impl RemoteGuard {
    pub(super) fn new(renewing: AbortOnDropHandle<()>, hold: Hold) -> Self {
        Self { _renewing: renewing, hold }
    }

    /// Give the lock back and say how that went. While the daemon cannot be
    /// reached it is tried again, for as long as
    /// [`reconnect`](crate::RemoteOptions::reconnect) says.
    ///
    /// # Cancel safety
    /// Once it was polled, it goes on in the background.
    ///
    /// # Errors
    /// [`RemoteError::Lost`] if the lock was lost before: somebody else may have
    /// been inside. [`RemoteError::Unreachable`] if the daemon could not be
    /// told: the lock is held there until its lease ends.
    pub async fn release(self) -> Result<(), RemoteError> {
        let Self { _renewing, hold } = self;
        drop(_renewing);
        hold.release().await
    }

    /// Resolves when the lock is lost: its lease could not be renewed in time,
    /// or the daemon says that it is not held any more. Else it never resolves.
    ///
    /// The lease counts from when the last renewal that was answered was sent,
    /// less a tenth, on a clock that runs while the machine is suspended. So
    /// this resolves before the daemon can give the lock to another, if this
    /// process runs; if it was stopped, as soon as it runs again. What an
    /// administrator ended is noticed at the next renewal.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn lost(&self) -> RemoteLost {
        self.hold.tenure.lost().await
    }

    /// Whether the lock is lost, by the clock of this moment.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.hold.tenure.look().is_some()
    }

    /// A token that is cancelled when [`lost`](Self::lost) would resolve, for
    /// code that takes tokens. Cancelling it affects nobody else. It is not
    /// cancelled when the guard is released.
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        self.hold.tenure.gone().child_token()
    }

    /// The fencing token: greater than that of every earlier grant of this
    /// daemon's directory, whatever was locked.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.hold.tenure.token
    }

    /// The daemon's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        self.hold.tenure.claim.server.url()
    }

    /// What is locked.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.hold.tenure.claim.resource
    }

    /// The name by which it is held.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.hold.tenure.claim.client
    }
}

impl fmt::Debug for RemoteGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RemoteGuard")
            .field("server", &self.server())
            .field("resource", &self.resource())
            .field("client", &self.client())
            .field("token", &self.token())
            .field("is_lost", &self.is_lost())
            .finish()
    }
}
