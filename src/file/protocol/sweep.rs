//! Removal of what killed contenders left beside the lock file.
//!
//! A claim may go if, *after* the directory was listed, its hold id is neither
//! the path's nor that of any claim: then no generation that it could stand
//! for exists any more. (Comparing with the path only loses claims on claims:
//! two holders, with five processes.) A candidate may go if no process keeps it
//! locked and its process is dead; should a living contender lose one
//! nevertheless, its link fails and it makes another.

use std::path::Path;

use super::disk::{Access, Disk, Flock};
use super::mutants::{self, Mutant};
use super::{Attempt, Environment, portable::token_of};
use crate::file::record::{Contents, RECORD_BYTES, RecordedProof};
use crate::file::siblings::Sibling;
use crate::local::hold_id::HoldId;
use crate::sys::files::Errno;
use crate::sys::verdict::Verdict;

impl<D: Disk, S: Environment> Attempt<'_, D, S> {
    /// Remove left-overs; how many went. What cannot be looked at stays, and what
    /// is no record. A claim on a claim goes only after that one, so it takes
    /// several passes.
    pub(crate) fn sweep(&self) -> Result<usize, Errno> {
        let mut removed = 0;
        loop {
            match self.sweep_once()? {
                0 => return Ok(removed),
                more => removed += more,
            }
        }
    }

    fn sweep_once(&self) -> Result<usize, Errno> {
        let names = self.disk.list(self.path.directory(), &self.path.sibling_prefix())?;
        let siblings: Vec<(Sibling, HoldId)> =
            names.iter().filter_map(|name| self.path.parse_sibling(name)).collect();
        if siblings.is_empty() {
            return Ok(0);
        }
        let at_path = self.token_in(self.path.path())?;
        let mut in_use: Vec<HoldId> = at_path.into_iter().collect();
        for (_, hold_id) in siblings.iter().filter(|(sibling, _)| *sibling == Sibling::Claim) {
            if mutants::is_on(Mutant::SweepByPathOnly) {
                break;
            }
            match self.token_in(&self.path.claim(*hold_id)) {
                Ok(claimant) => in_use.extend(claimant),
                // Data of another program under the name of a claim stays.
                Err(_) => in_use.push(*hold_id),
            }
        }
        let mut removed = 0;
        for (sibling, hold_id) in siblings {
            let (name, is_left_over) = match sibling {
                Sibling::Candidate => {
                    let name = self.path.candidate(hold_id);
                    let is_left_over = self.is_abandoned(&name);
                    (name, is_left_over)
                }
                Sibling::Claim => (self.path.claim(hold_id), !in_use.contains(&hold_id)),
                Sibling::Revocation => (self.path.revocation(hold_id), at_path != Some(hold_id)),
            };
            if is_left_over && self.disk.unlink(&name).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The hold id of what is at a path, `None` if nothing is there.
    pub(super) fn token_in(&self, path: &Path) -> Result<Option<HoldId>, Errno> {
        let Some(opened) = self.open(path, Access::Read)? else {
            return Ok(None);
        };
        let mut bytes = [0; RECORD_BYTES + 1];
        let length = self.disk.read(&opened.file, &mut bytes)?;
        let contents = Contents::parse(&bytes[..length]).map_err(|_| Errno::INVAL)?;
        Ok(Some(token_of(opened.inode, &contents)))
    }

    /// Whether the process that made a candidate is gone.
    fn is_abandoned(&self, name: &Path) -> bool {
        let Ok(Some(opened)) = self.open(name, Access::Read) else {
            return false;
        };
        if self.disk.try_flock(&opened.file, Flock::Exclusive) == Ok(false) {
            return false;
        }
        let mut bytes = [0; RECORD_BYTES + 1];
        let Ok(length) = self.disk.read(&opened.file, &mut bytes) else {
            return false;
        };
        let local = self.disk.trusts_flock(&opened.file).unwrap_or(false);
        match Contents::parse(&bytes[..length]) {
            // Made but not written: if its maker lives, it makes another.
            Ok(Contents::Empty) => true,
            Ok(Contents::Ours(record))
                if record.proof == RecordedProof::Flock && record.is_local && local =>
            {
                true
            }
            Ok(contents) => matches!(self.environment.judge(&contents, local), Verdict::Dead(_)),
            Err(_) => false,
        }
    }
}
