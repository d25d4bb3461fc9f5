//! What a user has while holding a lock, of whatever kind.

use std::fmt::Debug;
use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::error::{Error, Lost};
use super::fencing_token::FencingToken;
use super::holder::Holder;
use super::sealed;
use crate::sys::files::BorrowedFile;

/// A lock that is held. Dropping it releases the lock.
pub trait Guard: Debug + Send + Sync + 'static + sealed::Sealed {
    /// Resolves when the lock is, or should be, no longer held. Else it never resolves.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Guard, Lock};
    ///
    /// # async fn work() {}
    /// let guard = lock.acquire().await?;
    /// tokio::select! {
    ///     () = work() => {}
    ///     lost = guard.lost() => return Err(lost.into()),
    /// }
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    fn lost(&self) -> impl Future<Output = Lost> + Send;

    /// Whether the lock is known at this moment to be lost.
    fn is_lost(&self) -> bool;

    /// A token that is cancelled when [`lost`](Self::lost) would resolve.
    ///
    /// Cancelling it
    /// affects no other code, and the release of the guard does not cancel it.
    ///
    /// # Panics
    /// Outside a Tokio runtime, for locks of one machine.
    fn lost_token(&self) -> CancellationToken;

    /// The number of this hold, if the kind of lock counts holds.
    fn fencing_token(&self) -> Option<FencingToken> {
        None
    }

    /// What names this hold, if the kind of lock names holds.
    fn hold_id(&self) -> Option<String> {
        None
    }

    /// The previous holder, if it died while it held the lock.
    ///
    /// What the lock guards may be half done then. Only lock files tell.
    fn recovered_from(&self) -> Option<&Holder> {
        None
    }

    /// The descriptor that carries the lock, if one does. A child process that inherits a
    /// duplicate keeps the lock alive.
    fn lock_fd(&self) -> Option<BorrowedFile<'_>> {
        None
    }

    /// Release the lock and report how that went.
    ///
    /// # Cancel safety
    /// Dropping the future releases the lock all the same, in the background where that takes
    /// time.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock was lost before; else why the release may not be seen
    /// by others yet.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Guard, Lock};
    ///
    /// let guard = lock.acquire().await?;
    /// if let Err(error) = guard.release().await {
    ///     println!("another may have been inside: {error}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "unlock")]
    fn release(self) -> impl Future<Output = Result<(), Error>> + Send + 'static
    where
        Self: Sized;
}
