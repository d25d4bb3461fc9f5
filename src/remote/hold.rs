//! A hold, and its lease.

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout};

use super::hang_up::HangUp;
use super::no_response::NoResponse;
use super::response::{self, Response};
use super::target::Target;
use crate::lease::{Exhausted, LeaseState, Over, RENEWED_AFTER, RESPONSE_LIMIT, Renewal};
use crate::local::timer::Standing;
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::events;
use crate::sys::boot_clock::BootTime;
use crate::wire::{Release, Released, Renew, Renewed, Token};

/// A grant that was waited for longer than a tenth of its lease is renewed before it is
/// relied on. If larger, more grants are, each for one more request.
const AGED: u32 = 10;

/// What the daemon granted.
pub(super) struct Lease {
    pub(super) target: Arc<Target>,
    pub(super) token: Token,
    pub(super) state: LeaseState,
    /// As it was granted.
    length: Option<Duration>,
}

impl Lease {
    /// `sent`: when the request that was granted was sent.
    pub(super) fn new(
        target: Arc<Target>,
        token: Token,
        sent: BootTime,
        length: Option<Duration>,
    ) -> Arc<Self> {
        Arc::new(Self { target, token, state: LeaseState::new(sent, length), length })
    }

    /// Why the hold is lost, if it is, by the clock of now.
    pub(super) fn look(&self) -> Option<LostReason> {
        self.state.over().map(reason)
    }

    /// Resolves when the hold is lost.
    pub(super) async fn lost(&self) -> Lost {
        let reason = reason(self.state.lost().await);
        self.target.lost(reason)
    }

    /// Whether so much of the lease may have passed during the wait that it has to be
    /// renewed before it is relied on.
    pub(super) fn is_aged(&self, sent: BootTime) -> bool {
        self.length.is_some_and(|length| sent.after(length / AGED).is_past())
    }

    /// One request, for at most as long as a response may take.
    pub(super) async fn renew(&self) -> Renewal {
        let limit =
            self.length.map_or(RESPONSE_LIMIT, |length| RESPONSE_LIMIT.min(length / RENEWED_AFTER));
        let asked = timeout(limit, self.ask_to_renew()).await;
        let response = match asked.unwrap_or_else(|_| Err(NoResponse::silence())) {
            Ok(response) => response,
            Err(failure) => return Renewal::Failed(failure.error),
        };
        match response::read::<Renewed>(&response) {
            Ok(renewed) => {
                Renewal::Renewed(response::lease(renewed.lease_ms, self.target.options.lease))
            }
            Err(refusal) if refusal.is_not_held() => Renewal::NotHeld,
            Err(refusal) => Renewal::Failed(io::Error::other(refusal.message)),
        }
    }

    async fn ask_to_renew(&self) -> Result<Response, NoResponse> {
        let client = self.target.client.clone();
        let body = Renew { resource: None, client, token: self.token };
        loop {
            match self.target.ask("renew", &body, &HangUp::default()).await {
                Err(failure) if failure.was_reused => {}
                asked => return asked,
            }
        }
    }

    /// Renew until the hold is lost.
    fn keep(self: &Arc<Self>, sent: BootTime) -> AbortHandle {
        let lease = Arc::clone(self);
        let keeping = async move {
            let renew = || lease.renew();
            let tell = |error| lease.target.tell(error, "a lock could not be renewed yet");
            lease.state.keep(sent, renew, tell).await;
        };
        // On the thread of `lease::io`. (R6)
        tokio::spawn(keeping).abort_handle()
    }

    /// [`give_back`](Self::give_back) on the thread of `lease::io`.
    fn start_giving_back(self: &Arc<Self>) -> io::Result<JoinHandle<Result<(), Error>>> {
        let giving = Arc::clone(self);
        self.target.background.start(async move { giving.give_back().await })
    }

    /// Release the lock, by as many requests as it takes. (R4)
    async fn give_back(&self) -> Result<(), Error> {
        const DOING: &str = "unlocking";
        let target = &self.target;
        let client = target.client.clone();
        let body = Release { resource: None, client, token: Some(self.token) };
        // Whether a request that was sent in time may have been carried out.
        let (mut patience, mut may_be_done) = (target.patience(), false);
        loop {
            let (hang_up, begun, in_time) =
                (HangUp::default(), Instant::now(), self.look().is_none());
            let asked = timeout(RESPONSE_LIMIT, target.ask("release", &body, &hang_up)).await;
            let error = match asked.unwrap_or_else(|_| Err(NoResponse::silence())) {
                Ok(response) => match response::read::<Released<'_>>(&response) {
                    Ok(_) => return Ok(()),
                    Err(refusal) if refusal.is_not_held() && may_be_done => return Ok(()),
                    Err(refusal) if refusal.is_not_held() => {
                        let reason = self.look().unwrap_or(LostReason::Ended);
                        return Err(target.lost(reason).into());
                    }
                    Err(refusal) if refusal.is_passing() => {
                        may_be_done |= refusal.is_of_a_proxy() && in_time;
                        io::Error::other(refusal.message)
                    }
                    Err(refusal) => return Err(target.refused(DOING, refusal)),
                },
                Err(failure) => {
                    may_be_done |= failure.may_have_come && in_time;
                    if failure.was_reused {
                        continue;
                    }
                    failure.error
                }
            };
            if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await {
                return Err(target.unreachable(DOING, tried, error));
            }
        }
    }
}

fn reason(over: Over) -> LostReason {
    match over {
        Over::Expired => LostReason::Expired,
        Over::Ended => LostReason::Ended,
        Over::Forked => LostReason::Forked,
    }
}

/// Ends with the guard: dropping this releases the lock.
pub(super) struct Hold {
    pub(super) lease: Arc<Lease>,
    renewing: Option<AbortHandle>,
    is_given_back: bool,
}

impl Hold {
    pub(super) fn new(lease: Arc<Lease>) -> Self {
        Self { lease, renewing: None, is_given_back: false }
    }

    /// Keep the lease up. `sent`: when the request that began or renewed it was sent.
    pub(super) fn keep(&mut self, sent: BootTime) {
        self.renewing = Some(self.lease.keep(sent));
    }

    /// The daemon says that there is nothing to release.
    pub(super) fn forget(mut self) {
        self.is_given_back = true;
    }

    pub(super) async fn release(mut self) -> Result<(), Error> {
        let lease = Arc::clone(&self.lease);
        if let Some(reason) = lease.look() {
            // The drop releases what the daemon may still hold for this process.
            return Err(lease.target.lost(reason).into());
        }
        let failed = |error| Err(lease.target.unreachable("unlocking", Duration::ZERO, error));
        self.stop_renewing();
        lease.target.background.hand_over.begin();
        let _standing = Standing::at_most(RESPONSE_LIMIT);
        match lease.start_giving_back() {
            Ok(given) => {
                self.is_given_back = true;
                given.await.unwrap_or_else(|error| failed(io::Error::other(error)))?;
                events::released(&lease.target.name());
                Ok(())
            }
            Err(error) => failed(error),
        }
    }

    /// A renewal after the release would be refused.
    fn stop_renewing(&mut self) {
        if let Some(renewing) = self.renewing.take() {
            renewing.abort();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.lease.state.is_of_this_process() {
            // All of it is the parent's, down to its memory. (R7)
            mem::forget((self.renewing.take(), Arc::clone(&self.lease)));
            return;
        }
        self.stop_renewing();
        if self.is_given_back || self.lease.look() == Some(LostReason::Ended) {
            return;
        }
        let lease = Arc::clone(&self.lease);
        lease.target.background.hand_over.begin();
        let giving = async move {
            match lease.give_back().await {
                Ok(()) => lease.target.tell_release(),
                Err(error) => {
                    lease.target.tell(io::Error::other(error), "a lock was not given back");
                }
            }
        };
        drop(self.lease.target.background.start(giving));
    }
}
