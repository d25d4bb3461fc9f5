//! The answers of the store, and their consequences.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Books, EndReason, Lifecycle, Purpose, RequestState, poisoned, request_key, storage};
use crate::lockd::name;
use crate::lockd::state::api::{LockStatus, Refusal, TIME_BOUNDS};
use crate::lockd::state::audit::{Event, Requester, audit, audit_discarded};

use crate::lockd::state::resource::{
    Hold, ListenerEnd, LockOutcome, Phase, QueuePlace, TurnNumber, problem_status,
};
use crate::lockd::store::{ChangeOutcome, DiskError, Problem};
use crate::sys::boot_clock::BootTime;
use crate::sys::files::Errno;

/// Between two tries to end a lease, if the disk refused. With more, the next waiter waits
/// longer once the disk is well again.
const RETRY: Duration = Duration::from_secs(1);

/// Whether the file system refused this name of a file, and may take others.
fn is_about_the_name(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NAMETOOLONG | Errno::ILSEQ)
}

impl Books {
    pub(in crate::lockd::state) fn complete(&mut self, purpose: Purpose, outcome: ChangeOutcome) {
        if let ChangeOutcome::Broken(error) = &outcome {
            self.fail(&error.to_string());
        }
        self.changed();
        match purpose {
            Purpose::Grant(turn) => self.complete_grant(turn, outcome),
            Purpose::End(resource, reason) => self.complete_end(&resource, reason, outcome),
            Purpose::Discard { resource, problem, by, reply } => {
                let status = self.complete_discard(&resource, &problem, &by, outcome);
                let _ = reply.send(status);
                self.serve_next(&resource);
                self.tidy(&resource);
            }
        }
    }

    pub(super) fn complete_grant(&mut self, turn: TurnNumber, outcome: ChangeOutcome) {
        let resource = Arc::clone(&self.pending[&turn].resource);
        self.put(&resource, Phase::Free);
        match outcome {
            ChangeOutcome::Granted(grant) => {
                let by = self.pending[&turn].by.clone();
                audit(Event::Granted, &grant, &by);
                self.figures.granted += 1;
                let waited = self.pending[&turn].since.counted.elapsed();
                self.figures.waits.count(waited, &TIME_BOUNDS);
                self.refused_by_disk = None;
                self.figures.held += 1;
                let place = QueuePlace { turn, since: self.pending[&turn].since };
                self.start_hold(&resource, grant, Some(place));
                let hold = self.hold_mut(&resource).expect("BUG: it was just given");
                hold.by = by;
                let reply = hold.reply();
                self.decide(turn, Ok(reply));
            }
            ChangeOutcome::Held(grant) => {
                let ended = self.entry(&resource).ending.take();
                self.start_hold(&resource, grant, None);
                if let (Some(ended), Some(hold)) = (ended, self.hold_mut(&resource)) {
                    (hold.place, hold.answers) = (ended.place, ended.answers);
                    (hold.began, hold.by) = (ended.began, ended.by);
                    if let Some(deadline) = ended.deadline {
                        self.set_deadline(&resource, deadline);
                    }
                }
                self.wait_on(turn, &resource);
            }
            ChangeOutcome::Adopted(grant) => {
                audit(Event::Adopted, &grant, &None);
                self.figures.held += 1;
                self.start_hold(&resource, grant, None);
                self.wait_on(turn, &resource);
            }
            ChangeOutcome::Poisoned(problem) => {
                let refusal = poisoned(&problem);
                let waiting = self.dequeue_all(&resource);
                self.put(&resource, Phase::Problem(problem));
                for turn in waiting.into_iter().chain([turn]) {
                    self.refuse_pending(turn, refusal.clone());
                }
            }
            ChangeOutcome::Failed(error) | ChangeOutcome::Broken(error) => {
                if !is_about_the_name(error.errno) {
                    self.refused_by_disk = Some(Instant::now());
                }
                self.figures.disk_errors += 1;
                // The client is not told where the directory is.
                tracing::warn!("{error}");
                self.refuse_pending(turn, storage(&error));
                self.serve_next(&resource);
            }
            ChangeOutcome::Ended { .. } | ChangeOutcome::Discarded => {
                unreachable!("BUG: a grant ended")
            }
        }
        self.tidy(&resource);
    }

    /// The lock is held after all: the request goes back to the front, or is refused.
    pub(super) fn wait_on(&mut self, turn: TurnNumber, resource: &Arc<str>) {
        if self.pending[&turn].may_wait && self.lifecycle == Lifecycle::Serving {
            self.enqueue(turn);
            if self.pending[&turn].unsettled == 0 {
                self.pending.get_mut(&turn).expect("BUG: it was just there").unsettled = 1;
                self.settle(turn, ListenerEnd::Disconnected);
            }
        } else {
            let client = self.holder_of(resource);
            self.refuse_pending(turn, Refusal::LockedBy { client });
        }
    }

    pub(super) fn refuse_pending(&mut self, turn: TurnNumber, refusal: Refusal) {
        let refusal = self.refuse(refusal);
        self.decide(turn, Err(refusal));
    }

    pub(super) fn decide(&mut self, turn: TurnNumber, outcome: LockOutcome) {
        let pending = self.pending.get_mut(&turn).expect("BUG: a request was lost");
        for listener in pending.listeners.drain(..) {
            // A listener that is gone settles by itself.
            let _ = listener.send(outcome.clone());
        }
        pending.outcome = Some(outcome);
        if pending.unsettled == 0 {
            self.forget_pending(turn);
        }
    }

    pub(super) fn complete_end(
        &mut self,
        resource: &Arc<str>,
        reason: EndReason,
        outcome: ChangeOutcome,
    ) {
        let had_file = match outcome {
            ChangeOutcome::Ended { had_file } => had_file,
            ChangeOutcome::Failed(error) | ChangeOutcome::Broken(error) => {
                return self.restore(resource, reason, &error);
            }
            _ => unreachable!("BUG: an end was no end"),
        };
        let ended = self.entry(resource).ending.take().expect("BUG: an end of nothing");
        self.figures.held -= 1;
        // An undone grant was never held.
        if !matches!(reason, EndReason::Undone) {
            self.figures.holds.count(ended.began.elapsed(), &TIME_BOUNDS);
        }
        let grant = &ended.grant;
        match reason {
            EndReason::Unlocked { by, reply } => {
                audit(Event::Released, grant, &by);
                self.figures.released += 1;
                self.finished
                    .remember_release(grant.token, name::shared_stripped(&grant.terms.client));
                let _ = reply.send(if had_file { Ok(()) } else { Err(Refusal::NotLocked) });
            }
            EndReason::Forced { by, reply } => {
                audit(Event::Forced, grant, &by);
                self.figures.forced += 1;
                let _ = reply.send(Ok(ended.status()));
            }
            EndReason::Expired => {
                audit(Event::Expired, grant, &ended.by);
                self.figures.expired += 1;
            }
            EndReason::Undone => audit(Event::Undone, grant, &ended.by),
            EndReason::Removed => audit(Event::Removed, grant, &ended.by),
        }
        self.tidy(resource);
    }

    /// The end failed: the lock is held as before. (S3)
    pub(super) fn restore(&mut self, resource: &Arc<str>, reason: EndReason, error: &DiskError) {
        let entry = self.entry(resource);
        let mut hold = entry.ending.take().expect("BUG: an end of nothing");
        if let Some(key) = request_key(&hold.grant) {
            self.finished.forget_request(&key);
            self.requests.insert(key, RequestState::Held);
        }
        if matches!(reason, EndReason::Expired) {
            hold.deadline = Some(BootTime::now().after(RETRY));
        }
        let deadline = hold.deadline.take();
        let entry = self.entry(resource);
        if matches!(entry.phase, Phase::Free) {
            self.put(resource, Phase::Held(hold));
            if let Some(deadline) = deadline {
                self.set_deadline(resource, deadline);
            }
        } else {
            // The answer to the grant behind it says so, and restores the hold.
            entry.ending = Some(Hold { deadline, ..hold });
        }
        self.figures.disk_errors += 1;
        let refusal = storage(error);
        tracing::warn!("{error}");
        match reason {
            EndReason::Unlocked { reply, .. } => drop(reply.send(Err(refusal))),
            EndReason::Forced { reply, .. } => drop(reply.send(Err(refusal))),
            EndReason::Expired | EndReason::Undone | EndReason::Removed => {}
        }
    }

    pub(super) fn complete_discard(
        &mut self,
        resource: &Arc<str>,
        problem: &Problem,
        by: &Option<Arc<Requester>>,
        outcome: ChangeOutcome,
    ) -> Result<LockStatus, Refusal> {
        match outcome {
            ChangeOutcome::Discarded => {
                audit_discarded(resource, &problem.path.to_string_lossy(), by);
                self.figures.forced += 1;
                if matches!(self.entry(resource).phase, Phase::Problem(_)) {
                    self.put(resource, Phase::Free);
                }
                Ok(problem_status(resource, problem))
            }
            ChangeOutcome::Failed(error) | ChangeOutcome::Broken(error) => {
                self.figures.disk_errors += 1;
                Err(storage(&error))
            }
            _ => Err(poisoned(problem)),
        }
    }
}
