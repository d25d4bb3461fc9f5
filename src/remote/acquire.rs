//! One request for a lock, made again under the same id until it is answered.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::sync::oneshot;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::Answer;
use super::endpoint::ANSWER;
use super::guard::RemoteGuard;
use super::hold::{Hold, Tenure};
use super::no_response::Failure;
use super::response;
use super::socket::Line;
use super::target::{Claim, Scheduled};
use crate::lease::{Exhausted, Patience, Renewal};
use crate::lock::error::Error;
use crate::sys::boot_clock::BootTime;
use crate::sys::random;
use crate::wire::{self, Granted, Milliseconds};

const DOING: &str = "locking";

/// How much later than its limit a wait may end: the daemon has the last word. If
/// longer, a daemon that is stalled keeps its callers longer than they asked for.
const OVERRUN: Duration = Duration::from_secs(1);

/// A connection that lasted longer before it broke was to something that was there.
const WAS_THERE: Duration = Duration::from_secs(1);

/// How long somebody wants to wait.
pub(super) enum Wait {
    No,
    Until(StdInstant),
    Forever,
    /// As the caller's clock says, which is not the daemon's.
    UntilTold(oneshot::Receiver<()>),
}

/// How a request ended.
pub(super) enum Outcome {
    Granted(RemoteGuard),
    /// Somebody else has it, and the wait is over.
    Busy(Option<String>),
}

pub(super) type Decided = Result<Outcome, Error>;

/// Who asked is gone. What it leaves behind counts as scheduled by this.
pub(super) type Gone = oneshot::Receiver<Scheduled>;

pub(super) struct Petition {
    claim: Arc<Claim>,
    /// R2.
    id: String,
    wait: Wait,
    line: Arc<Line>,
    /// The daemon may have granted what was asked for under this id.
    may_be_granted: bool,
}

/// What one try came to.
enum Tried {
    Decided(Decided),
    /// At once, with what this petition knows now.
    Again,
    Later(io::Error),
}

impl Petition {
    /// # Errors
    /// There are no random bits for its name.
    pub(super) fn new(claim: &Arc<Claim>, wait: Wait) -> Result<Self, Error> {
        let id = new_id();
        let id = id.map_err(|error| claim.unreachable(DOING, Duration::ZERO, error))?;
        let (claim, line) = (Arc::clone(claim), Arc::new(Line::default()));
        Ok(Self { claim, id, wait, line, may_be_granted: false })
    }

    /// Ask under another name: the daemon has settled what had the last one.
    fn again(&mut self) -> Tried {
        match new_id() {
            Ok(id) => {
                self.id = id;
                Tried::Again
            }
            Err(error) => Tried::Later(error),
        }
    }

    /// Ask until there is an outcome, or whoever wants it is gone.
    pub(super) async fn run(mut self, outcome: oneshot::Sender<Decided>, gone: Gone) {
        let line = Arc::clone(&self.line);
        let scheduled = {
            let mut asking = pin!(self.persist());
            tokio::select! {
                biased;
                decided = &mut asking => {
                    // If nobody hears it, a guard in it gives back.
                    let _ = outcome.send(decided);
                    return;
                }
                scheduled = gone => {
                    line.hang_up();
                    // What was on its way: a guard in it gives back.
                    drop(timeout(ANSWER, &mut asking).await);
                    scheduled
                }
            }
        };
        if self.may_be_granted {
            self.settle().await;
        }
        drop(scheduled);
    }

    async fn persist(&mut self) -> Decided {
        let deadline = match self.wait {
            Wait::Until(point) => Some(Instant::from_std(point)),
            _ => None,
        };
        let mut patience = self.claim.patience().until(deadline);
        loop {
            let begun = Instant::now();
            match self.try_once(&mut patience, begun).await {
                Tried::Decided(decided) => return decided,
                Tried::Again => {}
                Tried::Later(error) => {
                    if patience.is_trouble() {
                        let error = io::Error::new(error.kind(), error.to_string());
                        self.claim.tell(error, "no answer, it is asked again");
                    }
                    if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await {
                        return Err(self.claim.unreachable(DOING, tried, error));
                    }
                }
            }
            if self.line.is_hung_up() {
                return Ok(Outcome::Busy(None));
            }
        }
    }

    async fn try_once(&mut self, patience: &mut Patience, begun: Instant) -> Tried {
        let sent = BootTime::now();
        let asked = self.ask().await;
        let lasted = begun.elapsed();
        let was_there = match &asked {
            Ok(_) => true,
            Err(failure) => failure.may_have_come && lasted > WAS_THERE,
        };
        if was_there && !matches!(self.wait, Wait::No) {
            patience.renew(lasted);
        }
        match asked {
            Ok(answer) => self.heard(&answer, sent).await,
            Err(failure) if failure.is_final() => {
                Tried::Decided(Err(self.claim.hopeless(DOING, failure)))
            }
            Err(Failure { was_reused: true, .. }) => Tried::Again,
            Err(failure) => Tried::Later(failure.error),
        }
    }

    async fn ask(&mut self) -> Result<Answer, Failure> {
        let wait_ms = match self.wait {
            Wait::No => Some(0),
            Wait::Until(point) => {
                let left = point.saturating_duration_since(StdInstant::now());
                Some(u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
            }
            Wait::Forever | Wait::UntilTold(_) => None,
        };
        let lease = self.claim.options.lease;
        let body = wire::Acquire {
            resource: None,
            client: self.claim.client.clone(),
            wait_ms: Some(wait_ms.map(Milliseconds)),
            lease_ms: lease
                .map(|lease| Milliseconds(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX))),
            request_id: Some(self.id.clone()),
        };
        let knew = std::mem::replace(&mut self.may_be_granted, true);
        let asked = self.exchange(&body).await.unwrap_or_else(|_| Err(Failure::silence()));
        self.may_be_granted = match &asked {
            Ok(answer) => knew && !response::decides(answer),
            Err(failure) => knew || failure.may_have_come,
        };
        asked
    }

    async fn exchange(&mut self, body: &wire::Acquire) -> Result<Result<Answer, Failure>, Elapsed> {
        let line = Arc::clone(&self.line);
        let mut asking = pin!(self.claim.ask("acquire", body, &line));
        let ended = match &mut self.wait {
            Wait::No => return timeout(ANSWER, asking).await,
            Wait::Until(point) => match point.checked_add(OVERRUN) {
                Some(end) => return timeout_at(Instant::from_std(end), asking).await,
                None => return Ok(asking.await),
            },
            Wait::Forever => return Ok(asking.await),
            Wait::UntilTold(end) => end,
        };
        tokio::select! {
            biased;
            asked = &mut asking => return Ok(asked),
            Ok(()) = ended => {}
        }
        // What was granted meanwhile is heard now, or told to the next try.
        line.hang_up();
        (self.wait, self.line) = (Wait::No, Arc::default());
        timeout(ANSWER, asking).await
    }

    async fn heard(&mut self, answer: &Answer, sent: BootTime) -> Tried {
        let granted = match response::read::<Granted<'_>>(answer) {
            Ok(granted) => granted,
            Err(refusal) if refusal.is_busy() => {
                return Tried::Decided(Ok(Outcome::Busy(refusal.holder)));
            }
            Err(refusal) if refusal.is_over() => return self.again(),
            Err(refusal) if refusal.is_passing() => {
                return Tried::Later(io::Error::other(refusal.message));
            }
            Err(refusal) => return Tried::Decided(Err(self.claim.refused(DOING, refusal))),
        };
        if granted.token.0 == u64::MAX {
            let found = "its token is no number below 2⁶⁴ − 1".to_owned();
            return Tried::Decided(Err(self.claim.strange(DOING, found)));
        }
        let lease = response::lease(granted.lease_ms, self.claim.options.lease);
        let tenure = Tenure::new(Arc::clone(&self.claim), granted.token, sent, lease);
        self.enter(Hold::new(tenure), sent).await
    }

    /// A grant that was waited for may be older than its lease here. (R1)
    async fn enter(&mut self, mut hold: Hold, mut sent: BootTime) -> Tried {
        if hold.tenure.is_aged(sent) {
            let mut patience = self.claim.patience();
            sent = loop {
                let (begun, again) = (Instant::now(), BootTime::now());
                match hold.tenure.renew().await {
                    Renewal::Renewed(lease) => {
                        hold.tenure.lease.begin_anew(again, lease);
                        break again;
                    }
                    Renewal::NotHeld => {
                        hold.forget();
                        return self.again();
                    }
                    Renewal::Failed(error) => {
                        if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await
                        {
                            let error = self.claim.unreachable(DOING, tried, error);
                            return Tried::Decided(Err(error));
                        }
                    }
                }
            };
        }
        hold.keep(sent);
        Tried::Decided(Ok(Outcome::Granted(RemoteGuard::new(hold))))
    }

    /// Nobody wants it any more, and it is not known whether it was granted:
    /// ask once more, without waiting, and give back what comes. (R3)
    async fn settle(mut self) {
        (self.wait, self.line) = (Wait::No, Arc::default());
        let mut patience = self.claim.patience();
        loop {
            let begun = Instant::now();
            let error = match self.ask().await {
                Ok(answer) => match response::read::<Granted<'_>>(&answer) {
                    Ok(Granted { token, .. }) => {
                        let claim = Arc::clone(&self.claim);
                        return drop(Hold::new(Tenure::new(claim, token, BootTime::now(), None)));
                    }
                    Err(refusal) if refusal.is_passing() => io::Error::other(refusal.message),
                    Err(_) => return,
                },
                Err(failure) => failure.error,
            };
            if let Err(Exhausted { error, .. }) = patience.pause(begun, error).await {
                return self.claim.tell(error, "a lock that nobody wants may be held");
            }
        }
    }
}

/// 128 random bits.
fn new_id() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    random::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
