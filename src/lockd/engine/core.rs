//! The books: every change of them is made here, under one lock.

mod answers;
mod asking;
mod ending;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use super::asked::{Figures, Held, Refusal};
use super::audit::{Event, audit};
use super::lane::Lane;
use super::over::{Over, RequestKey};
use super::slot::{Outcome, Phase, Slot, Tenure, Ticket, TicketId, held_by_nobody};
use crate::clock::BootTime;
use crate::lockd::name;
use crate::lockd::store::{Change, Directory, Failure, Hold, Problem, Recovered, Syncs};

/// How long a refusal of the disk counts while no other grant was tried: longer
/// than between two probes of a balancer. One that sends nothing meanwhile would
/// else never find out that the disk is well again.
const DISK_MEMORY: Duration = Duration::from_secs(30);

/// The books of one directory.
pub(super) struct Core {
    directory: Arc<Directory>,
    /// Until it is closed.
    lane: Option<Arc<Lane>>,
    slots: HashMap<Arc<str>, Slot>,
    tickets: HashMap<TicketId, Ticket>,
    last_ticket: TicketId,
    requests: HashMap<RequestKey, Known>,
    over: Over,
    leases: BTreeSet<(BootTime, Arc<str>)>,
    /// Files that no client can ask for.
    unspeakable: Vec<(Arc<str>, Problem)>,
    /// What the store is to be asked for, in this order.
    asked: Vec<(Change, Purpose)>,
    /// It was asked for something since somebody last saw to it.
    has_asked: bool,
    state: State,
    waiting_limit: usize,
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
        by: String,
        reply: oneshot::Sender<Result<Held, Refusal>>,
    },
}

/// Why a hold is ended.
pub(super) enum Why {
    Unlocked(oneshot::Sender<Result<(), Refusal>>),
    Forced { by: String, reply: oneshot::Sender<Result<Held, Refusal>> },
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

impl Core {
    pub(super) fn new(
        directory: Arc<Directory>,
        lane: Arc<Lane>,
        recovered: Recovered,
        waiting_limit: usize,
        signals: Signals,
    ) -> Self {
        let mut core = Self {
            directory,
            lane: Some(lane),
            slots: HashMap::new(),
            tickets: HashMap::new(),
            last_ticket: 0,
            requests: HashMap::new(),
            over: Over::default(),
            leases: BTreeSet::new(),
            unspeakable: Vec::new(),
            asked: Vec::new(),
            has_asked: false,
            state: State::Serving,
            waiting_limit,
            refused_by_disk: None,
            figures: Figures::default(),
            has_changed: false,
            signals,
        };
        core.take_over(recovered);
        core
    }

    fn take_over(&mut self, recovered: Recovered) {
        for (resource, hold) in recovered.held {
            self.requests.extend(request_key(&hold).map(|key| (key, Known::Held)));
            self.figures.held += 1;
            self.hold(&resource, hold);
        }
        for (resource, problem) in recovered.problems {
            tracing::warn!("{}: {}", problem.path.display(), problem.why);
            if problem.files.is_empty() {
                self.unspeakable.push((resource, problem));
            } else {
                self.slots.entry(resource).or_default().phase = Phase::Problem(problem);
            }
        }
        for hold in recovered.gone {
            audit(Event::Removed, &hold, None);
        }
    }

    /// Whether somebody has to see to what the store was asked for.
    pub(super) fn takes_has_asked(&mut self) -> bool {
        std::mem::take(&mut self.has_asked)
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

    /// Tell all who wait to go, and give the way to the store away.
    pub(super) fn close(&mut self) -> Option<Arc<Lane>> {
        if self.state == State::Serving {
            self.state = State::Closing;
        }
        self.dismiss_all();
        self.lane.take()
    }

    fn dismiss_all(&mut self) {
        let queues = self.slots.values_mut().map(|slot| std::mem::take(&mut slot.queue));
        let waiting: Vec<TicketId> = queues.flatten().collect();
        self.figures.waiting -= waiting.len() as u64;
        for id in waiting {
            self.refuse_ticket(id, Refusal::ShuttingDown);
        }
        self.changed();
        self.flush();
    }

    pub(super) fn list(&self) -> Vec<Held> {
        let mut list: Vec<Held> =
            self.slots.iter().filter_map(|(resource, slot)| self.shown(resource, slot)).collect();
        list.extend(self.unspeakable.iter().map(|(resource, it)| held_by_nobody(resource, it)));
        list.sort_by(|one, other| one.resource.cmp(&other.resource));
        list
    }

    pub(super) fn show(&self, resource: &str) -> Option<Held> {
        self.slots.get(resource).and_then(|slot| self.shown(resource, slot))
    }

    fn shown(&self, resource: &str, slot: &Slot) -> Option<Held> {
        let mut held = match &slot.phase {
            Phase::Held(tenure) => tenure.held(),
            Phase::Problem(problem) => held_by_nobody(resource, problem),
            Phase::Free | Phase::Granting(_) => slot.ending.as_ref()?.held(),
        };
        held.waiting = slot.queue.iter().map(|id| self.tickets[id].waiter()).collect();
        Some(held)
    }

    /// The directory, and whether it refused a grant of late: a while later
    /// nobody knows.
    pub(super) fn storage(&self) -> (Arc<Directory>, bool) {
        let has_refused = self.refused_by_disk.is_some_and(|at| at.elapsed() < DISK_MEMORY);
        (Arc::clone(&self.directory), has_refused)
    }

    pub(super) fn figures(&self) -> Figures {
        self.figures
    }

    pub(super) fn note_syncs(&mut self, syncs: Syncs) {
        self.figures.syncs = syncs;
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
    fn hold(&mut self, resource: &Arc<str>, hold: Arc<Hold>) {
        let lease = hold.wanted.lease;
        self.slot(resource).phase = Phase::Held(Tenure { hold, deadline: None });
        if let Some(lease) = lease {
            self.set_deadline(resource, BootTime::now().after(lease));
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
