//! One request for a lock, made again under the same id until it is answered.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::answer::{self, Granted};
use super::claim::{Claim, Exhausted, Patience};
use super::connection::Answer;
use super::error::RemoteError;
use super::guard::RemoteGuard;
use super::server::{ANSWER, Failure};
use super::socket::Line;
use super::tenure::{Hold, Renewal, Tenure};
use crate::clock::BootTime;
use crate::random;
use crate::real_time::is_paused;

const DOING: &str = "locking";

/// How long somebody wants to wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    No,
    Until(Instant),
    Forever,
}

/// How a request ended.
pub(super) enum Outcome {
    Granted(RemoteGuard),
    /// Somebody else has it, and the wait is over.
    Busy(Option<String>),
}

pub(super) type Decided = Result<Outcome, RemoteError>;

/// Who asked is gone. What it leaves behind counts as scheduled by this.
pub(super) type Gone = oneshot::Receiver<TaskTrackerToken>;

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
    pub(super) fn new(claim: Arc<Claim>, wait: Wait) -> Result<Self, RemoteError> {
        let line = Arc::new(Line::default());
        let id = new_id();
        let id = id.map_err(|error| claim.unreachable(DOING, Duration::ZERO, error))?;
        Ok(Self { claim, id, wait, line, may_be_granted: false })
    }

    /// Ask under another name: the daemon has settled what had the last one.
    fn again(&mut self) -> Tried {
        match self.rename() {
            Ok(()) => Tried::Again,
            Err(error) => Tried::Later(error),
        }
    }

    fn rename(&mut self) -> io::Result<()> {
        self.id = new_id()?;
        Ok(())
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
        let mut patience = self.claim.patience();
        loop {
            match self.try_once(&mut patience).await {
                Tried::Decided(decided) => return decided,
                Tried::Again => {}
                Tried::Later(error) => {
                    if patience.is_first() {
                        let (server, resource) = (self.claim.server.url(), &self.claim.resource);
                        tracing::warn!(server, resource, %error, "no answer, it is asked again");
                    }
                    if let Err(Exhausted { tried, error }) = patience.pause(error).await {
                        return Err(self.claim.unreachable(DOING, tried, error));
                    }
                }
            }
            if self.line.is_hung_up() {
                return Ok(Outcome::Busy(None));
            }
        }
    }

    async fn try_once(&mut self, patience: &mut Patience) -> Tried {
        let sent = BootTime::now();
        let begun = Instant::now();
        let asked = match self.wait {
            Wait::Until(_) | Wait::Forever if is_paused() => self.ask_by_a_paused_clock().await,
            wait => self.ask(wait).await,
        };
        match asked {
            Ok(answer) => self.heard(&answer, sent).await,
            Err(Failure { error, is_final: true, .. }) => {
                Tried::Decided(Err(self.claim.untrusted(DOING, error)))
            }
            Err(Failure { was_reused: true, .. }) => Tried::Again,
            Err(failure) => {
                if failure.may_have_come && begun.elapsed() > Duration::from_secs(1) {
                    // It was there all the while.
                    patience.renew();
                }
                Tried::Later(failure.error)
            }
        }
    }

    async fn ask(&mut self, wait: Wait) -> Result<Answer, Failure> {
        let wait_ms = match wait {
            Wait::No => Some(0),
            Wait::Until(point) => {
                let left = point.saturating_duration_since(Instant::now());
                Some(u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
            }
            Wait::Forever => None,
        };
        let lease = self.claim.options.lease;
        let body = json!({
            "client": self.claim.client,
            "wait_ms": wait_ms,
            "lease_ms": lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)),
            "request_id": self.id,
        });
        let line = Arc::clone(&self.line);
        let knew = std::mem::replace(&mut self.may_be_granted, true);
        let asked = match wait {
            Wait::No => self.claim.ask_now("acquire", &body, &line, ANSWER).await,
            Wait::Until(_) | Wait::Forever => self.claim.ask("acquire", &body, &line).await,
        };
        self.may_be_granted = match &asked {
            Ok(answer) => knew && !answer::decides(answer),
            Err(failure) => knew || failure.may_have_come,
        };
        asked
    }

    /// A paused clock would be at any limit before the daemon answers, whose clock is
    /// not. So the daemon is asked without waiting first, and once more at the limit.
    async fn ask_by_a_paused_clock(&mut self) -> Result<Answer, Failure> {
        let asked = self.ask(Wait::No).await;
        if !asked.as_ref().is_ok_and(answer::is_busy) {
            return asked;
        }
        // The request with the last one is over.
        self.rename().map_err(Failure::before)?;
        let claim = Arc::clone(&self.claim);
        let waiting = claim.hand_over.wait();
        let Wait::Until(limit) = self.wait else {
            return self.ask(self.wait).await;
        };
        if let Ok(asked) = timeout_at(limit, self.ask(self.wait)).await {
            return asked;
        }
        drop(waiting);
        self.ask(Wait::No).await
    }

    async fn heard(&mut self, answer: &Answer, sent: BootTime) -> Tried {
        let granted = match answer::read::<Granted>(answer) {
            Ok(granted) => granted,
            Err(refusal) if refusal.is_busy() => {
                return Tried::Decided(Ok(Outcome::Busy(refusal.holder)));
            }
            Err(refusal) if refusal.is_over() => {
                return self.again();
            }
            Err(refusal) if refusal.is_passing() => {
                return Tried::Later(io::Error::other(refusal.message));
            }
            Err(refusal) => return Tried::Decided(Err(self.claim.refused(DOING, refusal))),
        };
        let Ok(token) = granted.token.parse() else {
            let found = format!("its token is {:?}", granted.token);
            return Tried::Decided(Err(self.claim.strange(DOING, found)));
        };
        let tenure = Tenure::new(Arc::clone(&self.claim), token, sent);
        self.enter(Hold::new(tenure), sent).await
    }

    /// A grant that was waited for may be older than its lease here. (R1)
    async fn enter(&mut self, hold: Hold, mut sent: BootTime) -> Tried {
        if hold.tenure.is_aged(sent) {
            let (mut patience, mut again) = (self.claim.patience(), BootTime::now());
            loop {
                match hold.tenure.renew(true).await {
                    Renewal::Renewed => break,
                    Renewal::NotHeld => {
                        hold.forget();
                        return self.again();
                    }
                    Renewal::Failed(error) => {
                        if let Err(Exhausted { tried, error }) = patience.pause(error).await {
                            let error = self.claim.unreachable(DOING, tried, error);
                            return Tried::Decided(Err(error));
                        }
                        again = BootTime::now();
                    }
                }
            }
            sent = again;
        }
        let keeping = Arc::clone(&hold.tenure).keep(sent);
        let renewing = AbortOnDropHandle::new(tokio::spawn(keeping));
        Tried::Decided(Ok(Outcome::Granted(RemoteGuard::new(renewing, hold))))
    }

    /// Nobody wants it any more, and it is not known whether it was granted:
    /// ask once more, without waiting, and give back what comes. (R3)
    async fn settle(mut self) {
        self.line = Arc::new(Line::default());
        let mut patience = self.claim.patience();
        loop {
            let error = match self.ask(Wait::No).await {
                Ok(answer) => match answer::read::<Granted>(&answer) {
                    Ok(granted) => {
                        if let Ok(token) = granted.token.parse() {
                            let now = BootTime::now();
                            drop(Hold::new(Tenure::new(Arc::clone(&self.claim), token, now)));
                        }
                        return;
                    }
                    Err(refusal) if refusal.is_passing() => io::Error::other(refusal.message),
                    Err(_) => return,
                },
                Err(failure) => failure.error,
            };
            if let Err(Exhausted { error, .. }) = patience.pause(error).await {
                let (server, resource) = (self.claim.server.url(), &self.claim.resource);
                tracing::warn!(server, resource, %error, "a lock that nobody wants may be held");
                return;
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
