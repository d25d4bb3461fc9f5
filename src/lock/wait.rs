//! How long an acquisition waits, and what becomes of it.

use std::time::Duration;

use tokio::time::Instant;

use super::holder::Holder;

/// How long an acquisition waits while another holds the lock.
///
/// A limit is given once, for the whole acquisition: limits of a lock's options and of a
/// call do not add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// One try.
    No,
    /// Up to this moment, at which there is a last try.
    Until(Instant),
    /// For as long as it takes.
    Forever,
}

impl Wait {
    /// From now on at most this long; without a limit, for as long as it takes.
    ///
    /// A limit that no clock can show is none.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkeeper::Wait;
    ///
    /// assert_eq!(Wait::at_most(Duration::ZERO), Wait::No);
    /// assert_eq!(Wait::at_most(None), Wait::Forever);
    /// assert!(matches!(Wait::at_most(Duration::from_secs(5)), Wait::Until(_)));
    /// ```
    pub fn at_most(limit: impl Into<Option<Duration>>) -> Self {
        match limit.into() {
            Some(Duration::ZERO) => Wait::No,
            Some(limit) => Instant::now().checked_add(limit).map_or(Wait::Forever, Wait::Until),
            None => Wait::Forever,
        }
    }

    /// The time that is left; `None` if there is no limit.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkeeper::Wait;
    ///
    /// assert_eq!(Wait::No.left(), Some(Duration::ZERO));
    /// assert_eq!(Wait::Forever.left(), None);
    /// ```
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        match self {
            Wait::No => Some(Duration::ZERO),
            Wait::Until(end) => Some(end.saturating_duration_since(Instant::now())),
            Wait::Forever => None,
        }
    }
}

/// What became of an acquisition that may end without the lock.
#[derive(Debug)]
#[must_use = "a guard that is dropped releases the lock"]
pub enum Acquired<G> {
    /// The lock is held by this guard.
    Held(G),
    /// Another held the lock for as long as there was time to wait.
    Busy(Busy),
}

impl<G> Acquired<G> {
    /// The guard, if the lock was acquired.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Lock, Wait};
    ///
    /// if let Some(guard) = lock.acquire_within(Wait::No).await?.held() {
    ///     drop(guard);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn held(self) -> Option<G> {
        match self {
            Acquired::Held(guard) => Some(guard),
            Acquired::Busy(_) => None,
        }
    }

    /// The same with another guard.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: impl lockkeeper::Lock) -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{Lock, Wait};
    ///
    /// // With the time at which it was acquired.
    /// let acquired = lock.acquire_within(Wait::No).await?;
    /// let acquired = acquired.map(|guard| (guard, std::time::Instant::now()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<H>(self, change: impl FnOnce(G) -> H) -> Acquired<H> {
        match self {
            Acquired::Held(guard) => Acquired::Held(change(guard)),
            Acquired::Busy(busy) => Acquired::Busy(busy),
        }
    }
}

/// The lock is held by another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Busy {
    /// The holder at the last look, where that can be told.
    pub holder: Option<Box<Holder>>,
}

impl Busy {
    pub(crate) fn new(holder: Option<Box<Holder>>) -> Self {
        Self { holder }
    }
}
