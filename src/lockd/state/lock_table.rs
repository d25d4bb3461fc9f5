//! The table of locks of one directory: its books, and the writer that follows them.

#![expect(
    clippy::disallowed_methods,
    reason = "opens and closes the store on the daemon's pool, where no lock of this crate waits"
)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::{
    Figures, GrantReply, LockRequest, LockStatus, LockTableOptions, OpenError, Refusal, Survey,
    WaitLimit,
};
use super::audit::Requester;
use super::books::{Admission, BookSignals, Books};
use super::opening::{check_directory, not_opened, take_directory, this_boot};
use super::resource::{ListenerEnd, LockOutcome, TurnNumber};
use super::writer::Writer;
use crate::lockd::store::{Recovered, Store, StoreOptions};
use crate::sys::boot_clock::Alarm;
use crate::sys::files::Errno;
use crate::sys::mutex::Mutex;
use crate::{Error, FileGuard, Lost};

/// The locks of one directory. Clones are the same table. A table that is dropped without
/// [`close`](LockTable::close) leaves files unsynced.
#[derive(Clone)]
pub(crate) struct LockTable(Arc<LockTableInner>, Option<Arc<Requester>>);

struct LockTableInner {
    books: Mutex<Books>,
    writer: Writer,
    /// Whether the directory's own lock is lost.
    loss: Box<dyn Fn() -> Option<Lost> + Send + Sync>,
    changes: watch::Sender<u64>,
    failed: watch::Sender<Option<String>>,
    /// The tasks are to end.
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Between two looks at the directory's own lock while nothing changes. With more, a daemon
/// that has lost its directory finds out later.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

impl LockTable {
    /// Take the directory over, with the locks that are held in it. It needs a
    /// Tokio runtime with I/O and time, and lives on it.
    ///
    /// # Errors
    /// What is wrong with the directory, or which daemon has it.
    pub(crate) async fn open(
        path: &Path,
        options: LockTableOptions,
    ) -> Result<LockTable, OpenError> {
        Self::open_in_boot(path, options, this_boot()).await
    }

    async fn open_in_boot(
        path: &Path,
        options: LockTableOptions,
        boot: [u8; 36],
    ) -> Result<LockTable, OpenError> {
        check_directory(path)?;
        let alarm = Alarm::new().map_err(|source| OpenError::Unusable {
            path: path.to_owned(),
            doing: "making a timer",
            advice: "let the daemon have more open files".to_owned(),
            source,
        })?;
        let guard = take_directory(path).await?;
        let directory = path.to_owned();
        let LockTableOptions { sync, accept_damage, tokens_above, .. } = options;
        let how = StoreOptions { sync, accept_damage, tokens_above };
        let open = move || Store::open(&directory, boot, how);
        let opened = tokio::task::spawn_blocking(open).await.expect("BUG: opening panicked");
        let (store, recovered) = opened.map_err(|unopened| not_opened(path, unopened))?;
        let started = Self::start(store, recovered, &options, alarm, guard);
        started.map_err(|source| OpenError::Unusable {
            path: path.to_owned(),
            doing: "starting a thread",
            advice: "let the daemon have more threads".to_owned(),
            source,
        })
    }

    fn start(
        store: Store,
        recovered: Recovered,
        options: &LockTableOptions,
        alarm: Alarm,
        guard: FileGuard,
    ) -> io::Result<Self> {
        let (changes, failed) = (watch::Sender::new(0), watch::Sender::new(None));
        let sooner = Arc::new(Notify::new());
        let signals = BookSignals {
            changes: changes.clone(),
            failed: failed.clone(),
            sooner: sooner.clone(),
        };
        let mut books = Books::new(Arc::clone(store.directory()), recovered, options, signals);
        books.note_store(store.syncs(), store.last_token());
        let (books, writer) = (Mutex::new(books), Writer::new(store, options.sync)?);
        let loss = Box::new(guard.losses());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let inner = Arc::new(LockTableInner { books, writer, loss, changes, failed, stop, tasks });
        let stop = inner.stop.clone();
        inner.tasks.spawn(expire_leases(Arc::downgrade(&inner), alarm, sooner, stop.clone()));
        inner.tasks.spawn(keep_directory(Arc::downgrade(&inner), guard, stop));
        Ok(Self(inner, None))
    }

    /// The same table, for requests of this requester.
    pub(crate) fn requested_by(&self, source: &Arc<Requester>) -> Self {
        Self(Arc::clone(&self.0), Some(Arc::clone(source)))
    }

    /// Acquire a lock, or wait for the lock as the request says. A limit that is
    /// reached while the grant is on its way to the disk is overrun by that.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no waiter in the queue, and a grant whose answer was not
    /// heard is undone. A request with an id has its place again if it is repeated soon.
    pub(crate) async fn lock(&self, request: LockRequest) -> Result<GrantReply, Refusal> {
        self.lock_for(request, std::future::pending()).await
    }

    /// [`lock`](Self::lock) for a client that may go meanwhile. Then the request waits no
    /// more, and is answered as if its limit were reached: the client may still read.
    pub(crate) async fn lock_for(
        &self,
        request: LockRequest,
        gone: impl Future<Output = ()>,
    ) -> Result<GrantReply, Refusal> {
        let wait = request.wait;
        let (turn, receiver) = match self.0.books().ask(request, &self.1)? {
            Admission::Decided(outcome) => return outcome,
            Admission::Waiting(turn, receiver) => (turn, receiver),
        };
        let mut listener =
            OutcomeListener { inner: &self.0, turn, receiver, end: ListenerEnd::Disconnected };
        let is_over = tokio::select! {
            biased;
            outcome = listener.outcome() => return outcome,
            () = reached(wait) => true,
            () = gone => false,
        };
        let refusal = self.0.books().give_up(turn);
        if let Some(refusal) = refusal {
            listener.end = if is_over { ListenerEnd::TimedOut } else { ListenerEnd::Disconnected };
            return Err(refusal);
        }
        listener.outcome().await
    }

    /// The refusal reached a client that had [gone](Self::lock_for): it does not come back.
    pub(crate) fn leave(&self, resource: &str, client: &str, request_id: &str) {
        self.0.books().leave(resource, client, request_id);
    }

    /// An answer with this grant did not reach its client. If none did, the grant is
    /// undone. (I4)
    pub(crate) fn lose_answer(&self, resource: &str, token: u64) {
        self.0.books().lose_answer(resource, token);
    }

    /// End a hold of this client. With a token: this grant and no other, and a repetition
    /// succeeds.
    ///
    /// # Cancel safety
    /// The end is made once the future was polled, even if it is dropped.
    pub(crate) async fn unlock(
        &self,
        resource: &str,
        client: &str,
        token: Option<u64>,
    ) -> Result<(), Refusal> {
        let answer = self.0.books().unlock(resource, client, token, &self.1)?;
        answer.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// End the hold of any client, or this grant and no other; what was held. A file that
    /// names no holder is removed.
    ///
    /// # Cancel safety
    /// As [`unlock`](Self::unlock).
    pub(crate) async fn force_unlock(
        &self,
        resource: &str,
        token: Option<u64>,
    ) -> Result<LockStatus, Refusal> {
        let answer = self.0.books().force_unlock(resource, token, &self.1)?;
        answer.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Let the lease of this grant run from now on; its length. `Duration::MAX` for a grant
    /// without a lease.
    pub(crate) async fn renew(
        &self,
        resource: &str,
        client: &str,
        token: u64,
    ) -> Result<Duration, Refusal> {
        self.0.books().renew(resource, client, token)
    }

    /// What there is to list.
    pub(crate) fn survey(&self) -> Survey {
        self.0.books().survey()
    }

    /// The lock of this name of a [survey](Self::survey), if it is still held and has a
    /// wanted name: its own, its holder's or a waiter's.
    pub(crate) fn listed(
        &self,
        name: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Option<LockStatus> {
        self.0.books().listed(name, is_wanted)
    }

    /// How many of these names would be [listed](Self::listed). The books are locked
    /// meanwhile, so not for many names at a time.
    pub(crate) fn count(&self, names: &[Arc<str>], is_wanted: impl Fn(&str) -> bool) -> usize {
        let books = self.0.books();
        names.iter().filter(|name| books.is_listed(name, &is_wanted)).count()
    }

    /// All that is held, by name.
    #[cfg(test)]
    fn list(&self) -> Vec<LockStatus> {
        self.survey().names.iter().filter_map(|name| self.listed(name, |_| true)).collect()
    }

    /// The lock of this name; `None` if there is none.
    pub(crate) fn show(&self, resource: &str) -> Option<LockStatus> {
        self.0.books().show(resource)
    }

    /// A number that changes whenever what is [listed](Self::listed) does.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether the disk takes locks, as far as that shows without one.
    pub(crate) fn has_storage(&self) -> bool {
        let (directory, has_refused) = self.0.books().storage();
        !has_refused && !directory.is_full()
    }

    /// Counts since the start, and how many there are now.
    pub(crate) fn figures(&self) -> Figures {
        self.0.books().figures()
    }

    /// Resolves, with the reason, when this daemon may not go on. The directory is not its
    /// own any more, or cannot be written safely. (I7)
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.0.failed.subscribe();
        // The reference into the channel ends here: it may not cross an `await`, or the
        // server could not be spawned.
        let why = failed.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// Refuse all waiters, sync the files and give the directory back. Other clones refuse
    /// everything from now on.
    pub(crate) async fn close(self) {
        self.0.books().close();
        let inner = Arc::clone(&self.0);
        let closed = tokio::task::spawn_blocking(move || inner.close_store()).await;
        if let Ok(Err(error)) = closed {
            tracing::warn!("the files of the locks could not be synced: {error}");
        }
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl LockTableInner {
    fn books(self: &Arc<Self>) -> OpenBooks<'_> {
        OpenBooks { books: Some(self.books.lock()), inner: self }
    }

    /// [`may_write`](Self::may_write) for tasks that must not wait for a file system.
    async fn looks(self: &Arc<Self>) -> bool {
        let inner = Arc::clone(self);
        tokio::task::spawn_blocking(move || inner.may_write()).await.unwrap_or(false)
    }

    /// I7.
    fn may_write(self: &Arc<Self>) -> bool {
        if let Some(lost) = (self.loss)() {
            self.books().fail(&Error::from(lost).to_string());
        }
        self.failed.borrow().is_none()
    }

    /// Write the next batch; whether more is left for this writer.
    fn write_batch(self: &Arc<Self>) -> bool {
        // Locked before the books: so batches are written in the order of the outbox.
        let mut store = self.writer.store.lock();
        let batch = self.books.lock().next_batch();
        let (changes, purposes): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let changed = match store.as_mut() {
            Some(store) if self.may_write() => store.commit(changes),
            Some(store) => store.refuse(&changes),
            None => self.books.lock().refuse_all(&changes),
        };
        let mut books = self.books();
        for (purpose, changed) in purposes.into_iter().zip(changed) {
            books.complete(purpose, changed);
        }
        if let Some(store) = store.as_ref() {
            books.note_store(store.syncs(), store.last_token());
        }
        books.goes_on_writing()
    }

    /// Write what is left and close the store. Later changes are refused.
    fn close_store(self: &Arc<Self>) -> Result<(), Errno> {
        while self.write_batch() {}
        let store = self.writer.store.lock().take();
        match store {
            Some(store) if self.may_write() => store.close(),
            _ => Ok(()),
        }
    }
}

/// The books, locked. If changes for the store came meanwhile and there is no writer, the
/// drop starts one.
struct OpenBooks<'a> {
    books: Option<MutexGuard<'a, Books>>,
    inner: &'a Arc<LockTableInner>,
}

impl Deref for OpenBooks<'_> {
    type Target = Books;

    fn deref(&self) -> &Books {
        self.books.as_ref().expect("BUG: books that were put back")
    }
}

impl DerefMut for OpenBooks<'_> {
    fn deref_mut(&mut self) -> &mut Books {
        self.books.as_mut().expect("BUG: books that were put back")
    }
}

impl Drop for OpenBooks<'_> {
    fn drop(&mut self) {
        let needs_writer = self.books.take().is_some_and(|mut books| {
            books.publish_changes();
            books.takes_on_writer()
        });
        if needs_writer {
            let inner = Arc::clone(self.inner);
            self.inner.writer.run(move || inner.write_batch());
        }
    }
}

impl Drop for LockTableInner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A listener for the outcome of a request.
struct OutcomeListener<'a> {
    inner: &'a Arc<LockTableInner>,
    turn: TurnNumber,
    receiver: oneshot::Receiver<LockOutcome>,
    end: ListenerEnd,
}

impl OutcomeListener<'_> {
    async fn outcome(&mut self) -> LockOutcome {
        let outcome = (&mut self.receiver).await;
        self.end = ListenerEnd::Heard;
        outcome.unwrap_or(Err(Refusal::ShuttingDown))
    }
}

impl Drop for OutcomeListener<'_> {
    fn drop(&mut self) {
        self.inner.books().settle(self.turn, self.end);
    }
}

/// Resolves at the limit of a wait.
async fn reached(wait: WaitLimit) {
    match wait {
        WaitLimit::Until(limit) => sleep(limit).await,
        WaitLimit::No | WaitLimit::Forever => std::future::pending().await,
    }
}

/// End leases when they are over.
async fn expire_leases(
    inner: Weak<LockTableInner>,
    alarm: Alarm,
    sooner: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        let Some(next) = inner.upgrade().map(|inner| inner.books().expire()) else {
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
async fn keep_directory(inner: Weak<LockTableInner>, guard: FileGuard, stop: CancellationToken) {
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
