//! The pinned protocol. The numbers of steps and invariants are those at the
//! head of [`attempt`](super).

use std::io::ErrorKind;
use std::time::Instant;

use super::disk::{Access, Disk, Flock};
use super::lock_file::LockFile;
use super::mutants::{self, Mutant};
use super::naming::{Naming, says_no_links};
use super::{
    Attempt, Busy, Candidate, Environment, Locked, Opened, Outcome, PROBE_PASSES, Stale, Stop,
};
use crate::file::options::Proof;
use crate::file::record::{Contents, Record, RecordedProof};
use crate::lock::error::Error;
use crate::lock::holder::Evidence;
use crate::sys::files::{self, Errno};
use crate::sys::inode::Inode;
use crate::sys::verdict::Verdict;

impl<D: Disk, S: Environment> Attempt<'_, D, S> {
    pub(super) fn pinned(&mut self) -> Result<Outcome<D>, Stop> {
        Self::rounds(|| self.round())
    }

    /// Steps 1 to 3: look, disturbing no other. A contender with a candidate at hand
    /// tries to link it instead of looking whether it could, unless it is to look first.
    /// Where each unlock is an event, no file is locked that will not be taken over, as far
    /// as can be seen: two that look would wake each other for ever.
    fn round(&mut self) -> Result<Outcome<D>, Stop> {
        if self.candidate.is_some() && !self.looks_first {
            match self.link_candidate() {
                Err(Stop::FromTheTop) => {}
                other => return other,
            }
        }
        let Some(probe) = self.open_path()? else {
            return self.link_candidate();
        };
        if files::LOOKS_ARE_HEARD {
            self.must_not_be_seen_to_live(&probe)?;
        }
        let probe = match self.lock(probe) {
            Err(Stop::NeedsWriting) => return self.take_over(),
            other => other?,
        };
        self.must_be_at_path(&probe)?;
        self.must_be_stale(&probe)?;
        drop(probe);
        self.take_over()
    }

    /// Steps 3 to 5.
    fn take_over(&mut self) -> Result<Outcome<D>, Stop> {
        let opened = match self.open(self.path.path(), Access::ReadWrite) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Err(Stop::FromTheTop),
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => return self.replace(),
            Err(Errno::AGAIN) => return Err(self.in_use()),
            Err(error) => return Err(self.cannot_open(error)),
        };
        self.refuse_irregular(opened.inode)?;
        let opened = if mutants::is_on(Mutant::TakeOverUnlocked) {
            Locked { disk: self.disk.clone(), opened: Some(opened) }
        } else {
            self.lock(opened)?
        };
        if !mutants::is_on(Mutant::NoSecondLook) {
            self.must_be_at_path(&opened)?;
        }
        let stale = self.must_be_stale(&opened)?;
        self.rewrite(opened, stale)
    }

    /// Step 5. We own the flock on the inode that the path names (2).
    fn rewrite(&self, opened: Locked<D>, stale: Stale) -> Result<Outcome<D>, Stop> {
        let started = self.environment.now();
        let mut record = self.new_record(RecordedProof::Flock)?;
        record.is_local = self.is_local(&opened.file)?;
        if let Err(error) = self.write(&opened.file, &record) {
            // A part of it may be written: the file must go on telling of the dead.
            let _ = self.disk.write(&opened.file, &stale.contents.to_bytes(), 0);
            return Err(self.failed("taking over", error));
        }
        let Opened { file, inode } = opened.keep();
        self.holds(file, inode, record, Some(stale), started)
    }

    /// Step 5 where the stale file may not be written: rename a candidate over
    /// it, under the flocks of both and after the comparison (2).
    fn replace(&mut self) -> Result<Outcome<D>, Stop> {
        let Some(opened) = self.open_path()? else {
            return Err(Stop::FromTheTop);
        };
        let owner = opened.inode.owner;
        let opened = match self.disk.try_flock(&opened.file, Flock::Exclusive) {
            Err(Errno::BADF) => return Err(self.judge_unlockable(opened)?),
            answer => self.locked(opened, answer)?,
        };
        self.must_be_at_path(&opened)?;
        let stale = self.must_be_stale(&opened)?;
        if self.options.openlock_compat || stale.contents.record().is_none() {
            // openlock may have renamed its own file to the path since it was
            // compared. In place we could not hurt it; by name we would.
            return Err(self.cannot_take_over(owner, stale, Errno::ACCESS));
        }
        let started = self.environment.now();
        let mut record = self.new_record(RecordedProof::Flock)?;
        let (name, file) = match self.create_candidate(&record) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                return Err(self.cannot_take_over(owner, stale, Errno::ACCESS));
            }
            other => other?,
        };
        let inode = self.prepare(&file, &mut record)?;
        match self.disk.rename(name.path(), self.path.path()) {
            Ok(()) => {}
            Err(Errno::NOENT) if self.is_named(self.path.path(), inode) => {}
            Err(error) if self.is_done(error, self.path.path(), inode) => {}
            Err(Errno::NOENT) => return Err(Stop::FromTheTop),
            Err(error) => return Err(self.cannot_take_over(owner, stale, error)),
        }
        name.forget();
        self.holds(file, inode, record, Some(stale), started)
    }

    /// A file that could only be locked for writing and may not be written.
    fn judge_unlockable(&mut self, opened: Opened<D::File>) -> Result<Stop, Stop> {
        match self.disk.try_flock(&opened.file, Flock::Shared) {
            Ok(false) => Ok(self.refused(&opened)?.into()),
            Ok(true) => {
                let owner = opened.inode.owner;
                let opened = Locked { disk: self.disk.clone(), opened: Some(opened) };
                self.must_be_at_path(&opened)?;
                let stale = self.must_be_stale(&opened)?;
                Ok(self.cannot_take_over(owner, stale, Errno::ACCESS))
            }
            Err(error) => Err(self.cannot_lock(error)),
        }
    }

    /// Step 1, nothing there: a file that is complete and locked from the
    /// first instant the path names it (1).
    fn link_candidate(&mut self) -> Result<Outcome<D>, Stop> {
        let started = self.environment.now();
        let prepared = self.candidate.take().and_then(|candidate| self.brought_up(candidate).ok());
        let candidate = match prepared {
            Some(candidate) => candidate,
            None => match self.new_candidate()? {
                Some(candidate) => candidate,
                None => return self.name_candidate(self.new_record(RecordedProof::Flock)?),
            },
        };
        let (inode, path) = (candidate.opened.inode, self.path.path());
        match self.disk.link_unnamed(&candidate.opened.file, path) {
            Ok(()) if self.is_another_file(path, inode, &candidate.record) => {
                let _ = self.disk.unlink(path);
                return self.name_candidate(candidate.record);
            }
            Ok(()) => {}
            Err(error) if self.is_done(error, path, inode) => {}
            Err(Errno::EXIST) => {
                self.candidate = Some(candidate);
                return Err(Stop::FromTheTop);
            }
            // An unnamed file may not get a name without /proc, or in a process
            // that gave up privileges; nor, EXDEV, if it was made on another mount than
            // the path leads to.
            Err(error) if error == Errno::NOENT || says_no_links(error) => {
                return self.name_candidate(candidate.record);
            }
            Err(error) => return Err(self.failed("linking", error)),
        }
        let Candidate { opened, record } = candidate;
        self.holds(opened.file, inode, record, None, started)
    }

    /// Make a candidate while there is time. Whatever is wrong will be said by
    /// the attempt that needs one.
    pub(crate) fn prepare_candidate(&mut self) {
        if self.candidate.is_none() && self.options.proof != Proof::Process {
            self.candidate = self.new_candidate().ok().flatten();
        }
    }

    /// `None` where there are no unnamed files: open(2) on O_TMPFILE.
    fn new_candidate(&self) -> Result<Option<Candidate<D>>, Stop> {
        let mut record = self.new_record(RecordedProof::Flock)?;
        match self.disk.create_unnamed(self.path.directory(), self.options.mode) {
            Ok(file) => {
                let inode = self.prepare(&file, &mut record)?;
                Ok(Some(Candidate { opened: Opened { file, inode }, record }))
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
            Err(error) => Err(self.cannot_create(error).into()),
        }
    }

    /// It tells since when the lock is held, and is not so old that this is wrong.
    fn brought_up(&self, mut candidate: Candidate<D>) -> Result<Candidate<D>, Errno> {
        let hold_id = candidate.record.hold_id;
        let record = self.environment.record(hold_id, RecordedProof::Flock, self.options);
        let record = Record { is_local: candidate.record.is_local, ..record };
        if record.second() != candidate.record.second() {
            self.write(&candidate.opened.file, &record)?;
            *candidate.record = record;
        }
        Ok(candidate)
    }

    /// The same with a candidate that has a name of its own.
    fn name_candidate(&mut self, mut record: Box<Record>) -> Result<Outcome<D>, Stop> {
        let started = self.environment.now();
        let (name, file) = self.create_candidate(&record)?;
        let inode = self.prepare(&file, &mut record)?;
        match self.name(&file, name.path(), self.path.path(), inode, &record)? {
            Naming::Named => self.holds(file, inode, record, None, started),
            Naming::Taken => Err(Stop::FromTheTop),
        }
    }

    /// Fill and lock a candidate.
    fn prepare(&self, file: &D::File, record: &mut Record) -> Result<Inode, Stop> {
        let failed = |error| self.failed("writing", error);
        record.is_local = self.is_local(file)?;
        self.write(file, record).map_err(failed)?;
        let inode = self.disk.inspect(file).map_err(failed)?;
        if mutants::is_on(Mutant::PinAfterLink) {
            return Ok(inode);
        }
        match self.disk.try_flock(file, Flock::Exclusive) {
            Ok(true) => Ok(inode),
            // Only a sweeper locks another's candidate; it is about to remove it.
            Ok(false) => Err(Stop::FromTheTop),
            Err(error) => Err(self.cannot_lock(error)),
        }
    }

    /// The path names our file: from here on it is removed by its `LockFile` (6).
    pub(super) fn holds(
        &self,
        file: D::File,
        inode: Inode,
        record: Box<Record>,
        stale: Option<Stale>,
        started: Instant,
    ) -> Result<Outcome<D>, Stop> {
        let maker = self.environment.process();
        let (disk, path) = (self.disk.clone(), self.path.clone());
        let lock_file = LockFile::new(disk, path, file, inode.identity, record, maker, started);
        if mutants::is_on(Mutant::PinAfterLink) {
            let _ = self.disk.try_flock(lock_file.file(), Flock::Exclusive);
        }
        if let Some(stale) = &stale {
            self.forget_revocation(&stale.contents);
        }
        self.acquired(lock_file, stale, started)
    }

    /// A request to a dead holder is removed by no other.
    fn forget_revocation(&self, contents: &Contents) {
        if let Contents::Ours(dead) = contents {
            let _ = self.disk.unlink(&self.path.revocation(dead.hold_id));
        }
    }

    /// Refused: the flock is taken, by a holder, a child of one, or for a
    /// moment another contender that looks.
    fn lock(&self, opened: Opened<D::File>) -> Result<Locked<D>, Stop> {
        let answer = self.disk.try_flock(&opened.file, Flock::Exclusive);
        self.locked(opened, answer)
    }

    fn locked(
        &self,
        opened: Opened<D::File>,
        answer: Result<bool, Errno>,
    ) -> Result<Locked<D>, Stop> {
        match answer {
            Ok(true) => Ok(Locked { disk: self.disk.clone(), opened: Some(opened) }),
            Ok(false) => Err(self.refused(&opened)?.into()),
            Err(error) => Err(self.cannot_lock(error)),
        }
    }

    fn refused(&self, opened: &Opened<D::File>) -> Result<Busy, Stop> {
        let contents = self.read(&opened.file)?;
        let local = self.is_local(&opened.file)?;
        let (evidence, is_doubtful) = self.who_locks(&contents, local);
        let look_again = is_doubtful.then_some(PROBE_PASSES);
        Ok(Busy { look_again, ..Busy::by(&contents, evidence) })
    }

    fn cannot_lock(&self, error: Errno) -> Stop {
        match error {
            Errno::BADF => Stop::NeedsWriting,
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => Stop::NoFlock(error),
            error => self.failed("locking", error),
        }
    }

    /// For the flock that is held: the evidence, and whether it may be a mere probe.
    pub(super) fn who_locks(&self, contents: &Contents, local: bool) -> (Evidence, bool) {
        match contents {
            Contents::Ours(record) if record.released => (Evidence::Released, true),
            Contents::Ours(record) if record.proof == RecordedProof::Flock && !self.tells => {
                (Evidence::KernelLock, false)
            }
            Contents::Ours(record) if record.proof == RecordedProof::Flock => {
                match self.environment.judge(contents, local) {
                    Verdict::Dead(_) => (Evidence::Inherited, true),
                    _ => (Evidence::KernelLock, false),
                }
            }
            _ => (Evidence::KernelLock, true),
        }
    }

    fn must_be_at_path(&self, opened: &Opened<D::File>) -> Result<(), Stop> {
        if mutants::is_on(Mutant::NoInodeCheck) || self.is_at_path(opened)? {
            Ok(())
        } else {
            Err(Stop::FromTheTop)
        }
    }

    /// Judge the owner of a file that is not locked, unless a flock is what proves its life.
    fn must_not_be_seen_to_live(&mut self, opened: &Opened<D::File>) -> Result<(), Stop> {
        self.must_be_at_path(opened)?;
        let contents = self.read(&opened.file)?;
        let local = self.is_local(&opened.file)?;
        let judged = match &contents {
            Contents::Ours(record) if record.released => return Ok(()),
            Contents::Ours(record)
                if record.proof == RecordedProof::Flock && local && record.is_local =>
            {
                return Ok(());
            }
            Contents::Ours(_) => self.judge_process(contents, local),
            _ => self.judge_foreign(opened.inode, contents, local),
        };
        Ok(judged.map(drop)?)
    }

    /// Judge the owner of a file whose flock we have and which the path names.
    fn must_be_stale(&mut self, opened: &Opened<D::File>) -> Result<Stale, Stop> {
        let contents = self.read(&opened.file)?;
        let local = self.is_local(&opened.file)?;
        let stale = match &contents {
            // Also if it is released: the claim of a portable contender may be on it.
            Contents::Ours(record) if record.proof == RecordedProof::Process => {
                Err(self.judge_other_protocol(contents, local))
            }
            Contents::Ours(record) if record.released => {
                Ok(Stale { contents, evidence: Evidence::Released })
            }
            Contents::Ours(_) if self.disk.is_range_locked(&opened.file) == Ok(true) => {
                let (evidence, _) = self.who_locks(&contents, local);
                Err(Busy::by(&contents, evidence))
            }
            Contents::Ours(record) if local && record.is_local => {
                Ok(Stale { contents, evidence: Evidence::KernelLockFree })
            }
            Contents::Ours(_) => self.judge_process(contents, local),
            _ => self.judge_foreign(opened.inode, contents, local),
        };
        Ok(stale?)
    }
}
