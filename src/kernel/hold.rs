//! What ends with a guard: the lock, the file and the turn.

use std::fs::File;
use std::io::Seek;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::local_queue::Stay;
use super::loss_watch::{LossWatch, look};
use super::open_file::OpenFile;
use super::options::Primitive;
use super::shared::{LockInner, LockState, SHARE_MAX};
use super::syscalls::{self, KernelSpec, Sharing};
use crate::local::executor::Executor;
use crate::local::task_queue::{CallSite, Turn};
use crate::local::yield_cpu::let_next_run;
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::events;
use crate::sys::events::CLOSES_ARE_HEARD;
use crate::sys::files::Errno;
use crate::sys::mutex::Mutex;
use crate::sys::tickets::Waiters;
use crate::sys::wait_pipe::Presence;

/// What has to end, in this order: the lock, then the turn. Dropping it does that.
pub(super) struct Hold {
    /// `None` once it has ended.
    file: Option<OpenFile>,
    /// Readers let the next in as soon as they are in.
    turn: Option<Turn>,
    pub(super) spec: KernelSpec,
    pub(super) lock: Arc<LockInner>,
    pub(super) state: Arc<LockState>,
    /// Among the holds of its queue, until the end begins.
    number: Option<u64>,
    /// Other processes want it as well, as far as is known.
    pub(super) is_contended: bool,
    /// Of its time in the line, (8) of [`wakeup`](crate::local::wakeup).
    presence: Option<Presence>,
    /// The user had the file, so that it has a position, and perhaps copies.
    pub(super) was_used: AtomicBool,
    pub(super) watch: Mutex<Option<LossWatch>>,
}

impl Hold {
    /// To be made where `file` was locked.
    pub(super) fn new(
        file: OpenFile,
        turn: Turn,
        spec: KernelSpec,
        lock: Arc<LockInner>,
        state: Arc<LockState>,
        asked_at: CallSite,
    ) -> Box<Self> {
        let turn = (spec.sharing == Sharing::Exclusive).then_some(turn);
        let number = state.queue.hold_begins(file.identity, asked_at);
        Box::new(Self {
            file: Some(file),
            turn,
            spec,
            lock,
            state,
            number: Some(number),
            is_contended: false,
            presence: None,
            was_used: AtomicBool::new(false),
            watch: Mutex::default(),
        })
    }

    /// A hold of its own on the file that the last turn left locked. Else the
    /// turn, with nothing left, and what was given with it.
    #[inline(always)]
    pub(super) fn take_handoff(
        mut turn: Turn,
        spec: KernelSpec,
        lock: Arc<LockInner>,
        state: Arc<LockState>,
        asked_at: CallSite,
    ) -> Result<Box<Self>, (Turn, Arc<LockInner>, Arc<LockState>)> {
        let left = turn.take_handoff().and_then(|left| left.downcast::<Self>().ok());
        let Some(mut hold) = left.filter(|hold| hold.fits(&turn, spec, &lock)) else {
            return Err((turn, lock, state));
        };
        hold.number = Some(state.queue.hold_begins(hold.file().identity, asked_at));
        (hold.lock, hold.state, hold.turn) = (lock, state, Some(turn));
        Ok(hold)
    }

    /// Whether it is what is asked for, and still in place.
    fn fits(&self, turn: &Turn, spec: KernelSpec, lock: &LockInner) -> bool {
        self.spec == spec
            && self.lock.path.path() == lock.path.path()
            && self.is_in_place(turn.is_within(SHARE_MAX, Instant::now()))
    }

    /// It had to be waited for: others may want it as well.
    pub(super) fn contended(&mut self, presence: Option<Presence>) {
        (self.is_contended, self.presence) = (true, presence);
    }

    /// Whether the file is on another file system than its directory was.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.file().identity.0 != self.state.device()
    }

    fn is_ours(&self) -> bool {
        self.state.is_ours()
    }

    pub(super) fn executor(&self) -> Executor {
        match &self.state.executor {
            // In a forked child there are no threads that would do it elsewhere.
            Executor::Thread { .. } if !self.is_ours() => Executor::Inline { is_local: false },
            executor => executor.clone(),
        }
    }

    pub(super) fn file(&self) -> &OpenFile {
        self.file.as_ref().expect("BUG: a hold was used after its end")
    }

    pub(super) fn end(mut self: Box<Self>) -> Result<(), Error> {
        if !self.is_ours() {
            return self.end_in_child();
        }
        // Before there can be another holder.
        self.leave_list();
        match self.hand_off() {
            None => Ok(()),
            Some(mut hold) => {
                let outcome = hold.give_up();
                hold.show_released();
                outcome
            }
        }
    }

    pub(super) fn tell(outcome: Result<(), Error>) {
        match outcome {
            Ok(()) | Err(Error::Forked { .. }) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Leave the file, locked, to the next task of this process, which could have
    /// it again at once anyway. Else everything is still there.
    fn hand_off(mut self: Box<Self>) -> Option<Box<Self>> {
        let is_awaited = self.turn.as_ref().is_some_and(Turn::has_local_waiters);
        let is_quick = matches!(self.state.executor, Executor::Inline { is_local: true });
        let share = self.lock.share();
        if !is_awaited || !is_quick || self.was_used() || share.is_zero() {
            return Some(self);
        }
        let now = Instant::now();
        let Some(turn) = self.turn.take_if(|turn| turn.is_within(share, now)) else {
            return Some(self);
        };
        // The next holder looks; but one that was to remove it reports that it is gone.
        if self.lock.options.delete_on_release && !self.is_in_place(true) {
            self.turn = Some(turn);
            return Some(self);
        }
        self.show_released();
        turn.hand_off(self, now, share);
        None
    }

    fn show_released(&self) {
        events::released(&self.lock.path.path().display());
    }

    fn was_used(&self) -> bool {
        self.was_used.load(Ordering::Relaxed)
    }

    /// (1) of [`attempt`](super::attempt), for less: within a share the path was
    /// seen to name the file, so the number of its names tells whether it was
    /// removed since.
    fn is_in_place(&self, is_within: bool) -> bool {
        is_within && syscalls::links(self.file()) == Ok(1) || self.look() == Ok(None)
    }

    fn leave_list(&mut self) {
        if let Some(number) = self.number.take() {
            self.state.queue.hold_ends(number);
        }
    }

    fn give_up(&mut self) -> Result<(), Error> {
        self.leave_list();
        let is_removed = self.lock.options.delete_on_release;
        let outcome = if is_removed { self.remove() } else { Ok(()) };
        let mut file = self.file.take().expect("BUG: a hold ended twice");
        // Also if a forked child has a copy of the descriptor. If it fails,
        // closing does it.
        let _ = file.unlock(self.spec);
        let was_used = self.was_used();
        if was_used {
            file.was_used();
        }
        if file.closes_unheard() && self.wakes() {
            syscalls::signal(&file);
        }
        let is_kept = self.lock.options.keep_open;
        let stay = if is_kept { Stay::Always } else { Stay::No };
        // The next one's position is its start, and it has no copies.
        let is_closed = match is_removed || was_used && (!is_kept || rewind(&file).is_err()) {
            true => {
                drop(file);
                true
            }
            false => self.state.queue.leave(file, stay, |known| self.wakes_any(known)),
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
        let are_any = |waiters: &Waiters| match self.spec.primitive {
            Primitive::Flock => waiters.are_any(),
            // A waiter for other bytes that these are among has another name.
            Primitive::Ofd => waiters.are_any_by_any_name(),
        };
        let (state, lock) = (&self.state, &*self.lock);
        if !CLOSES_ARE_HEARD || !state.executor.is_local() {
            return false;
        }
        if !state.is_in_place_now(lock) {
            return true;
        }
        if known.is_none() {
            *known = state.waiters_there(lock);
        }
        known.as_deref().is_none_or(are_any)
    }

    /// (6) of [`attempt`](super::attempt): closing is all that may be done.
    fn end_in_child(&mut self) -> Result<(), Error> {
        self.file = None;
        // The queue was copied by a fork, perhaps in the middle of a change.
        std::mem::forget(self.turn.take());
        self.number = None;
        let path = self.lock.path.path().to_owned();
        Err(Error::Forked { lock: path.into(), holder: self.state.process.pid })
    }

    /// (3) of [`attempt`](super::attempt): before the lock goes, and only as
    /// its only holder.
    fn remove(&mut self) -> Result<(), Error> {
        let had_it = self.is_sole();
        if !had_it && !self.is_sole_at_last() {
            return Ok(());
        }
        let path = self.lock.path.path();
        let lost = |reason| Err(Error::Lost(Lost { lock: path.into(), reason }));
        let failed =
            |error: Errno| Err(Error::NotRemoved { lock: path.into(), source: error.into() });
        match self.look() {
            // A holder that released first cannot lose it.
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

    /// The last of several readers can have the lock exclusively. It asks when
    /// it gives the lock up anyway, so a refusal costs nothing.
    fn is_sole(&self) -> bool {
        if self.spec.sharing == Sharing::Exclusive {
            return true;
        }
        self.file().upgrade(self.spec) == Ok(true)
    }

    /// Two readers that go at the same time are refused because of each other. So one that
    /// is refused unlocks, and asks once more. (A refused `flock` has unlocked on Linux, and
    /// not on macOS and the BSDs.)
    fn is_sole_at_last(&self) -> bool {
        let _ = self.file().unlock(self.spec);
        self.is_sole()
    }

    fn look(&self) -> Result<Option<LostReason>, Errno> {
        look(&self.lock.system_path, self.file().identity)
    }

    pub(super) fn downgrade(&mut self) -> Result<(), Error> {
        if !self.is_ours() {
            let path = self.lock.path.path();
            return Err(Error::Forked { lock: path.into(), holder: self.state.process.pid });
        }
        if self.spec.sharing == Sharing::Shared {
            return Ok(());
        }
        let shared = self.spec.with(Sharing::Shared);
        if let Err(error) = self.file().downgrade(shared) {
            // Perhaps it is not locked any more: nothing of the file's is ours.
            self.leave_list();
            if let Some(file) = self.file.take() {
                let _ = file.unlock(self.spec);
            }
            self.turn = None;
            return Err(Error::io("making the lock shared at", self.lock.path.path(), error));
        }
        self.spec = shared;
        self.turn = None;
        if self.wakes() {
            syscalls::signal(self.file());
        }
        Ok(())
    }
}

/// What was left to a task that did not come for it, or what a forked child has.
impl Drop for Hold {
    fn drop(&mut self) {
        if self.file.is_some() {
            Self::tell(if self.is_ours() { self.give_up() } else { self.end_in_child() });
        }
    }
}

fn rewind(mut file: &File) -> std::io::Result<()> {
    file.rewind()
}
