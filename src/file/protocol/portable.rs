//! The portable protocol: no kernel lock, no timing, only atomic link and
//! rename, a hold id per acquisition and exact crash detection. Where it cannot
//! be known that a holder is dead, the lock counts as held.
//!
//! 1. Make a candidate file with the whole record.
//! 2. Link it to the path: **acquired**. Something is there: it is the target.
//!    Where there are no hard links it is moved there instead ([`naming`](super::naming)),
//!    in 4 too.
//! 3. Read the target. Gone: from 2. Its owner lives: **busy**. Dead, with hold id T:
//! 4. Link the candidate to the claim on T. A claim is there already: it is
//!    the target, from 3.
//! 5. The claim is ours. Read the target again: another hold id, or gone: give
//!    the claim back, from 2. (Without this a holder that releases and exits
//!    between 3 and 4 makes two.)
//! 6. Rename the claim over the target. The target was the path:
//!    **acquired**. It was a dead claimant's claim: ours now, so 5 for the
//!    target below.
//!
//! Release: the path names our inode: unlink it. No one else may do that while
//! our process lives.
//!
//! A killed process leaves at most a candidate and a claim, see
//! [`sweep`](super::sweep). A foreign file has no hold id; its inode and content
//! stand for one.

use std::path::{Path, PathBuf};

use super::disk::{Access, Disk};
use super::mutants::{self, Mutant};
use super::naming::Naming;
use super::{Attempt, Busy, Environment, Outcome, ROUNDS, Stale, Stop};
use crate::file::record::{Contents, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::lock::error::Error;
use crate::lock::holder::Evidence;
use crate::sys::files::Errno;
use crate::sys::inode::Inode;

/// A name that this contender made and removes, whatever happens (6).
pub(super) struct Name<D: Disk> {
    disk: D,
    path: PathBuf,
}

impl<D: Disk> Name<D> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The name is another contender's now.
    pub(super) fn forget(mut self) {
        self.path = PathBuf::new();
    }
}

impl<D: Disk> Drop for Name<D> {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        match self.disk.unlink(&self.path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a temporary name stays");
            }
        }
    }
}

/// Our record in a file with a name of its own.
struct Candidate<D: Disk> {
    file: D::File,
    inode: Inode,
    record: Box<Record>,
    name: Name<D>,
}

/// A stale file that stands in the way.
struct Target {
    path: PathBuf,
    hold_id: HoldId,
}

/// What stands at the path, or at a claim, of a dead owner.
struct Generation {
    hold_id: HoldId,
    owner: u32,
    stale: Stale,
}

impl<D: Disk, S: Environment> Attempt<'_, D, S> {
    pub(super) fn portable(&mut self) -> Result<Outcome<D>, Stop> {
        let mut candidate = None;
        Self::rounds(|| {
            // Looked at first, so that waiting makes no files.
            let generation = self.at_path()?;
            if let Some(generation) = &generation {
                self.must_be_claimable(generation.hold_id)?;
            }
            let started = self.environment.now();
            if candidate.is_none() {
                candidate = Some(self.make_candidate()?);
            }
            let ready = candidate.as_ref().expect("BUG: no candidate");
            let taken = match &generation {
                None => self.put(ready, self.path.path()).and_then(|naming| match naming {
                    Naming::Named => Ok(()),
                    Naming::Taken => Err(Stop::FromTheTop),
                }),
                Some(generation) => self.claim(ready, generation),
            };
            match taken {
                Ok(()) => {}
                Err(stop @ (Stop::FromTheTop | Stop::GoneFromServer(_))) => {
                    // It may have been swept away: then another is made.
                    if self.disk.look(ready.name.path()).is_err() {
                        candidate = None;
                    }
                    return Err(stop);
                }
                Err(stop) => return Err(stop),
            }
            let Candidate { file, inode, record, name } =
                candidate.take().expect("BUG: no candidate");
            let stale = generation.map(|generation| generation.stale);
            let outcome = self.holds(file, inode, record, stale, started);
            drop(name);
            outcome
        })
    }

    /// Steps 2 and 4.
    fn put(&self, candidate: &Candidate<D>, to: &Path) -> Result<Naming, Stop> {
        self.name(&candidate.file, candidate.name.path(), to, candidate.inode, &candidate.record)
    }

    /// Steps 3 to 6, from the stale file at the path up the claims and down again.
    fn claim(&mut self, candidate: &Candidate<D>, at_path: &Generation) -> Result<(), Stop> {
        let path = self.path.path().to_owned();
        let mut targets = vec![Target { path, hold_id: at_path.hold_id }];
        let mut claim = loop {
            let target = targets.last().expect("BUG: no target");
            let path = self.path.claim(target.hold_id);
            match self.put(candidate, &path)? {
                Naming::Named => break Name { disk: self.disk.clone(), path },
                Naming::Taken => {
                    let hold_id = self.dead_claimant(&path)?;
                    if mutants::is_on(Mutant::DeadClaimUnlinked) {
                        let _ = self.disk.unlink(&path);
                        return Err(Stop::FromTheTop);
                    }
                    targets.push(Target { path, hold_id });
                }
            }
        };
        while let Some(target) = targets.pop() {
            let is_there = self.token_at(&target.path)? == Some(target.hold_id);
            if !is_there && !mutants::is_on(Mutant::NoLookAfterClaim) {
                return Err(Stop::FromTheTop);
            }
            let mut ours = claim.path();
            if mutants::is_on(Mutant::ClaimRemovedFirst) && self.disk.unlink(ours).is_ok() {
                ours = candidate.name.path();
            }
            match self.disk.rename(ours, &target.path) {
                Ok(()) => {}
                Err(Errno::NOENT) if self.is_named(&target.path, candidate.inode) => {}
                Err(error) if self.is_done(error, &target.path, candidate.inode) => {}
                Err(Errno::NOENT) => {
                    // The name may be another's claim by now.
                    claim.forget();
                    return Err(Stop::FromTheTop);
                }
                Err(error @ (Errno::ACCESS | Errno::PERM)) => {
                    let Stale { contents, evidence } = &at_path.stale;
                    let stale = Stale { contents: contents.clone(), evidence: evidence.clone() };
                    return Err(self.cannot_take_over(at_path.owner, stale, error));
                }
                Err(error) => return Err(Error::io("renaming", claim.path(), error).into()),
            }
            claim.forget();
            claim = Name { disk: self.disk.clone(), path: target.path };
        }
        // The path is not a claim: from here on a `LockFile` removes it.
        claim.forget();
        Ok(())
    }

    /// Whether no living process has a claim. Looked at before a candidate is made:
    /// the close of one that was in vain would wake all waiters, this one too.
    fn must_be_claimable(&mut self, mut hold_id: HoldId) -> Result<(), Stop> {
        for _ in 0..ROUNDS {
            let claim = self.path.claim(hold_id);
            if self.read_claim(&claim)?.is_none() {
                return Ok(());
            }
            hold_id = self.dead_claimant(&claim)?;
        }
        Err(Stop::FromTheTop)
    }

    /// Step 3 for the path; `None` if nothing is there.
    fn at_path(&mut self) -> Result<Option<Generation>, Stop> {
        let Some(opened) = self.open_path()? else {
            return Ok(None);
        };
        let contents = self.read(&opened.file)?;
        let local = self.is_local(&opened.file)?;
        let hold_id = token_of(opened.inode, &contents);
        let stale = match &contents {
            // Also if it is released: a pinned contender may be taking it over.
            Contents::Ours(record) if record.proof == RecordedProof::Flock => {
                Err(self.judge_other_protocol(contents, local))
            }
            Contents::Ours(record) if record.released => {
                Ok(Stale { contents, evidence: Evidence::Released })
            }
            Contents::Ours(_) => self.judge_process(contents, local),
            _ => self.judge_foreign(opened.inode, contents, local),
        };
        Ok(Some(Generation { hold_id, owner: opened.inode.owner, stale: stale? }))
    }

    /// Step 3 for a claim: the hold id of its claimant, which must be dead.
    fn dead_claimant(&mut self, path: &Path) -> Result<HoldId, Stop> {
        let Some((inode, contents, local)) = self.read_claim(path)? else {
            return Err(Stop::FromTheTop);
        };
        let hold_id = token_of(inode, &contents);
        if contents.record().is_none() {
            let why = format!("{} is not a claim of ours", path.display());
            return Err(Busy::by(&contents, Evidence::Unknown(why)).into());
        }
        self.judge_process(contents, local)?;
        Ok(hold_id)
    }

    /// The hold id of the generation at `path`, `None` if nothing is there.
    fn token_at(&self, path: &Path) -> Result<Option<HoldId>, Stop> {
        let found = self.read_claim(path)?;
        Ok(found.map(|(inode, contents, _)| token_of(inode, &contents)))
    }

    /// What a claim holds, and whether only this machine can have it mounted.
    fn read_claim(&self, path: &Path) -> Result<Option<(Inode, Contents, bool)>, Stop> {
        let opened = match self.open(path, Access::Read) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(Errno::ACCESS) => return Err(self.may_not_read(path)),
            Err(error) => return Err(Error::io("opening", path, error).into()),
        };
        let contents = match self.read(&opened.file) {
            Err(Stop::Failed(Error::NotALockFile { found, .. })) => {
                return Err(Error::NotALockFile { lock: path.into(), found }.into());
            }
            other => other?,
        };
        Ok(Some((opened.inode, contents, self.is_local(&opened.file)?)))
    }

    pub(super) fn is_local(&self, file: &D::File) -> Result<bool, Stop> {
        let failed = |error| self.failed("looking at the file system of", error);
        self.disk.trusts_flock(file).map_err(failed)
    }

    fn make_candidate(&self) -> Result<Candidate<D>, Stop> {
        let mut record = self.new_record(RecordedProof::Process)?;
        let (name, file) = self.create_candidate(&record)?;
        record.is_local = self.is_local(&file)?;
        let failed = |error| Error::io("writing", name.path(), error);
        self.write(&file, &record).map_err(failed)?;
        let inode = self.disk.inspect(&file).map_err(failed)?;
        Ok(Candidate { file, inode, record, name })
    }

    /// An empty file with the name of a candidate. The file is to be dropped first:
    /// Windows removes no name of a file that is open.
    pub(super) fn create_candidate(&self, record: &Record) -> Result<(Name<D>, D::File), Error> {
        let path = self.path.candidate(record.hold_id);
        let created = self.disk.create(&path, self.options.mode);
        let file = created.map_err(|error| self.cannot_create(error))?;
        Ok((Name { disk: self.disk.clone(), path }, file))
    }
}

/// The hold id in a record; for a foreign file, inode and content (FNV-1a).
pub(super) fn token_of(inode: Inode, contents: &Contents) -> HoldId {
    if let Contents::Ours(record) = contents {
        return record.hold_id;
    }
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let text = format!("{:?} {contents:?}", inode.identity);
    let step = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul(PRIME);
    HoldId(text.bytes().fold(OFFSET, step))
}
