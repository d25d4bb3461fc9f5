//! How much of the books each client takes, and how much it may.
//!
//! U1. A client's locks are those that it holds and those that the store was
//!     asked to give it. Its waiters are its requests in queues.
//! U2. They are counted where a phase or a queue changes: in [`Books::put`],
//!     [`Books::enqueue`] and [`Books::dequeue`], and nowhere else. So whatever
//!     ends a hold or a wait, the count is right.
//! U3. A lease that is over counts no more, though its end is still to come.

use std::sync::Arc;

use super::Books;
use crate::lockd::name;
use crate::lockd::state::api::Refusal;
use crate::lockd::state::resource::{Phase, TicketId};
use crate::sys::boot_clock::BootTime;

impl Books {
    /// Put a resource into this phase; the one that it was in.
    pub(super) fn put(&mut self, resource: &Arc<str>, phase: Phase) -> Phase {
        if let Some(client) = self.client_in(&phase) {
            self.usage.change(&client, |count| count.locks += 1);
        }
        let before = std::mem::replace(&mut self.slot(resource).phase, phase);
        if let Some(client) = self.client_in(&before) {
            self.usage.change(&client, |count| count.locks -= 1);
        }
        before
    }

    fn client_in(&self, phase: &Phase) -> Option<Arc<str>> {
        match phase {
            Phase::Free | Phase::Problem(_) => None,
            Phase::Granting(id) => Some(Arc::clone(&self.tickets[id].client)),
            Phase::Held(tenure) => Some(Arc::clone(&tenure.hold.wanted.client)),
        }
    }

    /// The request waits from now on.
    pub(super) fn enqueue(&mut self, id: TicketId) {
        let ticket = &self.tickets[&id];
        self.usage.change(&ticket.client, |count| count.waiters += 1);
        let resource = Arc::clone(&ticket.resource);
        self.slot(&resource).queue.insert(id);
        self.figures.waiting += 1;
    }

    /// It waits no more; whether it did.
    pub(super) fn dequeue(&mut self, id: TicketId) -> bool {
        let Some(ticket) = self.tickets.get(&id) else {
            return false;
        };
        let slot = self.slots.get_mut(&ticket.resource);
        let has_waited = slot.is_some_and(|slot| slot.queue.remove(&id));
        if has_waited {
            self.usage.change(&ticket.client, |count| count.waiters -= 1);
            self.figures.waiting -= 1;
        }
        has_waited
    }

    /// Nobody waits for it any more; who did, in the order of their turns.
    pub(super) fn dequeue_all(&mut self, resource: &str) -> Vec<TicketId> {
        let queue = self.slots.get(resource).map(|slot| &slot.queue);
        let waiting: Vec<TicketId> = queue.into_iter().flatten().copied().collect();
        for &id in &waiting {
            self.dequeue(id);
        }
        waiting
    }

    /// Whether this client may hold one lock more.
    pub(super) fn may_hold(&self, client: &str) -> Result<(), Refusal> {
        let Some(limit) = self.locks_per_client else {
            return Ok(());
        };
        let locks = self.usage.of(client).locks;
        if locks < limit || locks - self.over(client) < limit {
            return Ok(());
        }
        let client = name::stripped(client).to_owned();
        Err(Refusal::LocksPerClient { client, limit })
    }

    /// Whether one request more of this client may wait.
    pub(super) fn may_wait(&self, client: &str) -> Result<(), Refusal> {
        match self.waiters_per_client {
            Some(limit) if self.usage.of(client).waiters >= limit => {
                let client = name::stripped(client).to_owned();
                Err(Refusal::WaitersPerClient { client, limit })
            }
            _ => Ok(()),
        }
    }

    /// Its leases that are over. (U3)
    fn over(&self, client: &str) -> usize {
        let over = self.leases.iter().take_while(|(end, _)| BootTime::is_past(*end));
        over.filter(|(_, resource)| self.tenure(resource).is_some_and(|it| it.is_of(client)))
            .count()
    }

    /// What the counts are, and what they must be.
    #[cfg(test)]
    pub(in crate::lockd::state) fn counted(&self) -> [Vec<(String, usize, usize)>; 2] {
        let mut usage = crate::lockd::state::usage::Usage::default();
        for slot in self.slots.values() {
            if let Some(client) = self.client_in(&slot.phase) {
                usage.change(&client, |count| count.locks += 1);
            }
            for id in &slot.queue {
                usage.change(&self.tickets[id].client, |count| count.waiters += 1);
            }
        }
        [&self.usage, &usage].map(|usage| {
            let mut rows: Vec<_> = Vec::new();
            for (client, count) in &usage.0 {
                rows.push((client.to_string(), count.locks, count.waiters));
            }
            rows.sort();
            rows
        })
    }
}
