//! What a user has while holding a kernel lock.

use std::fmt;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::open_file::OpenFile;
use super::options::Primitive;
use super::shared::{LockState, SHARE_MAX, Source, Stay, Terms};
use super::syscalls::{self, LockSpec, Sharing};
use crate::local::executor::Executor;
use crate::local::task_queue::Turn;
use crate::local::yield_cpu::let_next_run;
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::events;
use crate::sys::files::Errno;
use crate::sys::inotify::Subscription;
use crate::sys::mutex::Mutex;
use crate::sys::tickets::Waiters;
use crate::sys::wait_pipe::Presence;

/// A held kernel lock with its open file. Dropping it gives the lock back: on a
/// local file system on the spot, elsewhere by a thread of this crate
/// ([`flush`](crate::flush) waits for that). If it had to be waited for, the
/// thread that ends the hold gives way once, as for a [`FileGuard`](crate::FileGuard).
///
/// It is a type of its own beside [`FileGuard`](crate::FileGuard) because a
/// kernel lock has a file that is the user's, can be shared and downgraded, and
/// has no record: nobody is told of a dead predecessor, no token names the
/// acquisition, and nobody can ask for it.
///
/// The file is open for reading and writing where that is allowed, and its
/// position is the start. Its descriptor can be given to a child, which then has
/// the lock as well until the guard is released or dropped. Do not unlock it.
///
/// A guard that is dropped by a panic releases the lock like any other, and tells
/// nobody: see [`FileGuard`](crate::FileGuard#panics-of-the-holder). A kernel lock has
/// no record, so its next holder is told of no death either. Where it must know, write
/// into the file that work has begun, and remove that before the release.
///
/// A guard cannot be released twice, nor used afterwards:
///
/// ```compile_fail
/// # async fn twice(guard: lockkeeper::KernelGuard) {
/// guard.release().await;
/// guard.release().await;
/// # }
/// ```
#[must_use = "the lock is given back as soon as the guard is dropped"]
pub struct KernelGuard {
    /// On the heap: it goes through many hands, and from task to task.
    hold: Option<Box<Hold>>,
}

/// A task that cancels a token when the lock is lost. It ends before the hold
/// does, so that the file is open as long as it is compared.
struct LossWatch {
    lost: CancellationToken,
    /// What is seen from now on may be our own release.
    is_over: Arc<AtomicBool>,
    task: AbortOnDropHandle<()>,
}

impl Drop for LossWatch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
    }
}

/// What has to end, in this order: the lock, then the turn. Dropping it does that.
struct Hold {
    /// `None` once it has ended.
    carrier: Option<OpenFile>,
    /// Readers let the next in as soon as they are in.
    turn: Option<Turn>,
    claim: LockSpec,
    terms: Arc<Terms>,
    site: Arc<LockState>,
    /// Among those of its station, until the end begins.
    number: Option<u64>,
    /// Other processes want it as well, as far as is known.
    is_contended: bool,
    /// Of its time in the line, (6) of [`pause`](super::wakeup).
    presence: Option<Presence>,
    /// The user had the file, so that it has a position, and perhaps copies.
    was_used: AtomicBool,
    watch: Mutex<Option<LossWatch>>,
}

impl KernelGuard {
    /// To be made where `carrier` was locked.
    pub(super) fn new(
        carrier: OpenFile,
        turn: Turn,
        claim: LockSpec,
        terms: Arc<Terms>,
        site: Arc<LockState>,
        asked_at: Source,
    ) -> Self {
        let turn = (claim.sharing == Sharing::Exclusive).then_some(turn);
        let number = site.station.hold_begins(carrier.inode.identity, asked_at);
        Self::of(Box::new(Hold {
            carrier: Some(carrier),
            turn,
            claim,
            terms,
            site,
            number: Some(number),
            is_contended: false,
            presence: None,
            was_used: AtomicBool::new(false),
            watch: Mutex::default(),
        }))
    }

    /// A hold of its own on the file that the last turn left locked. Else the
    /// turn, with nothing left.
    pub(super) fn inherit(
        mut turn: Turn,
        claim: LockSpec,
        terms: &Arc<Terms>,
        site: &Arc<LockState>,
        asked_at: Source,
    ) -> Result<Self, Turn> {
        let Some(mut hold) = turn.take_legacy().and_then(|left| left.downcast::<Hold>().ok())
        else {
            return Err(turn);
        };
        let is_ours = hold.claim == claim
            && hold.terms.path.path() == terms.path.path()
            && hold.is_in_place(turn.is_within(SHARE_MAX, Instant::now()));
        if !is_ours {
            drop(hold);
            return Err(turn);
        }
        (hold.terms, hold.site) = (Arc::clone(terms), Arc::clone(site));
        hold.number = Some(site.station.hold_begins(hold.carrier().inode.identity, asked_at));
        hold.turn = Some(turn);
        Ok(Self::of(hold))
    }

    /// It had to be waited for: others may want it as well.
    pub(super) fn contended(mut self, presence: Option<Presence>) -> Self {
        let hold = self.hold.as_mut().expect("BUG: it was just made");
        (hold.is_contended, hold.presence) = (true, presence);
        self
    }

    /// Whether the file is on another file system than its directory was.
    pub(super) fn is_elsewhere(&self) -> bool {
        let hold = self.hold();
        hold.carrier().inode.identity.0 != hold.site.device()
    }

    fn hold(&self) -> &Hold {
        self.hold.as_deref().expect("BUG: a guard was used after its end")
    }

    /// Give the lock back and say how that went.
    ///
    /// The hold ends whatever the answer is, and it ends even if the future is
    /// dropped after its first poll. Without
    /// [`delete_on_release`](crate::KernelOptions::delete_on_release) the path
    /// is not looked at: [`lost`](Self::lost) does that.
    ///
    /// # Errors
    /// With `delete_on_release`, [`Error::Lost`] if the file was gone or
    /// somebody else's and [`Error::NotRemoved`] if it could not be removed.
    /// [`Error::Forked`] in a forked child.
    pub async fn release(mut self) -> Result<(), Error> {
        let hold = self.end_watch().expect("BUG: a guard was released twice");
        match hold.executor() {
            Executor::Here { .. } => hold.end(),
            executor => executor.start(move || hold.end()).finished().await,
        }
    }

    /// Make an exclusive lock shared, with nobody in between: one call of the
    /// kernel, which lets in whoever waits to share it. A guard that is shared
    /// already stays as it is.
    ///
    /// For [`Primitive::Ofd`] the kernel promises that
    /// this is one step. For [`Primitive::Flock`] flock(2) does not, though
    /// Linux does it in one step; should somebody get in between all the same,
    /// or over a network file system, this fails and the lock is gone.
    ///
    /// There is no way up: two holders who both wait to become exclusive wait
    /// for each other, and a kernel that cannot grant it drops the lock that
    /// was there. Release, and acquire again.
    ///
    /// # Cancel safety
    /// Once it was polled, dropping the future gives the lock back.
    ///
    /// # Errors
    /// [`Error::Io`]: the lock is given back then.
    pub async fn downgrade(mut self) -> Result<Self, Error> {
        let mut hold = self.end_watch().expect("BUG: a released guard was used");
        let executor = hold.executor();
        let downgrade = move || hold.downgrade().map(|()| Self::of(hold));
        match executor {
            Executor::Here { .. } => downgrade(),
            executor => executor.start(downgrade).finished().await,
        }
    }

    fn end_watch(&mut self) -> Option<Box<Hold>> {
        let mut hold = self.hold.take()?;
        hold.watch.get_mut().take();
        Some(hold)
    }

    fn of(hold: Box<Hold>) -> Self {
        Self { hold: Some(hold) }
    }

    /// Resolves when the path does not name the locked file any more: it was
    /// removed or replaced, and somebody else may be inside. Else it never
    /// resolves. It looks at once, at each event, and each
    /// [`retry_period`](crate::KernelOptions::retry_period).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn lost(&self) -> Lost {
        let hold = self.hold();
        let identity = hold.carrier().inode.identity;
        loss(Arc::clone(&hold.terms), Arc::clone(&hold.site), identity).await
    }

    /// Whether the lock is lost, by a look at the path on the caller's thread: one system
    /// call. Where the file system may not answer, as over a network, there is no look:
    /// what [`lost_token`](Self::lost_token) knows counts, and without such a token nothing
    /// is known.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let hold = self.hold();
        if hold.site.executor.has_events() {
            let identity = hold.carrier().inode.identity;
            return matches!(look(hold.terms.path.path(), identity), Ok(Some(_)));
        }
        hold.watch.lock().as_ref().is_some_and(|watch| watch.lost.is_cancelled())
    }

    /// A token that is cancelled when [`lost`](Self::lost) would resolve, as
    /// [`FileGuard::lost_token`](crate::FileGuard::lost_token).
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        let mut watch = self.hold().watch.lock();
        match &*watch {
            Some(watch) if !watch.task.is_finished() || watch.lost.is_cancelled() => {}
            _ => *watch = Some(self.watch()),
        }
        watch.as_ref().expect("BUG: nobody watches").lost.child_token()
    }

    fn watch(&self) -> LossWatch {
        let (hold, lost) = (self.hold(), CancellationToken::new());
        let identity = hold.carrier().inode.identity;
        let loss = loss(Arc::clone(&hold.terms), Arc::clone(&hold.site), identity);
        let is_over = Arc::new(AtomicBool::new(false));
        let (cancel, ended) = (lost.clone(), Arc::clone(&is_over));
        let task = tokio::spawn(async move {
            loss.await;
            if !ended.load(Ordering::Acquire) {
                cancel.cancel();
            }
        });
        LossWatch { lost, is_over, task: AbortOnDropHandle::new(task) }
    }

    /// The locked file. Its content is the user's; this crate does not touch it.
    #[must_use]
    pub fn file(&self) -> &File {
        let hold = self.hold();
        hold.was_used.store(true, Ordering::Relaxed);
        hold.carrier()
    }

    /// The locked file's path, absolute where that could be made.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.hold().terms.path.path()
    }

    /// Whether others may share the lock.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.hold().claim.sharing == Sharing::Shared
    }
}

impl AsFd for KernelGuard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file().as_fd()
    }
}

impl fmt::Debug for KernelGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("KernelGuard")
            .field("path", &self.path())
            .field("claim", &self.hold().claim)
            .finish_non_exhaustive()
    }
}

impl Drop for KernelGuard {
    fn drop(&mut self) {
        let Some(hold) = self.end_watch() else {
            return;
        };
        let executor = hold.executor();
        let end = move || Hold::tell(hold.end());
        match (executor, Handle::try_current()) {
            (executor @ Executor::Lane { .. }, Ok(_)) => drop(executor.start(end)),
            // Nobody would do it later; and this may be the thread of the place.
            _ => end(),
        }
    }
}

impl Hold {
    fn is_ours(&self) -> bool {
        self.site.is_ours()
    }

    fn executor(&self) -> Executor {
        match &self.site.executor {
            // In a forked child there are no threads that would do it elsewhere.
            Executor::Lane { .. } if !self.is_ours() => Executor::Here { is_local: false },
            executor => executor.clone(),
        }
    }

    fn carrier(&self) -> &OpenFile {
        self.carrier.as_ref().expect("BUG: a hold was used after its end")
    }

    fn end(mut self: Box<Self>) -> Result<(), Error> {
        if !self.is_ours() {
            return self.end_in_child();
        }
        // Before somebody else can have the lock.
        self.leave_list();
        match self.pass_on() {
            None => Ok(()),
            Some(mut hold) => {
                let outcome = hold.give_up();
                hold.show_released();
                outcome
            }
        }
    }

    fn tell(outcome: Result<(), Error>) {
        match outcome {
            Ok(()) | Err(Error::Forked { .. }) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Leave the file, locked, to the next task of this process, which could have
    /// it again at once anyway. Else everything is still there.
    fn pass_on(mut self: Box<Self>) -> Option<Box<Self>> {
        let is_awaited = self.turn.as_ref().is_some_and(Turn::is_awaited);
        let is_quick = matches!(self.site.executor, Executor::Here { is_local: true });
        let share = self.terms.share();
        if !is_awaited || !is_quick || self.was_used() || share.is_zero() {
            return Some(self);
        }
        let now = Instant::now();
        let Some(turn) = self.turn.take_if(|turn| turn.is_within(share, now)) else {
            return Some(self);
        };
        // Whoever takes it looks; but who was to remove it is told that it is gone.
        if self.terms.options.delete_on_release && !self.is_in_place(true) {
            self.turn = Some(turn);
            return Some(self);
        }
        self.show_released();
        turn.leave(self, now, share);
        None
    }

    fn show_released(&self) {
        events::released(&self.terms.path.path().display());
    }

    fn was_used(&self) -> bool {
        self.was_used.load(Ordering::Relaxed)
    }

    /// (1) of [`attempt`](super::attempt), for less: within a share the path was
    /// seen to name the file, so the number of its names tells whether it was
    /// removed since.
    fn is_in_place(&self, is_within: bool) -> bool {
        is_within && syscalls::links(self.carrier()) == Ok(1) || self.look() == Ok(None)
    }

    fn leave_list(&mut self) {
        if let Some(number) = self.number.take() {
            self.site.station.hold_ends(number);
        }
    }

    fn give_up(&mut self) -> Result<(), Error> {
        self.leave_list();
        let is_removed = self.terms.options.delete_on_release;
        let outcome = if is_removed { self.remove() } else { Ok(()) };
        let mut file = self.carrier.take().expect("BUG: a hold ended twice");
        // Also if a forked child has a copy of the descriptor. If it fails,
        // closing does it.
        let _ = file.unlock(self.claim);
        let was_used = self.was_used();
        if was_used {
            file.was_used();
        }
        if file.closes_unheard() && self.wakes() {
            syscalls::signal(&file);
        }
        let is_kept = self.terms.options.keep_open;
        let stay = if is_kept { Stay::Always } else { Stay::No };
        // The next one's begins at its start, and is nobody else's.
        let is_closed = match is_removed || was_used && (!is_kept || rewind(&file).is_err()) {
            true => {
                drop(file);
                true
            }
            false => self.site.station.leave(file, stay, |known| self.wakes_any(known)),
        };
        self.turn = None;
        if is_closed && self.is_contended {
            let_next_run();
        }
        self.presence = None;
        outcome
    }

    /// Whether a waiter elsewhere is to be woken, as far as is known.
    fn wakes(&self) -> bool {
        self.wakes_any(&mut None)
    }

    /// The same by asking what is `known`, or will be.
    fn wakes_any(&self, known: &mut Option<Arc<Waiters>>) -> bool {
        let are_any = |waiters: &Waiters| match self.claim.primitive {
            Primitive::Flock => waiters.are_any(),
            // Whoever waits for other bytes that these are among has another name.
            Primitive::Ofd => waiters.are_any_by_any_name(),
        };
        let (site, terms) = (&self.site, &*self.terms);
        if !site.executor.is_local() {
            return false;
        }
        if !site.is_in_place_now(terms) {
            return true;
        }
        if known.is_none() {
            *known = site.waiters_there(terms);
        }
        known.as_deref().is_none_or(are_any)
    }

    /// (6) of [`attempt`](super::attempt): closing is all that may be done.
    fn end_in_child(&mut self) -> Result<(), Error> {
        self.carrier = None;
        // The queue was copied by a fork, perhaps in the middle of a change.
        std::mem::forget(self.turn.take());
        self.number = None;
        let path = self.terms.path.path().to_owned();
        Err(Error::Forked { lock: path.into(), holder: self.site.process.pid })
    }

    /// (3) of [`attempt`](super::attempt): before the lock goes, and only as
    /// the one who has it exclusively.
    fn remove(&mut self) -> Result<(), Error> {
        let had_it = self.is_sole();
        if !had_it && !self.is_sole_at_last() {
            return Ok(());
        }
        let path = self.terms.path.path();
        let lost = |reason| Err(Error::Lost(Lost { lock: path.into(), reason }));
        let failed =
            |error: Errno| Err(Error::NotRemoved { lock: path.into(), source: error.into() });
        match self.look() {
            // Who let go first cannot lose it.
            Ok(Some(_)) if !had_it => Ok(()),
            Ok(Some(reason)) => lost(reason),
            Ok(None) => match syscalls::unlink(path) {
                Ok(()) => Ok(()),
                Err(Errno::NOENT | Errno::NOTDIR) => lost(LostReason::Removed),
                Err(error) => failed(error),
            },
            Err(error) => failed(error),
        }
    }

    /// The last of those who share a lock can have it for itself. It asks when
    /// it gives the lock up anyway, so a refusal costs nothing.
    fn is_sole(&self) -> bool {
        if self.claim.sharing == Sharing::Exclusive {
            return true;
        }
        self.carrier().try_lock(self.claim.with(Sharing::Exclusive)) == Ok(true)
    }

    /// Two who go at the same time are refused because of each other. So whoever is
    /// lets go, and asks once more. (A `flock` that is refused has let go.)
    fn is_sole_at_last(&self) -> bool {
        if self.claim.primitive == Primitive::Flock {
            return false;
        }
        let _ = self.carrier().unlock(self.claim);
        self.is_sole()
    }

    fn look(&self) -> Result<Option<LostReason>, Errno> {
        look(self.terms.path.path(), self.carrier().inode.identity)
    }

    fn downgrade(&mut self) -> Result<(), Error> {
        if !self.is_ours() {
            let path = self.terms.path.path();
            return Err(Error::Forked { lock: path.into(), holder: self.site.process.pid });
        }
        if self.claim.sharing == Sharing::Shared {
            return Ok(());
        }
        let shared = self.claim.with(Sharing::Shared);
        if let Err(error) = self.carrier().downgrade(shared) {
            // Perhaps it is not locked any more: nothing of the file's is ours.
            self.leave_list();
            if let Some(carrier) = self.carrier.take() {
                let _ = carrier.unlock(self.claim);
            }
            self.turn = None;
            return Err(Error::io("making the lock shared at", self.terms.path.path(), error));
        }
        self.claim = shared;
        self.turn = None;
        if self.wakes() {
            syscalls::signal(self.carrier());
        }
        Ok(())
    }
}

/// What was left to a task that did not come for it, or what a forked child has.
impl Drop for Hold {
    fn drop(&mut self) {
        if self.carrier.is_some() {
            Self::tell(if self.is_ours() { self.give_up() } else { self.end_in_child() });
        }
    }
}

fn rewind(mut file: &File) -> std::io::Result<()> {
    file.rewind()
}

fn look(path: &Path, identity: (u64, u64)) -> Result<Option<LostReason>, Errno> {
    Ok(match syscalls::identity_at(path)? {
        Some(found) if found == identity => None,
        Some(_) => Some(LostReason::Replaced),
        None => Some(LostReason::Removed),
    })
}

async fn loss(terms: Arc<Terms>, site: Arc<LockState>, identity: (u64, u64)) -> Lost {
    let mut subscription = None;
    loop {
        if site.executor.has_events() {
            subscription = Subscription::renew(subscription.take(), &terms.path);
        }
        let path = Arc::clone(&terms.path);
        let look = move |()| look(path.path(), identity);
        if let Ok(Some(reason)) = site.executor.run((), look).await {
            return Lost { lock: terms.path.path().into(), reason };
        }
        let period = tokio::time::sleep(terms.options.wait.retry_period);
        match &subscription {
            None => period.await,
            Some(subscription) => tokio::select! {
                _ = subscription.event() => {}
                () = period => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::sys::path::LockPath;
    use crate::{AsyncKernelLock, KernelOptions};

    #[tokio::test]
    async fn who_had_to_wait_gives_way_and_nobody_else() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        let lock = AsyncKernelLock::new(path.path());
        let guard = lock.acquire().await.unwrap();
        assert!(!guard.hold().is_contended);
        guard.release().await.unwrap();
        let other = File::create(path.path()).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let mut waits = Box::pin(lock.acquire());
        let terms = Terms::new(path, KernelOptions::default()).unwrap();
        let waiters = Waiters::of(&terms.label).unwrap();
        while !waiters.are_any() {
            assert!(futures::poll!(&mut waits).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(other);
        let guard = waits.await.unwrap();
        // Now, as nothing else may run here until it is released.
        assert!(!waiters.are_any(), "it stands in line");
        assert!(guard.hold().is_contended);
    }
}
