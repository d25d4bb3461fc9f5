//! One contender's tries for one lock: where attempts run, what they have seen,
//! and the short delays inside one try. Waiting between tries is not here.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::at_exit;
use super::guard::FileGuard;
use super::hold::{Handoff, Hold};
use super::liveness::Myself;
use super::options::{AtExit, FileOptions, Proof};
use super::protocol::disk::OsDisk;
use super::protocol::environment::OsEnvironment;
use super::protocol::lock_file::LockFile;
use super::protocol::{
    Acquired, Attempt, Busy, Candidate, Environment, Found, Outcome, PROBE_PASSES, Sightings,
    Survival, YOUTH,
};
use crate::local::executor::Executor;
use crate::local::task_queue::{CallSite, Entry, TaskQueue, Turn};
use crate::local::timer::sleep;
use crate::local::wakeup::{Policy, Wakeup};
use crate::lock::error::Error;
use crate::lock::holder::{Holder, Status};
use crate::sys::events::prepare;
use crate::sys::files::{inspect_directory, may_make_names, may_write};
use crate::sys::inode::Inode;
use crate::sys::path::LockPath;
use crate::sys::process_key::{ProcessKey, this_process};
use crate::sys::program::my_command_line;
use crate::sys::tickets;

/// How often one try looks again when another contender's look may have been
/// in its way.
const DOUBTS_MAX: u32 = 3;

/// A file system that was written so recently is most probably not frozen; a holder that
/// wants the lock again has its candidate in time. A longer time is a longer chance to
/// be held up by a freeze.
const JUST: Duration = Duration::from_secs(1);

/// An end that gives no event is rare. The process that closed a file may be slow to end.
const WAKEUP: Policy = Policy { first_look: None, last_recheck: Duration::from_millis(64) };

/// Candidates that a process has ready. They save the next holder a tenth of a
/// hand-over, and each is an open file.
const CANDIDATES_MAX: usize = 8;

static CANDIDATES: AtomicUsize = AtomicUsize::new(0);

/// The right to have one of [`CANDIDATES_MAX`].
struct CandidatePermit;

impl CandidatePermit {
    fn take() -> Option<Self> {
        let more = |taken: usize| (taken < CANDIDATES_MAX).then_some(taken + 1);
        CANDIDATES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self)
    }
}

impl Drop for CandidatePermit {
    fn drop(&mut self) {
        CANDIDATES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A candidate that is kept for the next attempt.
struct KeptCandidate {
    candidate: Option<Candidate<OsDisk>>,
    permit: Option<CandidatePermit>,
}

impl KeptCandidate {
    /// `None`, and the candidate is dropped, if too many are kept.
    fn new(candidate: Candidate<OsDisk>, permit: Option<CandidatePermit>) -> Option<Self> {
        let permit = Some(permit.or_else(CandidatePermit::take)?);
        Some(Self { candidate: Some(candidate), permit })
    }

    fn into_parts(mut self) -> (Candidate<OsDisk>, Option<CandidatePermit>) {
        let candidate = self.candidate.take().expect("BUG: a candidate was taken twice");
        (candidate, self.permit.take())
    }
}

/// Of a wait that ended without the lock. To close an unnamed file is to write, too, and
/// by now the file system may be frozen: a thread is held up by that, and no task.
impl Drop for KeptCandidate {
    fn drop(&mut self) {
        let kept = (self.candidate.take(), self.permit.take());
        if kept.0.is_some() {
            // If there is no thread to be had, it is done here with the closure.
            let thread = thread::Builder::new().name("lockkeeper".to_owned());
            let _ = thread.spawn(move || drop(kept));
        }
    }
}

/// One contender.
pub(crate) struct Contender {
    terms: Terms,
    queue: Arc<TaskQueue>,
    memory: Memory,
}

/// How an attempt ended, and for how long its lock is on probation.
type OnProbation = (Acquisition, Option<Duration>);

/// What goes from one attempt to the next.
#[derive(Default)]
struct Memory {
    sightings: Sightings,
    candidate: Option<KeptCandidate>,
    /// A lock file in the directory was just heard to be removed or moved.
    has_heard_a_write: bool,
}

/// What stays the same over the tries.
#[derive(Clone)]
struct Terms {
    path: Arc<LockPath>,
    options: Arc<FileOptions>,
    environment: OsEnvironment,
    executor: Executor,
    site: Option<CallSite>,
}

/// How an attempt ended, and the turn for the next one. Made by the closure that
/// attempts, so that a dropped result undoes what the attempt did: the file goes first,
/// the turn after it.
pub(crate) enum Acquisition {
    Acquired(FileGuard),
    Busy(Busy, Turn),
    /// By something that may pass by itself, see [`Error::hindrance`].
    Hindered(Error, Turn),
}

impl Contender {
    /// `last_queue` remembers the queue from one contest to the next.
    pub(crate) async fn enter(
        path: Arc<LockPath>,
        options: Arc<FileOptions>,
        process: ProcessKey,
        last_queue: &Mutex<Option<Arc<TaskQueue>>>,
    ) -> Result<Self, Error> {
        if options.openlock_compat {
            be_visible(path.path())?;
        }
        prepare(process);
        let executor = Executor::of(path.directory(), options.wait.offload).await;
        let failed = |error| Error::of_directory(path.path(), error);
        let (executor, directory) = executor.map_err(failed)?;
        let queue = recall(last_queue, Entry { process, directory, path: path.clone() });
        let environment = OsEnvironment::of(process);
        let terms = Terms { path, options, environment, executor, site: None };
        Ok(Self { terms, queue, memory: Memory::default() })
    }

    /// The lock, if the last task of this process handed its file off with this turn.
    /// Else the turn, with nothing handed off any more.
    pub(crate) fn take_handoff(
        path: &Arc<LockPath>,
        options: &Arc<FileOptions>,
        process: ProcessKey,
        mut turn: Turn,
        site: CallSite,
    ) -> Result<FileGuard, Turn> {
        let Some(handoff) = Handoff::of(&mut turn) else {
            return Err(turn);
        };
        let terms = Terms {
            path: Arc::clone(path),
            options: Arc::clone(options),
            environment: OsEnvironment::of(process),
            executor: handoff.executor().clone(),
            site: Some(site),
        };
        match terms.take_handoff(*handoff) {
            Some(lock_file) => Ok(terms.guard(lock_file, turn, None)),
            None => Err(turn),
        }
    }

    /// Where in the source the lock is asked for, as waiters are shown.
    pub(crate) fn asked_at(mut self, site: CallSite) -> Self {
        self.terms.site = Some(site);
        self
    }

    /// The queue this contender belongs to.
    pub(crate) fn queue(&self) -> Arc<TaskQueue> {
        Arc::clone(&self.queue)
    }

    pub(crate) fn entry(&self) -> ((u64, u64), OsString) {
        self.queue.name()
    }

    pub(crate) fn path(&self) -> &LockPath {
        &self.terms.path
    }

    /// Waits for the next reason to try. Where calls are made elsewhere there
    /// are no events: network file systems do not tell of others' changes.
    pub(crate) fn wakeup(&self) -> Wakeup {
        let Terms { path, options, executor, .. } = &self.terms;
        let has_events = executor.has_events();
        Wakeup::new(path, path, None, &WAKEUP, &options.wait, has_events)
    }

    /// Whether another process waits.
    pub(crate) fn has_foreign_waiters(&self) -> bool {
        self.terms.executor.has_events() && tickets::has_foreign_waiters(self.path())
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.terms.executor
    }

    /// Try until it is clear how it is: a few looks where another's look may
    /// have been in the way, and the delay of a probation. `is_last` says that
    /// there will be no other try, so that this one also waits until a foreign
    /// file is no longer young.
    pub(crate) async fn try_once(
        &mut self,
        turn: Turn,
        is_last: bool,
    ) -> Result<Acquisition, Error> {
        match self.attempt(turn, is_last).await? {
            (acquired @ Acquisition::Acquired(_), None) => Ok(acquired),
            (Acquisition::Busy(busy, again), _) if busy.look_again.is_none() => {
                Ok(Acquisition::Busy(busy, again))
            }
            // On the heap: hardly any try comes to it.
            unclear => Box::pin(self.make_clear(unclear, is_last)).await,
        }
    }

    async fn make_clear(
        &mut self,
        mut last: OnProbation,
        is_last: bool,
    ) -> Result<Acquisition, Error> {
        let young_until = Instant::now() + 2 * YOUTH;
        let may_wait = |delay| is_last && Instant::now() + delay < young_until;
        let mut doubts = 0;
        let mut destroyed = 0;
        // The dead holder of a file that was taken over and lost again.
        let mut pending_report = None;
        loop {
            let turn = match last {
                (Acquisition::Acquired(guard), None) => {
                    return Ok(Acquisition::Acquired(guard.or_recovered(pending_report)));
                }
                (Acquisition::Acquired(mut guard), Some(delay)) => {
                    sleep(delay).await;
                    match guard.survived().await {
                        Survival::Held => {
                            return Ok(Acquisition::Acquired(guard.or_recovered(pending_report)));
                        }
                        Survival::Replaced => {}
                        Survival::Destroyed => destroyed += 1,
                    }
                    pending_report = guard.take_recovered_from().or(pending_report);
                    let turn = guard.give_back().await;
                    if destroyed >= self.terms.options.tries {
                        let path = self.path().path().to_owned();
                        return Err(Error::InvalidLockFile { lock: path.into(), tries: destroyed });
                    }
                    turn
                }
                (Acquisition::Hindered(error, again), _) => {
                    return Ok(Acquisition::Hindered(error, again));
                }
                (Acquisition::Busy(busy, again), _) => {
                    let delay = match busy.look_again {
                        Some(delay) if delay <= PROBE_PASSES && doubts < DOUBTS_MAX => {
                            doubts += 1;
                            delay
                        }
                        Some(delay) if delay > PROBE_PASSES && may_wait(delay) => delay,
                        _ => return Ok(Acquisition::Busy(busy, again)),
                    };
                    sleep(delay).await;
                    again
                }
            };
            last = self.attempt(turn, is_last).await?;
        }
    }

    /// One attempt. The turn travels with it, so that it is given up only after
    /// what the attempt did is undone.
    async fn attempt(&mut self, turn: Turn, tells: bool) -> Result<OnProbation, Error> {
        let terms = self.terms.clone();
        let memory = std::mem::take(&mut self.memory);
        let attempt = move |(mut memory, turn): (Memory, Turn)| {
            let attempted = terms.attempt(&mut memory, turn, tells);
            (attempted, memory)
        };
        let (attempted, memory) = self.terms.executor.run((memory, turn), attempt).await;
        self.memory = memory;
        attempted
    }

    /// Whether a lock file in the directory was just heard to be removed or moved: the
    /// lock is probably free then, and its file system can be written.
    pub(crate) fn has_heard_a_write(&mut self, has_heard: bool) {
        self.memory.has_heard_a_write = has_heard;
    }

    /// Do what can be done of the next attempt while there is time, where it surely
    /// takes none: a file system that is frozen holds up every writer,
    /// and cannot be asked. So it was just written by this process, or by another as was
    /// heard. Where calls are made elsewhere there are no unnamed files.
    pub(crate) fn prepare(&mut self) {
        if self.memory.candidate.is_some()
            || !matches!(self.terms.executor, Executor::Inline { .. })
        {
            return;
        }
        if self.memory.has_heard_a_write || self.queue.held_within(JUST) {
            let mut attempt = self.terms.on(&mut self.memory.sightings);
            if let Some(permit) = CandidatePermit::take() {
                attempt.prepare_candidate();
                let candidate = attempt.into_candidate();
                self.memory.candidate =
                    candidate.and_then(|made| KeptCandidate::new(made, Some(permit)));
            }
        }
    }

    /// Whether this process could have the lock at all: one that may neither make a file
    /// in the directory nor write the one that is there would wait in vain.
    pub(crate) async fn must_be_possible(&self) -> Result<(), Error> {
        let terms = self.terms.clone();
        self.look(move || terms.must_be_possible()).await
    }

    /// The status, with no lasting effect.
    pub(crate) async fn probe(&self) -> Result<Found, Error> {
        let terms = self.terms.clone();
        let mut found = self.look(move || terms.on(&mut Sightings::default()).probe()).await?;
        if let (Status::Held(holder), Some(hold_id)) = (&mut found.status, found.hold_id) {
            holder.acquired_at = self.queue.site_of(hold_id);
        }
        Ok(found)
    }

    /// Remove what killed contenders left beside the lock file.
    pub(crate) async fn sweep(&self) -> Result<usize, Error> {
        let terms = self.terms.clone();
        let swept = self.look(move || terms.on(&mut Sightings::default()).sweep()).await;
        swept.map_err(|error| Error::io("sweeping beside", self.path().path(), error))
    }

    async fn look<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> T {
        self.terms.executor.run((), move |()| look()).await
    }
}

impl Terms {
    fn on<'a>(&'a self, sightings: &'a mut Sightings) -> Attempt<'a, OsDisk, OsEnvironment> {
        Attempt::new(&OsDisk, &self.environment, &self.path, &self.options, sightings)
    }

    fn attempt(
        &self,
        memory: &mut Memory,
        mut turn: Turn,
        tells: bool,
    ) -> Result<OnProbation, Error> {
        let handoff = Handoff::of(&mut turn);
        if let Some(lock_file) = handoff.and_then(|handoff| self.take_handoff(*handoff)) {
            return Ok((Acquisition::Acquired(self.guard(lock_file, turn, None)), None));
        }
        let Memory { sightings, candidate, has_heard_a_write } = memory;
        let (kept, permit) = candidate.take().map(KeptCandidate::into_parts).unzip();
        let mut attempt = self.on(sightings).with_candidate(kept);
        if !*has_heard_a_write {
            attempt = attempt.looking_first();
        }
        if !tells {
            attempt = attempt.without_telling();
        }
        let outcome = match attempt.run() {
            Err(error) if error.hindrance().is_some() => {
                return Ok((Acquisition::Hindered(error, turn), None));
            }
            outcome => outcome?,
        };
        *candidate = attempt
            .into_candidate()
            .and_then(|unused| KeptCandidate::new(unused, permit.flatten()));
        let (acquired, delay) = match outcome {
            Outcome::Busy(busy) => return Ok((Acquisition::Busy(busy, turn), None)),
            Outcome::Acquired(acquired) => (acquired, None),
            Outcome::Probation(acquired, delay) => (acquired, Some(delay)),
        };
        let Acquired { lock_file, recovered_from } = acquired;
        if let Some(dead) = &recovered_from {
            let path = self.path.path().display();
            tracing::info!(%path, "taken over from {dead}: {}", dead.evidence);
        }
        let guard = self.guard(Arc::new(lock_file), turn, recovered_from);
        Ok((Acquisition::Acquired(guard), delay))
    }

    fn must_be_possible(&self) -> Result<(), Error> {
        let (path, directory) = (self.path.path(), self.path.directory());
        // A portable contender cannot write a file in place.
        let may_rewrite = || self.options.proof != Proof::Process && may_write(path);
        if may_make_names(directory) || may_rewrite() {
            return Ok(());
        }
        let Ok(Inode { owner, mode, .. }) = inspect_directory(directory) else {
            return Ok(());
        };
        let (path, directory) = (path.to_owned(), directory.to_owned());
        Err(Error::MayNotWrite { lock: path.into(), directory, owner, mode })
    }

    /// A new hold on the file that the last task handed off. A file that has been
    /// replaced since is dropped without a word: the last holder was the last to need it.
    fn take_handoff(&self, handoff: Handoff) -> Option<Arc<LockFile<OsDisk>>> {
        let mut lock_file = handoff.for_lock(&self.path, &self.options)?;
        let mine = Arc::get_mut(&mut lock_file)?;
        let since = self.environment.time_of_day();
        mine.take_handoff(|| self.environment.hold_id(), since, || self.environment.now()).ok()?;
        Some(lock_file)
    }

    fn guard(
        &self,
        lock_file: Arc<LockFile<OsDisk>>,
        turn: Turn,
        recovered_from: Option<Box<Holder>>,
    ) -> FileGuard {
        if let Some(site) = self.site {
            turn.holds(lock_file.record().hold_id, site);
        }
        let hold = Hold::new(lock_file, turn, self.executor.clone()).with_handoff(&self.options);
        if self.options.at_exit == AtExit::Remove {
            at_exit::remove_at_exit(hold.lock_file());
        }
        FileGuard::new(hold, recovered_from, self.options.wait.retry_period)
    }
}

/// The queue of `entry`, from memory where nothing has changed.
fn recall(last: &Mutex<Option<Arc<TaskQueue>>>, entry: Entry) -> Arc<TaskQueue> {
    // Not waited for: a fork may have copied it locked.
    let Ok(mut last) = last.try_lock() else {
        return TaskQueue::of(entry);
    };
    match &*last {
        Some(queue) if queue.is_of(&entry) => Arc::clone(queue),
        _ => {
            let queue = TaskQueue::of(entry);
            *last = Some(Arc::clone(&queue));
            queue
        }
    }
}

/// openlock's liveness check wants both words in the `ps` line of a holder.
fn be_visible(path: &Path) -> Result<(), Error> {
    let command_line = my_command_line();
    let name = Myself::with(this_process(), |myself| myself.name.to_string());
    let line = command_line.to_lowercase();
    if line.contains("python") && line.contains(&name.to_lowercase()) {
        return Ok(());
    }
    Err(Error::InvisibleToOpenlock { lock: path.into(), name, command_line })
}
