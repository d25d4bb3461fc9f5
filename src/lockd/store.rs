//! The locks on the disk: a file for each, and a journal beside them.
//!
//! S1. A lock that was answered has its file, with its contents complete, and
//!     its record in the journal; an end that was answered has neither file
//!     nor hold. The journal is synced before (J1), the files are not: after a
//!     power cut they are made again from it (R2).
//! S2. A grant's file is complete before its record is written, and has its
//!     name only after: it appears whole or not at all.
//! S3. A file is removed, or becomes a spare (`spares`), before the record of
//!     its end is written: what cannot be removed is still held, in the books
//!     as on the disk.
//! S4. A grant whose file could not get its name is withdrawn in the journal, and
//!     synced, before the refusal is answered.
//! S5. When the journal could not be written or synced, nothing is written
//!     any more: nobody knows what the disk has.
//!
//! Steps of a batch: files of grants prepared, files of ends removed (S2, S3),
//! all records written and synced at once (J1), files of grants published
//! (S2), failures undone (S4), and only then is any of it answered.

mod directory;
mod hold;
mod journal;
mod record;
mod recovery;
mod spares;
mod tokens;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use directory::Prepared;
pub(crate) use directory::{Directory, Found};
pub(crate) use hold::{Hold, Wanted};
use journal::{Files, JOURNALS, Journal};
pub(crate) use journal::{SYNC_BOUNDS, Syncs};
use record::{ENDED_BYTES, Record, granted_bytes};
pub(crate) use recovery::{Problem, Recovered};
use spares::Spares;
use tokens::{TOKENS, Tokens};

/// The locks on the disk. One thread at a time uses it.
#[derive(Debug)]
pub(crate) struct Store {
    directory: Arc<Directory>,
    journal: Journal,
    spares: Spares,
    tokens: Tokens,
    held: HashMap<Arc<str>, Arc<Hold>>,
    /// Bytes of the records of all that is held.
    held_bytes: usize,
    is_broken: bool,
}

/// A change that is asked for.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Grant(Wanted),
    End(Arc<Hold>),
    /// Remove a file that names nobody.
    Discard(Problem),
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Granted(Arc<Hold>),
    /// It is held: the end that was asked for before failed.
    Held(Arc<Hold>),
    /// There was a file that the daemon did not know. It is a lock now.
    Adopted(Arc<Hold>),
    /// There is a file that names nobody.
    Poisoned(Problem),
    /// Ended; whether its file was still there.
    Ended {
        had_file: bool,
    },
    Discarded,
    /// Nothing was changed.
    Failed(Failure),
    /// The store is broken (S5).
    Broken(Failure),
}

/// What the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) path: PathBuf,
    pub(crate) doing: &'static str,
    pub(crate) errno: Errno,
}

/// The most that is changed at a time: a prepared file is an open one.
pub(crate) const BATCH_MAX: usize = 64;

/// A boot that is like no other.
const UNKNOWN_BOOT: [u8; 36] = [0; 36];

/// A daemon that closes syncs so many files one by one, else the file system.
const SYNCED_SINGLY_MAX: usize = 1000;

/// A change of a batch, on its way.
#[derive(Debug)]
enum Step {
    Publish(Arc<Hold>, Prepared),
    Record(Arc<Hold>, Changed),
    Done(Changed),
}

/// Why a store could not be opened.
#[derive(Debug)]
pub(crate) enum Unopened {
    Failed(Failure),
    Damaged { path: PathBuf, why: String },
}

impl Store {
    /// Take over what a directory holds, in this boot.
    pub(crate) fn open(
        path: &Path,
        boot: [u8; 36],
        sync: bool,
    ) -> Result<(Self, Recovered), Unopened> {
        let failed =
            |doing| move |errno| Unopened::Failed(Failure { path: path.into(), doing, errno });
        let directory = Directory::open(path).map_err(failed("opening the directory"))?;
        let files = Files::open(&directory).map_err(failed("opening the journal"))?;
        let past = files.past().map_err(|()| damaged(&directory, JOURNALS))?;
        let files_count = past.as_ref().is_none_or(|past| {
            past.is_closed || (past.header.boot == boot && boot != UNKNOWN_BOOT)
        });
        let (from_journal, at_least) = match &past {
            Some(past) if files_count => (Some(past.next_token), past.next_token),
            Some(past) => (None, past.next_token),
            None => (None, 1),
        };
        let mut tokens = match Tokens::open(&directory, from_journal, at_least) {
            Err(Errno::BADMSG) => return Err(damaged(&directory, [TOKENS, JOURNALS[0]])),
            tokens => tokens.map_err(failed("writing the token counter"))?,
        };
        let recovered = recovery::recover(&directory, past.as_ref(), files_count, &mut tokens)
            .map_err(failed("bringing the files in line with the journal"))?;
        let held = recovered.held.clone();
        let held_bytes = held.values().map(|hold| granted_bytes(&hold.wanted)).sum();
        let journal = files
            .begin(&directory, past.as_ref(), boot, tokens.peek(), held.values(), sync)
            .map_err(failed("writing the journal"))?;
        let (spares, is_broken) = (Spares::default(), false);
        let store = Self { directory, journal, spares, tokens, held, held_bytes, is_broken };
        Ok((store, recovered))
    }

    pub(crate) fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// How long the journal's syncs took.
    pub(crate) fn syncs(&self) -> Syncs {
        self.journal.syncs
    }

    /// Make these changes, in this order, and say what became of each. At most
    /// [`BATCH_MAX`]. For each resource at most one end and one grant, the end
    /// first.
    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> Vec<Changed> {
        if self.is_broken {
            return changes.iter().map(|_| self.broken(Errno::IO)).collect();
        }
        let mut steps: Vec<Step> = changes.into_iter().map(|change| self.begin(change)).collect();
        let recorded = self.record(&mut steps);
        let mut undoing = Vec::new();
        let changed: Vec<Changed> = match recorded {
            Ok(()) => steps.into_iter().map(|step| self.finish(step, &mut undoing)).collect(),
            Err(errno) => return steps.iter().map(|_| self.broken(errno)).collect(),
        };
        // S4.
        if let Err(errno) = self.append(&undoing) {
            return changed.iter().map(|_| self.broken(errno)).collect();
        }
        changed
    }

    /// Make none of these changes.
    pub(crate) fn refuse(&self, changes: &[Change]) -> Vec<Changed> {
        let (path, doing) = (self.directory.path().to_owned(), "keeping the directory's own lock");
        let failure = Failure { path, doing, errno: Errno::IO };
        changes.iter().map(|_| Changed::Broken(failure.clone())).collect()
    }

    /// S5.
    fn broken(&mut self, errno: Errno) -> Changed {
        let doing = "writing the journal";
        let path = self.directory.path_of(JOURNALS[0]);
        if !std::mem::replace(&mut self.is_broken, true) {
            tracing::error!(
                "{}: {doing} failed, so nothing is changed any more: {errno}",
                path.display()
            );
        }
        Changed::Broken(Failure { path, doing, errno })
    }

    /// What comes before the record. (S2, S3)
    fn begin(&mut self, change: Change) -> Step {
        match change {
            Change::Grant(wanted) => self.begin_grant(wanted),
            Change::End(hold) => self.begin_end(hold),
            Change::Discard(problem) => Step::Done(self.discard(problem)),
        }
    }

    fn begin_grant(&mut self, wanted: Wanted) -> Step {
        if let Some(hold) = self.held.get(&wanted.resource) {
            return Step::Done(Changed::Held(Arc::clone(hold)));
        }
        let prepared = self.spares.prepare(&self.directory, &wanted.client);
        let prepared = prepared.and_then(|prepared| Ok((prepared, self.tokens.next()?)));
        match prepared {
            Ok((prepared, token)) => {
                let since = hold::milliseconds(SystemTime::now());
                Step::Publish(Arc::new(Hold { wanted, token, since }), prepared)
            }
            Err(errno) => Step::Done(self.failed(&wanted.file_name(), "writing the file", errno)),
        }
    }

    fn begin_end(&mut self, hold: Arc<Hold>) -> Step {
        let name = hold.wanted.file_name();
        match self.spares.retire(&self.directory, &name, &hold.wanted.client) {
            Ok(had_file) => {
                self.forget(&hold);
                drop(name);
                Step::Record(hold, Changed::Ended { had_file })
            }
            Err(errno) => Step::Done(self.failed(&name, "removing the file", errno)),
        }
    }

    fn discard(&mut self, problem: Problem) -> Changed {
        for (name, _) in &problem.files {
            // It may have been put right meanwhile.
            match self.directory.look(name) {
                Found::Bad { is_file: true, .. } => {}
                Found::Nothing => continue,
                _ => return Changed::Poisoned(problem),
            }
            if let Err(errno) = self.directory.remove(name) {
                return self.failed(name, "removing the file", errno);
            }
        }
        Changed::Discarded
    }

    fn failed(&self, name: &str, doing: &'static str, errno: Errno) -> Changed {
        Changed::Failed(Failure { path: self.directory.path_of(name), doing, errno })
    }

    fn remember(&mut self, hold: &Arc<Hold>) {
        self.held_bytes += granted_bytes(&hold.wanted);
        self.held.insert(Arc::clone(&hold.wanted.resource), Arc::clone(hold));
    }

    fn forget(&mut self, hold: &Hold) {
        if self.held.remove(&hold.wanted.resource).is_some() {
            self.held_bytes -= granted_bytes(&hold.wanted);
        }
    }

    /// Write what the steps are about to do. (J1)
    fn record(&mut self, steps: &mut [Step]) -> Result<(), Errno> {
        self.refuse_what_does_not_fit(steps);
        let records: Vec<Record> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Publish(hold, _) => Some(Record::Granted(Arc::clone(hold))),
                Step::Record(hold, _) => Some(Record::Ended(hold.token)),
                Step::Done(_) => None,
            })
            .collect();
        self.append(&records)
    }

    /// J4: a grant that could not be ended on a full disk is not made.
    fn refuse_what_does_not_fit(&mut self, steps: &mut [Step]) {
        let granted = steps.iter().filter_map(|step| match step {
            Step::Publish(hold, _) => Some(granted_bytes(&hold.wanted)),
            _ => None,
        });
        let granted: usize = granted.sum();
        if granted == 0 || self.journal.admits(self.held_bytes, granted) {
            return;
        }
        if self.spares.clear(&self.directory) && self.journal.admits(self.held_bytes, granted) {
            return;
        }
        for step in steps.iter_mut().filter(|step| matches!(step, Step::Publish(..))) {
            *step = Step::Done(self.failed(JOURNALS[0], "making the journal longer", Errno::NOSPC));
        }
    }

    fn append(&mut self, records: &[Record]) -> Result<(), Errno> {
        if records.is_empty() {
            return Ok(());
        }
        let bytes = records.iter().map(|record| match record {
            Record::Granted(hold) => granted_bytes(&hold.wanted),
            _ => ENDED_BYTES,
        });
        if !self.journal.fits(bytes.sum()) {
            self.journal.begin_generation(
                &self.directory,
                self.tokens.peek(),
                self.held.values(),
            )?;
        }
        self.journal.append(records)
    }

    /// What comes after the record: grants get their names. (S2)
    fn finish(&mut self, step: Step, undoing: &mut Vec<Record>) -> Changed {
        let (hold, prepared) = match step {
            Step::Publish(hold, prepared) => (hold, prepared),
            Step::Record(_, changed) | Step::Done(changed) => return changed,
        };
        let name = hold.wanted.file_name();
        let errno = match prepared.publish(&name) {
            Ok(()) => {
                self.remember(&hold);
                return Changed::Granted(Arc::clone(&hold));
            }
            Err(errno) => errno,
        };
        undoing.push(Record::Withdrawn(hold.token));
        if errno != Errno::EXIST {
            return self.failed(&name, "naming the file", errno);
        }
        match recovery::adopted(&self.directory, hold.wanted.clone(), &mut self.tokens) {
            Ok(Ok(Some(adopted))) => {
                let adopted = Arc::new(adopted);
                self.remember(&adopted);
                undoing.push(Record::Granted(Arc::clone(&adopted)));
                Changed::Adopted(adopted)
            }
            // It was there a moment ago.
            Ok(Ok(None)) => self.failed(&name, "naming the file", Errno::AGAIN),
            Ok(Err(problem)) => Changed::Poisoned(problem),
            Err(errno) => self.failed(&name, "numbering the lock", errno),
        }
    }

    /// Sync everything, so that after this the files alone say what is held.
    pub(crate) fn close(mut self) -> Result<(), Errno> {
        if self.is_broken {
            return Ok(());
        }
        self.spares.clear(&self.directory);
        if self.held.len() > SYNCED_SINGLY_MAX {
            self.directory.sync_file_system()?;
        } else {
            for hold in self.held.values() {
                match self.directory.sync_file(&hold.wanted.file_name()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        self.directory.sync()?;
        self.journal.close()
    }
}

impl Failure {
    /// What to do.
    pub(crate) fn advice(&self) -> String {
        let advice = match self.errno {
            Errno::NOSPC | Errno::DQUOT => "free some space and try again; unlocking needs none",
            Errno::ROFS => "the file system is read-only: find out why, and remount it",
            Errno::ACCESS | Errno::PERM => "let the daemon's user write there",
            Errno::MFILE | Errno::NFILE => "too many files are open: raise the limit",
            Errno::AGAIN => "somebody else works in the directory: try again",
            _ => "look at what the kernel has logged",
        };
        advice.to_owned()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, errno) = (self.path.display(), self.errno);
        write!(out, "{path}: {} failed ({errno}): {}", self.doing, self.advice())
    }
}

fn damaged(directory: &Directory, [name, other]: [&str; 2]) -> Unopened {
    let path = directory.path_of(name);
    let why = format!(
        "is damaged: if the lock files in the directory are right as they are, move it and {other} \
         away and start again; leases and request ids are forgotten then"
    );
    Unopened::Damaged { path, why }
}
