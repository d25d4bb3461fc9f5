//! The books: every change of them is made here, under one lock.

mod answers;
mod asking;
mod ending;
mod quotas;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::{Notify, oneshot, watch};

use super::absent::Absent;
use super::api::{EngineOptions, Figures, Held, Refusal, Survey, WAITING_SHOWN};
use super::audit::{Asker, Event, audit};
use super::finished::{Over, RequestKey};
use super::resource::{Outcome, Phase, Place, Slot, Tenure, Ticket, TicketId, held_by_nobody};
use super::usage::Usage;

use crate::lockd::name;
use crate::lockd::store::{
    BATCH_MAX, Change, Changed, Directory, Failure, Hold, Problem, Recovered, Syncs,
};
use crate::sys::boot_clock::BootTime;

/// How long a refusal of the disk counts while no other grant was tried: longer
/// than between two probes of a balancer. One that sends nothing meanwhile would
/// else never find out that the disk is well again.
const DISK_MEMORY: Duration = Duration::from_secs(30);

/// The books of one directory.
pub(super) struct Books {
    directory: Arc<Directory>,
    slots: HashMap<Arc<str>, Slot>,
    tickets: HashMap<TicketId, Ticket>,
    last_ticket: TicketId,
    requests: HashMap<RequestKey, Known>,
    over: Over,
    absent: Absent,
    leases: BTreeSet<(BootTime, Arc<str>)>,
    /// Files that no client can ask for.
    unspeakable: Vec<(Arc<str>, Problem)>,
    /// What the store is to be asked for, in this order.
    outbox: VecDeque<(Change, Purpose)>,
    /// There is a writer, which looks here again before it ends.
    pub(super) has_writer: bool,
    state: State,
    waiting_limit: usize,
    locks_per_client: Option<usize>,
    waiters_per_client: Option<usize>,
    usage: Usage,
    /// When the disk refused a grant, and took none since.
    refused_by_disk: Option<Instant>,
    figures: Figures,
    has_changed: bool,
    signals: Signals,
}

/// What others listen to.
pub(super) struct Signals {
    /// Counts up with each change.
    pub(super) changes: watch::Sender<u64>,
    /// Why this daemon may not go on.
    pub(super) failed: watch::Sender<Option<String>>,
    /// The first lease ends sooner than it did.
    pub(super) sooner: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Serving,
    Closing,
    Failed,
}

/// What a change is for.
pub(super) enum Purpose {
    Grant(TicketId),
    End(Arc<str>, Why),
    Discard {
        resource: Arc<str>,
        problem: Problem,
        by: Asker,
        reply: oneshot::Sender<Result<Held, Refusal>>,
    },
}

/// Why a hold is ended.
pub(super) enum Why {
    Unlocked { by: Asker, reply: oneshot::Sender<Result<(), Refusal>> },
    Forced { by: Asker, reply: oneshot::Sender<Result<Held, Refusal>> },
    Expired,
    Undone,
    Removed,
}

/// A request id that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Asked(TicketId),
    Held,
}

/// How a request for a lock stands.
pub(super) enum Asked {
    Decided(Outcome),
    Waiting(TicketId, oneshot::Receiver<Outcome>),
}

impl Books {
    pub(super) fn new(
        directory: Arc<Directory>,
        recovered: Recovered,
        options: &EngineOptions,
        signals: Signals,
    ) -> Self {
        let mut books = Self {
            directory,
            slots: HashMap::new(),
            tickets: HashMap::new(),
            last_ticket: 0,
            requests: HashMap::new(),
            over: Over::default(),
            absent: Absent::default(),
            leases: BTreeSet::new(),
            unspeakable: Vec::new(),
            outbox: VecDeque::new(),
            has_writer: false,
            state: State::Serving,
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
        for (resource, hold) in recovered.held {
            self.requests.extend(request_key(&hold).map(|key| (key, Known::Held)));
            self.figures.held += 1;
            self.hold(&resource, hold, None);
        }
        for (resource, problem) in recovered.problems {
            tracing::warn!("{}: {}", problem.path.display(), problem.why);
            if problem.files.is_empty() {
                self.unspeakable.push((resource, problem));
            } else {
                self.put(&resource, Phase::Problem(problem));
            }
        }
        for hold in recovered.gone {
            audit(Event::Removed, &hold, &None);
        }
    }

    /// What is to be written next.
    pub(super) fn next_batch(&mut self) -> Vec<(Change, Purpose)> {
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
    pub(super) fn refuse_all(&self, changes: &[Change]) -> Vec<Changed> {
        let path = self.directory.path().to_owned();
        let failure = Failure { path, doing: "serving the directory", errno: Errno::SHUTDOWN };
        changes.iter().map(|_| Changed::Failed(failure.clone())).collect()
    }

    /// Tell those who listen for changes.
    pub(super) fn publish_changes(&mut self) {
        if std::mem::take(&mut self.has_changed) {
            self.signals.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Nobody gets or ends anything any more.
    pub(super) fn fail(&mut self, why: &str) {
        if self.state == State::Failed {
            return;
        }
        tracing::error!("nothing is granted any more: {why}");
        self.state = State::Failed;
        self.signals.failed.send_replace(Some(why.to_owned()));
        self.dismiss_all();
    }

    /// Tell all who wait to go.
    pub(super) fn close(&mut self) {
        if self.state == State::Serving {
            self.state = State::Closing;
        }
        self.dismiss_all();
    }

    fn dismiss_all(&mut self) {
        let resources: Vec<_> = self.slots.keys().cloned().collect();
        for id in
            resources.iter().flat_map(|resource| self.dequeue_all(resource)).collect::<Vec<_>>()
        {
            self.refuse_ticket(id, Refusal::ShuttingDown);
        }
        self.changed();
    }

    pub(super) fn survey(&self) -> Survey {
        let shown = self.slots.iter().filter(|(_, slot)| slot.is_shown());
        let mut names: Vec<_> = shown.map(|(name, _)| Arc::clone(name)).collect();
        let is_problem = |slot: &Slot| matches!(slot.phase, Phase::Problem(_));
        let problems = self.slots.values().filter(|slot| is_problem(slot)).count();
        let held = names.len() - problems;
        names.extend(self.unspeakable.iter().map(|(name, _)| Arc::clone(name)));
        names.sort_unstable();
        names.dedup();
        let waiting = self.slots.values().map(|slot| slot.queue.len()).sum();
        Survey { names, held, problems: problems + self.unspeakable.len(), waiting }
    }

    pub(super) fn is_listed(&self, name: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
        match self.slots.get(name).filter(|slot| slot.is_shown()) {
            Some(slot) => self.names_at(name, slot).any(is_wanted),
            None => is_wanted(name) && self.unspeakable(name).is_some(),
        }
    }

    pub(super) fn listed(&self, name: &str, is_wanted: impl Fn(&str) -> bool) -> Option<Held> {
        if !self.is_listed(name, is_wanted) {
            return None;
        }
        let unspeakable = || Some(held_by_nobody(name, self.unspeakable(name)?));
        self.show(name).or_else(unspeakable)
    }

    fn unspeakable(&self, name: &str) -> Option<&Problem> {
        self.unspeakable.iter().find(|(other, _)| **other == *name).map(|(_, problem)| problem)
    }

    /// The resource's, its holder's and its waiters'.
    fn names_at<'a>(&'a self, name: &'a str, slot: &'a Slot) -> impl Iterator<Item = &'a str> {
        let waiting = slot.queue.iter().map(|id| name::stripped(&self.tickets[id].client));
        [name].into_iter().chain(slot.tenure().map(Tenure::holder)).chain(waiting)
    }

    pub(super) fn show(&self, resource: &str) -> Option<Held> {
        self.slots.get(resource).and_then(|slot| self.shown(resource, slot))
    }

    fn shown(&self, resource: &str, slot: &Slot) -> Option<Held> {
        let mut held = match &slot.phase {
            Phase::Problem(problem) => held_by_nobody(resource, problem),
            _ => slot.tenure()?.held(),
        };
        let waiting = slot.queue.iter().take(WAITING_SHOWN);
        held.waiting = waiting.map(|id| self.tickets[id].waiter()).collect();
        held.waiting_in_all = slot.queue.len();
        Some(held)
    }

    /// The directory, and whether it refused a grant of late: a while later
    /// nobody knows.
    pub(super) fn storage(&self) -> (Arc<Directory>, bool) {
        let has_refused = self.refused_by_disk.is_some_and(|at| at.elapsed() < DISK_MEMORY);
        (Arc::clone(&self.directory), has_refused)
    }

    pub(super) fn figures(&self) -> Figures {
        let is_problem = |slot: &&Slot| matches!(slot.phase, Phase::Problem(_));
        let problems = self.slots.values().filter(is_problem).count() + self.unspeakable.len();
        Figures { problems: problems as u64, ..self.figures }
    }

    pub(super) fn note_store(&mut self, syncs: Syncs, last_token: u64) {
        (self.figures.syncs, self.figures.last_token) = (syncs, last_token);
    }

    fn must_serve(&self) -> Result<(), Refusal> {
        if self.state == State::Serving { Ok(()) } else { Err(Refusal::ShuttingDown) }
    }

    fn changed(&mut self) {
        self.has_changed = true;
    }

    fn refuse(&mut self, refusal: Refusal) -> Refusal {
        self.figures.refused += 1;
        refusal
    }

    fn slot(&mut self, resource: &Arc<str>) -> &mut Slot {
        self.slots.entry(Arc::clone(resource)).or_default()
    }

    fn tenure(&self, resource: &str) -> Option<&Tenure> {
        match self.slots.get(resource)?.phase {
            Phase::Held(ref tenure) => Some(tenure),
            _ => None,
        }
    }

    /// It is held from now on, and so long.
    fn hold(&mut self, resource: &Arc<str>, hold: Arc<Hold>, place: Option<Place>) {
        let lease = hold.wanted.lease;
        // What an earlier daemon granted was answered by it.
        let answers = u32::from(place.is_none());
        let began = place.map_or_else(|| began(&hold), |_| Instant::now());
        let tenure = Tenure { hold, deadline: None, began, place, by: None, answers };
        self.put(resource, Phase::Held(tenure));
        if let Some(lease) = lease {
            self.set_deadline(resource, BootTime::now().after(lease));
        }
    }

    fn tenure_mut(&mut self, resource: &str) -> Option<&mut Tenure> {
        match self.slots.get_mut(resource)?.phase {
            Phase::Held(ref mut tenure) => Some(tenure),
            _ => None,
        }
    }

    /// Who has it, or is about to, without white space around.
    fn holder_of(&self, resource: &str) -> String {
        let Some(slot) = self.slots.get(resource) else {
            return String::new();
        };
        match &slot.phase {
            Phase::Held(tenure) => tenure.holder().to_owned(),
            Phase::Granting(id) => name::stripped(&self.tickets[id].client).to_owned(),
            _ => String::new(),
        }
    }

    fn tidy(&mut self, resource: &str) {
        if self.slots.get(resource).is_some_and(|slot| {
            matches!(slot.phase, Phase::Free) && slot.ending.is_none() && slot.queue.is_empty()
        }) {
            self.slots.remove(resource);
        }
    }
}

/// When it was given: an earlier daemon has left only what the clock said then.
fn began(hold: &Hold) -> Instant {
    let now = Instant::now();
    let age = hold.since().elapsed().unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}

fn request_key(hold: &Hold) -> Option<RequestKey> {
    let wanted = &hold.wanted;
    let id = Arc::clone(wanted.request_id.as_ref()?);
    let client = name::stripped(&wanted.client).into();
    Some(RequestKey { resource: Arc::clone(&wanted.resource), client, id })
}

fn poisoned(problem: &Problem) -> Refusal {
    Refusal::Poisoned { path: problem.path.clone(), why: problem.why.clone() }
}

fn storage(failure: &Failure) -> Refusal {
    let path = failure.path.clone();
    let why = format!("{} failed: {}", failure.doing, failure.advice());
    Refusal::Storage { path, errno: failure.errno.raw_os_error(), why }
}
