//! [`AsyncKernelLock`]: the verbs. The only place where a try and waiting meet.

use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::{consume_budget, yield_now};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::attempt::{Attempt, Tried};
use super::guard::KernelGuard;
use super::holder;
use super::open_file::OpenFile;
use super::options::{KernelOptions, Primitive};
use super::shared::{LockState, SHARE_MAX, Source, Stay, Terms};
use super::syscalls::{LockSpec, Sharing};
use super::wakeup::{MayTry, Wakeup};
use crate::local::deadline::Deadline;
use crate::local::endurance::Endurance;
use crate::local::executor::Executor;
use crate::local::options::WaitOptions;
use crate::local::task_queue::Turn;
use crate::lock::error::Error;
use crate::lock::events::{self, Acquiring};
use crate::lock::holder::{Holder, Status};
use crate::sys::path::LockPath;

/// How long a file system may take to answer once a deadline has passed.
const ANSWER: Duration = Duration::from_secs(1);

/// For a thread of another program that sleeps in `flock`: what it needs to wake,
/// on a processor that sleeps as well.
const STAND_BACK: Duration = Duration::from_micros(200);

/// For the readers of this process to let go, so that the lock is free.
const LAST_READER: Duration = Duration::from_millis(5);

/// A lock of the kernel's on a file: `flock`, or `fcntl` on a range of bytes.
///
/// For what shares a lock with programs that use the kernel's (flock(1), cargo,
/// apt and dpkg, systemd, Python's `fcntl`), for readers and writers, and where
/// only this machine's processes contend and the fastest lock is wanted. The file
/// can be one with content of its own, which the guard gives access to; this crate
/// never reads or writes it. It is made if it is not there, and stays
/// ([`KernelOptions::delete_on_release`]).
///
/// Cheap to clone; clones are the same lock. Not re-entrant: a task that asks twice
/// waits for itself; with a limit it is told that the holder is its own process.
/// The methods that wait or have a limit need a runtime that was built with
/// `enable_all`, as `#[tokio::main]` does.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir().join(format!("lockkeeper-kernel-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("table");
/// use std::io::{Read, Write};
/// use lockkeeper::AsyncKernelLock;
///
/// let lock = AsyncKernelLock::new(path);
/// let guard = lock.acquire().await?;
/// guard.file().write_all(b"42")?;
/// guard.release().await?;
///
/// let reader = lock.acquire_shared().await?;
/// let another = lock.acquire_shared().await?;
/// let mut content = String::new();
/// reader.file().read_to_string(&mut content)?;
/// assert_eq!(content, "42");
/// assert!(lock.try_acquire().await?.is_none());
/// # drop((reader, another));
/// # std::fs::remove_dir_all(directory)?;
/// # Ok(())
/// # }
/// ```
///
/// # What is promised
///
/// * **The lock is the kernel's, on the file that the path names.** Whoever is
///   killed lets go at once; whoever is stopped holds. A file that was removed or
///   replaced while we waited is noticed, and the one at the path is locked. One
///   that is removed while we hold is told by [`KernelGuard::lost`].
/// * **Order.** Tasks of a process are served first in, first out, readers
///   together; for a millisecond at a time the locked file itself passes from one
///   that did not use it to the next ([`KernelOptions::local_handoff`]). Between
///   processes of this crate, who came first goes first among those who want the
///   same bytes; of those whose ranges only overlap, whoever finds it free. A reader
///   lets writers that wait go first as long as anybody has the lock and 10 ms
///   more: readers that come and go without a pause do not keep a writer out, and
///   a writer that is stopped while it waits does not keep readers out for long.
///   Programs that know nothing of this take the lock when they find it free; a
///   process that takes it over and over leaves it free for a fifth of a millisecond
///   in ten, for those that sleep in the kernel for it (where it is shared, at the
///   price of a twentieth of the time, as long as no reader has it for more than
///   5 ms). One that only tries now and then (`flock -n` in a loop, apt) finds it
///   free seldom while tasks take it without a pause.
/// * **Waiting is asleep**, as for [`AsyncFileLock`](crate::AsyncFileLock). Holders
///   of this crate, and all that end, wake those who wait. A holder of another
///   program that unlocks and keeps its file open is noticed by looking, seldom: see
///   [`KernelOptions::fallback_period`].
///
/// # What the three kinds do
///
/// Seen by `cargo run --example kernel_locks` on Linux 6.18, ext4:
///
/// | | `F_SETLK` | `F_OFD_SETLK` (Ofd) | `flock` (Flock) |
/// |---|---|---|---|
/// | two processes exclude each other | yes | yes | yes |
/// | a killed holder's lock is free | yes | yes | yes |
/// | two opens in one process exclude each other | **no** | yes | yes |
/// | it survives the close of a second open of the file | **no** | yes | yes |
/// | a forked child has it when the parent closes | **no** | yes | yes |
///
/// Choose [`Primitive::Ofd`] to share a file with programs that use `F_SETLK`: each
/// excludes the other. This crate takes no such lock itself, as it ends with any close
/// of the file anywhere in the process. For the same reason, code of this process must
/// not rely on one of its own on a file that is locked here.
///
/// # Where
///
/// Local file systems: all of it. Who waits longer for a `flock` of a directory, or
/// of a file that is waited for here in other ways too, has a thread of this crate
/// read `/proc/locks`, one for the process. On network file systems calls run on a
/// thread of this crate and waiting looks each [`KernelOptions::retry_period`]. Over
/// NFS, `flock` is a lock of all bytes on the server: it excludes other machines and
/// `fcntl` locks, and an exclusive one needs a file that may be written.
/// A forked child shares the open file, and with it the lock, until the guard is
/// released.
///
/// A directory can be locked by `flock`, shared or not. Its release is no event for
/// other processes, who hear only of the end of the process that has it, where
/// `/proc/locks` tells which that is; else they notice it by looking.
#[derive(Clone)]
pub struct AsyncKernelLock {
    inner: Arc<Inner>,
}

struct Inner {
    given: PathBuf,
    /// `None` if what was given cannot name a lock file.
    terms: Option<Arc<Terms>>,
    last_site: Mutex<Option<Arc<LockState>>>,
}

impl std::fmt::Debug for AsyncKernelLock {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let options = self.inner.terms.as_ref().map(|terms| &terms.options);
        out.debug_struct("AsyncKernelLock")
            .field("path", &self.path())
            .field("options", &options)
            .finish()
    }
}

impl AsyncKernelLock {
    /// A `flock` of the file at `path`, which is made if it is not there. What
    /// is wrong with the path is said when it is acquired. A relative path is
    /// taken from the working directory of this moment.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::with_checked(path.as_ref(), KernelOptions::default())
    }

    /// A lock with these options.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn with_options(path: impl AsRef<Path>, options: KernelOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self::with_checked(path.as_ref(), options))
    }

    fn with_checked(path: &Path, options: KernelOptions) -> Self {
        let terms = LockPath::new(path).and_then(|path| Terms::new(path, options));
        let (given, terms) = (path.to_owned(), terms.ok().map(Arc::new));
        Self { inner: Arc::new(Inner { given, terms, last_site: Mutex::new(None) }) }
    }

    /// The file, as an absolute path where that could be made.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.inner.terms.as_ref().map_or(&self.inner.given, |terms| terms.path.path())
    }

    /// Wait for the lock, for oneself alone, at most for
    /// [`KernelOptions::timeout`], for ever without it. A wait outlasts a shortage of
    /// descriptors and a directory that is away, as
    /// [`AsyncFileLock::acquire`](crate::AsyncFileLock::acquire) does.
    ///
    /// # Keep the future
    /// Each call waits from the end of the line. A `select!` loop that calls this
    /// anew in each round gives its place up each time, and beside processes that
    /// are busy with the lock it hardly ever gets in. Proof one future before the loop,
    /// and poll it by `&mut` in each round:
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkeeper::Error> {
    /// # let directory = std::env::temp_dir().join(format!("lockkeeper-keep-kernel-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let lock = lockkeeper::AsyncKernelLock::new(directory.join("job.lock"));
    /// # fn report_progress() {}
    /// let acquiring = lock.acquire();
    /// tokio::pin!(acquiring);
    /// let mut tick = tokio::time::interval(std::time::Duration::from_millis(10));
    /// let guard = loop {
    ///     tokio::select! {
    ///         acquired = &mut acquiring => break acquired?,
    ///         _ = tick.tick() => report_progress(),
    ///     }
    /// };
    /// # guard.release().await?;
    /// # std::fs::remove_dir_all(directory).unwrap();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// The future can be dropped at any point and leaves no lock and no place
    /// in the queue. The file stays if it was made. One that is kept and not polled
    /// keeps its place, and those of this process behind it wait, as with Tokio's own
    /// locks.
    ///
    /// # Errors
    /// [`Error::Timeout`], or what is wrong with the path, the file or the system.
    /// [`Error::MayNotOpen`] at once if this process may not open the file: the kernel
    /// locks open files, so there is nothing that could be waited for.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<KernelGuard, Error>> + Send {
        self.contend(Sharing::Exclusive, starting(self.limit()), Location::caller())
    }

    /// Wait for the lock, shared with others who want it shared, as
    /// [`acquire`](Self::acquire) else.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    pub fn acquire_shared(&self) -> impl Future<Output = Result<KernelGuard, Error>> + Send {
        self.contend(Sharing::Shared, starting(self.limit()), Location::caller())
    }

    /// [`acquire`](Self::acquire), at most this long. There is always one last
    /// try at the deadline; `Duration::ZERO` is one try. It lasts up to a
    /// second longer where a network file system does not answer.
    ///
    /// # Panics
    /// Without Tokio's timer, also if the lock is free.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    pub fn acquire_timeout(
        &self,
        limit: impl Into<Option<Duration>>,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send {
        self.contend(Sharing::Exclusive, starting(limit.into()), Location::caller())
    }

    /// [`acquire_shared`](Self::acquire_shared), at most this long.
    ///
    /// # Panics
    /// As [`acquire_timeout`](Self::acquire_timeout).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    pub fn acquire_shared_timeout(
        &self,
        limit: impl Into<Option<Duration>>,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send {
        self.contend(Sharing::Shared, starting(limit.into()), Location::caller())
    }

    /// [`acquire`](Self::acquire) until `token` is cancelled. The token covers
    /// only the wait.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    #[track_caller]
    pub fn acquire_with(
        &self,
        token: &CancellationToken,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send {
        self.until(token, self.acquire())
    }

    /// [`acquire_shared`](Self::acquire_shared) until `token` is cancelled.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Cancelled`], else as [`acquire`](Self::acquire).
    #[track_caller]
    pub fn acquire_shared_with(
        &self,
        token: &CancellationToken,
    ) -> impl Future<Output = Result<KernelGuard, Error>> + Send {
        self.until(token, self.acquire_shared())
    }

    async fn until(
        &self,
        token: &CancellationToken,
        acquire: impl Future<Output = Result<KernelGuard, Error>>,
    ) -> Result<KernelGuard, Error> {
        tokio::select! {
            biased;
            () = token.cancelled() => Err(Error::Cancelled { lock: self.path().into() }),
            acquired = acquire => acquired,
        }
    }

    /// One try; `None` if somebody else has it, this process included, or is
    /// before us in this process.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`Error::Timeout`].
    #[track_caller]
    pub fn try_acquire(&self) -> impl Future<Output = Result<Option<KernelGuard>, Error>> + Send {
        self.try_once(Sharing::Exclusive, Location::caller())
    }

    /// One try to share the lock; `None` if somebody has it for himself or,
    /// while anybody has it, waits to.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    #[track_caller]
    pub fn try_acquire_shared(
        &self,
    ) -> impl Future<Output = Result<Option<KernelGuard>, Error>> + Send {
        self.try_once(Sharing::Shared, Location::caller())
    }

    /// [`acquire`](Self::acquire) for a thread without a runtime.
    ///
    /// # Panics
    /// In an async context, where it would block the runtime.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    pub fn blocking_acquire(&self) -> Result<KernelGuard, Error> {
        let deadline = self.limit().and_then(Deadline::after);
        let runtime = self.endurance(deadline).runtime(self.path())?;
        runtime.block_on(self.contend(Sharing::Exclusive, || deadline, Location::caller()))
    }

    /// Who has the lock, `None` if nobody has: for POSIX locks and `flock` with
    /// the process, where it can be seen from here. One holder is told where
    /// several share it. Where `/proc/locks` does not show who has a `flock`,
    /// it is asked for and given back at once to see whether it is free, which
    /// another program's try can meet. The kernel takes some ten milliseconds to
    /// show that list, which a thread of this crate waits out.
    ///
    /// # Errors
    /// What is wrong with the path or the file.
    pub async fn holder(&self) -> Result<Option<Holder>, Error> {
        match self.status().await? {
            Status::Held(holder) => Ok(Some(holder)),
            Status::Free | Status::Stale(_) => Ok(None),
        }
    }

    /// Whether somebody has the lock, shared or not.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    pub async fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.holder().await?.is_some())
    }

    /// [`Status::Free`] or [`Status::Held`]: a kernel lock is never stale.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    pub async fn status(&self) -> Result<Status, Error> {
        let (terms, site) = self.enter().await?;
        let claim = claim(&terms, Sharing::Exclusive);
        let executor = match claim.primitive {
            Primitive::Flock => site.executor.aside(),
            Primitive::Ofd => site.executor.clone(),
        };
        executor.run((terms, site), move |(terms, site)| holder::status(&terms, &site, claim)).await
    }

    fn endurance(&self, deadline: Option<Deadline>) -> Endurance {
        Endurance::until(deadline, self.retry_period())
    }

    fn retry_period(&self) -> Duration {
        let options = self.inner.terms.as_ref().map(|terms| &terms.options.wait);
        options.map_or_else(|| WaitOptions::BUILT_IN.retry_period, |options| options.retry_period)
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.inner.terms.as_ref().and_then(|terms| terms.options.wait.timeout)
    }

    async fn try_once(
        &self,
        sharing: Sharing,
        asked_at: Source,
    ) -> Result<Option<KernelGuard>, Error> {
        let shown = Acquiring::begin(&self.path().display());
        let outcome = self.try_at(sharing, asked_at).await;
        if let Some(shown) = shown {
            shown.tried(&self.path().display(), &outcome);
        }
        outcome
    }

    async fn try_at(
        &self,
        sharing: Sharing,
        asked_at: Source,
    ) -> Result<Option<KernelGuard>, Error> {
        let (terms, site) = self.enter().await?;
        let Some((turn, left)) = site.station.try_turn() else {
            return Ok(None);
        };
        let contest = Contender { claim: claim(&terms, sharing), terms, site, asked_at };
        let turn = match contest.inherit(turn) {
            Ok(guard) => return Ok(Some(guard)),
            Err(turn) => turn,
        };
        let carrier = left;
        let right = contest.first_right(false, carrier.as_ref()).at_last(sharing);
        match contest.try_once(turn, carrier, right).await? {
            Ended::Acquired(guard) => {
                self.notice(&guard);
                Ok(Some(guard))
            }
            Ended::Busy(contest, carrier, _turn) => {
                // Not closed: that would wake all who wait, each time.
                let keep_open = contest.terms.options.keep_open;
                let stay = if keep_open { Stay::Always } else { Stay::Awhile };
                contest.site.station.leave(carrier, stay, |_| false);
                Ok(None)
            }
            Ended::Hindered(_, error, _) => Err(error),
        }
    }

    /// `deadline` is asked for when the wait begins.
    async fn contend(
        &self,
        sharing: Sharing,
        deadline: impl FnOnce() -> Option<Deadline>,
        asked_at: Source,
    ) -> Result<KernelGuard, Error> {
        let deadline = deadline();
        if events::are_wanted() {
            return Box::pin(self.contend_shown(sharing, deadline, asked_at)).await;
        }
        // As in `enter`.
        consume_budget().await;
        // Before the try, so that the last try is at the deadline and not before.
        let is_last = deadline.is_some_and(Deadline::is_over);
        let mut reached = Reached { is_last, ..Reached::default() };
        if let Some(guard) = self.acquire_at_once(sharing, asked_at, &mut reached)? {
            return Ok(guard);
        }
        // On the heap: who has it at once should not carry what all else takes.
        Box::pin(self.contend_within(reached, sharing, deadline, asked_at)).await
    }

    /// On the heap: where nobody watches, nothing of this is carried.
    async fn contend_shown(
        &self,
        sharing: Sharing,
        deadline: Option<Deadline>,
        asked_at: Source,
    ) -> Result<KernelGuard, Error> {
        let holder = async { self.holder().await.ok().flatten().map(|holder| holder.to_string()) };
        let contend = self.contend_within(Reached::default(), sharing, deadline, asked_at);
        events::show(&self.path().display(), contend, holder).await
    }

    async fn contend_within(
        &self,
        reached: Reached,
        sharing: Sharing,
        deadline: Option<Deadline>,
        asked_at: Source,
    ) -> Result<KernelGuard, Error> {
        match deadline.and_then(|deadline| deadline.end.checked_add(ANSWER)) {
            // So late a limit is none.
            None => self.contend_further(reached, sharing, None, asked_at).await,
            // A network file system that does not answer is given up.
            Some(end) => {
                timeout_at(end, self.contend_further(reached, sharing, deadline, asked_at))
                    .await
                    .unwrap_or_else(|_| Err(self.timed_out(deadline, None)))
            }
        }
    }

    /// What nearly always suffices, apart from all else: the cost of an acquisition
    /// that nobody disputes is for a good part to load what code it runs through.
    #[inline(never)]
    fn acquire_at_once(
        &self,
        sharing: Sharing,
        asked_at: Source,
        reached: &mut Reached,
    ) -> Result<Option<KernelGuard>, Error> {
        let (Some(terms), Some(site)) = (&self.inner.terms, self.last_site()) else {
            return Ok(None);
        };
        let contest =
            Contender { claim: claim(terms, sharing), terms: Arc::clone(terms), site, asked_at };
        let Executor::Here { .. } = contest.site.executor else {
            reached.contest = Some(contest);
            return Ok(None);
        };
        let Some((turn, left)) = contest.site.station.try_turn() else {
            reached.contest = Some(contest);
            return Ok(None);
        };
        let turn = match contest.inherit(turn) {
            Ok(guard) => return Ok(Some(guard)),
            Err(turn) => turn,
        };
        let mut carrier = left;
        let share_is_over = contest.share_is_over(&turn);
        let has_looked =
            !share_is_over && contest.first_right(false, carrier.as_ref()) == MayTry::Full;
        if has_looked {
            match contest.attempt(MayTry::Full).run(carrier.take()) {
                Ok(Tried::Locked(file)) => {
                    let guard = contest.hold(file, turn);
                    self.notice(&guard);
                    return Ok(Some(guard));
                }
                Ok(Tried::Busy(file)) => carrier = Some(file),
                Err(error) if error.hindrance().is_some() => reached.hindered = Some(error),
                Err(error) => return Err(error),
            }
        }
        reached.contest = Some(contest);
        reached.turn = Some((turn, carrier, share_is_over));
        reached.has_looked = has_looked;
        Ok(None)
    }

    async fn contend_further(
        &self,
        reached: Reached,
        sharing: Sharing,
        deadline: Option<Deadline>,
        asked_at: Source,
    ) -> Result<KernelGuard, Error> {
        let Reached { contest, turn, has_looked, hindered, is_last } = reached;
        let mut endurance = self.endurance(deadline);
        if let Some(error) = hindered {
            endurance.outlast(error)?;
        }
        let mut contest = match contest {
            Some(contest) => contest,
            None => {
                let (terms, site) = self.enter_within(&mut endurance).await?;
                Contender { claim: claim(&terms, sharing), terms, site, asked_at }
            }
        };
        let (mut turn, mut carrier, share_is_over) = match turn {
            Some(turn) => turn,
            None => {
                if contest.site.station.is_busy() {
                    endurance.wait_begins();
                }
                let Some((turn, left)) = contest.site.station.turn_until(deadline).await else {
                    return Err(Box::pin(self.too_late(deadline)).await);
                };
                let turn = match contest.inherit(turn) {
                    Ok(guard) => return Ok(guard),
                    Err(turn) => turn,
                };
                let share_is_over = contest.share_is_over(&turn);
                (turn, left, share_is_over)
            }
        };
        let is_last = is_last || !has_looked && deadline.is_some_and(Deadline::is_over);
        if !has_looked {
            if share_is_over && contest.site.station.is_to_stand_back(Instant::now()) {
                Box::pin(contest.stand_back(deadline)).await;
            }
            let right = contest.first_right(share_is_over, carrier.as_ref());
            let right = if is_last { right.at_last(sharing) } else { right };
            if right != MayTry::None {
                match contest.try_once(turn, carrier.take(), right).await? {
                    Ended::Acquired(guard) => {
                        self.notice(&guard);
                        return Ok(guard);
                    }
                    Ended::Busy(again, file, kept) => {
                        (contest, carrier, turn) = (again, Some(file), kept);
                    }
                    Ended::Hindered(again, error, kept) => {
                        endurance.outlast(error)?;
                        (contest, turn) = (again, kept);
                    }
                }
            }
        }
        if is_last {
            drop((carrier, turn));
            return Err(Box::pin(self.too_late(deadline)).await);
        }
        // On the heap: who need not wait should not carry what waiting takes.
        Box::pin(self.wait_for(contest, turn, carrier, endurance)).await
    }

    /// Look each time there is a reason to.
    async fn wait_for(
        &self,
        mut contest: Contender,
        mut turn: Turn,
        mut carrier: Option<OpenFile>,
        mut endurance: Endurance,
    ) -> Result<KernelGuard, Error> {
        endurance.wait_begins();
        let (sharing, deadline) = (contest.claim.sharing, endurance.deadline());
        let mut pause = Wakeup::new(&contest.terms, &contest.site, sharing);
        loop {
            // Before the look that is relied on; the first try costs no listening.
            pause.listen();
            let mut right = pause.right();
            // Before the try, so that the last try is at the deadline and not before.
            let is_last = deadline.is_some_and(Deadline::is_over);
            if is_last {
                right = right.at_last(sharing);
            }
            if right != MayTry::None {
                match contest.try_once(turn, carrier.take(), right).await? {
                    Ended::Acquired(guard) => {
                        let presence = pause.end();
                        self.notice(&guard);
                        return Ok(guard.contended(presence));
                    }
                    Ended::Busy(again, file, kept) => {
                        tracing::trace!(path = %self.path().display(), "busy");
                        (contest, carrier, turn) = (again, Some(file), kept);
                    }
                    Ended::Hindered(again, error, kept) => {
                        endurance.outlast(error)?;
                        (contest, turn) = (again, kept);
                    }
                }
                if is_last {
                    break;
                }
            }
            let was_hindered = right != MayTry::None && carrier.is_none();
            let next_look = contest.wait(&mut pause, carrier.as_ref(), right, deadline);
            match was_hindered {
                true => drop(timeout(self.retry_period(), next_look).await),
                false => next_look.await,
            }
        }
        // Those who let us pass look again when our file is closed, and must
        // not see us wait then.
        drop(pause);
        drop((carrier, turn));
        Err(Box::pin(self.too_late(deadline)).await)
    }

    /// On the heap: who is in time should not carry what this takes.
    async fn too_late(&self, deadline: Option<Deadline>) -> Error {
        self.timed_out(deadline, self.holder().await.ok().flatten())
    }

    fn timed_out(&self, deadline: Option<Deadline>, holder: Option<Holder>) -> Error {
        let (holder, path) = (holder.map(Box::new), self.path().to_owned());
        let waited = Deadline::waited(deadline);
        Error::Timeout { lock: path.into(), waited, holder }
    }

    /// Where the directory can be looked at, perhaps only after a while.
    async fn enter_within(
        &self,
        endurance: &mut Endurance,
    ) -> Result<(Arc<Terms>, Arc<LockState>), Error> {
        loop {
            match self.enter().await {
                Err(error) => endurance.outlast(error)?,
                entered => return entered,
            }
            endurance.pause().await;
        }
    }

    async fn enter(&self) -> Result<(Arc<Terms>, Arc<LockState>), Error> {
        let Some(terms) = &self.inner.terms else {
            let given = self.inner.given.clone();
            let why = "the working directory was unknown when the lock was made".to_owned();
            return Err(LockPath::new(&given)
                .err()
                .unwrap_or(Error::BadPath { lock: given.into(), why }));
        };
        // All else may be done in one poll; so a loop of this must yield here.
        consume_budget().await;
        if let Some(site) = self.last_site() {
            return Ok((Arc::clone(terms), site));
        }
        let site = LockState::of(terms).await?;
        if let Ok(mut last) = self.inner.last_site.try_lock() {
            *last = Some(Arc::clone(&site));
        }
        Ok((Arc::clone(terms), site))
    }

    fn last_site(&self) -> Option<Arc<LockState>> {
        // Not waited for: a fork may have copied it locked.
        let last = self.inner.last_site.try_lock().ok()?.clone();
        let terms = self.inner.terms.as_ref()?;
        last.filter(|site| site.is_ours() && site.is_in_place(terms))
    }

    /// The directory is looked at anew if the file is not on its file system:
    /// another may be mounted there now.
    fn notice(&self, guard: &KernelGuard) {
        if guard.is_elsewhere() {
            if let Ok(mut last) = self.inner.last_site.try_lock() {
                *last = None;
            }
        }
    }
}

/// The deadline of a wait that begins now.
fn starting(limit: Option<Duration>) -> impl FnOnce() -> Option<Deadline> {
    move || limit.and_then(Deadline::after)
}

fn claim(terms: &Terms, sharing: Sharing) -> LockSpec {
    let (primitive, range) = (terms.options.primitive, terms.options.range);
    LockSpec { primitive, range, sharing }
}

/// How far a contender got without waiting for anything.
#[derive(Default)]
struct Reached {
    contest: Option<Contender>,
    /// Whether its share is over is asked once, when it begins.
    turn: Option<(Turn, Option<OpenFile>, bool)>,
    /// And somebody else had the lock, or it could not be told.
    has_looked: bool,
    hindered: Option<Error>,
    /// The deadline had come before that look.
    is_last: bool,
}

/// One contender's tries.
struct Contender {
    terms: Arc<Terms>,
    site: Arc<LockState>,
    claim: LockSpec,
    asked_at: Source,
}

/// How a try ended. What does not end a wait gives everything back for the next.
enum Ended {
    Acquired(KernelGuard),
    Busy(Contender, OpenFile, Turn),
    /// By something that may pass by itself, see [`Error::hindrance`].
    Hindered(Contender, Error, Turn),
}

impl Contender {
    /// The lock, if the last task of this process left it with this turn. Else
    /// the turn, and nothing is left with it any more.
    fn inherit(&self, turn: Turn) -> Result<KernelGuard, Turn> {
        let Self { terms, site, claim, asked_at } = self;
        KernelGuard::inherit(turn, *claim, terms, site, asked_at)
    }

    fn share_is_over(&self, turn: &Turn) -> bool {
        // Asked as often where nothing passes.
        let share = Some(self.terms.share()).filter(|share| !share.is_zero());
        turn.share_is_over(share.unwrap_or(SHARE_MAX))
    }

    /// A writer goes first unless this process has had the lock for long and
    /// others wait; a reader, unless a writer waits.
    fn first_right(&self, share_is_over: bool, carrier: Option<&OpenFile>) -> MayTry {
        let sharing = self.claim.sharing;
        if sharing == Sharing::Exclusive && !share_is_over {
            return MayTry::Full;
        }
        let precede = match carrier.and_then(|file| file.waiters.as_deref()) {
            Some(known) => known.precede(sharing),
            None => self.site.waiters(&self.terms).is_some_and(|found| found.precede(sharing)),
        };
        if precede { MayTry::None } else { MayTry::Full }
    }

    /// Threads that sleep in the kernel for a lock have no ticket, and a process that
    /// takes it over and over is faster than they wake. So now and then it leaves the
    /// lock free for as long as that takes, whether or not anybody sleeps: to have
    /// the kernel list who does slows all processes of the machine, as it waits for
    /// each processor.
    ///
    /// Where it is shared, it is free only when the last of those who have it has
    /// let go. If that is not soon, it is asked less often.
    async fn stand_back(&self, deadline: Option<Deadline>) {
        let (station, began) = (&self.site.station, Instant::now());
        let is_shared = self.claim.sharing == Sharing::Shared && station.is_held();
        let is_free = !is_shared || {
            let none = timeout(LAST_READER, station.has_no_holds());
            matches!(Deadline::limit(deadline, none).await, Some(Ok(())))
        };
        let free = Instant::now();
        // Not by a timer of Tokio's, which would last ten times as long.
        while is_free && free.elapsed() < STAND_BACK {
            yield_now().await;
        }
        station.has_stood_back(Instant::now(), began.elapsed());
    }

    /// The turn and the file travel with the try, so that they are given up
    /// only after what it did is undone.
    async fn try_once(
        self,
        turn: Turn,
        carrier: Option<OpenFile>,
        right: MayTry,
    ) -> Result<Ended, Error> {
        if let Executor::Here { .. } = self.site.executor {
            return self.try_here(turn, carrier, right);
        }
        let executor = self.site.executor.clone();
        let attempt = move |(contest, carrier, turn): (Self, Option<OpenFile>, Turn)| {
            if contest.site.executor.is_local() {
                // Only that it is seen to be: else the next finds another site.
                let _ = contest.site.is_in_place_now(&contest.terms);
                // For who asks where it cannot be opened.
                drop(contest.site.waiters_there(&contest.terms));
            }
            contest.try_here(turn, carrier, right)
        };
        executor.run((self, carrier, turn), attempt).await
    }

    fn try_here(
        self,
        turn: Turn,
        carrier: Option<OpenFile>,
        right: MayTry,
    ) -> Result<Ended, Error> {
        match self.attempt(right).run(carrier) {
            Ok(Tried::Busy(carrier)) => Ok(Ended::Busy(self, carrier, turn)),
            Ok(Tried::Locked(carrier)) => Ok(Ended::Acquired(self.hold(carrier, turn))),
            Err(error) if error.hindrance().is_some() => Ok(Ended::Hindered(self, error, turn)),
            Err(error) => Err(error),
        }
    }

    fn attempt(&self, right: MayTry) -> Attempt<'_> {
        let Self { terms, claim, .. } = self;
        Attempt { terms, claim: *claim, only_if_free: right == MayTry::IfFree }
    }

    /// What was locked for it becomes a hold.
    fn hold(self, carrier: OpenFile, turn: Turn) -> KernelGuard {
        let Self { terms, site, claim, asked_at } = self;
        KernelGuard::new(carrier, turn, claim, terms, site, asked_at)
    }

    async fn wait(
        &self,
        pause: &mut Wakeup,
        carrier: Option<&OpenFile>,
        right: MayTry,
        deadline: Option<Deadline>,
    ) {
        if carrier.is_some_and(|file| pause.follow(file, self.claim)) {
            return;
        }
        let next_look = pause.until_next_look(right == MayTry::None);
        let _ = Deadline::limit(deadline, next_look).await;
    }
}
