//! Asking for a lock, and waiting for it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Asked, Books, Known, Purpose, State, Why, poisoned, request_key};
use crate::lockd::name;
use crate::lockd::state::api::{LockRequest, Refusal, Wait};
use crate::lockd::state::audit::Asker;
use crate::lockd::state::finished::RequestKey;
use crate::lockd::state::resource::Place;
use crate::lockd::state::resource::{Leave, Phase, Slot, Ticket, TicketId};
use crate::lockd::store::{Change, Found, Wanted};
use crate::wire::REQUEST_ID_MAX_BYTES;

impl Books {
    pub(in crate::lockd::state) fn ask(
        &mut self,
        request: LockRequest,
        by: &Asker,
    ) -> Result<Asked, Refusal> {
        self.must_serve()?;
        check(&request)?;
        let may_wait = request.wait != Wait::No;
        let (resource, client): (Arc<str>, Arc<str>) =
            (request.resource.into(), request.client.into());
        let key = request.request_id.map(|id| RequestKey {
            resource: Arc::clone(&resource),
            client: name::stripped(&client).into(),
            id: id.into(),
        });
        self.expire_if_over(&resource);
        if let Some(key) = &key {
            if let Some(asked) = self.ask_again(key, may_wait)? {
                return Ok(asked);
            }
        }
        let place = key.as_ref().and_then(|key| self.absent.take(key));
        let is_literal = self.look_at(&resource)?;
        let is_free =
            self.slots.get(&resource).is_none_or(|slot| matches!(slot.phase, Phase::Free));
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
        let ticket = Ticket::new(&resource, client, request.lease, key, by, may_wait);
        Ok(self.open_ticket(ticket, place, is_free.then_some(is_literal)))
    }

    /// A new request, or one that comes back to its place: it is served, with a
    /// file that is called so, or queued.
    pub(super) fn open_ticket(
        &mut self,
        mut ticket: Ticket,
        place: Option<Place>,
        served: Option<bool>,
    ) -> Asked {
        let id = if let Some(Place { ticket: id, since }) = place {
            ticket.since = since;
            id
        } else {
            self.last_ticket += 1;
            self.last_ticket
        };
        self.requests.extend(ticket.key.clone().map(|key| (key, Known::Asked(id))));
        self.tickets.insert(id, ticket);
        if let Some(is_literal) = served {
            self.grant(id, is_literal);
        } else {
            self.enqueue(id);
            self.changed();
        }
        self.listen(id)
    }

    /// I5: the request was made before.
    pub(super) fn ask_again(
        &mut self,
        key: &RequestKey,
        may_wait: bool,
    ) -> Result<Option<Asked>, Refusal> {
        if self.over.has_request(key) {
            return Err(self.refuse(Refusal::RequestOver));
        }
        match self.requests.get(key) {
            None => Ok(None),
            Some(&Known::Asked(id)) => {
                let slot = self.slots.get(&key.resource);
                let is_queued = slot.is_some_and(|slot| slot.queue.contains(&id));
                if is_queued && !may_wait {
                    let client = self.holder_of(&key.resource);
                    return Err(self.refuse(Refusal::LockedBy { client }));
                }
                // What was granted meanwhile lasts from now on, for this one.
                self.renew_deadline(&key.resource);
                self.tickets.get_mut(&id).expect("BUG: a request was lost").unsettled += 1;
                Ok(Some(self.listen(id)))
            }
            Some(Known::Held) => {
                self.renew_deadline(&key.resource);
                let tenure = self.tenure_mut(&key.resource);
                let grant = tenure.map(|tenure| tenure.answered());
                Ok(grant.map(|grant| Asked::Decided(Ok(grant))))
            }
        }
    }

    pub(super) fn listen(&mut self, id: TicketId) -> Asked {
        let ticket = self.tickets.get_mut(&id).expect("BUG: a request was lost");
        if let Some(outcome) = ticket.outcome.clone() {
            self.settle(id, Leave::Heard);
            return Asked::Decided(outcome);
        }
        let (sender, receiver) = oneshot::channel();
        ticket.listeners.push(sender);
        Asked::Waiting(id, receiver)
    }

    /// One who listened is gone. (I4)
    pub(in crate::lockd::state) fn settle(&mut self, id: TicketId, leave: Leave) {
        let Some(ticket) = self.tickets.get_mut(&id) else {
            return;
        };
        ticket.unsettled -= 1;
        if leave == Leave::Heard {
            ticket.is_heard = true;
            if let Some(Slot { phase: Phase::Held(tenure), .. }) =
                self.slots.get_mut(&ticket.resource)
            {
                if ticket.outcome == Some(Ok(tenure.grant())) {
                    tenure.answered();
                }
            }
        }
        if ticket.unsettled > 0 {
            return;
        }
        let Some(slot) = self.slots.get_mut(&ticket.resource) else {
            return self.forget_ticket(id);
        };
        if matches!(slot.phase, Phase::Granting(granting) if granting == id) {
            // When the store has answered.
            return;
        }
        if self.dequeue(id) {
            if leave == Leave::Gone {
                self.keep_place(id);
            }
            self.changed();
        }
        self.forget_ticket(id);
    }

    /// For when the request is made again. (I5)
    fn keep_place(&mut self, id: TicketId) {
        let ticket = &self.tickets[&id];
        if let Some(key) = ticket.key.clone() {
            self.absent.keep(key, Place { ticket: id, since: ticket.since });
        }
    }

    /// A request that was refused is not made again: its place goes.
    pub(in crate::lockd::state) fn leave(&mut self, resource: &str, client: &str, id: &str) {
        self.absent.take(&RequestKey {
            resource: resource.into(),
            client: name::stripped(client).into(),
            id: id.into(),
        });
    }

    /// An answer with this grant did not come to its client. (I4)
    pub(in crate::lockd::state) fn lose_answer(&mut self, resource: &str, token: u64) {
        if self.state != State::Serving {
            return;
        }
        let Some(tenure) = self.tenure_mut(resource).filter(|it| it.hold.token == token) else {
            return;
        };
        tenure.answers = tenure.answers.saturating_sub(1);
        if tenure.answers == 0 {
            self.undo(&resource.into());
        }
    }

    /// Nobody heard of the grant. Its request comes back to where it waited. (I4)
    fn undo(&mut self, resource: &Arc<str>) {
        let tenure = self.tenure(resource).expect("BUG: what is undone is held");
        if let (Some(key), Some(place)) = (request_key(&tenure.hold), tenure.place) {
            self.absent.keep(key, place);
        }
        self.end(resource, Why::Undone);
    }

    /// The last who listened is gone, or there was none.
    pub(super) fn forget_ticket(&mut self, id: TicketId) {
        let Some(ticket) = self.tickets.remove(&id) else {
            return;
        };
        let granted = ticket.outcome.and_then(Result::ok);
        let tenure = granted.and_then(|grant| {
            self.tenure(&ticket.resource).filter(|tenure| tenure.hold.token == grant.token)
        });
        let (is_held, is_heard) = (tenure.is_some(), ticket.is_heard);
        let is_its_own = |key: &_| self.requests.get(key) == Some(&Known::Asked(id));
        if let Some(key) = ticket.key.filter(is_its_own) {
            self.requests.remove(&key);
            if is_held {
                self.requests.insert(key, Known::Held);
            }
        }
        if is_held && !is_heard {
            self.undo(&ticket.resource);
        } else {
            self.tidy(&ticket.resource);
        }
    }

    /// The limit of one who waits was reached: `None` if its grant is on the way.
    pub(in crate::lockd::state) fn give_up(&mut self, id: TicketId) -> Option<Refusal> {
        let ticket = self.tickets.get(&id)?;
        let resource = Arc::clone(&ticket.resource);
        let slot = self.slots.get(&resource)?;
        if ticket.outcome.is_some() || !slot.queue.contains(&id) {
            return None;
        }
        let holder = self.holder_of(&resource);
        Some(self.refuse(Refusal::TimedOut { holder }))
    }

    /// Ask the store to give it to this request.
    pub(super) fn grant(&mut self, id: TicketId, is_literal: bool) {
        let ticket = &self.tickets[&id];
        let wanted = Wanted {
            resource: Arc::clone(&ticket.resource),
            client: Arc::clone(&ticket.client),
            lease: ticket.lease,
            request_id: ticket.key.as_ref().map(|key| Arc::clone(&key.id)),
            is_literal,
        };
        let resource = Arc::clone(&ticket.resource);
        self.put(&resource, Phase::Granting(id));
        self.outbox.push_back((Change::Grant(wanted), Purpose::Grant(id)));
    }

    /// If it is free, it is the turn of the first who waits. (I2) One whose client
    /// holds as much as it may by now is refused.
    pub(super) fn serve_next(&mut self, resource: &Arc<str>) {
        while let Some(slot) = self.slots.get(resource) {
            let Some(&id) = slot.queue.first().filter(|_| matches!(slot.phase, Phase::Free)) else {
                return;
            };
            self.dequeue(id);
            match self.may_hold(&self.tickets[&id].client) {
                Ok(()) => self.grant(id, false),
                Err(refusal) => self.refuse_ticket(id, refusal),
            }
        }
    }

    /// See whether the directory still says what the books say, before somebody
    /// is refused. Whether a file that is in the way is called as the resource is.
    pub(super) fn look_at(&mut self, resource: &Arc<str>) -> Result<bool, Refusal> {
        let problem = match self.slots.get(resource).map(|slot| &slot.phase) {
            Some(Phase::Problem(problem)) => problem.clone(),
            Some(Phase::Held(tenure)) => {
                if !self.directory.has(&tenure.hold.wanted.file_name()) {
                    self.end(resource, Why::Removed);
                }
                return Ok(false);
            }
            _ => return Ok(false),
        };
        let files = problem.files.iter().filter(|(name, _)| self.directory.has(name));
        let files: Vec<_> = files.cloned().collect();
        let is_literal = match files.as_slice() {
            [] => false,
            [(name, is_literal)] if matches!(self.directory.look(name), Found::Lock { .. }) => {
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
