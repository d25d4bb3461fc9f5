//! The books: the holds and requests, and what the store is to do. One mutex protects them.

mod answers;
mod asking;
mod ending;
mod quotas;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use super::absent::AbsentWaiters;
use super::api::{Figures, LockStatus, LockTableOptions, Refusal, Survey, WAITING_SHOWN};
use super::audit::{Event, Requester, audit};
use super::finished::{Finished, RequestKey};
use super::resource::{
    Hold, LockOutcome, PendingRequest, Phase, QueuePlace, Resource, TurnNumber, problem_status,
};
use super::usage::Usage;

use crate::lockd::name;
use crate::lockd::store::{
    BATCH_MAX, ChangeOutcome, ChangeRequest, DiskError, Grant, LockDirectory, Problem, Recovered,
    Syncs,
};
use crate::sys::boot_clock::BootTime;
use crate::sys::files::Errno;

/// How long a refusal of the disk counts while no other grant was tried. Longer than
/// between two probes of a balancer. A balancer that sends nothing meanwhile would else
/// never find out that the disk is well again.
const DISK_MEMORY: Duration = Duration::from_secs(30);

/// The books of one directory.
pub(super) struct Books {
    directory: Arc<LockDirectory>,
    resources: HashMap<Arc<str>, Resource>,
    pending: HashMap<TurnNumber, PendingRequest>,
    last_turn: TurnNumber,
    requests: HashMap<RequestKey, RequestState>,
    finished: Finished,
    absent: AbsentWaiters,
    leases: BTreeSet<(BootTime, Arc<str>)>,
    /// Files that no client can ask for.
    unspeakable: Vec<(Arc<str>, Problem)>,
    /// Changes for the store, in this order.
    outbox: VecDeque<(ChangeRequest, Purpose)>,
    /// There is a writer. It looks into the outbox again before it ends.
    pub(super) has_writer: bool,
    lifecycle: Lifecycle,
    waiting_limit: usize,
    locks_per_client: Option<usize>,
    waiters_per_client: Option<usize>,
    usage: Usage,
    /// When the disk refused a grant, and took none since.
    refused_by_disk: Option<Instant>,
    figures: Figures,
    has_changed: bool,
    signals: BookSignals,
}

/// Signals to tasks outside.
pub(super) struct BookSignals {
    /// Counts up with each change.
    pub(super) changes: watch::Sender<u64>,
    /// Why this daemon may not go on.
    pub(super) failed: watch::Sender<Option<String>>,
    /// The first end of a lease is sooner than before.
    pub(super) sooner: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifecycle {
    Serving,
    Closing,
    Failed,
}

/// What a change is for.
pub(super) enum Purpose {
    Grant(TurnNumber),
    End(Arc<str>, EndReason),
    Discard {
        resource: Arc<str>,
        problem: Problem,
        by: Option<Arc<Requester>>,
        reply: oneshot::Sender<Result<LockStatus, Refusal>>,
    },
}

/// Why a hold is ended.
pub(super) enum EndReason {
    Unlocked { by: Option<Arc<Requester>>, reply: oneshot::Sender<Result<(), Refusal>> },
    Forced { by: Option<Arc<Requester>>, reply: oneshot::Sender<Result<LockStatus, Refusal>> },
    Expired,
    Undone,
    Removed,
}

/// A request id that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    Pending(TurnNumber),
    Held,
}

/// The first answer to a request for a lock.
pub(super) enum Admission {
    Decided(LockOutcome),
    Waiting(TurnNumber, oneshot::Receiver<LockOutcome>),
}

impl Books {
    pub(super) fn new(
        directory: Arc<LockDirectory>,
        recovered: Recovered,
        options: &LockTableOptions,
        signals: BookSignals,
    ) -> Self {
        let mut books = Self {
            directory,
            resources: HashMap::new(),
            pending: HashMap::new(),
            last_turn: 0,
            requests: HashMap::new(),
            finished: Finished::default(),
            absent: AbsentWaiters::default(),
            leases: BTreeSet::new(),
            unspeakable: Vec::new(),
            outbox: VecDeque::new(),
            has_writer: false,
            lifecycle: Lifecycle::Serving,
            waiting_limit: options.waiting_limit,
            locks_per_client: options.locks_per_client,
            waiters_per_client: options.waiters_per_client,
            usage: Usage::default(),
            refused_by_disk: None,
            figures: Figures::default(),
            has_changed: false,
            signals,
        };
        books.take_over(recovered);
        books
    }

    fn take_over(&mut self, recovered: Recovered) {
        for (resource, grant) in recovered.held {
            self.requests.extend(request_key(&grant).map(|key| (key, RequestState::Held)));
            self.figures.held += 1;
            self.start_hold(&resource, grant, None);
        }
        for (resource, problem) in recovered.problems {
            tracing::warn!("{}: {}", problem.path.display(), problem.why);
            if problem.files.is_empty() {
                self.unspeakable.push((resource, problem));
            } else {
                self.put(&resource, Phase::Problem(problem));
            }
        }
        for grant in recovered.gone {
            audit(Event::Removed, &grant, &None);
        }
    }

    /// Take the changes that are to be written next.
    pub(super) fn next_batch(&mut self) -> Vec<(ChangeRequest, Purpose)> {
        let count = self.outbox.len().min(BATCH_MAX);
        self.outbox.drain(..count).collect()
    }

    /// Whether the caller has to become the writer.
    pub(super) fn takes_on_writer(&mut self) -> bool {
        !self.outbox.is_empty() && !std::mem::replace(&mut self.has_writer, true)
    }

    /// Whether the writer has more to write; else there is none any more.
    pub(super) fn goes_on_writing(&mut self) -> bool {
        self.has_writer = !self.outbox.is_empty();
        self.has_writer
    }

    /// The store is closed.
    pub(super) fn refuse_all(&self, changes: &[ChangeRequest]) -> Vec<ChangeOutcome> {
        let path = self.directory.path().to_owned();
        let error = DiskError { path, doing: "serving the directory", errno: Errno::SHUTDOWN };
        changes.iter().map(|_| ChangeOutcome::Failed(error.clone())).collect()
    }

    /// Notify the listeners of changes.
    pub(super) fn publish_changes(&mut self) {
        if std::mem::take(&mut self.has_changed) {
            self.signals.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Grant and end nothing any more. (I7)
    pub(super) fn fail(&mut self, why: &str) {
        if self.lifecycle == Lifecycle::Failed {
            return;
        }
        tracing::error!("nothing is granted any more: {why}");
        self.lifecycle = Lifecycle::Failed;
        self.signals.failed.send_replace(Some(why.to_owned()));
        self.dismiss_all();
    }

    /// Refuse all waiters, and later requests.
    pub(super) fn close(&mut self) {
        if self.lifecycle == Lifecycle::Serving {
            self.lifecycle = Lifecycle::Closing;
        }
        self.dismiss_all();
    }

    fn dismiss_all(&mut self) {
        let resources: Vec<_> = self.resources.keys().cloned().collect();
        for turn in
            resources.iter().flat_map(|resource| self.dequeue_all(resource)).collect::<Vec<_>>()
        {
            self.refuse_pending(turn, Refusal::ShuttingDown);
        }
        self.changed();
    }

    pub(super) fn survey(&self) -> Survey {
        let shown = self.resources.iter().filter(|(_, entry)| entry.is_shown());
        let mut names: Vec<_> = shown.map(|(name, _)| Arc::clone(name)).collect();
        let is_problem = |entry: &Resource| matches!(entry.phase, Phase::Problem(_));
        let problems = self.resources.values().filter(|entry| is_problem(entry)).count();
        let held = names.len() - problems;
        names.extend(self.unspeakable.iter().map(|(name, _)| Arc::clone(name)));
        names.sort_unstable();
        names.dedup();
        let waiting = self.resources.values().map(|entry| entry.queue.len()).sum();
        Survey { names, held, problems: problems + self.unspeakable.len(), waiting }
    }

    pub(super) fn is_listed(&self, name: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
        match self.resources.get(name).filter(|entry| entry.is_shown()) {
            Some(entry) => self.names_at(name, entry).any(is_wanted),
            None => is_wanted(name) && self.unspeakable(name).is_some(),
        }
    }

    pub(super) fn listed(
        &self,
        name: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Option<LockStatus> {
        if !self.is_listed(name, is_wanted) {
            return None;
        }
        let unspeakable = || Some(problem_status(name, self.unspeakable(name)?));
        self.show(name).or_else(unspeakable)
    }

    fn unspeakable(&self, name: &str) -> Option<&Problem> {
        self.unspeakable.iter().find(|(other, _)| **other == *name).map(|(_, problem)| problem)
    }

    /// The resource's, its holder's and its waiters'.
    fn names_at<'a>(&'a self, name: &'a str, entry: &'a Resource) -> impl Iterator<Item = &'a str> {
        let waiting = entry.queue.iter().map(|turn| name::stripped(&self.pending[turn].client));
        [name].into_iter().chain(entry.hold().map(Hold::holder)).chain(waiting)
    }

    pub(super) fn show(&self, resource: &str) -> Option<LockStatus> {
        self.resources.get(resource).and_then(|entry| self.shown(resource, entry))
    }

    fn shown(&self, resource: &str, entry: &Resource) -> Option<LockStatus> {
        let mut held = match &entry.phase {
            Phase::Problem(problem) => problem_status(resource, problem),
            _ => entry.hold()?.status(),
        };
        let waiting = entry.queue.iter().take(WAITING_SHOWN);
        held.waiting = waiting.map(|turn| self.pending[turn].status()).collect();
        held.waiting_in_all = entry.queue.len();
        Some(held)
    }

    /// The directory, and whether it refused a grant within [`DISK_MEMORY`].
    pub(super) fn storage(&self) -> (Arc<LockDirectory>, bool) {
        let has_refused = self.refused_by_disk.is_some_and(|at| at.elapsed() < DISK_MEMORY);
        (Arc::clone(&self.directory), has_refused)
    }

    pub(super) fn figures(&self) -> Figures {
        let is_problem = |entry: &&Resource| matches!(entry.phase, Phase::Problem(_));
        let problems = self.resources.values().filter(is_problem).count() + self.unspeakable.len();
        Figures { problems: problems as u64, ..self.figures }
    }

    pub(super) fn note_store(&mut self, syncs: Syncs, last_token: u64) {
        (self.figures.syncs, self.figures.last_token) = (syncs, last_token);
    }

    fn must_serve(&self) -> Result<(), Refusal> {
        if self.lifecycle == Lifecycle::Serving { Ok(()) } else { Err(Refusal::ShuttingDown) }
    }

    fn changed(&mut self) {
        self.has_changed = true;
    }

    fn refuse(&mut self, refusal: Refusal) -> Refusal {
        self.figures.refused += 1;
        refusal
    }

    fn entry(&mut self, resource: &Arc<str>) -> &mut Resource {
        self.resources.entry(Arc::clone(resource)).or_default()
    }

    fn hold(&self, resource: &str) -> Option<&Hold> {
        match self.resources.get(resource)?.phase {
            Phase::Held(ref hold) => Some(hold),
            _ => None,
        }
    }

    /// The resource is held from now on, until its lease ends.
    fn start_hold(&mut self, resource: &Arc<str>, grant: Arc<Grant>, place: Option<QueuePlace>) {
        let lease = grant.terms.lease;
        // What an earlier daemon granted was answered by it.
        let answers = u32::from(place.is_none());
        let began = place.map_or_else(|| began(&grant), |_| Instant::now());
        let hold = Hold { grant, deadline: None, began, place, by: None, answers };
        self.put(resource, Phase::Held(hold));
        if let Some(lease) = lease {
            self.set_deadline(resource, BootTime::now().after(lease));
        }
    }

    fn hold_mut(&mut self, resource: &str) -> Option<&mut Hold> {
        match self.resources.get_mut(resource)?.phase {
            Phase::Held(ref mut hold) => Some(hold),
            _ => None,
        }
    }

    /// The holder, or the client of the grant on its way, without white space around.
    fn holder_of(&self, resource: &str) -> String {
        let Some(entry) = self.resources.get(resource) else {
            return String::new();
        };
        match &entry.phase {
            Phase::Held(hold) => hold.holder().to_owned(),
            Phase::Granting(turn) => name::stripped(&self.pending[turn].client).to_owned(),
            _ => String::new(),
        }
    }

    fn tidy(&mut self, resource: &str) {
        if self.resources.get(resource).is_some_and(|entry| {
            matches!(entry.phase, Phase::Free) && entry.ending.is_none() && entry.queue.is_empty()
        }) {
            self.resources.remove(resource);
        }
    }
}

/// When the lock was granted: an earlier daemon has left only the time of the clock.
fn began(grant: &Grant) -> Instant {
    let now = Instant::now();
    let age = grant.since().elapsed().unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}

fn request_key(grant: &Grant) -> Option<RequestKey> {
    let terms = &grant.terms;
    let id = Arc::clone(terms.request_id.as_ref()?);
    let client = name::shared_stripped(&terms.client);
    Some(RequestKey { resource: Arc::clone(&terms.resource), client, id })
}

fn poisoned(problem: &Problem) -> Refusal {
    Refusal::Poisoned { path: problem.path.clone(), why: problem.why.clone() }
}

fn storage(error: &DiskError) -> Refusal {
    let path = error.path.clone();
    let why = format!("{} failed: {}", error.doing, error.advice());
    Refusal::Storage { path, errno: error.errno.raw_os_error(), why }
}
