//! The status of a lock, without trying to get it and without a lasting effect.

use super::disk::{Disk, Flock};
use super::{Attempt, Busy, Environment, ROUNDS, Stop};
use crate::file::record::{Contents, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};
use crate::sys::verdict::Verdict;

/// What is at the path.
pub(crate) struct Found {
    pub(crate) status: Status,
    /// The holder's, if the file is ours.
    pub(crate) hold_id: Option<HoldId>,
    /// How the holder's life is proved, if the file is ours.
    pub(crate) proof: Option<RecordedProof>,
    /// Number of the file's inode, by which the close of an unnamed file is recognized.
    pub(crate) inode: Option<u64>,
}

impl Found {
    /// By a holder that is not known.
    fn lock_file(busy: Busy) -> Self {
        let holder = *busy.holder.expect("BUG: busy, and nothing is known of why");
        Self { status: Status::Held(holder), hold_id: None, proof: None, inode: busy.inode }
    }
}

impl<D: Disk, S: Environment> Attempt<'_, D, S> {
    /// Look. A pinned record alone cannot answer, so its lock is tried in
    /// shared mode and given back at once; a contender that is refused for
    /// that reason looks again.
    pub(crate) fn probe(&self) -> Result<Found, Error> {
        let mut is_gone = None;
        for _ in 0..ROUNDS {
            match self.probe_once() {
                Ok(found) => return Ok(found),
                Err(Stop::FromTheTop) => is_gone = None,
                Err(Stop::GoneFromServer(error)) => is_gone = Some(error),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Busy(busy)) => return Ok(Found::lock_file(busy)),
                Err(_) => unreachable!("BUG: a probe only reads"),
            }
        }
        match is_gone {
            Some(error) => Err(error),
            None => Ok(Found::lock_file(Self::never_still())),
        }
    }

    fn probe_once(&self) -> Result<Found, Stop> {
        let Some(opened) = self.open_path()? else {
            return Ok(Found { status: Status::Free, hold_id: None, proof: None, inode: None });
        };
        let local = self.is_local(&opened.file)?;
        let contents = self.read(&opened.file)?;
        let is_locked = match &contents {
            Contents::Ours(record) if record.released || record.proof == RecordedProof::Process => {
                None
            }
            _ => self.is_locked(&opened.file),
        };
        // It may have been taken over since, or released: what is reported
        // must belong together.
        let again = self.read(&opened.file)?;
        let is_same = again == contents;
        // Tasks may hand a locked file off faster than it can be read twice with a look at
        // its lock between. Two readings one after the other are of one hold.
        let is_handed_off = || is_locked == Some(true) && is_of_one_process(&contents, &again);
        let is_still = is_same || is_handed_off() && self.read(&opened.file)? == again;
        if !is_still || !self.is_at_path(&opened)? {
            return Err(Stop::FromTheTop);
        }
        let contents = again;
        let record = contents.record();
        let (is_held, evidence) = match is_locked {
            Some(true) => (true, self.who_locks(&contents, local).0),
            Some(false) if local && record.is_some_and(|record| record.is_local) => {
                (false, Evidence::KernelLockFree)
            }
            _ if record.is_some_and(|record| record.released) => (false, Evidence::Released),
            _ => self.by_process(&contents, local),
        };
        let (hold_id, proof) =
            (record.map(|record| record.hold_id), record.map(|record| record.proof));
        let holder = Holder::new(&contents, evidence);
        let status = if is_held { Status::Held(holder) } else { Status::Stale(holder) };
        let inode = Some(opened.inode.identity.1);
        Ok(Found { status, hold_id, proof, inode })
    }

    /// `None` where the kernel does not say.
    fn is_locked(&self, file: &D::File) -> Option<bool> {
        if let Some(answer) = self.disk.is_flocked(file) {
            return Some(answer);
        }
        match self.disk.try_flock(file, Flock::Shared) {
            Ok(false) => Some(true),
            Ok(true) => {
                let _ = self.disk.unlock(file);
                Some(self.disk.is_range_locked(file) == Ok(true))
            }
            Err(_) => None,
        }
    }

    fn by_process(&self, contents: &Contents, local: bool) -> (bool, Evidence) {
        match self.environment.judge(contents, local) {
            Verdict::Alive => (true, Evidence::ProcessRuns),
            Verdict::Unknown(why) => (true, Evidence::Unknown(why)),
            Verdict::Dead(_) if *contents == Contents::Empty => (false, Evidence::NobodyNamed),
            Verdict::Dead(how) => (false, Evidence::ProcessGone(how)),
        }
    }
}

/// Whether both are records of one process that proves its life by a kernel lock.
fn is_of_one_process(one: &Contents, other: &Contents) -> bool {
    let (Some(one), Some(other)) = (one.record(), other.record()) else { return false };
    one.proof == RecordedProof::Flock
        && (one.pid, &one.identity, one.proof) == (other.pid, &other.identity, other.proof)
}
