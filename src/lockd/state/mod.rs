//! Who holds what and who waits, in one daemon.
//!
//! I1. One holder. A resource is given to one request at a time, and to the
//!     next only behind the end of the last: the store takes them in this
//!     order, and gives nothing whose file is still there.
//! I2. Who waits is served in the order in which it asked; one try never
//!     overtakes one who waits.
//! I3. Nothing is answered before the store has it (S1). The books are ahead
//!     of the store; what it could not do is taken back.
//! I4. A grant that nobody heard of is undone: its client was gone before the
//!     answer came there. A client that may have read the answer keeps it.
//! I5. A request that is repeated by its id is one request: it has one place
//!     in the queue and one grant, which is given once, and the lease of the
//!     grant runs from the repetition. A client that loses its connection while
//!     it waits is passed over, and has its place again if it comes back soon
//!     (`absent`).
//! I6. A lease runs on `CLOCK_BOOTTIME` and from when it was granted or
//!     renewed here, so never shorter than its holder counts, who began before.
//!     After a restart it runs its whole length again.
//! I7. When the directory's own lock is lost, or the journal, nothing is
//!     given or ended any more. Whether it is lost is looked at before each
//!     batch, and now and then: to be told by events would be to be woken by
//!     each change of one's own.

mod absent;
mod api;
mod audit;
mod books;
mod finished;
mod resource;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::Access;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::books::{Asked, Core, Signals};
pub use api::OpenError;
pub(crate) use api::{
    EngineOptions, Figures, Grant, Held, LockRequest, Refusal, Survey, TIME_BOUNDS, Wait,
    in_directory,
};
use audit::Asker;
pub(crate) use audit::{Credential, Refused, Source};
use resource::{Leave, Outcome, TicketId};
use writer::Lane;

use super::store::{Failure, Recovered, Store, StoreOptions, Unopened};
use crate::sys::boot_clock::Alarm;
use crate::{AsyncFileLock, Error, FileGuard, FileOptions, Lost};

/// The locks of one directory. Clones are the same engine. [`close`](Engine::close)
/// it: dropped, it leaves files unsynced, and a change may be on its way still.
#[derive(Clone)]
pub(crate) struct Engine(Arc<Inner>, Asker);

struct Inner {
    this: Weak<Inner>,
    core: Mutex<Core>,
    lane: Arc<Lane>,
    /// Whether the directory's own lock is lost.
    loss: Box<dyn Fn() -> Option<Lost> + Send + Sync>,
    changes: watch::Sender<u64>,
    failed: watch::Sender<Option<String>>,
    /// The tasks are to end.
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The directory's own lock, as long as a daemon serves it.
const DAEMON_LOCK: &str = ".lockkeeper-daemon.lock";

/// Between two looks at the directory's own lock while nothing changes.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// A daemon that was killed is gone in less.
const PREDECESSOR: Duration = Duration::from_secs(1);

/// Where Linux tells one boot from another, as 36 bytes.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Engine {
    /// Take the directory over, with the locks that are held in it. It needs a
    /// Tokio runtime with I/O and time, and lives on it.
    ///
    /// # Errors
    /// What is wrong with the directory, or who has it.
    pub(crate) async fn open(path: &Path, options: EngineOptions) -> Result<Engine, OpenError> {
        Self::open_in_boot(path, options, this_boot()).await
    }

    async fn open_in_boot(
        path: &Path,
        options: EngineOptions,
        boot: [u8; 36],
    ) -> Result<Engine, OpenError> {
        check_directory(path)?;
        let alarm = Alarm::new().map_err(|source| OpenError::Unusable {
            path: path.to_owned(),
            doing: "making a timer",
            advice: "let the daemon have more open files".to_owned(),
            source,
        })?;
        let guard = take_directory(path).await?;
        let directory = path.to_owned();
        let EngineOptions { sync, accept_damage, tokens_above, .. } = options;
        let how = StoreOptions { sync, accept_damage, tokens_above };
        let open = move || Store::open(&directory, boot, how);
        let opened = tokio::task::spawn_blocking(open).await.expect("BUG: opening panicked");
        let (store, recovered) = opened.map_err(|unopened| not_opened(path, unopened))?;
        Self::start(store, recovered, &options, alarm, guard)
    }

    fn start(
        store: Store,
        recovered: Recovered,
        options: &EngineOptions,
        alarm: Alarm,
        guard: FileGuard,
    ) -> Result<Self, OpenError> {
        let (changes, failed) = (watch::Sender::new(0), watch::Sender::new(None));
        let sooner = Arc::new(Notify::new());
        let signals =
            Signals { changes: changes.clone(), failed: failed.clone(), sooner: sooner.clone() };
        let directory = Arc::clone(store.directory());
        let path = directory.path().to_owned();
        let (syncs, last_token) = (store.syncs(), store.last_token());
        let (lane, apart) = match options.sync {
            true => (Arc::new(Lane::default()), Some(store)),
            false => (Arc::new(Lane::shared(store)), None),
        };
        let mut core = Core::new(directory, Arc::clone(&lane), recovered, options, signals);
        core.note_store(syncs, last_token);
        let inner = Arc::new_cyclic(|this| {
            let (this, core) = (Weak::clone(this), Mutex::new(core));
            let loss = Box::new(guard.losses());
            let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
            Inner { this, core, lane: Arc::clone(&lane), loss, changes, failed, stop, tasks }
        });
        if let Some(store) = apart {
            lane.start(store, Arc::downgrade(&inner)).map_err(|source| OpenError::Unusable {
                path,
                doing: "starting a thread",
                advice: "let the daemon have more threads".to_owned(),
                source,
            })?;
        }
        let stop = inner.stop.clone();
        inner.tasks.spawn(expire_leases(Arc::downgrade(&inner), alarm, sooner, stop.clone()));
        inner.tasks.spawn(keep_directory(Arc::downgrade(&inner), guard, stop));
        Ok(Self(inner, None))
    }

    /// The same engine, asked by this source from now on.
    pub(crate) fn asked_by(&self, source: &Arc<Source>) -> Self {
        Self(Arc::clone(&self.0), Some(Arc::clone(source)))
    }

    /// Ask for a lock, and wait for it as the request says. A limit that is
    /// reached while the grant is on its way to the disk is overrun by that.
    ///
    ///
    /// # Cancel safety
    /// Dropping the future leaves nobody in the queue, and a grant that nobody
    /// heard of is undone. A request with an id has its place again if it is
    /// made again soon.
    pub(crate) async fn lock(&self, request: LockRequest) -> Result<Grant, Refusal> {
        self.lock_for(request, std::future::pending()).await
    }

    /// [`lock`](Self::lock) for a client that may go meanwhile. Then it waits no
    /// more, and is answered as if its limit were reached: it may still read.
    pub(crate) async fn lock_for(
        &self,
        request: LockRequest,
        gone: impl Future<Output = ()>,
    ) -> Result<Grant, Refusal> {
        let wait = request.wait;
        let (ticket, receiver) = match self.0.core().ask(request, &self.1)? {
            Asked::Decided(outcome) => return outcome,
            Asked::Waiting(ticket, receiver) => (ticket, receiver),
        };
        let mut listening = Listening { inner: &self.0, ticket, receiver, leave: Leave::Gone };
        let is_over = tokio::select! {
            biased;
            outcome = listening.outcome() => return outcome,
            () = reached(wait) => true,
            () = gone => false,
        };
        let refusal = self.0.core().give_up(ticket);
        if let Some(refusal) = refusal {
            listening.leave = if is_over { Leave::Over } else { Leave::Gone };
            return Err(refusal);
        }
        listening.outcome().await
    }

    /// The refusal of this request came to its client after it had [gone](Self::lock_for):
    /// it was told, and does not come back.
    pub(crate) fn leave(&self, resource: &str, client: &str, request_id: &str) {
        self.0.core().leave(resource, client, request_id);
    }

    /// An answer with this grant did not come to its client. If none did, the
    /// grant is undone. (I4)
    pub(crate) fn lose_answer(&self, resource: &str, token: u64) {
        self.0.core().lose_answer(resource, token);
    }

    /// End a hold of this client. With a token, of this grant and no other; if
    /// that was unlocked before, it is so.
    ///
    /// # Cancel safety
    /// Once it was polled it is done, even if the future is dropped.
    pub(crate) async fn unlock(
        &self,
        resource: &str,
        client: &str,
        token: Option<u64>,
    ) -> Result<(), Refusal> {
        let answer = self.0.core().unlock(resource, client, token, &self.1)?;
        answer.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// End whatever hold there is, or this grant and no other; what it was. A file that names nobody is
    /// removed.
    ///
    /// # Cancel safety
    /// As [`unlock`](Self::unlock).
    pub(crate) async fn force_unlock(
        &self,
        resource: &str,
        token: Option<u64>,
    ) -> Result<Held, Refusal> {
        let answer = self.0.core().force_unlock(resource, token, &self.1)?;
        answer.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Let the lease of this grant run from now on; how long it runs. Of a
    /// grant without a lease: `Duration::MAX`.
    pub(crate) async fn renew(
        &self,
        resource: &str,
        client: &str,
        token: u64,
    ) -> Result<Duration, Refusal> {
        let mut core = self.0.core();
        let renewed = core.renew(resource, client, token);
        core.flush();
        renewed
    }

    /// What there is to list.
    pub(crate) fn survey(&self) -> Survey {
        self.0.core().survey()
    }

    /// What a name of a [survey](Self::survey) stands for, if it is still held and
    /// there is a wanted name in it: its own, its holder's or a waiter's.
    pub(crate) fn listed(&self, name: &str, is_wanted: impl Fn(&str) -> bool) -> Option<Held> {
        self.0.core().listed(name, is_wanted)
    }

    /// How many of these names would be [listed](Self::listed). The books are open
    /// meanwhile, so not for many names at a time.
    pub(crate) fn count(&self, names: &[Arc<str>], is_wanted: impl Fn(&str) -> bool) -> usize {
        let core = self.0.core();
        names.iter().filter(|name| core.is_listed(name, &is_wanted)).count()
    }

    /// All that is held, by name.
    #[cfg(test)]
    fn list(&self) -> Vec<Held> {
        self.survey().names.iter().filter_map(|name| self.listed(name, |_| true)).collect()
    }

    /// What is at one name, `None` if nothing is.
    pub(crate) fn show(&self, resource: &str) -> Option<Held> {
        self.0.core().show(resource)
    }

    /// A number that changes with every change of what is [listed](Self::listed).
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether the disk takes locks, as far as it can be told without one.
    pub(crate) fn has_storage(&self) -> bool {
        let (directory, has_refused) = self.0.core().storage();
        !has_refused && !directory.is_full()
    }

    /// Counts since the start, and how many there are now.
    pub(crate) fn figures(&self) -> Figures {
        self.0.core().figures()
    }

    /// Resolves, with the reason, when this daemon may not go on: the
    /// directory is not its own any more, or it cannot be written safely. (I7)
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.0.failed.subscribe();
        match failed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(why)) => why.clone(),
            _ => std::future::pending().await,
        }
    }

    /// Tell those who wait, sync the files and give the directory back. Other
    /// clones refuse everything from now on.
    pub(crate) async fn close(self) {
        let (closed, is_closed) = oneshot::channel();
        let lane = self.0.core().close();
        match lane {
            Some(lane) if self.0.looks().await => lane.close(&self.0, closed),
            Some(lane) => {
                lane.abandon(Some(&self.0));
                drop(closed);
            }
            None => drop(closed),
        }
        if let Ok(Err(error)) = is_closed.await {
            tracing::warn!("the files of the locks could not be synced: {error}");
        }
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Inner {
    fn core(&self) -> Books<'_> {
        Books { core: Some(self.open_books()), inner: self }
    }

    /// For who works on what is asked for.
    fn open_books(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`may_write`](Self::may_write), for who must not wait for a file system.
    async fn looks(self: &Arc<Self>) -> bool {
        let inner = Arc::clone(self);
        tokio::task::spawn_blocking(move || inner.may_write()).await.unwrap_or(false)
    }

    /// I7.
    fn may_write(&self) -> bool {
        if let Some(lost) = (self.loss)() {
            self.open_books().fail(&Error::from(lost).to_string());
        }
        self.failed.borrow().is_none()
    }
}

/// The books, open. What was asked of the store meanwhile is seen to when they
/// are put back.
struct Books<'a> {
    core: Option<MutexGuard<'a, Core>>,
    inner: &'a Inner,
}

impl Deref for Books<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.core.as_ref().expect("BUG: books that were put back")
    }
}

impl DerefMut for Books<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.core.as_mut().expect("BUG: books that were put back")
    }
}

impl Drop for Books<'_> {
    fn drop(&mut self) {
        let has_asked = self.core.take().is_some_and(|mut core| core.takes_has_asked());
        if has_asked {
            self.inner.lane.rouse(self.inner);
        }
    }
}

/// Nobody is left who could ask.
impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
        let core = self.core.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = core.close() {
            lane.abandon(None);
        }
    }
}

/// One who waits for the outcome of a request.
struct Listening<'a> {
    inner: &'a Inner,
    ticket: TicketId,
    receiver: oneshot::Receiver<Outcome>,
    leave: Leave,
}

impl Listening<'_> {
    async fn outcome(&mut self) -> Outcome {
        let outcome = (&mut self.receiver).await;
        self.leave = Leave::Heard;
        outcome.unwrap_or(Err(Refusal::ShuttingDown))
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.inner.core().settle(self.ticket, self.leave);
    }
}

/// The limit of a wait.
async fn reached(wait: Wait) {
    match wait {
        Wait::Until(limit) => sleep(limit).await,
        Wait::No | Wait::Forever => std::future::pending().await,
    }
}

/// End the leases that are over.
async fn expire_leases(
    inner: Weak<Inner>,
    alarm: Alarm,
    sooner: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        let Some(next) = inner.upgrade().map(|inner| inner.core().expire()) else {
            return;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sooner.notified() => {}
            rung = alarm.ring_at(next) => if let Err(error) = rung {
                tracing::error!("the timer of the leases failed: {error}");
                sleep(Duration::from_millis(100)).await;
            },
        }
    }
}

/// Hold the directory until the end. (I7)
async fn keep_directory(inner: Weak<Inner>, guard: FileGuard, stop: CancellationToken) {
    let look = async {
        while let Some(inner) = inner.upgrade() {
            inner.looks().await;
            drop(inner);
            sleep(LOOK_PERIOD).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = look => {}
    }
    if let Err(error) = guard.release().await {
        tracing::warn!("{error}");
    }
}

async fn take_directory(path: &Path) -> Result<FileGuard, OpenError> {
    let options = FileOptions::default().note("a lock daemon serves this directory");
    let lock = AsyncFileLock::with_options(path.join(DAEMON_LOCK), options)?;
    match lock.acquire_timeout(PREDECESSOR).await {
        Ok(guard) => Ok(guard),
        Err(Error::Timeout { holder, .. }) => {
            let holder =
                holder.map_or_else(|| "it does not say who".to_owned(), |it| it.to_string());
            Err(OpenError::InUse { directory: path.to_owned(), holder })
        }
        Err(error) => Err(error.into()),
    }
}

fn check_directory(path: &Path) -> Result<(), OpenError> {
    let unusable = |doing, advice: &str| {
        let (path, advice) = (PathBuf::from(path), advice.to_owned());
        move |source| OpenError::Unusable { path, doing, advice, source }
    };
    let metadata = std::fs::metadata(path)
        .map_err(unusable("looking at the directory", "make it, or name another"))?;
    if !metadata.is_dir() {
        let error = std::io::Error::from(std::io::ErrorKind::NotADirectory);
        return Err(unusable("looking at the directory", "name a directory")(error));
    }
    rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).map_err(
        |errno| {
            unusable("asking to write it", "let the daemon's user read and write it")(errno.into())
        },
    )
}

fn this_boot() -> [u8; 36] {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    // A boot that cannot be told is like no other: what the files say is checked.
    boot.trim().as_bytes().try_into().unwrap_or([0; 36])
}

fn not_opened(directory: &Path, unopened: Unopened) -> OpenError {
    match unopened {
        Unopened::Failed(failure) => {
            let advice = failure.advice();
            let Failure { path, doing, errno } = failure;
            OpenError::Unusable { path, doing, advice, source: errno.into() }
        }
        Unopened::Damaged { found, remedy } => {
            OpenError::Damaged { directory: directory.to_owned(), found, remedy }
        }
    }
}
