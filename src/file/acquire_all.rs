//! Several locks at once: all or nothing.
//!
//! An order of locks alone cannot rule out deadlock, since two processes may
//! see the same file under different identities (mounts, containers). So
//! nothing is held while another lock is waited for longer than its
//! `retry_period`: all are released, the busy one is waited for alone, and
//! it begins again with that one.

use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

use super::acquire::acquire_further;
use super::guard::FileGuard;
use super::lock::AsyncFileLock;
use crate::local::task_queue::CallSite;
use crate::lock::error::Error;

/// Wait for all of these locks, at most for the shortest
/// [`FileOptions::timeout`](crate::FileOptions::timeout) among them.
///
/// The guards are in the order of the locks.
///
/// # Cancel safety
/// Dropping the future releases what it holds, as
/// [`AsyncFileLock::acquire`] does.
///
/// # Errors
/// [`Error::SameLockTwice`], also for two names of one file, which differ in capital letters
/// where these make no difference, [`Error::Timeout`] for the lock that was busy, or
/// the error of one of the locks; nothing is held then.
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), lockkeeper::Error> {
/// use lockkeeper::{AsyncFileLock, acquire_all};
///
/// let (from, to) = (AsyncFileLock::new("from.lock"), AsyncFileLock::new("to.lock"));
/// let guards = acquire_all([&from, &to]).await?;
/// guards.release().await
/// # }
/// ```
#[doc(alias("deadlock", "lock_many"))]
#[track_caller]
pub fn acquire_all<'a, L>(
    locks: L,
) -> impl Future<Output = Result<LockGuards, Error>> + Send + use<'a, L>
where
    L: IntoIterator<Item = &'a AsyncFileLock>,
{
    let locks: Vec<&AsyncFileLock> = locks.into_iter().collect();
    let limit = locks.iter().filter_map(|lock| lock.spec().options().wait.timeout).min();
    acquire_until(locks, limit, Location::caller())
}

/// Wait for all of these locks, at most this long. See [`acquire_all`].
///
/// # Cancel safety
/// As [`acquire_all`].
///
/// # Errors
/// As [`acquire_all`].
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), lockkeeper::Error> {
/// use std::time::Duration;
/// use lockkeeper::{AsyncFileLock, acquire_all_timeout};
///
/// let (from, to) = (AsyncFileLock::new("from.lock"), AsyncFileLock::new("to.lock"));
/// let guards = acquire_all_timeout([&from, &to], Duration::from_secs(5)).await?;
/// guards.release().await
/// # }
/// ```
#[track_caller]
pub fn acquire_all_timeout<'a, L>(
    locks: L,
    limit: Duration,
) -> impl Future<Output = Result<LockGuards, Error>> + Send + use<'a, L>
where
    L: IntoIterator<Item = &'a AsyncFileLock>,
{
    let locks: Vec<&AsyncFileLock> = locks.into_iter().collect();
    acquire_until(locks, Some(limit), Location::caller())
}

async fn acquire_until(
    locks: Vec<&AsyncFileLock>,
    limit: Option<Duration>,
    site: CallSite,
) -> Result<LockGuards, Error> {
    let order = order(&locks).await?;
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let mut first = 0;
    loop {
        let mut guards = LockGuards((0..locks.len()).map(|_| None).collect());
        let mut busy = None;
        for step in 0..order.len() {
            let next = (first + step) % order.len();
            let (index, lock) = (order[next], locks[order[next]]);
            let patience = match (step, left()) {
                // Nothing is held yet.
                (0, left) => left,
                (_, None) => Some(lock.spec().options().wait.retry_period),
                (_, Some(left)) => Some(left.min(lock.spec().options().wait.retry_period)),
            };
            match acquire_further(lock.spec(), patience, site).await {
                Ok(guard) => guards.0[index] = Some(guard),
                Err(error) if is_held_by(&guards, &error) => {
                    return Err(Error::SameLockTwice { lock: lock.path().into() });
                }
                Err(error) if step > 0 && left() != Some(Duration::ZERO) && may_pass(&error) => {
                    busy = Some(next);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        match busy {
            None => return Ok(guards),
            Some(next) => first = next,
        }
    }
}

/// Whether it is one of these that is in the way, by another name of its file: where capital
/// letters make no difference, say.
fn is_held_by(guards: &LockGuards, error: &Error) -> bool {
    let Error::Timeout { holder: Some(holder), .. } = error else { return false };
    guards.iter().any(|guard| Some(guard.hold_id()) == holder.hold_id)
}

/// Whether it is worth waiting for this lock alone, with nothing held.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Timeout { .. }) || error.hindrance().is_some()
}

/// The locks in an order that most processes share: by directory, then by name.
async fn order(locks: &[&AsyncFileLock]) -> Result<Vec<usize>, Error> {
    let mut entries = Vec::new();
    for (index, lock) in locks.iter().enumerate() {
        entries.push((lock.spec().entry().await?, index));
    }
    entries.sort();
    match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(Error::SameLockTwice { lock: locks[pair[1].1].path().into() }),
        None => Ok(entries.into_iter().map(|(_, index)| index).collect()),
    }
}

/// Several locks that are held, in the order in which they were asked for.
///
/// Dropping them releases them, the last first.
#[derive(Debug)]
#[must_use = "the locks are released as soon as the guards are dropped"]
pub struct LockGuards(Vec<Option<FileGuard>>);

impl LockGuards {
    /// Release all of them, the last first.
    ///
    /// # Cancel safety
    /// Dropping the future releases what is left, as dropping the guards does.
    ///
    /// # Errors
    /// That of the first that had one, as [`FileGuard::release`] gives it; all
    /// of them have ended.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), lockkeeper::Error> {
    /// use lockkeeper::{AsyncFileLock, acquire_all};
    ///
    /// let (from, to) = (AsyncFileLock::new("from.lock"), AsyncFileLock::new("to.lock"));
    /// let guards = acquire_all([&from, &to]).await?;
    /// assert_eq!(guards.iter().count(), 2);
    /// guards.release().await
    /// # }
    /// ```
    pub async fn release(mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        while let Some(guard) = self.0.pop() {
            if let Some(guard) = guard {
                let released = guard.release().await;
                outcome = outcome.and(released);
            }
        }
        outcome
    }

    /// The guards, in the order in which the locks were given.
    pub fn iter(&self) -> impl Iterator<Item = &FileGuard> {
        self.0.iter().flatten()
    }
}

/// Gives the guards in the order in which the locks were given. Those that are left when
/// the iterator is dropped give their locks back.
impl IntoIterator for LockGuards {
    type Item = FileGuard;
    type IntoIter = std::vec::IntoIter<FileGuard>;

    fn into_iter(mut self) -> Self::IntoIter {
        let guards: Vec<_> = std::mem::take(&mut self.0).into_iter().flatten().collect();
        guards.into_iter()
    }
}

impl Drop for LockGuards {
    fn drop(&mut self) {
        while let Some(guard) = self.0.pop() {
            drop(guard);
        }
    }
}
