//! The locks on the disk: a file for each, and a journal beside them.
//!
//! S1. A grant that was answered has its file, with complete contents, and its record in
//!     the journal. An end that was answered has neither file nor hold. The journal is
//!     synced before the answer (J1), the files are not: after a power cut they are made
//!     again from it (R2).
//! S2. A grant's file is complete before its record is written, and gets its name after.
//!     So it appears whole or not at all.
//! S3. A file is removed, or becomes a spare (`spares`), before the record of its end is
//!     written. A lock whose file cannot be removed is still held, in the books as on the
//!     disk.
//! S4. A grant whose file could not get its name is withdrawn in the journal, and
//!     synced, before the refusal is answered.
//! S5. When the journal could not be written or synced, it is written again whole in its
//!     other file, and counts there. When that fails as well, nothing is written any
//!     more: what the disk has is unknown.
//! S6. A failed change is taken back before it is refused. The journal says nothing of a
//!     grant, and an end has its file again. So a daemon that starts afterwards shows
//!     nothing that was refused.
//! S7. A directory in which something is missing is not served, and nothing in it is
//!     changed, until the loss is accepted. What is damaged is kept beside what is new.
//!     (`past`, T3)
//!
//! Steps of a batch:
//!
//! 1. Files of grants are prepared, files of ends are removed (S2, S3).
//! 2. All records are written and synced at once (J1).
//! 3. Files of grants are published (S2), and failures undone (S4).
//! 4. Only then is any change answered.

#![expect(clippy::disallowed_methods, reason = "the time of day that a grant says")]

mod directory;
mod grant;
mod journal;
mod past;
mod record;
mod recovery;
mod spares;
mod token_counter;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use directory::Prepared;
pub(crate) use directory::{LockDirectory, NameState};
pub(crate) use grant::{Grant, GrantTerms};
use journal::Journal;
pub(crate) use journal::{SYNC_BOUNDS, Syncs};
use past::{Damage, Files, Past};
use record::{ENDED_BYTES, JOURNALS, JournalRecord, granted_bytes};
pub(crate) use recovery::{Problem, Recovered};
use spares::Spares;
pub(crate) use token_counter::TOKENS_ABOVE_MAX;
use token_counter::{Bound, FIRST, TOKENS, TokenCounter};

use crate::sys::files::Errno;

/// The locks on the disk. One thread at a time uses it.
#[derive(Debug)]
pub(crate) struct Store {
    directory: Arc<LockDirectory>,
    journal: Journal,
    spares: Spares,
    tokens: TokenCounter,
    held: HashMap<Arc<str>, Arc<Grant>>,
    /// Bytes of the records of all that is held.
    held_bytes: usize,
    is_broken: bool,
}

/// A change that is asked for.
#[derive(Clone, Debug)]
pub(crate) enum ChangeRequest {
    Grant(GrantTerms),
    End(Arc<Grant>),
    /// Remove a file that names no holder.
    Discard(Problem),
}

/// The outcome of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChangeOutcome {
    Granted(Arc<Grant>),
    /// The lock is held: the end before the grant failed.
    Held(Arc<Grant>),
    /// There was a file that the daemon did not know. The file is a lock now.
    Adopted(Arc<Grant>),
    /// There is a file that names no holder.
    Poisoned(Problem),
    /// Ended; whether its file was still there.
    Ended {
        had_file: bool,
    },
    Discarded,
    /// Nothing was changed.
    Failed(DiskError),
    /// The store is broken (S5).
    Broken(DiskError),
}

/// A refusal of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskError {
    pub(crate) path: PathBuf,
    pub(crate) doing: &'static str,
    pub(crate) errno: Errno,
}

/// Changes of one batch at most. Each prepared file is an open one; larger batches need
/// more of these, and answer their first change later.
pub(crate) const BATCH_MAX: usize = 64;

/// Files that a daemon syncs one by one when it closes. For more, syncing the whole file
/// system is faster.
const SYNCED_SINGLY_MAX: usize = 1000;

/// A change of a batch, on its way.
#[derive(Debug)]
enum Step {
    Publish(Arc<Grant>, Prepared),
    Record(Arc<Grant>, ChangeOutcome),
    Done(ChangeOutcome),
}

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreOptions {
    pub(crate) sync: bool,
    /// Go on without what the journal has lost. (S7)
    pub(crate) accept_damage: bool,
    /// No token up to this one may be given.
    pub(crate) tokens_above: Option<u64>,
}

/// Why a store could not be opened.
#[derive(Debug)]
pub(crate) enum Unopened {
    Failed(DiskError),
    /// S7.
    Damaged {
        found: String,
        remedy: String,
    },
}

impl Store {
    /// Take over the locks of a directory, in this boot.
    pub(crate) fn open(
        path: &Path,
        boot: [u8; 36],
        options: StoreOptions,
    ) -> Result<(Self, Recovered), Unopened> {
        let failed =
            |doing| move |errno| Unopened::Failed(DiskError { path: path.into(), doing, errno });
        let of_file = |doing| {
            move |(name, errno): (&str, Errno)| {
                Unopened::Failed(DiskError { path: path.join(name), doing, errno })
            }
        };
        let directory = LockDirectory::open(path).map_err(failed("opening the directory"))?;
        let (files, bound) = found(&directory).map_err(of_file("reading the file"))?;
        let is_new = match bound {
            Bound::Missing => files.are_missing(),
            Bound::Known { bound, .. } => bound == FIRST && files.say_nothing(),
            Bound::Damaged => false,
        };
        let (files, bound) = if is_new {
            create(&directory, bound, boot).map_err(of_file("making the file"))?;
            found(&directory).map_err(of_file("reading the file"))?
        } else {
            (files, bound)
        };
        let (past, damage) = files.past(&directory, boot);
        let has_damage = !damage.is_empty();
        let known = next_token(past.as_ref(), has_damage, bound);
        accept(&directory, damage, bound, past.as_ref(), known, options)?;
        if let Some(past) = &past {
            past.report(&directory, boot);
        }
        let next = raised(known, options.tokens_above);
        let mut tokens = TokenCounter::open(&directory, next)
            .map_err(|errno| of_file("writing the token counter")((TOKENS, errno)))?;
        let files_count = past.as_ref().is_none_or(|past| past.is_closed || past.is_of(boot));
        let recovered = recovery::recover(&directory, past.as_ref(), files_count, &mut tokens)
            .map_err(failed("bringing the files in line with the journal"))?;
        let held = recovered.held.clone();
        let held_bytes = held.values().map(|grant| granted_bytes(&grant.terms)).sum();
        let files = past::open(&directory).map_err(of_file("opening the journal"))?;
        let sync = options.sync;
        let mut journal = Journal::begin(
            &directory,
            files,
            past.as_ref(),
            boot,
            tokens.peek(),
            held.values(),
            sync,
        )
        .map_err(failed("writing the journal"))?;
        if has_damage {
            // Nothing is left of it in either file.
            journal
                .begin_generation(&directory, tokens.peek(), held.values())
                .map_err(failed("writing the journal"))?;
        }
        let (spares, is_broken) = (Spares::default(), false);
        let store = Self { directory, journal, spares, tokens, held, held_bytes, is_broken };
        Ok((store, recovered))
    }

    pub(crate) fn directory(&self) -> &Arc<LockDirectory> {
        &self.directory
    }

    /// The times of the journal's syncs.
    pub(crate) fn syncs(&self) -> Syncs {
        self.journal.syncs
    }

    /// The greatest token that was given.
    pub(crate) fn last_token(&self) -> u64 {
        self.tokens.peek() - 1
    }

    /// Make these changes in this order; the outcome of each. At most [`BATCH_MAX`]. For each
    /// resource at most one end and one grant, the end first.
    pub(crate) fn commit(&mut self, changes: Vec<ChangeRequest>) -> Vec<ChangeOutcome> {
        if self.is_broken {
            return changes.iter().map(|_| self.broken(Errno::IO, true)).collect();
        }
        let mut steps: Vec<Step> = changes.into_iter().map(|change| self.begin(change)).collect();
        if let Err(errno) = self.record(&mut steps) {
            return self.take_back(steps, errno);
        }
        let mut undoing = Vec::new();
        let mut changed: Vec<ChangeOutcome> =
            steps.into_iter().map(|step| self.finish(step, &mut undoing)).collect();
        // S4.
        if let Err(errno) = self.append(&undoing) {
            let is_taken_back = self.journal.take_back(&undoing).is_ok();
            // Changes that were recorded before stay.
            let is_done = |it: &ChangeOutcome| {
                matches!(it, ChangeOutcome::Granted(_) | ChangeOutcome::Ended { .. })
            };
            for changed in changed.iter_mut().filter(|it| !is_done(it)) {
                *changed = self.broken(errno, is_taken_back);
            }
        }
        changed
    }

    /// Undo changes whose records could not be written. (S6)
    fn take_back(&mut self, steps: Vec<Step>, errno: Errno) -> Vec<ChangeOutcome> {
        let mut held = Vec::new();
        let mut is_taken_back = true;
        for step in &steps {
            if let Step::Record(grant, changed) = step {
                if *changed == (ChangeOutcome::Ended { had_file: true }) {
                    is_taken_back &= self.put_back(grant);
                }
                self.remember(grant);
                held.push(JournalRecord::Granted(Arc::clone(grant)));
            }
        }
        is_taken_back &= self.journal.take_back(&held).is_ok();
        let refused = steps.into_iter().map(|step| match step {
            Step::Done(changed) => changed,
            Step::Publish(..) | Step::Record(..) => self.broken(errno, is_taken_back),
        });
        refused.collect()
    }

    /// Make the file of a lock again after its end failed; whether it is there.
    fn put_back(&mut self, grant: &Grant) -> bool {
        let prepared = self.spares.prepare(&self.directory, &grant.terms.client);
        let put_back = prepared.and_then(|file| file.publish(&grant.terms.file_name()));
        if let Err(error) = put_back {
            let path = self.directory.path_of(&*grant.terms.file_name());
            tracing::error!("{}: making the file again failed: {error}", path.display());
        }
        put_back.is_ok()
    }

    /// Refuse these changes.
    pub(crate) fn refuse(&self, changes: &[ChangeRequest]) -> Vec<ChangeOutcome> {
        let (path, doing) = (self.directory.path().to_owned(), "keeping the directory's own lock");
        let failure = DiskError { path, doing, errno: Errno::IO };
        changes.iter().map(|_| ChangeOutcome::Broken(failure.clone())).collect()
    }

    /// S5.
    fn broken(&mut self, errno: Errno, is_taken_back: bool) -> ChangeOutcome {
        let doing = match is_taken_back {
            true => "writing the journal",
            false => "writing the journal, and taking back what may be in it,",
        };
        let path = self.directory.path_of(self.journal.name());
        if !std::mem::replace(&mut self.is_broken, true) {
            tracing::error!(
                "{}: {doing} failed, so nothing is changed any more: {errno}",
                path.display()
            );
        }
        ChangeOutcome::Broken(DiskError { path, doing, errno })
    }

    /// The steps before the record. (S2, S3)
    fn begin(&mut self, change: ChangeRequest) -> Step {
        match change {
            ChangeRequest::Grant(terms) => self.begin_grant(terms),
            ChangeRequest::End(grant) => self.begin_end(grant),
            ChangeRequest::Discard(problem) => Step::Done(self.discard(problem)),
        }
    }

    fn begin_grant(&mut self, terms: GrantTerms) -> Step {
        if let Some(grant) = self.held.get(&terms.resource) {
            return Step::Done(ChangeOutcome::Held(Arc::clone(grant)));
        }
        let prepared = self.spares.prepare(&self.directory, &terms.client);
        let prepared = prepared.and_then(|prepared| Ok((prepared, self.tokens.next()?)));
        match prepared {
            Ok((prepared, token)) => {
                let since = grant::milliseconds(SystemTime::now());
                Step::Publish(Arc::new(Grant { terms, token, since }), prepared)
            }
            Err(errno) => Step::Done(self.failed(&terms.file_name(), "writing the file", errno)),
        }
    }

    fn begin_end(&mut self, grant: Arc<Grant>) -> Step {
        let name = grant.terms.file_name();
        match self.spares.retire(&self.directory, &name, &grant.terms.client) {
            Ok(had_file) => {
                self.forget(&grant);
                drop(name);
                Step::Record(grant, ChangeOutcome::Ended { had_file })
            }
            Err(errno) => Step::Done(self.failed(&name, "removing the file", errno)),
        }
    }

    fn discard(&mut self, problem: Problem) -> ChangeOutcome {
        for (name, _) in &problem.files {
            // The file may have been put right meanwhile.
            match self.directory.look(name) {
                NameState::Bad { is_file: true, .. } => {}
                NameState::Nothing => continue,
                _ => return ChangeOutcome::Poisoned(problem),
            }
            if let Err(errno) = self.directory.remove(name) {
                return self.failed(name, "removing the file", errno);
            }
        }
        ChangeOutcome::Discarded
    }

    fn failed(&self, name: &str, doing: &'static str, errno: Errno) -> ChangeOutcome {
        ChangeOutcome::Failed(DiskError { path: self.directory.path_of(name), doing, errno })
    }

    fn remember(&mut self, grant: &Arc<Grant>) {
        self.held_bytes += granted_bytes(&grant.terms);
        self.held.insert(Arc::clone(&grant.terms.resource), Arc::clone(grant));
    }

    fn forget(&mut self, grant: &Grant) {
        if self.held.remove(&grant.terms.resource).is_some() {
            self.held_bytes -= granted_bytes(&grant.terms);
        }
    }

    /// Write the records of these steps. (J1)
    fn record(&mut self, steps: &mut [Step]) -> Result<(), Errno> {
        self.refuse_what_does_not_fit(steps);
        let records: Vec<JournalRecord> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Publish(grant, _) => Some(JournalRecord::Granted(Arc::clone(grant))),
                Step::Record(grant, _) => Some(JournalRecord::Ended(grant.token)),
                Step::Done(_) => None,
            })
            .collect();
        self.append(&records)
    }

    /// J4: a grant that could not be ended on a full disk is not made.
    fn refuse_what_does_not_fit(&mut self, steps: &mut [Step]) {
        let granted = steps.iter().filter_map(|step| match step {
            Step::Publish(grant, _) => Some(granted_bytes(&grant.terms)),
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

    fn append(&mut self, records: &[JournalRecord]) -> Result<(), Errno> {
        if records.is_empty() {
            return Ok(());
        }
        let bytes = records.iter().map(|record| match record {
            JournalRecord::Granted(grant) => granted_bytes(&grant.terms),
            _ => ENDED_BYTES,
        });
        let tried = match self.journal.fits(bytes.sum()) {
            true => self.journal.append(records),
            false => self.append_to_next(records),
        };
        let Err(errno) = tried else { return Ok(()) };
        // S5.
        let path = self.directory.path_of(self.journal.name());
        tracing::warn!(
            "{}: writing the journal failed, so it is written anew: {errno}",
            path.display()
        );
        self.append_to_next(records)
    }

    /// Write records into a new generation.
    fn append_to_next(&mut self, records: &[JournalRecord]) -> Result<(), Errno> {
        let next_token = self.tokens.peek();
        self.journal.begin_generation(&self.directory, next_token, self.held.values())?;
        self.journal.append(records)
    }

    /// The steps after the record: files of grants get their names. (S2)
    fn finish(&mut self, step: Step, undoing: &mut Vec<JournalRecord>) -> ChangeOutcome {
        let (grant, prepared) = match step {
            Step::Publish(grant, prepared) => (grant, prepared),
            Step::Record(_, changed) | Step::Done(changed) => return changed,
        };
        let name = grant.terms.file_name();
        let errno = match prepared.publish(&name) {
            Ok(()) => {
                self.remember(&grant);
                return ChangeOutcome::Granted(Arc::clone(&grant));
            }
            Err(errno) => errno,
        };
        undoing.push(JournalRecord::Withdrawn(grant.token));
        if errno != Errno::EXIST {
            return self.failed(&name, "naming the file", errno);
        }
        match recovery::adopted(&self.directory, grant.terms.clone(), &mut self.tokens) {
            Ok(Ok(Some(adopted))) => {
                let adopted = Arc::new(adopted);
                self.remember(&adopted);
                undoing.push(JournalRecord::Granted(Arc::clone(&adopted)));
                ChangeOutcome::Adopted(adopted)
            }
            // The file was there a moment ago.
            Ok(Ok(None)) => self.failed(&name, "naming the file", Errno::AGAIN),
            Ok(Err(problem)) => ChangeOutcome::Poisoned(problem),
            Err(errno) => self.failed(&name, "numbering the lock", errno),
        }
    }

    /// Sync everything: afterwards the files alone say what is held.
    pub(crate) fn close(mut self) -> Result<(), Errno> {
        if self.is_broken {
            return Ok(());
        }
        self.spares.clear(&self.directory);
        if self.held.len() > SYNCED_SINGLY_MAX {
            self.directory.sync_all()?;
        } else {
            for grant in self.held.values() {
                match self.directory.sync_file(&grant.terms.file_name()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        self.directory.sync()?;
        self.journal.close()
    }
}

impl DiskError {
    /// What to do.
    pub(crate) fn advice(&self) -> String {
        let advice = match self.errno {
            Errno::NOSPC | Errno::DQUOT => "free some space and try again; unlocking needs none",
            Errno::ROFS => "the file system is read-only: find out why, and remount it",
            Errno::ACCESS | Errno::PERM => "let the daemon's user write there",
            Errno::MFILE | Errno::NFILE => "too many files are open: raise the limit",
            Errno::AGAIN => "another program works in the directory: try again",
            Errno::ISDIR | Errno::LOOP | Errno::SPIPE | Errno::NXIO => {
                "it is no file: move it away, and start again"
            }
            _ => "look at what the kernel has logged",
        };
        advice.to_owned()
    }
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, errno) = (self.path.display(), self.errno);
        write!(out, "{path}: {} failed ({errno}): {}", self.doing, self.advice())
    }
}

/// The daemon's own files in a directory.
fn found(directory: &LockDirectory) -> Result<(Files, Bound), (&'static str, Errno)> {
    let files = Files::read(directory)?;
    let bound = Bound::read(directory).map_err(|errno| (TOKENS, errno))?;
    Ok((files, bound))
}

/// Make the daemon's own files in a new directory. (T3)
fn create(
    directory: &Arc<LockDirectory>,
    bound: Bound,
    boot: [u8; 36],
) -> Result<(), (&'static str, Errno)> {
    if bound == Bound::Missing {
        TokenCounter::create(directory).map_err(|errno| (TOKENS, errno))?;
    }
    let files = past::open(directory)?;
    Journal::create(directory, files, boot, FIRST).map_err(|errno| (JOURNALS[0], errno))
}

/// The smallest token that may be given, as far as the directory says. (T2)
fn next_token(past: Option<&Past>, has_damage: bool, bound: Bound) -> u64 {
    let of_bound = match bound {
        Bound::Known { bound, .. } => bound,
        // Then `--tokens-above` is needed.
        Bound::Missing | Bound::Damaged => FIRST,
    };
    match past {
        Some(past) if past.is_closed && past.is_last && !has_damage => past.next_token,
        Some(past) => past.next_token.max(of_bound),
        None => of_bound,
    }
}

/// The same with `--tokens-above`.
fn raised(known: u64, above: Option<u64>) -> u64 {
    above.map_or(known, |above| known.max(above.saturating_add(1)))
}

/// Check whether the store may be opened in spite of this damage, and keep what is damaged
/// aside. (S7)
fn accept(
    directory: &Arc<LockDirectory>,
    of_journal: Vec<Damage>,
    bound: Bound,
    past: Option<&Past>,
    known: u64,
    options: StoreOptions,
) -> Result<(), Unopened> {
    let greatest = past.map_or(0, |past| past.next_token.saturating_sub(1));
    let of_tokens = match bound {
        Bound::Missing => Some((None, "is missing".to_owned())),
        Bound::Damaged => Some((Some(0), "has no number that can be read".to_owned())),
        Bound::Known { bound, .. } if bound <= greatest => {
            let what =
                format!("is older than the journal: {greatest} was given, not below {bound}");
            Some((Some(0), what))
        }
        Bound::Known { is_copied, .. } => {
            if is_copied && raised(known, options.tokens_above) == known {
                warn_of_copy(directory, known, options.tokens_above);
            }
            None
        }
    };
    let of_tokens = of_tokens.map(|(at, what)| Damage {
        name: TOKENS,
        path: directory.path_of(TOKENS),
        at,
        what,
    });
    let needs_accept = !of_journal.is_empty() && !options.accept_damage;
    // A number from an earlier start says nothing of later tokens.
    let too_low = options.tokens_above.filter(|&above| of_tokens.is_some() && above < greatest);
    let needs_tokens = of_tokens.is_some() && options.tokens_above.is_none() || too_low.is_some();
    let found: Vec<Damage> = of_journal.into_iter().chain(of_tokens.clone()).collect();
    if needs_accept || needs_tokens {
        let remedy = remedy(directory.path(), &found, of_tokens.is_some(), greatest);
        let mut found: Vec<String> = found.iter().map(Damage::to_string).collect();
        found.extend(too_low.map(|above| {
            format!("--tokens-above {above} is below {greatest}, which the journal shows was given")
        }));
        return Err(Unopened::Damaged { found: found.join("; "), remedy });
    }
    let mut kept: Vec<&str> = Vec::new();
    for damage in &found {
        tracing::warn!("{damage}: accepted");
        if damage.at.is_some() && !kept.contains(&damage.name) {
            kept.push(damage.name);
            let aside = directory.keep_aside(damage.name).map_err(|errno| {
                let (path, doing) = (damage.path.clone(), "keeping a copy of the damaged file");
                Unopened::Failed(DiskError { path, doing, errno })
            })?;
            let (path, aside) = (damage.path.display(), directory.path_of(aside));
            tracing::warn!("{path}: the damaged file is kept as {}", aside.display());
        }
    }
    Ok(())
}

/// Warn of a copy, which may be older than the last tokens: only the operator knows. A
/// number that raises nothing may be from an earlier start.
fn warn_of_copy(directory: &LockDirectory, known: u64, above: Option<u64>) {
    let path = directory.path().display();
    let raises_nothing = above.map_or_else(String::new, |above| {
        format!(", as they would without --tokens-above {above}, which raises nothing")
    });
    tracing::warn!(
        "{path}: the directory was copied or restored. Tokens go on at {known}{raises_nothing}. \
         If locks were given elsewhere since, up to that token or a greater one, their tokens \
         are given again: start with --tokens-above N, the greatest that was given"
    );
}

/// Advice for the operator.
fn remedy(path: &Path, found: &[Damage], needs_tokens: bool, greatest: u64) -> String {
    let of_journal = found.iter().any(|damage| damage.name != TOKENS);
    let mut flags = String::new();
    let mut means = String::new();
    if of_journal {
        flags += " --accept-damage";
        means += "; what is in doubt is taken for held then, by its file or the journal, under a \
                  new token and without its lease and request id";
    }
    if needs_tokens {
        flags += " --tokens-above N";
        means += &format!(
            "; N is no less than any fencing token that was ever given: the journal has none \
             above {greatest}, but there may have been more"
        );
    }
    let path = path.display();
    format!(
        "nothing was changed. Restore the directory from a backup, or go on without what is lost: \
         lockkeeper serve --dir {path}{flags} (and the options it had){means}. What is damaged is \
         kept beside what is new"
    )
}
