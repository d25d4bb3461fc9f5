//! Ends of holds, and renewals of their leases.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Books, EndReason, Lifecycle, Purpose, poisoned, request_key};
use crate::lockd::name;
use crate::lockd::state::api::{LockStatus, Refusal};
use crate::lockd::state::audit::Requester;
use crate::lockd::state::resource::{Hold, Phase, Resource};
use crate::lockd::store::ChangeRequest;
use crate::sys::boot_clock::BootTime;

impl Books {
    pub(in crate::lockd::state) fn unlock(
        &mut self,
        resource: &str,
        client: &str,
        token: Option<u64>,
        by: &Option<Arc<Requester>>,
    ) -> Result<oneshot::Receiver<Result<(), Refusal>>, Refusal> {
        self.must_serve()?;
        let resource: Arc<str> = resource.into();
        self.expire_if_over(&resource);
        let (reply, receiver) = oneshot::channel();
        let refusal = match self.may_end(&resource, client, token) {
            Ok(()) => {
                self.end(&resource, EndReason::Unlocked { by: by.clone(), reply });
                return Ok(receiver);
            }
            Err(refusal) => refusal,
        };
        if token.is_some_and(|token| self.finished.has_release(token, name::stripped(client))) {
            // The answer to the first unlock was lost.
            let _ = reply.send(Ok(()));
            return Ok(receiver);
        }
        Err(refusal)
    }

    pub(super) fn may_end(
        &self,
        resource: &str,
        client: &str,
        token: Option<u64>,
    ) -> Result<(), Refusal> {
        match self.resources.get(resource).map(|entry| &entry.phase) {
            Some(Phase::Problem(problem)) => Err(poisoned(problem)),
            Some(Phase::Held(hold)) if !hold.is_of(client) => Err(Refusal::NotYours {
                holder: hold.holder().to_owned(),
                client: client.to_owned(),
            }),
            Some(Phase::Held(hold)) => match token {
                Some(token) if token != hold.grant.token => Err(Refusal::WrongToken),
                _ => Ok(()),
            },
            _ => Err(Refusal::NotLocked),
        }
    }

    pub(in crate::lockd::state) fn renew(
        &mut self,
        resource: &str,
        client: &str,
        token: u64,
    ) -> Result<Duration, Refusal> {
        self.must_serve()?;
        let resource: Arc<str> = resource.into();
        self.expire_if_over(&resource);
        self.may_end(&resource, client, Some(token))?;
        self.renew_deadline(&resource);
        let hold = self.hold_mut(&resource).expect("BUG: what may be ended is held");
        // A client that knows the token heard of the grant.
        hold.answered();
        Ok(hold.grant.terms.lease.unwrap_or(Duration::MAX))
    }

    pub(in crate::lockd::state) fn force_unlock(
        &mut self,
        resource: &str,
        token: Option<u64>,
        by: &Option<Arc<Requester>>,
    ) -> Result<oneshot::Receiver<Result<LockStatus, Refusal>>, Refusal> {
        self.must_serve()?;
        let resource: Arc<str> = resource.into();
        let (reply, receiver) = oneshot::channel();
        let by = by.clone();
        match self.resources.get(&resource).map(|entry| &entry.phase) {
            Some(Phase::Held(hold)) => {
                if token.is_some_and(|token| token != hold.grant.token) {
                    return Err(Refusal::WrongToken);
                }
                self.end(&resource, EndReason::Forced { by, reply });
            }
            Some(Phase::Problem(problem)) if problem.is_removable => {
                let problem = problem.clone();
                let change = ChangeRequest::Discard(problem.clone());
                let purpose = Purpose::Discard { resource, problem, by, reply };
                self.outbox.push_back((change, purpose));
            }
            Some(Phase::Problem(problem)) => return Err(poisoned(problem)),
            _ => return Err(Refusal::NotLocked),
        }
        Ok(receiver)
    }

    /// Ask the store to end the hold. For other requests the lock is free at once: their
    /// grants come behind in the outbox. (I3)
    pub(super) fn end(&mut self, resource: &Arc<str>, reason: EndReason) {
        let Phase::Held(hold) = self.put(resource, Phase::Free) else {
            unreachable!("BUG: an end of what is not held");
        };
        if let Some(deadline) = hold.deadline {
            self.leases.remove(&(deadline, Arc::clone(resource)));
        }
        if let Some(key) = request_key(&hold.grant) {
            self.requests.remove(&key);
            if !matches!(reason, EndReason::Undone) {
                self.finished.remember_request(key);
            }
        }
        let change = ChangeRequest::End(Arc::clone(&hold.grant));
        self.entry(resource).ending = Some(hold);
        self.outbox.push_back((change, Purpose::End(Arc::clone(resource), reason)));
        self.serve_next(resource);
    }

    pub(super) fn expire_if_over(&mut self, resource: &Arc<str>) {
        if self.hold(resource).is_some_and(Hold::is_expired) {
            self.end(resource, EndReason::Expired);
        }
    }

    /// End all leases that are over; when the next one ends.
    pub(in crate::lockd::state) fn expire(&mut self) -> Option<BootTime> {
        while let Some((_, resource)) = self.leases.first().filter(|(end, _)| end.is_past()) {
            let resource = Arc::clone(resource);
            if self.lifecycle == Lifecycle::Failed {
                return None;
            }
            self.end(&resource, EndReason::Expired);
        }
        self.leases.first().map(|(end, _)| *end)
    }

    pub(super) fn renew_deadline(&mut self, resource: &Arc<str>) {
        let Some(Resource { phase: Phase::Held(hold), .. }) = self.resources.get(resource) else {
            return;
        };
        if let Some(lease) = hold.grant.terms.lease {
            self.set_deadline(resource, BootTime::now().after(lease));
            self.changed();
        }
    }

    pub(super) fn set_deadline(&mut self, resource: &Arc<str>, deadline: BootTime) {
        let first = self.leases.first().map(|(first, _)| *first);
        let Some(Resource { phase: Phase::Held(hold), .. }) = self.resources.get_mut(resource)
        else {
            return;
        };
        if let Some(before) = hold.deadline.replace(deadline) {
            self.leases.remove(&(before, Arc::clone(resource)));
        }
        self.leases.insert((deadline, Arc::clone(resource)));
        if first.is_none_or(|first| deadline < first) {
            self.signals.sooner.notify_one();
        }
    }
}
