//! [`AsyncFileLock`]: the verbs. The only place where an attempt and waiting meet.

use std::ffi::OsString;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::consume_budget;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field};

use super::changes::StatusChanges;
use super::contender::{Contender, Tried};
use super::guard::FileGuard;
use super::options::{FileOptions, Proof};
use super::protocol::disk::{Disk, OsDisk};
use super::protocol::lock_file::REVOCATION_SECOND_LOOK;
use super::protocol::{Busy, YOUTH};
use super::record::RecordedProof;
use crate::local::deadline::Deadline;
use crate::local::endurance::Endurance;
use crate::local::executor::{Executor, Seen};
use crate::local::task_queue::{CallSite, Queue, Turn};
use crate::local::timer::{Standing, sleep};
use crate::local::wakeup::Blocker;
use crate::lock::error::Error;
use crate::lock::events::{self, Acquiring};
use crate::lock::holder::{Evidence, Holder, Status};
use crate::sys::files::{Errno, directory_identity};
use crate::sys::path::LockPath;
use crate::sys::process_key::{ProcessKey, this_process};

/// How long a file system may take to answer once a deadline has passed.
const ANSWER: Duration = Duration::from_secs(1);

/// A lock between processes that is a file: whoever made it holds the lock.
///
/// Cheap to clone; clones are the same lock. Not re-entrant: a task that asks
/// twice waits for itself, as with `tokio::sync::Mutex`. Tasks of one process
/// are served first in, first out. A task that waits for a lock which it, or a
/// task that waits for it, holds shows itself: [`holder`](Self::holder) and
/// [`Error::Timeout`] say where in this program the lock was asked for, and the
/// `tracing` span `acquire` (level debug) of each one who waits says so too.
///
/// For logs there are `tracing` events of level debug under the target `lockkeeper`, each
/// once for an acquisition: `acquiring`, `waiting` (with the holder, if the lock was not
/// had at once), `acquired` (and how long that took) or `not acquired` (and why), and
/// `released`. Whoever waits looks once more for the holder then, beside its wait.
///
/// The methods that wait, have a limit or talk to a holder need a runtime that
/// was built with `enable_all`, as `#[tokio::main]` does. Without `enable_time`
/// they panic; without `enable_io` Tokio's message of a panic is printed once
/// for that runtime, and waiting is done by looking each
/// [`retry_period`](FileOptions::retry_period).
/// [`blocking_acquire`](Self::blocking_acquire) needs no runtime.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lockkeeper::Error> {
/// # let directory = std::env::temp_dir().join(format!("lockkeeper-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory).unwrap();
/// # let path = directory.join("job.lock");
/// use lockkeeper::AsyncFileLock;
///
/// let lock = AsyncFileLock::new(path);
/// let guard = lock.acquire().await?;
/// assert!(lock.try_acquire().await?.is_none());
/// guard.release().await?;
/// # std::fs::remove_dir(directory).unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncFileLock {
    inner: Arc<Inner>,
}

struct Inner {
    given: PathBuf,
    /// `None` if what was given cannot name a lock file.
    path: Option<Arc<LockPath>>,
    options: Arc<FileOptions>,
    last_queue: Mutex<Option<Arc<Queue>>>,
    /// The path was seen to lead to the directory of that.
    seen: Seen,
}

/// openlock's default path: `openlock.lock` in the working directory.
impl Default for AsyncFileLock {
    fn default() -> Self {
        Self::new("openlock.lock")
    }
}

impl std::fmt::Debug for AsyncFileLock {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("AsyncFileLock")
            .field("path", &self.path())
            .field("options", &self.inner.options)
            .finish()
    }
}

impl AsyncFileLock {
    /// A lock with [`FileOptions::default`]. What is wrong with the path is said
    /// when it is acquired. A relative path is taken from the working directory
    /// of this moment.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::with_checked(path.as_ref(), FileOptions::process_default())
    }

    /// A lock with these options.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn with_options(path: impl AsRef<Path>, options: FileOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self::with_checked(path.as_ref(), options))
    }

    fn with_checked(path: &Path, options: FileOptions) -> Self {
        let names = LockPath::new(path).ok().map(Arc::new);
        let (given, options, last_queue) = (path.to_owned(), Arc::new(options), Mutex::new(None));
        let seen = Seen::default();
        Self { inner: Arc::new(Inner { given, path: names, options, last_queue, seen }) }
    }

    /// The lock file, as an absolute path where that could be made.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.inner.path.as_deref().map_or(&self.inner.given, LockPath::path)
    }

    /// Wait for the lock, at most for [`FileOptions::timeout`], for ever without it.
    ///
    /// A wait outlasts a moment in which the process or the system has no descriptor
    /// to spare, and keeps its place meanwhile. It also outlasts a directory that is
    /// missing for a while, once it has begun: at the start that is an error. It then
    /// looks each [`retry_period`](FileOptions::retry_period), and a `tracing` warning says so.
    /// At its limit the error says what was in the way.
    ///
    /// A lock file that this process may not read counts as held, also if its holder
    /// is dead. The wait ends when a holder removes it.
    ///
    /// # Keep the future
    /// Each call waits from the end of the line. A `select!` loop that calls this
    /// anew in each round gives its place up each time, and beside processes that
    /// are busy with the lock it hardly ever gets in. Proof one future before the loop,
    /// and poll it by `&mut` in each round:
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkeeper::Error> {
    /// # let directory = std::env::temp_dir().join(format!("lockkeeper-keep-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let lock = lockkeeper::AsyncFileLock::new(directory.join("job.lock"));
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
    /// The future can be dropped at any point and leaves no file, no place in
    /// the queue and no lock. Where system calls run on a thread of this crate
    /// (network file systems) an attempt that has begun ends first, and then
    /// undoes what it did. A future that is kept and not polled keeps its place, and
    /// those of this process behind it wait, as with Tokio's own locks.
    ///
    /// # Errors
    /// [`Error::Timeout`], or what is wrong with the path, the file or the system.
    /// [`Error::MayNotWrite`] at once where the wait would be in vain.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<FileGuard, Error>> + Send {
        self.contend(self.inner.options.wait.timeout, Location::caller())
    }

    /// Wait for the lock, at most this long. There is always one last try at
    /// the deadline; `Duration::ZERO` is one try, as in
    /// [`try_acquire`](Self::try_acquire). The last try can last longer: where
    /// another program's file has to be watched for two seconds, where a lock
    /// file has to be watched for `race_delay`, and by a second where a network
    /// file system does not answer.
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
    ) -> impl Future<Output = Result<FileGuard, Error>> + Send {
        self.contend(limit.into(), Location::caller())
    }

    /// Wait as [`acquire`](Self::acquire) does until `token` is cancelled. The
    /// token covers only the wait: a guard that was had stays valid.
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
    ) -> impl Future<Output = Result<FileGuard, Error>> + Send {
        let acquire = self.acquire();
        async move {
            tokio::select! {
                biased;
                () = token.cancelled() => Err(Error::Cancelled { lock: self.path().into() }),
                acquired = acquire => acquired,
            }
        }
    }

    /// One try; `None` if somebody else has it, or is before us in this
    /// process. The first look is made at once. If all that is in the way is a
    /// foreign file (openlock's, a bare process id, an empty one) whose process
    /// is gone, the try lasts the two seconds for which such a file is watched.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without [`Error::Timeout`].
    #[track_caller]
    pub fn try_acquire(&self) -> impl Future<Output = Result<Option<FileGuard>, Error>> + Send {
        self.try_at(Location::caller())
    }

    async fn try_at(&self, site: CallSite) -> Result<Option<FileGuard>, Error> {
        let shown = Acquiring::begin(&self.path().display());
        let outcome = self.try_once(site).await;
        if let Some(shown) = shown {
            shown.tried(&self.path().display(), &outcome);
        }
        outcome
    }

    async fn try_once(&self, site: CallSite) -> Result<Option<FileGuard>, Error> {
        let mut contender = self.contender().await?.asked_at(site);
        let Some(turn) = contender.queue().try_turn() else {
            return Ok(None);
        };
        match contender.try_once(turn, true).await? {
            Tried::Acquired(guard) => Ok(Some(guard.told())),
            Tried::Busy(..) => Ok(None),
            Tried::Hindered(error, _) => Err(error),
        }
    }

    /// [`acquire`](Self::acquire) for a thread without a runtime.
    ///
    /// # Panics
    /// In an async context, where it would block the runtime; `spawn_blocking`
    /// and threads of one's own are fine. The guard's [`lost`](FileGuard::lost)
    /// needs a runtime like any other.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    pub fn blocking_acquire(&self) -> Result<FileGuard, Error> {
        let deadline = self.inner.options.wait.timeout.and_then(Deadline::after);
        let runtime = self.endurance(deadline).runtime(self.path())?;
        runtime.block_on(self.contend_with(self.endurance(deadline), Location::caller()))
    }

    /// Who has the lock, `None` if nobody has. Nothing is changed.
    ///
    /// # Errors
    /// What is wrong with the path or the file.
    pub async fn holder(&self) -> Result<Option<Holder>, Error> {
        match self.status().await? {
            Status::Held(holder) => Ok(Some(holder)),
            Status::Free | Status::Stale(_) => Ok(None),
        }
    }

    /// Whether somebody has the lock, or that cannot be ruled out.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    pub async fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.holder().await?.is_some())
    }

    /// What is at the path: nothing, a holder's file, or a stale one.
    ///
    /// # Errors
    /// As [`holder`](Self::holder).
    pub async fn status(&self) -> Result<Status, Error> {
        let contender = self.contender().await?;
        Ok(contender.probe().await?.status)
    }

    /// The lock's status now, and then each time that it changes: who holds the lock,
    /// that it is free, or stale. A stream, for whoever shows locks.
    ///
    /// The first item comes at once. Each one differs from the one before. A reader that
    /// is slow, and changes within a hundredth of a second, are told of the last state
    /// only. An error is an item as well, and the stream goes on; it ends only after
    /// [`Error::BadPath`] where the path can never name a lock.
    ///
    /// Watching is asleep: an acquisition, a release and a death are events. What gives
    /// none is noticed as by [`acquire`](Self::acquire), each
    /// [`fallback_period`](FileOptions::fallback_period). A watcher has no place in the queue
    /// and looks as [`status`](Self::status) does. It needs no descriptor but the one by
    /// which a process hears of all events, and one more while a holder has a file that
    /// it does not keep open ([`Proof::Process`], other programs).
    ///
    /// There is none for [`AsyncKernelLock`](crate::AsyncKernelLock): an acquisition
    /// there is no event, and each look would have the kernel list all locks.
    ///
    /// # Cancel safety
    /// A future of the next item can be dropped and loses nothing. A dropped stream
    /// leaves nothing behind.
    ///
    /// # Panics
    /// When polled without Tokio's timer.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkeeper::Error> {
    /// # let directory = std::env::temp_dir().join(format!("lockkeeper-watch-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let path = directory.join("job.lock");
    /// use futures::StreamExt;
    /// use lockkeeper::{AsyncFileLock, Status};
    ///
    /// let lock = AsyncFileLock::new(path);
    /// let mut changes = lock.watch();
    /// assert_eq!(changes.next().await.unwrap()?, Status::Free);
    /// let guard = lock.acquire().await?;
    /// match changes.next().await.unwrap()? {
    ///     Status::Held(holder) => println!("held by {holder}"),
    ///     status => panic!("{status:?}"),
    /// }
    /// # drop(guard);
    /// # std::fs::remove_dir(directory).unwrap();
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch(&self) -> StatusChanges {
        StatusChanges::of(self.clone())
    }

    /// Remove the file a dead holder left, and what killed contenders left
    /// beside it; whose file it was, `None` if there was none. It is an
    /// acquisition and a release, by the protocol the file names, so it can
    /// take nothing from a living holder.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::Timeout`] with the holder and the evidence that it lives.
    pub async fn break_stale(&self) -> Result<Option<Holder>, Error> {
        let contender = self.contender().await?;
        let found = contender.probe().await?;
        let pin = match (found.proof, self.inner.options.proof) {
            (Some(RecordedProof::Process), _) => Proof::Process,
            (Some(RecordedProof::Flock), Proof::Process) => Proof::Auto,
            (_, pin) => pin,
        };
        let openlock_compat = self.inner.options.openlock_compat && pin != Proof::Process;
        let options = FileOptions { proof: pin, openlock_compat, ..(*self.inner.options).clone() };
        let by_its_protocol = Self::with_checked(self.path(), options);
        let guard = by_its_protocol.acquire_timeout(Duration::ZERO).await?;
        let stale = guard.recovered_from().cloned();
        guard.release().await?;
        if let Err(error) = contender.sweep().await {
            tracing::warn!("{error}");
        }
        Ok(match found.status {
            // Nobody died, so nobody was recovered from.
            Status::Stale(holder) if holder.evidence == Evidence::Released => Some(holder),
            _ => stale,
        })
    }

    /// Ask the holder to let go: its [`lost`](FileGuard::lost) fires. Who was
    /// asked, `None` if nobody had the lock; it may have let go by the time this
    /// returns. The lock file is not touched, and nothing makes a deaf holder
    /// listen. Where the tasks of a process pass the held file on
    /// ([`FileOptions::local_handoff`]), whoever of them has it when the request is seen
    /// is told, and passes it on no more. Whoever may make files in the directory
    /// can ask.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back, and others' for the same
    /// hold, though the holder may have seen it.
    ///
    /// # Errors
    /// [`Error::CannotAsk`] for a holder that is not of this crate.
    pub async fn revoke(&self) -> Result<Option<Holder>, Error> {
        let contender = self.contender().await?;
        let found = contender.probe().await?;
        let Status::Held(holder) = found.status else {
            return Ok(None);
        };
        let Some(token) = found.token else {
            let path = self.path().to_owned();
            return Err(Error::CannotAsk { lock: path.into(), holder: Box::new(holder) });
        };
        let path = contender.path().revocation(token);
        let (mode, executor) = (self.inner.options.mode, contender.executor().clone());
        let ask = move |()| match OsDisk.create(&path, mode) {
            // Or somebody asked before us.
            Ok(_) | Err(Errno::EXIST) => Ok(Request { path, executor }),
            Err(error) => Err(Error::io("creating", &path, error)),
        };
        let request = contender.executor().run((), ask).await?;
        sleep(REVOCATION_SECOND_LOOK).await;
        // If the holder went meanwhile, nobody else will remove the request.
        let stands = contender.probe().await?.token == Some(token);
        if stands {
            request.leave();
        }
        Ok(Some(holder))
    }

    /// `None` if what was given cannot name a lock file.
    pub(crate) fn names(&self) -> Option<&Arc<LockPath>> {
        self.inner.path.as_ref()
    }

    pub(crate) fn options(&self) -> &FileOptions {
        &self.inner.options
    }

    /// What tells this lock from others, whatever path leads to it.
    pub(crate) async fn entry(&self) -> Result<((u64, u64), OsString), Error> {
        Ok(self.contender().await?.entry())
    }

    /// `site` is where in the source that was asked for.
    async fn contend(&self, limit: Option<Duration>, site: CallSite) -> Result<FileGuard, Error> {
        self.contend_with(self.endurance(limit.and_then(Deadline::after)), site).await
    }

    /// As one step of a wait that began earlier.
    pub(crate) async fn contend_further(
        &self,
        limit: Option<Duration>,
        site: CallSite,
    ) -> Result<FileGuard, Error> {
        let mut endurance = self.endurance(limit.and_then(Deadline::after));
        endurance.wait_begins();
        self.contend_with(endurance, site).await
    }

    async fn contend_with(&self, endurance: Endurance, site: CallSite) -> Result<FileGuard, Error> {
        if events::are_wanted() {
            return Box::pin(self.contend_shown(endurance, site)).await;
        }
        self.contend_within(endurance, site).await
    }

    /// On the heap: where nobody watches, nothing of this is carried.
    async fn contend_shown(
        &self,
        endurance: Endurance,
        site: CallSite,
    ) -> Result<FileGuard, Error> {
        let path = self.path().display();
        let holder = async {
            let holder = self.holder().await.ok().flatten();
            // Then it may be the file of this very acquisition, which is watched first.
            let may_be_mine = self.inner.options.openlock_compat;
            let holder = holder.filter(|holder| !may_be_mine || holder.acquired_at.is_none());
            holder.map(|holder| holder.to_string())
        };
        let span = tracing::debug_span!("acquire", %path, %site, holder = field::Empty);
        let contend = self.contend_within(endurance, site).instrument(span);
        events::show(&path, contend, holder).await
    }

    async fn contend_within(
        &self,
        endurance: Endurance,
        site: CallSite,
    ) -> Result<FileGuard, Error> {
        let deadline = endurance.deadline();
        match deadline.and_then(|deadline| deadline.end.checked_add(self.overrun())) {
            // So late a limit is none.
            None => self.contend_until(endurance, site).await,
            // A network file system that does not answer is given up.
            Some(end) => timeout_at(end, self.contend_until(endurance, site))
                .await
                .unwrap_or_else(|_| Err(self.timed_out(deadline, None))),
        }
    }

    fn endurance(&self, deadline: Option<Deadline>) -> Endurance {
        Endurance::until(deadline, self.inner.options.wait.retry_period)
    }

    /// How long after the deadline the last try may end.
    fn overrun(&self) -> Duration {
        let probation = self.inner.options.race_delay.saturating_mul(self.inner.options.tries);
        probation.saturating_add(2 * YOUTH + ANSWER)
    }

    async fn contend_until(
        &self,
        mut endurance: Endurance,
        site: CallSite,
    ) -> Result<FileGuard, Error> {
        let (process, deadline) = (this_process(), endurance.deadline());
        let (mut contender, turn) = match self.enter_until(process, &mut endurance, site).await? {
            Entered::Inherits(guard) => return Ok(guard.told()),
            Entered::Contends(contender, turn) => (contender.asked_at(site), turn),
            Entered::TooLate => {
                // On the heap: whose turn comes should not carry what that takes.
                let holder = Box::pin(self.holder()).await.ok().flatten();
                return Err(self.timed_out(deadline, holder.map(Box::new)));
            }
        };
        let turn = if turn.share_is_over(self.inner.options.wait.local_handoff)
            && contender.is_awaited()
        {
            turn
        } else {
            let is_last = deadline.is_some_and(|deadline| deadline.is_over());
            match contender.try_once(turn, is_last).await? {
                Tried::Acquired(guard) => return Ok(guard.told()),
                Tried::Busy(busy, _) if is_last => {
                    return Err(self.timed_out(deadline, busy.holder));
                }
                Tried::Busy(_, turn) => turn,
                Tried::Hindered(error, turn) => {
                    endurance.outlast(error)?;
                    turn
                }
            }
        };
        // On the heap: who need not wait should not carry what waiting takes.
        Box::pin(self.wait_for(contender, turn, endurance)).await
    }

    /// Look each time there is a reason to.
    async fn wait_for(
        &self,
        mut contender: Contender,
        mut turn: Turn,
        mut endurance: Endurance,
    ) -> Result<FileGuard, Error> {
        contender.must_be_possible().await?;
        endurance.wait_begins();
        let deadline = endurance.deadline();
        let mut pause = contender.pause();
        loop {
            // Before the look that is relied on.
            let is_due = pause.is_due();
            contender.has_heard_a_write(pause.has_heard_a_write());
            // Before the try, so that the last try is at the deadline and not before.
            let is_last = deadline.is_some_and(|deadline| deadline.is_over());
            let obstacle = if !is_last && !is_due {
                pause.precedence()
            } else {
                match contender.try_once(turn, is_last).await? {
                    Tried::Acquired(guard) => {
                        let presence = pause.end();
                        return Ok(guard.contended(presence).told());
                    }
                    Tried::Busy(busy, _) if is_last => {
                        return Err(self.timed_out(deadline, busy.holder));
                    }
                    Tried::Busy(busy, again) => {
                        turn = again;
                        tracing::trace!(path = %self.path().display(), ?busy, "busy");
                        if let Some(holder) = &busy.holder {
                            waits_for(format_args!("{holder}"));
                        }
                        obstacle(busy)
                    }
                    Tried::Hindered(error, again) => {
                        turn = again;
                        endurance.outlast(error)?;
                        Blocker::unseen(self.inner.options.wait.retry_period)
                    }
                }
            };
            contender.prepare();
            // A foreign file is watched for what other processes do to it.
            let _standing = obstacle.at_most.and_then(Standing::at_most);
            let next_look = pause.until_next_look(obstacle);
            let _ = Deadline::limit(deadline, next_look).await;
        }
    }

    /// Wait for the turn. While a task of this process has the lock, that comes
    /// first: what it leaves tells the rest, or is all that is needed.
    async fn enter_until(
        &self,
        process: ProcessKey,
        endurance: &mut Endurance,
        site: CallSite,
    ) -> Result<Entered, Error> {
        let deadline = endurance.deadline();
        let Some((path, queue)) = self.inner.path.as_ref().zip(self.busy_queue(process)) else {
            let contender = self.contest_within(process, endurance).await?;
            let turn = Deadline::limit(deadline, contender.queue().next_turn()).await;
            return Ok(Entered::of(contender, turn));
        };
        endurance.wait_begins();
        if let Some(site) = queue.last_site() {
            waits_for(format_args!("this process, asked for at {site}"));
        }
        let Some(turn) = Deadline::limit(deadline, queue.next_turn()).await else {
            return Ok(Entered::TooLate);
        };
        let turn = match Contender::inherit(path, &self.inner.options, process, turn, site) {
            Ok(guard) => return Ok(Entered::Inherits(guard)),
            Err(turn) => turn,
        };
        let contender = self.contest_within(process, endurance).await?;
        if turn.is_of(&contender.queue()) {
            return Ok(Entered::Contends(contender, turn));
        }
        // The path leads elsewhere by now.
        drop(turn);
        let turn = Deadline::limit(deadline, contender.queue().next_turn()).await;
        Ok(Entered::of(contender, turn))
    }

    /// The queue of the last contest, if a task of this process has its turn.
    fn busy_queue(&self, process: ProcessKey) -> Option<Arc<Queue>> {
        // Not waited for: a fork may have copied it locked.
        let last = self.inner.last_queue.try_lock().ok()?;
        let queue = last.as_ref().filter(|queue| queue.is_busy(process)).cloned()?;
        drop(last);
        self.leads_to(queue.directory()).then_some(queue)
    }

    /// Whether the path leads to this directory, as of some milliseconds ago: else one
    /// would wait there for what is somewhere else. Where it is looked at elsewhere,
    /// that is seen after the turn has come.
    fn leads_to(&self, identity: (u64, u64)) -> bool {
        let Inner { path, options, seen, .. } = &*self.inner;
        let Some(directory) = path.as_ref().map(|path| path.directory()) else {
            return true;
        };
        let look = || directory_identity(directory) == Ok(identity);
        seen.is_recent() || !Executor::is_here(directory, options.wait.offload) || seen.renew(look)
    }

    fn timed_out(&self, deadline: Option<Deadline>, holder: Option<Box<Holder>>) -> Error {
        let waited = Deadline::waited(deadline);
        Error::Timeout { lock: self.path().into(), waited, holder }
    }

    pub(crate) async fn contender(&self) -> Result<Contender, Error> {
        // All else may be done in one poll; so a loop of this must yield here.
        consume_budget().await;
        self.contest_of(this_process()).await
    }

    /// Where the directory can be looked at, perhaps only after a while.
    async fn contest_within(
        &self,
        process: ProcessKey,
        endurance: &mut Endurance,
    ) -> Result<Contender, Error> {
        loop {
            match self.contest_of(process).await {
                Err(error) => endurance.outlast(error)?,
                Ok(contender) => {
                    if contender.queue().is_busy(process) {
                        endurance.wait_begins();
                    }
                    return Ok(contender);
                }
            }
            endurance.pause().await;
        }
    }

    async fn contest_of(&self, process: ProcessKey) -> Result<Contender, Error> {
        let Some(path) = self.inner.path.clone() else {
            let given = self.inner.given.clone();
            let why = "the working directory was unknown when the lock was made".to_owned();
            return Err(LockPath::new(&given)
                .err()
                .unwrap_or(Error::BadPath { lock: given.into(), why }));
        };
        let options = Arc::clone(&self.inner.options);
        Contender::enter(path, options, process, &self.inner.last_queue).await
    }
}

/// How the wait for a turn ended.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one")]
enum Entered {
    /// The last task left what it held.
    Inherits(FileGuard),
    Contends(Contender, Turn),
    /// The deadline came first.
    TooLate,
}

impl Entered {
    fn of(contender: Contender, turn: Option<Turn>) -> Self {
        match turn {
            Some(turn) => Entered::Contends(contender, turn),
            None => Entered::TooLate,
        }
    }
}

/// Show it in the span of this acquisition.
fn waits_for(holder: std::fmt::Arguments<'_>) {
    let span = Span::current();
    let is_ours = |metadata: &tracing::Metadata<'_>| metadata.target() == module_path!();
    if span.metadata().is_some_and(is_ours) {
        span.record("holder", holder);
    }
}

/// A request to let go, taken back when dropped.
struct Request {
    path: PathBuf,
    executor: Executor,
}

impl Request {
    fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        if !path.as_os_str().is_empty() {
            drop(self.executor.start(move || OsDisk.unlink(&path)));
        }
    }
}

/// What a contender waits for when this is in its way.
fn obstacle(busy: Busy) -> Blocker {
    let Busy { holder, inode, .. } = busy;
    let evidence = holder.as_ref().map(|holder| &holder.evidence);
    let was_seen = evidence == Some(&Evidence::ProcessRuns);
    let may_end = was_seen || evidence == Some(&Evidence::KernelLock);
    let at_most = busy.look_again.filter(|_| evidence == Some(&Evidence::Young));
    let (token, pid) = holder.map_or((None, None), |holder| (holder.hold_id, holder.pid));
    Blocker { token, inode, process: pid.filter(|_| may_end), was_seen, at_most }
}
