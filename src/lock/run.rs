//! Work under a lock.

use std::future::Future;

use super::error::{Error, Lost};
use super::guard::Guard;

/// What became of work that ran under a lock.
#[derive(Debug)]
#[must_use = "the lock may have been lost while the work ran"]
#[non_exhaustive]
pub enum Ran<T> {
    /// The work is done, and the lock was held all the while.
    Done(T),
    /// The work is done, but the lock may have been lost meanwhile.
    ///
    /// The error is what the release reported. It may also be that the lock is still held.
    Doubtful(T, Error),
    /// The lock was lost before the work was done, and the work was dropped.
    Lost(Lost),
}

impl<T> Ran<T> {
    /// What the work gave, if the lock was held all the while.
    ///
    /// # Errors
    /// [`Error::Lost`], or what the release said. What the work gave is dropped.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Lock, Ran};
    ///
    /// let sum = lock.run(async { 1 + 2 }).await?.in_safety()?;
    /// // Or case by case:
    /// match lock.run(async { 1 + 2 }).await? {
    ///     Ran::Done(sum) => println!("{sum}"),
    ///     Ran::Doubtful(sum, why) => println!("{sum}, but {why}"),
    ///     Ran::Lost(lost) => println!("stopped: {lost}"),
    ///     _ => {}
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_safety(self) -> Result<T, Error> {
        match self {
            Ran::Done(output) => Ok(output),
            Ran::Doubtful(_, error) => Err(error),
            Ran::Lost(lost) => Err(lost.into()),
        }
    }
}

/// The work is dropped before the guard.
pub(crate) async fn under<G: Guard, F: Future>(guard: G, work: F) -> Ran<F::Output> {
    let output = {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            output = &mut work => Ok(output),
            lost = guard.lost() => Err(lost),
        }
    };
    // Some kinds release without a look.
    let lost_at_the_end = if output.is_ok() { look(&guard).await } else { None };
    match (output, guard.release().await, lost_at_the_end) {
        (Ok(output), Ok(()), None) => Ran::Done(output),
        (Ok(output), Ok(()), Some(lost)) => Ran::Doubtful(output, lost.into()),
        (Ok(output), Err(error), _) => Ran::Doubtful(output, error),
        (Err(lost), _, _) => Ran::Lost(lost),
    }
}

/// Why the lock is lost, if it is at this moment.
async fn look(guard: &impl Guard) -> Option<Lost> {
    if !guard.is_lost() {
        return None;
    }
    tokio::select! {
        biased;
        lost = guard.lost() => Some(lost),
        // It may look held again by now.
        () = tokio::task::yield_now() => None,
    }
}
