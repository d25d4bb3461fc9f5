//! What a user has while holding a lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::hold::Hold;
use super::protocol::disk::OsDisk;
use super::protocol::lock_file::{AtPath, LockFile};
use super::protocol::{self, Survival};
use super::record::RecordedProof;
use crate::local::executor::Executor;
use crate::local::task_queue::Turn;
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::holder::Holder;
use crate::sys::events::Subscription;
use crate::sys::files::{self, BorrowedFile};
use crate::sys::mutex::Mutex;
use crate::sys::wait_pipe::Presence;

/// A lock file that is held. Dropping the guard releases the lock.
///
/// The drop schedules the deletion of the lock file: on a local file system it
/// is done on the spot (microseconds), elsewhere by a thread of this crate,
/// and on the spot again where there is no Tokio runtime or it is going down.
/// [`flush`](crate::flush) waits for what is scheduled. A process that is
/// killed leaves the file; the next contender takes it over at once.
///
/// If the lock had to be waited for, the thread that ends the hold gives way
/// once (`sched_yield(2)`): the next holder was as a rule woken on the same
/// processor. Where that takes longer than a millisecond, because others want the
/// processor, the next ones are left out.
///
/// # Panics of the holder
/// A guard that is dropped by a panic releases the lock as any other drop does, and
/// the next holder is not told: there is no poison, as for the locks of Tokio. The drop
/// cannot tell whether the guarded work was cut short: a panic of the runtime's thread
/// drops the guards of all its tasks, and a panic of a child task leaves the guard with
/// its parent.
/// Where the next holder must know, have the panic end the process
/// (`panic = "abort"`): then [`recovered_from`](FileGuard::recovered_from) tells of it,
/// as of every dead holder. Or write into the data that work has begun, and remove that
/// before the release.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct FileGuard {
    hold: Hold,
    recovered_from: Option<Box<Holder>>,
    retry_period: Duration,
    watch: Mutex<Option<LossWatch>>,
    /// Of its time in the line; it ends after the hold at the latest.
    presence: Option<Presence>,
}

// A panic leaves no hold half changed.
impl UnwindSafe for FileGuard {}
impl RefUnwindSafe for FileGuard {}

/// A task that cancels a token when the lock is lost.
struct LossWatch {
    lost: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl FileGuard {
    pub(crate) fn new(
        hold: Hold,
        recovered_from: Option<Box<Holder>>,
        retry_period: Duration,
    ) -> Self {
        let (watch, presence) = (Mutex::new(None), None);
        Self { hold, recovered_from, retry_period, watch, presence }
    }

    /// Release the lock and report how that went.
    ///
    /// The hold ends whatever the answer is, and it ends even if the future is
    /// dropped after its first poll.
    ///
    /// # Cancel safety
    /// The hold ends also if the future is dropped after its first poll. One that is never
    /// polled releases the lock as a dropped guard does.
    ///
    /// # Errors
    /// [`Error::Lost`] if the file was gone or another's; it was not
    /// deleted then, and another process may have been inside. [`Error::NotRemoved`] if it
    /// could not be deleted; it is marked as released, so that the next holder
    /// is not told of a recovery. [`Error::Forked`] in a forked child.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// if let Err(error) = guard.release().await {
    ///     println!("another process may have been inside: {error}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "unlock")]
    pub async fn release(self) -> Result<(), Error> {
        let Self { hold, presence, .. } = self;
        let outcome = hold.end().await;
        drop(presence);
        outcome
    }

    /// Resolves when the lock is, or should be, no longer held by this guard.
    ///
    /// Its file was removed or replaced then, or a process asked for it with
    /// [`revoke`](crate::AsyncFileLock::revoke). Else it never resolves.
    ///
    /// It looks at once, at each event, and each
    /// [`retry_period`](crate::FileOptions::retry_period) for what gives no event.
    /// A look that fails says neither that the lock is held nor that it is lost.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn work() {}
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// tokio::select! {
    ///     _ = work() => {}
    ///     why = guard.lost() => return Err(why.into()),
    /// }
    /// guard.release().await
    /// # }
    /// ```
    pub async fn lost(&self) -> Lost {
        loss(self.hold.lock_file(), self.hold.executor(), self.retry_period).await
    }

    /// Whether the lock is lost, by a look at the path on the caller's thread: one system
    /// call. Where the file system may not answer, as over a network, there is no look:
    /// what [`lost_token`](Self::lost_token) knows counts, and without such a token nothing
    /// is known.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        if self.hold.executor().has_events() {
            return reason(self.hold.lock_file()).is_some();
        }
        self.watch.lock().as_ref().is_some_and(|watch| watch.lost.is_cancelled())
    }

    /// A token that is cancelled when [`lost`](Self::lost) would resolve, for
    /// code that takes tokens. Cancelling it has no other effect. It is not
    /// cancelled when the guard is released.
    ///
    /// The first call starts a task that ends with the guard. It lives on the
    /// caller's runtime; if that has gone down, the next call starts another
    /// with another token.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// let lost = guard.lost_token();
    /// let work = tokio::spawn(lost.clone().run_until_cancelled_owned(async { /* the work */ }));
    /// if work.await.is_ok_and(|done| done.is_none()) {
    ///     println!("the lock was lost, and the work is stopped");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        let mut watch = self.watch.lock();
        match &*watch {
            Some(watch) if !watch.task.is_finished() || watch.lost.is_cancelled() => {}
            _ => *watch = Some(self.watch()),
        }
        watch.as_ref().expect("BUG: nobody watches").lost.child_token()
    }

    fn watch(&self) -> LossWatch {
        let lost = CancellationToken::new();
        let task = watch_for_loss(
            Arc::downgrade(self.hold.lock_file()),
            self.hold.executor().clone(),
            self.retry_period,
            lost.clone(),
        );
        LossWatch { lost, task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// Looks, by a system call and on the caller's thread, whether the lock file
    /// is still where it was, and held; for a caller that has to know just before each step
    /// and fills the directory with events of its own.
    #[cfg(feature = "lockd")]
    pub(crate) fn losses(&self) -> impl Fn() -> Option<Lost> + Send + Sync + use<> {
        let (lock_file, path) = (Arc::downgrade(self.hold.lock_file()), self.path().to_owned());
        move || {
            let lock_file = lock_file.upgrade().filter(|lock_file| !lock_file.is_over());
            let reason =
                lock_file.map_or(Some(LostReason::Removed), |lock_file| reason(&lock_file))?;
            Some(Lost { lock: path.clone().into(), reason })
        }
    }

    /// It had to be waited for: others may want it as well.
    pub(crate) fn contended(self, presence: Option<Presence>) -> Self {
        self.hold.lock_file().contended();
        Self { presence, ..self }
    }

    /// The user holds it now, and knows of a dead holder.
    pub(crate) fn acknowledge_recovery(self) -> Self {
        self.hold.lock_file().acknowledge_recovery();
        self
    }

    pub(crate) fn take_recovered_from(&mut self) -> Option<Box<Holder>> {
        self.recovered_from.take()
    }

    /// With the word of a dead holder from an earlier try.
    pub(crate) fn or_recovered(mut self, pending_report: Option<Box<Holder>>) -> Self {
        self.recovered_from = self.recovered_from.take().or(pending_report);
        self
    }

    /// After a probation: whether the lock is still ours.
    pub(crate) async fn survived(&self) -> Survival {
        let lock_file = Arc::clone(self.hold.lock_file());
        self.hold
            .executor()
            .run(lock_file, |lock_file| protocol::survived(&OsDisk, &lock_file))
            .await
    }

    /// Give the file back and keep the turn.
    pub(crate) async fn give_back(self) -> Turn {
        self.hold.give_back().await
    }

    /// The previous holder, if it died holding the lock.
    ///
    /// What the lock guards may be half written then. An acquisition that was cancelled
    /// before it could tell leaves that to the next.
    ///
    /// An empty file at the path counts too, as a holder of which nothing is
    /// known: it is what a power failure leaves, though `touch` makes one as well.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncFileLock) -> Result<(), lockkeeper::Error> {
    /// let guard = lock.acquire().await?;
    /// if let Some(dead) = guard.recovered_from() {
    ///     println!("{dead} died holding the lock: its work may be half done");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("poison", "is_poisoned"))]
    #[must_use]
    pub fn recovered_from(&self) -> Option<&Holder> {
        self.recovered_from.as_deref()
    }

    /// The lock file, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.hold.lock_file().path().path()
    }

    /// What names this hold in the lock file: 32 hexadecimal digits, random. No other hold
    /// has the same, also where the file itself is handed off from task to task
    /// ([`local_handoff`](crate::FileOptions::local_handoff)). It does not order
    /// holds, so it is no fencing token.
    #[must_use]
    pub fn hold_id(&self) -> String {
        self.hold.lock_file().record().hold_id.to_string()
    }

    /// The descriptor that carries the kernel lock, for a child process to inherit.
    ///
    /// The lock then lasts until the guard is released, *or* until this process and every
    /// such child are gone. `None` with [`Proof::Process`](crate::Proof::Process), and on
    /// Windows, where a lock is also the process's that took it.
    ///
    /// Duplicate it for the child; never unlock it.
    #[must_use]
    pub fn lock_fd(&self) -> Option<BorrowedFile<'_>> {
        let lock_file = self.hold.lock_file();
        (files::ARE_INHERITED_LOCKED && lock_file.record().proof == RecordedProof::Flock)
            .then(|| files::lend(lock_file.show_file()))
    }
}

impl fmt::Debug for FileGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("FileGuard")
            .field("path", &self.path())
            .field("recovered_from", &self.recovered_from)
            .finish_non_exhaustive()
    }
}

/// `held` is kept alive no longer than for a look.
async fn watch_for_loss(
    lock_file: Weak<LockFile<OsDisk>>,
    executor: Executor,
    period: Duration,
    lost: CancellationToken,
) {
    let mut subscription = None;
    loop {
        let Some(lock_file) = lock_file.upgrade() else {
            return;
        };
        listen(&mut subscription, &lock_file, &executor);
        if look(&lock_file, &executor).await.is_some() {
            return lost.cancel();
        }
        drop(lock_file);
        next_look(subscription.as_ref(), period).await;
    }
}

async fn loss(lock_file: &Arc<LockFile<OsDisk>>, executor: &Executor, period: Duration) -> Lost {
    let mut subscription = None;
    loop {
        listen(&mut subscription, lock_file, executor);
        if let Some(lost) = look(lock_file, executor).await {
            return lost;
        }
        next_look(subscription.as_ref(), period).await;
    }
}

/// Before a look, so that what happens after it is heard.
fn listen(
    subscription: &mut Option<Subscription>,
    lock_file: &LockFile<OsDisk>,
    executor: &Executor,
) {
    if executor.has_events() {
        let path = lock_file.shared_path();
        *subscription = Subscription::follow_directory(subscription.take(), path);
        if let Some(subscription) = subscription {
            subscription.await_closes([path.revocation(lock_file.record().hold_id)]);
        }
    }
}

/// Also when time has passed: an ancestor that is renamed gives no event.
async fn next_look(subscription: Option<&Subscription>, period: Duration) {
    let Some(subscription) = subscription else {
        return tokio::time::sleep(period).await;
    };
    tokio::select! {
        _ = subscription.event() => {}
        () = tokio::time::sleep(period) => {}
    }
}

async fn look(lock_file: &Arc<LockFile<OsDisk>>, executor: &Executor) -> Option<Lost> {
    let reason = executor.run(Arc::clone(lock_file), |lock_file| reason(&lock_file)).await?;
    Some(Lost { lock: lock_file.path().path().into(), reason })
}

fn reason(lock_file: &LockFile<OsDisk>) -> Option<LostReason> {
    let at_path = lock_file.look();
    if lock_file.is_over() {
        // What was seen may be our own release.
        return None;
    }
    match at_path {
        Ok(AtPath::Nothing) => Some(LostReason::Removed),
        Ok(AtPath::Another) => Some(LostReason::Replaced),
        Ok(AtPath::Mine) => lock_file.is_revoked().then_some(LostReason::Revoked),
        Err(_) => None,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{self, File};

    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::AsyncFileLock;
    use crate::sys::path::LockPath;
    use crate::sys::tickets::has_foreign_waiters;

    #[tokio::test]
    async fn who_had_to_wait_gives_way_and_nobody_else() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        let lock = AsyncFileLock::new(path.path());
        let guard = lock.acquire().await.unwrap();
        assert!(!guard.hold.lock_file().wakes_next());
        guard.release().await.unwrap();
        let other = File::create(path.path()).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let waits = tokio::spawn(async move { lock.acquire().await.unwrap() });
        while !has_foreign_waiters(&path) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fs::remove_file(path.path()).unwrap();
        drop(other);
        assert!(waits.await.unwrap().hold.lock_file().wakes_next());
    }
}
