//! One resource and one request, as the books have them.

#![expect(clippy::disallowed_methods, reason = "the time of day that a holder is shown with")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::api::{GrantReply, LeaseStatus, LockStatus, ProblemStatus, Refusal, WaiterStatus};
use super::audit::Requester;
use super::finished::RequestKey;
use crate::lockd::name;
use crate::lockd::store::{Grant, Problem};
use crate::sys::boot_clock::BootTime;

/// A resource that is held, is asked for, or has a problem.
#[derive(Debug, Default)]
pub(super) struct Resource {
    pub(super) phase: Phase,
    /// The hold whose end is on its way to the store.
    pub(super) ending: Option<Hold>,
    /// Requests that wait, in the order of their turns. (I2)
    pub(super) queue: BTreeSet<TurnNumber>,
}

/// The state once the store has done all changes before.
#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Free,
    /// A grant to this request is on its way to the store.
    Granting(TurnNumber),
    Held(Hold),
    Problem(Problem),
}

/// A lock that is held, and how long.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) grant: Arc<Grant>,
    pub(super) deadline: Option<BootTime>,
    /// When it was granted.
    pub(super) began: Instant,
    /// The place of the request; unknown for a hold of an earlier daemon.
    pub(super) place: Option<QueuePlace>,
    pub(super) by: Option<Arc<Requester>>,
    /// How many answers with this grant may have reached its client. (I4)
    pub(super) answers: u32,
}

/// A moment on both clocks: the machine's clock may be set, so only `counted` measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) shown: SystemTime,
    pub(super) counted: Instant,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { shown: SystemTime::now(), counted: Instant::now() }
    }
}

/// The place that a repeated request has again.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueuePlace {
    pub(super) turn: TurnNumber,
    /// When the first request came.
    pub(super) since: Moment,
}

/// How a listener for the outcome of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListenerEnd {
    /// With the outcome.
    Heard,
    /// Its limit was reached.
    TimedOut,
    /// Its connection broke, or the client closed it.
    Disconnected,
}

pub(super) type TurnNumber = u64;
pub(super) type LockOutcome = Result<GrantReply, Refusal>;

/// A request for a lock, and the listeners for its outcome. A request that is repeated by
/// its id has several.
#[derive(Debug)]
pub(super) struct PendingRequest {
    pub(super) resource: Arc<str>,
    pub(super) client: Arc<str>,
    pub(super) lease: Option<Duration>,
    pub(super) key: Option<RequestKey>,
    /// The request that was made first.
    pub(super) by: Option<Arc<Requester>>,
    pub(super) since: Moment,
    /// Whether it may wait if the lock is not free.
    pub(super) may_wait: bool,
    pub(super) outcome: Option<LockOutcome>,
    pub(super) listeners: Vec<oneshot::Sender<LockOutcome>>,
    /// Listeners that have not ended yet.
    pub(super) unsettled: usize,
    pub(super) is_heard: bool,
}

impl Resource {
    /// The hold, or the one whose end is on its way.
    pub(super) fn hold(&self) -> Option<&Hold> {
        match &self.phase {
            Phase::Held(hold) => Some(hold),
            Phase::Free | Phase::Granting(_) => self.ending.as_ref(),
            Phase::Problem(_) => None,
        }
    }

    /// Whether the list shows this resource.
    pub(super) fn is_shown(&self) -> bool {
        matches!(self.phase, Phase::Problem(_)) || self.hold().is_some()
    }
}

impl Hold {
    /// The reply for an answer that is about to be sent.
    pub(super) fn answered(&mut self) -> GrantReply {
        self.answers = self.answers.saturating_add(1);
        self.reply()
    }

    pub(super) fn reply(&self) -> GrantReply {
        GrantReply { token: self.grant.token, lease: self.grant.terms.lease }
    }

    pub(super) fn holder(&self) -> &str {
        name::stripped(&self.grant.terms.client)
    }

    pub(super) fn is_of(&self, client: &str) -> bool {
        self.holder() == name::stripped(client)
    }

    pub(super) fn is_expired(&self) -> bool {
        self.deadline.is_some_and(BootTime::is_past)
    }

    /// As it is shown.
    pub(super) fn status(&self) -> LockStatus {
        let lease = self.grant.terms.lease.zip(self.deadline);
        LockStatus {
            resource: self.grant.terms.resource.to_string(),
            client: self.holder().to_owned(),
            token: self.grant.token,
            since: self.grant.since(),
            lease: lease.map(|(length, end)| LeaseStatus { length, remaining: end.remaining() }),
            waiting: Vec::new(),
            waiting_in_all: 0,
            problem: None,
        }
    }
}

impl PendingRequest {
    /// With one listener, which is about to come.
    pub(super) fn new(
        resource: &Arc<str>,
        client: Arc<str>,
        lease: Option<Duration>,
        key: Option<RequestKey>,
        by: &Option<Arc<Requester>>,
        may_wait: bool,
    ) -> Self {
        let (resource, since) = (Arc::clone(resource), Moment::now());
        let by = by.clone();
        let (outcome, listeners, unsettled, is_heard) = (None, Vec::new(), 1, false);
        Self {
            resource,
            client,
            lease,
            key,
            by,
            since,
            may_wait,
            outcome,
            listeners,
            unsettled,
            is_heard,
        }
    }

    pub(super) fn status(&self) -> WaiterStatus {
        WaiterStatus { client: name::stripped(&self.client).to_owned(), since: self.since.shown }
    }
}

/// A problem, as it is shown.
pub(super) fn problem_status(resource: &str, problem: &Problem) -> LockStatus {
    LockStatus {
        resource: resource.to_owned(),
        client: String::new(),
        token: 0,
        since: SystemTime::UNIX_EPOCH,
        lease: None,
        waiting: Vec::new(),
        waiting_in_all: 0,
        problem: Some(ProblemStatus {
            path: problem.path.clone(),
            why: problem.why.clone(),
            is_removable: problem.is_removable,
        }),
    }
}
