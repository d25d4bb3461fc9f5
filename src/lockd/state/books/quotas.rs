//! How many locks and waiters each client has, and how many it may have.
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
use crate::lockd::state::resource::{Phase, TurnNumber};
use crate::sys::boot_clock::BootTime;

impl Books {
    /// Put a resource into this phase, and return the phase before.
    pub(super) fn put(&mut self, resource: &Arc<str>, phase: Phase) -> Phase {
        if let Some(client) = self.client_in(&phase) {
            self.usage.change(&client, |count| count.locks += 1);
        }
        let before = std::mem::replace(&mut self.entry(resource).phase, phase);
        if let Some(client) = self.client_in(&before) {
            self.usage.change(&client, |count| count.locks -= 1);
        }
        before
    }

    fn client_in(&self, phase: &Phase) -> Option<Arc<str>> {
        match phase {
            Phase::Free | Phase::Problem(_) => None,
            Phase::Granting(turn) => Some(Arc::clone(&self.pending[turn].client)),
            Phase::Held(hold) => Some(Arc::clone(&hold.grant.terms.client)),
        }
    }

    /// Put the request into the queue.
    pub(super) fn enqueue(&mut self, turn: TurnNumber) {
        let pending = &self.pending[&turn];
        self.usage.change(&pending.client, |count| count.waiters += 1);
        let resource = Arc::clone(&pending.resource);
        self.entry(&resource).queue.insert(turn);
        self.figures.waiting += 1;
    }

    /// Take the request out of the queue; whether it was there.
    pub(super) fn dequeue(&mut self, turn: TurnNumber) -> bool {
        let Some(pending) = self.pending.get(&turn) else {
            return false;
        };
        let entry = self.resources.get_mut(&pending.resource);
        let has_waited = entry.is_some_and(|entry| entry.queue.remove(&turn));
        if has_waited {
            self.usage.change(&pending.client, |count| count.waiters -= 1);
            self.figures.waiting -= 1;
        }
        has_waited
    }

    /// Empty the queue; its waiters in the order of their turns.
    pub(super) fn dequeue_all(&mut self, resource: &str) -> Vec<TurnNumber> {
        let queue = self.resources.get(resource).map(|entry| &entry.queue);
        let waiting: Vec<TurnNumber> = queue.into_iter().flatten().copied().collect();
        for &turn in &waiting {
            self.dequeue(turn);
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

    /// How many of its leases are over. (U3)
    fn over(&self, client: &str) -> usize {
        let over = self.leases.iter().take_while(|(end, _)| BootTime::is_past(*end));
        over.filter(|(_, resource)| self.hold(resource).is_some_and(|it| it.is_of(client))).count()
    }

    /// What the counts are, and what they must be.
    #[cfg(test)]
    pub(in crate::lockd::state) fn counted(&self) -> [Vec<(String, usize, usize)>; 2] {
        let mut usage = crate::lockd::state::usage::Usage::default();
        for entry in self.resources.values() {
            if let Some(client) = self.client_in(&entry.phase) {
                usage.change(&client, |count| count.locks += 1);
            }
            for turn in &entry.queue {
                usage.change(&self.pending[turn].client, |count| count.waiters += 1);
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
