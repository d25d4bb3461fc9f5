//! A hold, and what is known of it.

use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::answer::{self, Done};
use super::claim::{Claim, Exhausted};
use super::error::{RemoteError, RemoteLost, RemoteLostReason};
use super::server::ANSWER;
use super::socket::Line;
use crate::clock::{Alarm, BootTime};
use crate::debug_events;

/// A lease is renewed when this part of it has passed.
const RENEWED_AFTER: u32 = 3;

/// This part of a lease is kept back. (R1)
const MARGIN: u32 = 10;

/// A hold without a lease is looked at as often.
const LOOK: Duration = Duration::from_secs(10);

/// As many tries to renew fit between two renewals.
const TRIES: u32 = 10;

/// What was granted.
pub(super) struct Tenure {
    pub(super) claim: Arc<Claim>,
    pub(super) token: u64,
    vitals: Mutex<Vitals>,
    /// Cancelled when the hold is lost.
    gone: CancellationToken,
}

struct Vitals {
    /// `None` without a lease.
    valid_until: Option<BootTime>,
    lost: Option<RemoteLostReason>,
}

/// What the daemon says of a hold.
pub(super) enum Renewal {
    Renewed,
    /// It does not hold, or not any more.
    NotHeld,
    Failed(io::Error),
}

impl Tenure {
    /// `sent`: when the request was sent that was granted.
    pub(super) fn new(claim: Arc<Claim>, token: u64, sent: BootTime) -> Arc<Self> {
        let valid_until = claim.options.lease.map(|lease| end(sent, lease));
        let vitals = Mutex::new(Vitals { valid_until, lost: None });
        Arc::new(Self { claim, token, vitals, gone: CancellationToken::new() })
    }

    fn vitals(&self) -> MutexGuard<'_, Vitals> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the hold is lost, if it is, by the clock of now. (R5)
    pub(super) fn look(&self) -> Option<RemoteLostReason> {
        let mut vitals = self.vitals();
        if vitals.lost.is_none() && vitals.valid_until.is_some_and(BootTime::is_past) {
            vitals.lost = Some(RemoteLostReason::Expired);
            self.gone.cancel();
        }
        vitals.lost
    }

    fn lose(&self, reason: RemoteLostReason) {
        self.vitals().lost.get_or_insert(reason);
        self.gone.cancel();
    }

    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    fn valid_until(&self) -> Option<BootTime> {
        self.vitals().valid_until
    }

    /// Resolves when the hold is lost, whoever renews it or does not.
    pub(super) async fn lost(&self) -> RemoteLost {
        let alarm = Alarm::new();
        loop {
            if let Some(reason) = self.look() {
                return self.claim.lost(reason);
            }
            let until = self.valid_until();
            tokio::select! {
                () = self.gone.cancelled() => {}
                () = ring(&alarm, until) => {}
            }
        }
    }

    /// Whether so much of the lease passed while the grant was waited for that
    /// it should be renewed before it is relied on.
    pub(super) fn is_aged(&self, sent: BootTime) -> bool {
        self.claim.options.lease.is_some_and(|lease| sent.after(lease / MARGIN).is_past())
    }

    /// Once, and at most for as long as an answer may take. `young` is a hold
    /// that nobody relies on yet: its lease may count from now though it seems over.
    pub(super) async fn renew(&self, young: bool) -> Renewal {
        let lease = self.claim.options.lease;
        let limit = lease.map_or(ANSWER, |lease| ANSWER.min(lease / RENEWED_AFTER));
        let body = json!({ "client": self.claim.client, "token": self.token.to_string() });
        let (line, sent) = (Line::default(), BootTime::now());
        let answer = match self.claim.ask_now("renew", &body, &line, limit).await {
            Ok(answer) => answer,
            Err(failure) => return Renewal::Failed(failure.error),
        };
        match answer::read::<Done>(&answer) {
            Ok(Done {}) => {
                self.renewed(sent, young);
                Renewal::Renewed
            }
            Err(refusal) if refusal.is_not_held() => Renewal::NotHeld,
            Err(refusal) => Renewal::Failed(io::Error::other(refusal.message)),
        }
    }

    fn renewed(&self, sent: BootTime, young: bool) {
        // R5: what was over before this came is over.
        if young || self.look().is_none() {
            let until = self.claim.options.lease.map(|lease| end(sent, lease));
            self.vitals().valid_until = until;
        }
    }

    /// Renew until the hold is lost.
    pub(super) async fn keep(self: Arc<Self>, sent: BootTime) {
        let alarm = Alarm::new();
        let lease = self.claim.options.lease;
        let period = lease.map_or(LOOK, |lease| lease / RENEWED_AFTER);
        let (mut next, mut is_told) = (sent.after(period), false);
        while self.look().is_none() {
            let until = self.valid_until();
            if !next.is_past() {
                ring(&alarm, Some(until.map_or(next, |until| until.min(next)))).await;
                continue;
            }
            let begun = BootTime::now();
            let renewal = tokio::select! {
                biased;
                () = ring(&alarm, until) => continue,
                renewal = self.renew(false) => renewal,
            };
            match renewal {
                Renewal::Renewed => (next, is_told) = (begun.after(period), false),
                Renewal::NotHeld => return self.lose(RemoteLostReason::Ended),
                Renewal::Failed(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        let (server, resource) = (self.claim.server.url(), &self.claim.resource);
                        tracing::warn!(server, resource, %error, "a lock could not be renewed yet");
                    }
                    next = BootTime::now().after(period / TRIES);
                }
            }
        }
    }

    async fn give_back(&self) -> Result<(), RemoteError> {
        self.tell_daemon().await?;
        debug_events::released(&self.claim.name());
        Ok(())
    }

    /// Again and again if need be. (R4)
    async fn tell_daemon(&self) -> Result<(), RemoteError> {
        const DOING: &str = "unlocking";
        let claim = &self.claim;
        let body = json!({ "client": claim.client, "token": self.token.to_string() });
        claim.hand_over.begin();
        let (mut patience, mut may_be_done) = (claim.patience(), false);
        loop {
            let line = Line::default();
            let error = match claim.ask_now("release", &body, &line, ANSWER).await {
                Ok(answer) => match answer::read::<Done>(&answer) {
                    Ok(Done {}) => return Ok(()),
                    Err(refusal) if refusal.is_not_held() && may_be_done => return Ok(()),
                    Err(refusal) if refusal.is_not_held() => {
                        return Err(claim.lost(RemoteLostReason::Ended).into());
                    }
                    Err(refusal) if refusal.is_passing() => io::Error::other(refusal.message),
                    Err(refusal) => return Err(claim.refused(DOING, refusal)),
                },
                Err(failure) => {
                    may_be_done |= failure.may_have_come;
                    if failure.was_reused {
                        continue;
                    }
                    failure.error
                }
            };
            if let Err(Exhausted { tried, error }) = patience.pause(error).await {
                return Err(claim.unreachable(DOING, tried, error));
            }
        }
    }
}

/// The last moment at which a lease surely runs. (R1)
fn end(sent: BootTime, lease: Duration) -> BootTime {
    sent.after(lease - lease / MARGIN)
}

/// At this point, or never. Without an alarm of its own, as when no more files
/// can be opened, by Tokio's clock, which a suspend delays.
async fn ring(alarm: &io::Result<Alarm>, point: Option<BootTime>) {
    let Some(point) = point else {
        return pending().await;
    };
    match alarm {
        Ok(alarm) if alarm.ring_at(Some(point)).await.is_ok() => {}
        _ => tokio::time::sleep(point.remaining()).await,
    }
}

/// A hold that somebody must give back; dropping this does.
pub(super) struct Hold {
    pub(super) tenure: Arc<Tenure>,
    runtime: Handle,
    is_given_back: bool,
}

impl Hold {
    /// # Panics
    /// Outside a Tokio runtime.
    pub(super) fn new(tenure: Arc<Tenure>) -> Self {
        Self { tenure, runtime: Handle::current(), is_given_back: false }
    }

    /// The daemon says that there is nothing to give back.
    pub(super) fn forget(mut self) {
        self.is_given_back = true;
    }

    pub(super) async fn release(mut self) -> Result<(), RemoteError> {
        let claim = &self.tenure.claim;
        if let Some(reason) = self.tenure.look() {
            // What the daemon may still hold for us, the drop gives back.
            return Err(claim.lost(reason).into());
        }
        let tenure = Arc::clone(&self.tenure);
        let giving = async move { tenure.give_back().await };
        let given = self.runtime.spawn(claim.background.track_future(giving));
        self.is_given_back = true;
        let claim = Arc::clone(claim);
        given.await.unwrap_or_else(|error| {
            Err(claim.unreachable("unlocking", Duration::ZERO, io::Error::other(error)))
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.is_given_back || self.tenure.look() == Some(RemoteLostReason::Ended) {
            return;
        }
        let tenure = Arc::clone(&self.tenure);
        let giving = async move {
            if let Err(error) = tenure.give_back().await {
                tracing::warn!("{error}");
            }
        };
        drop(self.runtime.spawn(self.tenure.claim.background.track_future(giving)));
    }
}
