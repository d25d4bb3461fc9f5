//! What the store answers, and what follows from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Books, Known, Purpose, State, Why, poisoned, request_key, storage};
use crate::lockd::name;
use crate::lockd::state::api::{Held, Refusal, TIME_BOUNDS};
use crate::lockd::state::audit::{Asker, Event, audit, audit_discarded};
use crate::lockd::state::resource::Place;
use crate::lockd::state::resource::{Leave, Outcome, Phase, Tenure, TicketId, held_by_nobody};
use crate::lockd::store::{Changed, Failure, Problem};
use crate::sys::boot_clock::BootTime;

/// After an expiry that the disk refused.
const RETRY: Duration = Duration::from_secs(1);

/// Whether the file system refused this name of a file, and may take others.
fn is_about_the_name(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NAMETOOLONG | Errno::ILSEQ)
}

impl Books {
    pub(in crate::lockd::state) fn complete(&mut self, purpose: Purpose, changed: Changed) {
        if let Changed::Broken(failure) = &changed {
            self.fail(&failure.to_string());
        }
        self.changed();
        match purpose {
            Purpose::Grant(id) => self.complete_grant(id, changed),
            Purpose::End(resource, why) => self.complete_end(&resource, why, changed),
            Purpose::Discard { resource, problem, by, reply } => {
                let outcome = self.complete_discard(&resource, &problem, &by, changed);
                let _ = reply.send(outcome);
                self.serve_next(&resource);
                self.tidy(&resource);
            }
        }
    }

    pub(super) fn complete_grant(&mut self, id: TicketId, changed: Changed) {
        let resource = Arc::clone(&self.tickets[&id].resource);
        self.put(&resource, Phase::Free);
        match changed {
            Changed::Granted(hold) => {
                let by = self.tickets[&id].by.clone();
                audit(Event::Granted, &hold, &by);
                self.figures.granted += 1;
                let waited = self.tickets[&id].since.counted.elapsed();
                self.figures.waits.count(waited, &TIME_BOUNDS);
                self.refused_by_disk = None;
                self.figures.held += 1;
                let place = Place { ticket: id, since: self.tickets[&id].since };
                self.hold(&resource, hold, Some(place));
                let tenure = self.tenure_mut(&resource).expect("BUG: it was just given");
                tenure.by = by;
                let grant = tenure.grant();
                self.decide(id, Ok(grant));
            }
            Changed::Held(hold) => {
                let ended = self.slot(&resource).ending.take();
                self.hold(&resource, hold, None);
                if let (Some(ended), Some(tenure)) = (ended, self.tenure_mut(&resource)) {
                    (tenure.place, tenure.answers) = (ended.place, ended.answers);
                    (tenure.began, tenure.by) = (ended.began, ended.by);
                    if let Some(deadline) = ended.deadline {
                        self.set_deadline(&resource, deadline);
                    }
                }
                self.wait_on(id, &resource);
            }
            Changed::Adopted(hold) => {
                audit(Event::Adopted, &hold, &None);
                self.figures.held += 1;
                self.hold(&resource, hold, None);
                self.wait_on(id, &resource);
            }
            Changed::Poisoned(problem) => {
                let refusal = poisoned(&problem);
                let waiting = self.dequeue_all(&resource);
                self.put(&resource, Phase::Problem(problem));
                for id in waiting.into_iter().chain([id]) {
                    self.refuse_ticket(id, refusal.clone());
                }
            }
            Changed::Failed(failure) | Changed::Broken(failure) => {
                if !is_about_the_name(failure.errno) {
                    self.refused_by_disk = Some(Instant::now());
                }
                self.figures.disk_errors += 1;
                // The client is not told where the directory is.
                tracing::warn!("{failure}");
                self.refuse_ticket(id, storage(&failure));
                self.serve_next(&resource);
            }
            Changed::Ended { .. } | Changed::Discarded => unreachable!("BUG: a grant ended"),
        }
        self.tidy(&resource);
    }

    /// It is held after all: back to the front, or no.
    pub(super) fn wait_on(&mut self, id: TicketId, resource: &Arc<str>) {
        if self.tickets[&id].may_wait && self.state == State::Serving {
            self.enqueue(id);
            if self.tickets[&id].unsettled == 0 {
                self.tickets.get_mut(&id).expect("BUG: it was just there").unsettled = 1;
                self.settle(id, Leave::Gone);
            }
        } else {
            let client = self.holder_of(resource);
            self.refuse_ticket(id, Refusal::LockedBy { client });
        }
    }

    pub(super) fn refuse_ticket(&mut self, id: TicketId, refusal: Refusal) {
        let refusal = self.refuse(refusal);
        self.decide(id, Err(refusal));
    }

    pub(super) fn decide(&mut self, id: TicketId, outcome: Outcome) {
        let ticket = self.tickets.get_mut(&id).expect("BUG: a request was lost");
        for listener in ticket.listeners.drain(..) {
            // It may be gone; then it settles.
            let _ = listener.send(outcome.clone());
        }
        ticket.outcome = Some(outcome);
        if ticket.unsettled == 0 {
            self.forget_ticket(id);
        }
    }

    pub(super) fn complete_end(&mut self, resource: &Arc<str>, why: Why, changed: Changed) {
        let had_file = match changed {
            Changed::Ended { had_file } => had_file,
            Changed::Failed(failure) | Changed::Broken(failure) => {
                return self.restore(resource, why, &failure);
            }
            _ => unreachable!("BUG: an end was no end"),
        };
        let ended = self.slot(resource).ending.take().expect("BUG: an end of nothing");
        self.figures.held -= 1;
        // What was undone nobody had.
        if !matches!(why, Why::Undone) {
            self.figures.holds.count(ended.began.elapsed(), &TIME_BOUNDS);
        }
        let hold = &ended.hold;
        match why {
            Why::Unlocked { by, reply } => {
                audit(Event::Released, hold, &by);
                self.figures.released += 1;
                self.over.remember_release(hold.token, &name::stripped(&hold.wanted.client).into());
                let _ = reply.send(if had_file { Ok(()) } else { Err(Refusal::NotLocked) });
            }
            Why::Forced { by, reply } => {
                audit(Event::Forced, hold, &by);
                self.figures.forced += 1;
                let _ = reply.send(Ok(ended.held()));
            }
            Why::Expired => {
                audit(Event::Expired, hold, &ended.by);
                self.figures.expired += 1;
            }
            Why::Undone => audit(Event::Undone, hold, &ended.by),
            Why::Removed => audit(Event::Removed, hold, &ended.by),
        }
        self.tidy(resource);
    }

    /// The end failed: it is held as before. (S3)
    pub(super) fn restore(&mut self, resource: &Arc<str>, why: Why, failure: &Failure) {
        let slot = self.slot(resource);
        let mut tenure = slot.ending.take().expect("BUG: an end of nothing");
        if let Some(key) = request_key(&tenure.hold) {
            self.over.forget_request(&key);
            self.requests.insert(key, Known::Held);
        }
        if matches!(why, Why::Expired) {
            tenure.deadline = Some(BootTime::now().after(RETRY));
        }
        let deadline = tenure.deadline.take();
        let slot = self.slot(resource);
        if matches!(slot.phase, Phase::Free) {
            self.put(resource, Phase::Held(tenure));
            if let Some(deadline) = deadline {
                self.set_deadline(resource, deadline);
            }
        } else {
            // The grant behind it is told so, and gives it back.
            slot.ending = Some(Tenure { deadline, ..tenure });
        }
        self.figures.disk_errors += 1;
        let refusal = storage(failure);
        tracing::warn!("{failure}");
        match why {
            Why::Unlocked { reply, .. } => drop(reply.send(Err(refusal))),
            Why::Forced { reply, .. } => drop(reply.send(Err(refusal))),
            Why::Expired | Why::Undone | Why::Removed => {}
        }
    }

    pub(super) fn complete_discard(
        &mut self,
        resource: &Arc<str>,
        problem: &Problem,
        by: &Asker,
        changed: Changed,
    ) -> Result<Held, Refusal> {
        match changed {
            Changed::Discarded => {
                audit_discarded(resource, &problem.path.to_string_lossy(), by);
                self.figures.forced += 1;
                if matches!(self.slot(resource).phase, Phase::Problem(_)) {
                    self.put(resource, Phase::Free);
                }
                Ok(held_by_nobody(resource, problem))
            }
            Changed::Failed(failure) | Changed::Broken(failure) => {
                self.figures.disk_errors += 1;
                Err(storage(&failure))
            }
            _ => Err(poisoned(problem)),
        }
    }
}
