//! Asking for a lock, and waiting for it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Admission, Books, EndReason, Lifecycle, Purpose, RequestState, poisoned, request_key};
use crate::lockd::name;
use crate::lockd::state::api::{LockRequest, Refusal, WaitLimit};
use crate::lockd::state::audit::Requester;
use crate::lockd::state::finished::RequestKey;
use crate::lockd::state::resource::{
    Hold, ListenerEnd, PendingRequest, Phase, QueuePlace, Resource, TurnNumber,
};
use crate::lockd::store::{ChangeRequest, GrantTerms, NameState};
use crate::wire::REQUEST_ID_MAX_BYTES;

impl Books {
    pub(in crate::lockd::state) fn ask(
        &mut self,
        request: LockRequest,
        by: &Option<Arc<Requester>>,
    ) -> Result<Admission, Refusal> {
        self.must_serve()?;
        check(&request)?;
        let may_wait = request.wait != WaitLimit::No;
        let LockRequest { resource, client, lease, request_id, .. } = request;
        let key = request_id.map(|id| RequestKey {
            resource: Arc::clone(&resource),
            client: name::shared_stripped(&client),
            id,
        });
        self.expire_if_over(&resource);
        if let Some(key) = &key {
            if let Some(admission) = self.ask_again(key, may_wait)? {
                return Ok(admission);
            }
        }
        let place = key.as_ref().and_then(|key| self.absent.take(key));
        let is_literal = self.look_at(&resource)?;
        let is_free =
            self.resources.get(&resource).is_none_or(|entry| matches!(entry.phase, Phase::Free));
        if !is_free && !may_wait {
            return Err(self.refuse(Refusal::LockedBy { client: self.holder_of(&resource) }));
        }
        if !is_free && self.figures.waiting >= self.waiting_limit as u64 {
            return Err(self.refuse(Refusal::TooMany { limit: self.waiting_limit }));
        }
        let may_wait_longer = if is_free { Ok(()) } else { self.may_wait(&client) };
        self.may_hold(&client).and(may_wait_longer).map_err(|refusal| self.refuse(refusal))?;
        if let Err(why) = name::file_name(&resource) {
            return Err(self.refuse(Refusal::BadName { name: resource.to_string(), why }));
        }
        let pending = PendingRequest::new(&resource, client, lease, key, by, may_wait);
        Ok(self.admit(pending, place, is_free.then_some(is_literal)))
    }

    /// Serve or queue a request that is new or comes back to its place. `served`: the lock
    /// is free, and whether its file is called as the resource is.
    pub(super) fn admit(
        &mut self,
        mut pending: PendingRequest,
        place: Option<QueuePlace>,
        served: Option<bool>,
    ) -> Admission {
        let turn = if let Some(QueuePlace { turn, since }) = place {
            pending.since = since;
            turn
        } else {
            self.last_turn += 1;
            self.last_turn
        };
        self.requests.extend(pending.key.clone().map(|key| (key, RequestState::Pending(turn))));
        self.pending.insert(turn, pending);
        if let Some(is_literal) = served {
            self.grant(turn, is_literal);
        } else {
            self.enqueue(turn);
            self.changed();
        }
        self.listen(turn)
    }

    /// I5: the request was made before.
    pub(super) fn ask_again(
        &mut self,
        key: &RequestKey,
        may_wait: bool,
    ) -> Result<Option<Admission>, Refusal> {
        if self.finished.has_request(key) {
            return Err(self.refuse(Refusal::RequestOver));
        }
        match self.requests.get(key) {
            None => Ok(None),
            Some(&RequestState::Pending(turn)) => {
                let entry = self.resources.get(&key.resource);
                let is_queued = entry.is_some_and(|entry| entry.queue.contains(&turn));
                if is_queued && !may_wait {
                    let client = self.holder_of(&key.resource);
                    return Err(self.refuse(Refusal::LockedBy { client }));
                }
                // A grant that came meanwhile lasts from now on.
                self.renew_deadline(&key.resource);
                self.pending.get_mut(&turn).expect("BUG: a request was lost").unsettled += 1;
                Ok(Some(self.listen(turn)))
            }
            Some(RequestState::Held) => {
                self.renew_deadline(&key.resource);
                let hold = self.hold_mut(&key.resource);
                let reply = hold.map(Hold::answered);
                Ok(reply.map(|reply| Admission::Decided(Ok(reply))))
            }
        }
    }

    pub(super) fn listen(&mut self, turn: TurnNumber) -> Admission {
        let pending = self.pending.get_mut(&turn).expect("BUG: a request was lost");
        if let Some(outcome) = pending.outcome.clone() {
            self.settle(turn, ListenerEnd::Heard);
            return Admission::Decided(outcome);
        }
        let (sender, receiver) = oneshot::channel();
        pending.listeners.push(sender);
        Admission::Waiting(turn, receiver)
    }

    /// A listener is gone. (I4)
    pub(in crate::lockd::state) fn settle(&mut self, turn: TurnNumber, end: ListenerEnd) {
        let Some(pending) = self.pending.get_mut(&turn) else {
            return;
        };
        pending.unsettled -= 1;
        if end == ListenerEnd::Heard {
            pending.is_heard = true;
            if let Some(Resource { phase: Phase::Held(hold), .. }) =
                self.resources.get_mut(&pending.resource)
            {
                if pending.outcome == Some(Ok(hold.reply())) {
                    hold.answered();
                }
            }
        }
        if pending.unsettled > 0 {
            return;
        }
        let Some(entry) = self.resources.get_mut(&pending.resource) else {
            return self.forget_pending(turn);
        };
        if matches!(entry.phase, Phase::Granting(granting) if granting == turn) {
            // When the store has answered.
            return;
        }
        if self.dequeue(turn) {
            if end == ListenerEnd::Disconnected {
                self.keep_place(turn);
            }
            self.changed();
        }
        self.forget_pending(turn);
    }

    /// Keep the place for a repetition of the request. (I5)
    fn keep_place(&mut self, turn: TurnNumber) {
        let pending = &self.pending[&turn];
        if let Some(key) = pending.key.clone() {
            self.absent.keep(key, QueuePlace { turn, since: pending.since });
        }
    }

    /// The client has its refusal and does not come back: its place goes.
    pub(in crate::lockd::state) fn leave(&mut self, resource: &str, client: &str, id: &str) {
        self.absent.take(&RequestKey {
            resource: resource.into(),
            client: name::stripped(client).into(),
            id: id.into(),
        });
    }

    /// An answer with this grant did not reach its client. (I4)
    pub(in crate::lockd::state) fn lose_answer(&mut self, resource: &str, token: u64) {
        if self.lifecycle != Lifecycle::Serving {
            return;
        }
        let Some(hold) = self.hold_mut(resource).filter(|it| it.grant.token == token) else {
            return;
        };
        hold.answers = hold.answers.saturating_sub(1);
        if hold.answers == 0 {
            self.undo(&resource.into());
        }
    }

    /// End a grant whose client never heard of it. Its request has its place again. (I4)
    fn undo(&mut self, resource: &Arc<str>) {
        let hold = self.hold(resource).expect("BUG: what is undone is held");
        if let (Some(key), Some(place)) = (request_key(&hold.grant), hold.place) {
            self.absent.keep(key, place);
        }
        self.end(resource, EndReason::Undone);
    }

    /// Drop a request that has no listener left.
    pub(super) fn forget_pending(&mut self, turn: TurnNumber) {
        let Some(pending) = self.pending.remove(&turn) else {
            return;
        };
        let granted = pending.outcome.and_then(Result::ok);
        let hold = granted.and_then(|reply| {
            self.hold(&pending.resource).filter(|hold| hold.grant.token == reply.token)
        });
        let (is_held, is_heard) = (hold.is_some(), pending.is_heard);
        let is_its_own = |key: &_| self.requests.get(key) == Some(&RequestState::Pending(turn));
        if let Some(key) = pending.key.filter(is_its_own) {
            self.requests.remove(&key);
            if is_held {
                self.requests.insert(key, RequestState::Held);
            }
        }
        if is_held && !is_heard {
            self.undo(&pending.resource);
        } else {
            self.tidy(&pending.resource);
        }
    }

    /// Refuse a waiter whose limit is reached; `None` if its grant is on the way.
    pub(in crate::lockd::state) fn give_up(&mut self, turn: TurnNumber) -> Option<Refusal> {
        let pending = self.pending.get(&turn)?;
        let resource = Arc::clone(&pending.resource);
        let entry = self.resources.get(&resource)?;
        if pending.outcome.is_some() || !entry.queue.contains(&turn) {
            return None;
        }
        let holder = self.holder_of(&resource);
        Some(self.refuse(Refusal::TimedOut { holder }))
    }

    /// Ask the store to grant the resource to this request.
    pub(super) fn grant(&mut self, turn: TurnNumber, is_literal: bool) {
        let pending = &self.pending[&turn];
        let terms = GrantTerms {
            resource: Arc::clone(&pending.resource),
            client: Arc::clone(&pending.client),
            lease: pending.lease,
            request_id: pending.key.as_ref().map(|key| Arc::clone(&key.id)),
            is_literal,
        };
        let resource = Arc::clone(&pending.resource);
        self.put(&resource, Phase::Granting(turn));
        self.outbox.push_back((ChangeRequest::Grant(terms), Purpose::Grant(turn)));
    }

    /// Grant a free resource to its first waiter. (I2) A waiter whose client holds as much
    /// as it may by now is refused.
    pub(super) fn serve_next(&mut self, resource: &Arc<str>) {
        while let Some(entry) = self.resources.get(resource) {
            let Some(&turn) = entry.queue.first().filter(|_| matches!(entry.phase, Phase::Free))
            else {
                return;
            };
            self.dequeue(turn);
            match self.may_hold(&self.pending[&turn].client) {
                Ok(()) => self.grant(turn, false),
                Err(refusal) => self.refuse_pending(turn, refusal),
            }
        }
    }

    /// Compare the directory with the books before a request is refused. Returns whether a
    /// file that is in the way is called as the resource is.
    pub(super) fn look_at(&mut self, resource: &Arc<str>) -> Result<bool, Refusal> {
        let problem = match self.resources.get(resource).map(|entry| &entry.phase) {
            Some(Phase::Problem(problem)) => problem.clone(),
            Some(Phase::Held(hold)) => {
                if !self.directory.has(&hold.grant.terms.file_name()) {
                    self.end(resource, EndReason::Removed);
                }
                return Ok(false);
            }
            _ => return Ok(false),
        };
        let files = problem.files.iter().filter(|(name, _)| self.directory.has(name));
        let files: Vec<_> = files.cloned().collect();
        let is_literal = match files.as_slice() {
            [] => false,
            [(name, is_literal)] if matches!(self.directory.look(name), NameState::Lock { .. }) => {
                *is_literal
            }
            _ => return Err(self.refuse(poisoned(&problem))),
        };
        self.put(resource, Phase::Free);
        self.changed();
        Ok(is_literal)
    }
}

fn check(request: &LockRequest) -> Result<(), Refusal> {
    let refuse = |name: &str, why: String| Err(Refusal::BadName { name: name.to_owned(), why });
    if let Err(why) = name::check_client(&request.client) {
        return refuse(&request.client, why);
    }
    if request.lease.is_some_and(|lease| lease.is_zero()) {
        let why = "a lease must be longer than nothing".to_owned();
        return Err(Refusal::Invalid { why });
    }
    match &request.request_id {
        Some(id) if id.is_empty() || id.len() > REQUEST_ID_MAX_BYTES => {
            let why = format!("a request id has 1 to {REQUEST_ID_MAX_BYTES} bytes");
            Err(Refusal::Invalid { why })
        }
        _ => Ok(()),
    }
}
