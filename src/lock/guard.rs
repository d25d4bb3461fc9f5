//! What a user has while holding a lock, of whatever kind.

use std::fmt::Debug;
use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::error::{Error, Lost};
use super::fencing_token::FencingToken;
use super::holder::Holder;
use super::sealed;

/// A lock that is held. Dropping it releases the lock.
pub trait Guard: Debug + Send + Sync + 'static + sealed::Sealed {
    /// Resolves when the lock is, or should be, no longer held. Else it never resolves.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    fn lost(&self) -> impl Future<Output = Lost> + Send;

    /// Whether the lock is known at this moment to be lost.
    fn is_lost(&self) -> bool;

    /// A token that is cancelled when [`lost`](Self::lost) would resolve. Cancelling it
    /// affects no other code, and the release of the guard does not cancel it.
    ///
    /// # Panics
    /// Outside a Tokio runtime, for locks of one machine.
    fn lost_token(&self) -> CancellationToken;

    /// The number of this hold, if the kind of lock counts them.
    fn fencing_token(&self) -> Option<FencingToken> {
        None
    }

    /// What names this hold, if the kind of lock names them.
    fn hold_id(&self) -> Option<String> {
        None
    }

    /// The holder before, if it died while it held the lock: what the lock guards may be
    /// half done.
    fn recovered_from(&self) -> Option<&Holder> {
        None
    }

    /// The descriptor that carries the lock, if one does. A child process that inherits a
    /// duplicate keeps the lock alive.
    #[cfg(unix)]
    fn lock_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    /// Release the lock and say how that went.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock was lost before; else why the release may not be seen
    /// by others yet.
    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static
    where
        Self: Sized;
}
