//! A lock file that exists because we made it, or took it over. Dropping a
//! [`LockFile`] gives the lock back. It knows nothing of waiting; what a user has
//! is the [`FileGuard`](crate::FileGuard) above it.
//!
//! The numbers cite the invariants at the head of [`attempt`](crate::file::protocol).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::disk::{Access, Disk};
use super::mutants::{self, Mutant};
use crate::file::record::{Contents, RECORD_BYTES, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::local::path_check::LOOK_LASTS;
use crate::local::yield_cpu::let_next_run;
use crate::lock::error::{Error, Lost, LostReason};
use crate::sys::files::Errno;
use crate::sys::mutex::Mutex;
use crate::sys::path::LockPath;
use crate::sys::process_key::{ProcessKey, this_process};

/// The end of a hold removes the request to release it. A hold that was over sooner
/// than this does not look for one: the asker looks again after
/// [`REVOCATION_SECOND_LOOK`], which is then after the end of that hold, and removes the
/// request itself. That saves a short hold a tenth of its time.
const REVOCATION_MIN_HOLD: Duration = Duration::from_millis(20);

/// Longer than [`REVOCATION_MIN_HOLD`].
pub(crate) const REVOCATION_SECOND_LOOK: Duration = Duration::from_millis(40);

/// For so long what was seen of a file when it was left counts when it is taken:
/// about the time a holder needs to begin with its work after any look. It saves
/// one of the calls of a hand-off.
const LEAVING_LASTS: Duration = Duration::from_micros(20);

/// What the path names, seen from a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtPath {
    Mine,
    Nothing,
    Another,
}

/// A held lock.
pub(crate) struct LockFile<D: Disk> {
    disk: D,
    path: Arc<LockPath>,
    /// The one description of the inode (5), open for writing. It carries the
    /// `flock` of a pinned lock, and while it is open the inode number is not
    /// given to another file (4).
    file: D::File,
    identity: (u64, u64),
    record: Box<Record>,
    maker: ProcessKey,
    /// When the record was written.
    written: Instant,
    /// When the path was last seen to name the file.
    seen: Instant,
    /// When it was left to the next task, seen to be in place.
    left: Option<Instant>,
    /// The dead holder this was taken over from, until a user knows of it.
    unreported: Mutex<Option<Box<Contents>>>,
    is_over: AtomicBool,
    file_stays: AtomicBool,
    is_contended: AtomicBool,
    /// Its user may have given copies of the descriptor away.
    was_shown: AtomicBool,
}

impl<D: Disk> LockFile<D> {
    /// To be made by the closure that made the path name `file`, before
    /// anything else (6).
    pub(crate) fn new(
        disk: D,
        path: Arc<LockPath>,
        file: D::File,
        identity: (u64, u64),
        record: Box<Record>,
        maker: ProcessKey,
        acquired: Instant,
    ) -> Self {
        let [written, seen] = [acquired; 2];
        let unreported = Mutex::new(None);
        let [is_over, file_stays, is_contended, was_shown] = [const { AtomicBool::new(false) }; 4];
        Self {
            disk,
            path,
            file,
            identity,
            record,
            maker,
            written,
            seen,
            left: None,
            unreported,
            is_over,
            file_stays,
            is_contended,
            was_shown,
        }
    }

    pub(crate) fn path(&self) -> &LockPath {
        &self.path
    }

    pub(crate) fn shared_path(&self) -> &Arc<LockPath> {
        &self.path
    }

    pub(crate) fn file(&self) -> &D::File {
        &self.file
    }

    /// The same for the user, whose copies of it are of this hold alone.
    pub(crate) fn show_file(&self) -> &D::File {
        self.was_shown.store(true, Ordering::Relaxed);
        &self.file
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Whether the path still names this file.
    pub(crate) fn look(&self) -> Result<AtPath, Errno> {
        Ok(self.look_closely()?.0)
    }

    /// And how many names the file there has.
    fn look_closely(&self) -> Result<(AtPath, u64), Errno> {
        match self.disk.look(self.path.path()) {
            Ok(inode) if inode.identity == self.identity => Ok((AtPath::Mine, inode.links)),
            Ok(inode) => Ok((AtPath::Another, inode.links)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok((AtPath::Nothing, 0)),
            Err(error) => Err(error),
        }
    }

    /// Whether the holder is asked to release the lock.
    pub(crate) fn is_revoked(&self) -> bool {
        self.disk.look(&self.path.revocation(self.record.hold_id)).is_ok()
    }

    /// Whether the file still says what was written, openlock having no other
    /// way to take a lock than to replace or rewrite it.
    pub(crate) fn is_intact(&self) -> Result<bool, Errno> {
        let mut bytes = [0; RECORD_BYTES + 1];
        let length = self.disk.read(&self.file, &mut bytes)?;
        Ok(bytes[..length] == self.record.to_bytes())
    }

    /// That this was taken over from a dead holder. Should the acquisition be
    /// undone before a user knew of it, the file goes on telling it.
    pub(crate) fn remember(&mut self, dead: Contents) {
        self.unreported = Mutex::new(Some(Box::new(dead)));
    }

    /// The user has the lock, and with it the word of the dead holder.
    pub(crate) fn acknowledge_recovery(&self) {
        *self.unreported.lock() = None;
    }

    /// Other processes want it as well, as far as is known.
    pub(crate) fn contended(&self) {
        self.is_contended.store(true, Ordering::Relaxed);
    }

    /// Whether this process made it (7).
    pub(crate) fn is_ours(&self) -> bool {
        this_process() == self.maker
    }

    /// Whether this very file may be handed off to the next task of this process: no
    /// copy of its descriptor was given away, and the path names it.
    pub(crate) fn may_be_handed_off(&mut self, now: Instant) -> bool {
        let may_be = self.is_ours()
            && !self.is_over()
            && !self.was_shown.load(Ordering::Relaxed)
            && self.record.proof == RecordedProof::Flock
            && self.unreported.lock().is_none()
            && self.is_in_place(now);
        self.left = may_be.then_some(now);
        may_be
    }

    fn is_in_place(&mut self, now: Instant) -> bool {
        let is_named = self.was_in_place(now) && self.disk.links(&self.file) == Ok(1);
        is_named || self.is_at_path(now)
    }

    fn is_at_path(&mut self, now: Instant) -> bool {
        self.seen = now;
        self.look() == Ok(AtPath::Mine)
    }

    fn was_in_place(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen) <= LOOK_LASTS
    }

    /// Begin the next task's hold on this file: one write gives it an id and a time of
    /// its own. After an error the file is to be dropped, which releases it.
    pub(crate) fn take_handoff(
        &mut self,
        hold_id: impl FnOnce() -> Result<HoldId, Errno>,
        since: SystemTime,
        clock: impl Fn() -> Instant,
    ) -> Result<(), Errno> {
        let now = clock();
        let was_just_left = |left| now.saturating_duration_since(left) <= LEAVING_LASTS;
        if !self.left.take().is_some_and(was_just_left) && !self.is_in_place(now) {
            return Err(Errno::STALE);
        }
        let last = std::mem::replace(&mut self.record.hold_id, hold_id()?);
        self.record.since = Some(since);
        let written = self.disk.write(&self.file, &self.record.to_bytes(), 0);
        // After the record tells of the next hold: see REVOCATION_MIN_HOLD.
        let began = std::mem::replace(&mut self.written, now);
        if clock().saturating_duration_since(began) >= REVOCATION_MIN_HOLD {
            let _ = self.disk.unlink(&self.path.revocation(last));
        }
        if written? == RECORD_BYTES { Ok(()) } else { Err(Errno::IO) }
    }

    /// End the hold and leave the file to the program that rewrote it.
    pub(crate) fn abandon(&self) {
        if !self.is_over.swap(true, Ordering::AcqRel) && self.is_ours() {
            self.unlock();
        }
    }

    /// Whether the hold has ended, or is just ending.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// End the hold: remove the file if it is still ours, then release the
    /// inode. The second call does nothing.
    pub(crate) fn release(&self) -> Result<(), Error> {
        if self.is_over.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        if !self.is_ours() {
            // (7) LOCK_UN in a forked child would free its parent's lock.
            let path = self.path.path().to_owned();
            return Err(Error::Forked { lock: path.into(), holder: self.record.pid });
        }
        if mutants::is_on(Mutant::CloseBeforeUnlink) {
            self.unlock();
            return self.remove();
        }
        let outcome = self.remove(); // (3)
        if outcome.is_ok() && self.wakes_next() {
            // All that is left to do is ours alone.
            let_next_run();
        }
        self.unlock();
        if self.file_stays.load(Ordering::Relaxed) {
            // Nothing was unlinked, and a child may keep our descriptor open:
            // waiters are notified by another close of a file for writing.
            let _ = self.disk.open(self.path.path(), Access::ReadWrite);
        }
        // After the path was unlinked: see REVOCATION_MIN_HOLD.
        if self.written.elapsed() >= REVOCATION_MIN_HOLD {
            let _ = self.disk.unlink(&self.path.revocation(self.record.hold_id));
        }
        outcome
    }

    /// Whether a waiter was notified that the file is gone, as far as is known.
    pub(crate) fn wakes_next(&self) -> bool {
        self.is_contended.load(Ordering::Relaxed) && !self.file_stays.load(Ordering::Relaxed)
    }

    /// Without it the lock would last until the last copy of the descriptor
    /// that a forked child inherited is closed. If it fails, closing does it.
    fn unlock(&self) {
        if self.record.proof == RecordedProof::Flock {
            let _ = self.disk.unlock(&self.file);
        }
    }

    fn remove(&self) -> Result<(), Error> {
        let lost = |reason| Err(Error::Lost(Lost { lock: self.path.path().into(), reason }));
        let at_path = match self.look_closely() {
            Ok((_, links)) if mutants::is_on(Mutant::NoInodeCheck) => Ok((AtPath::Mine, links)),
            Ok((_, links)) if mutants::is_on(Mutant::UnlinkUnseen) => Ok((AtPath::Mine, links)),
            other => other,
        };
        match at_path {
            Ok((AtPath::Nothing, _)) => lost(LostReason::Removed),
            Ok((AtPath::Another, _)) => lost(LostReason::Replaced),
            Ok((AtPath::Mine, _)) if self.leave_stale() => Ok(()),
            Ok((AtPath::Mine, links)) => {
                if links > 1 {
                    // A backup has a link to it, say: that must not tell of a dead
                    // holder.
                    self.mark_released();
                }
                let aside = || self.path.candidate(self.record.hold_id);
                match self.disk.remove(&self.file, self.path.path(), aside) {
                    Ok(()) => Ok(()),
                    Err(Errno::NOENT | Errno::NOTDIR) => lost(LostReason::Removed),
                    Err(error) => self.leave_released(error),
                }
            }
            Err(error) => self.leave_released(error),
        }
    }

    /// No user knew of the dead holder: the next must. The hold id stays
    /// ours, since the dead one's may stand for claims that are over.
    fn leave_stale(&self) -> bool {
        let unreported = self.unreported.lock().take();
        let bytes = match unreported.map(|dead| *dead) {
            None => return false,
            Some(Contents::Ours(dead)) => {
                let Record { hold_id, proof, is_local, .. } = *self.record;
                Record { hold_id, proof, is_local, ..dead }.to_bytes()
            }
            Some(foreign) => foreign.to_bytes(),
        };
        // Should it fail, the file stays all the same: it then tells of us.
        let _ = self.disk.write(&self.file, &bytes, 0);
        self.file_stays.store(true, Ordering::Relaxed);
        true
    }

    /// The file stays, so it must say that its holder did not die. Should that
    /// fail as well, the next holder sees a recovery that was none.
    fn leave_released(&self, why: Errno) -> Result<(), Error> {
        self.mark_released();
        self.file_stays.store(true, Ordering::Relaxed);
        Err(Error::NotRemoved { lock: self.path.path().into(), source: why.into() })
    }

    fn mark_released(&self) {
        let record = Record { released: true, note: None, ..Record::clone(&self.record) };
        let _ = self.disk.write(&self.file, &record.to_bytes(), 0);
    }
}

impl<D: Disk> Drop for LockFile<D> {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::debug!(path = %self.path.path().display(), %error, "lock given up");
        }
    }
}
