//! One request for a lock, sent again under the same id until it is answered.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::sync::oneshot;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::guard::RemoteGuard;
use super::hang_up::HangUp;
use super::hold::{Hold, Lease};
use super::no_response::NoResponse;
use super::response::{self, Response};
use super::target::Target;
use crate::lease::{
    self, Acquiring, Background, Exhausted, Gone, Patience, RESPONSE_LIMIT, Renewal, WaitEnd,
};
use crate::lock::error::Error;
use crate::lock::name::LockName;
use crate::lock::wait::{Acquired, Busy};
use crate::sys::boot_clock::BootTime;
use crate::sys::random;
use crate::wire::{self, Granted, Milliseconds};

const DOING: &str = "locking";

/// How much later than its limit a wait may end: the daemon has the last word. If larger,
/// a daemon that is stalled keeps its callers longer than they asked for.
const OVERRUN: Duration = Duration::from_secs(1);

/// A connection that lasted longer before it broke was to a daemon that was there. If
/// larger, the patience with a daemon that breaks off soon is not renewed.
const WAS_THERE: Duration = Duration::from_secs(1);

/// How a request ended.
type Decided = lease::Decided<RemoteGuard>;

impl lease::Target for Target {
    type Guard = RemoteGuard;

    fn name(&self) -> LockName {
        Target::name(self)
    }

    fn background(&self) -> &Background {
        &self.background
    }

    fn failed(&self, error: io::Error) -> Error {
        self.unreachable("locking", Duration::ZERO, error)
    }

    fn acquire(
        self: &Arc<Self>,
        end: WaitEnd,
        outcome: oneshot::Sender<Decided>,
        gone: Gone,
    ) -> Result<Acquiring, Error> {
        Ok(Box::pin(Acquisition::new(self, end)?.run(outcome, gone)))
    }
}

struct Acquisition {
    target: Arc<Target>,
    /// R2.
    id: String,
    wait_end: WaitEnd,
    hang_up: Arc<HangUp>,
    /// The daemon may have granted the lock under this id.
    may_be_granted: bool,
}

/// What one try came to.
enum NextStep {
    Decided(Decided),
    /// At once, with what this acquisition knows now.
    Again,
    Later(io::Error),
}

impl Acquisition {
    /// # Errors
    /// There are no random bits for its id.
    fn new(target: &Arc<Target>, wait_end: WaitEnd) -> Result<Self, Error> {
        let id = new_id();
        let id = id.map_err(|error| target.unreachable(DOING, Duration::ZERO, error))?;
        let (target, hang_up) = (Arc::clone(target), Arc::new(HangUp::default()));
        Ok(Self { target, id, wait_end, hang_up, may_be_granted: false })
    }

    /// Ask under another id: the grant of the last one has ended.
    fn again(&mut self) -> NextStep {
        match new_id() {
            Ok(id) => {
                self.id = id;
                NextStep::Again
            }
            Err(error) => NextStep::Later(error),
        }
    }

    /// Ask until there is an outcome, or the caller is gone.
    async fn run(mut self, outcome: oneshot::Sender<Decided>, mut gone: Gone) {
        let hang_up = Arc::clone(&self.hang_up);
        let scheduled = {
            let mut asking = pin!(self.persist());
            tokio::select! {
                biased;
                decided = &mut asking => {
                    // If the caller is gone by now, a guard in it releases the lock. What
                    // the caller scheduled stays in `gone` until that is scheduled too.
                    let _ = outcome.send(decided);
                    return;
                }
                scheduled = &mut gone => {
                    hang_up.trigger();
                    // What was on its way: a guard in it releases the lock.
                    drop(timeout(RESPONSE_LIMIT, &mut asking).await);
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
        let deadline = match self.wait_end {
            WaitEnd::At(point) => Some(Instant::from_std(point)),
            _ => None,
        };
        let mut patience = self.target.patience().until(deadline);
        loop {
            let begun = Instant::now();
            match self.try_once(&mut patience, begun).await {
                NextStep::Decided(decided) => return decided,
                NextStep::Again => {}
                NextStep::Later(error) => {
                    if patience.is_trouble() {
                        let error = io::Error::new(error.kind(), error.to_string());
                        self.target.tell(error, "no answer, it is asked again");
                    }
                    if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await {
                        return Err(self.target.unreachable(DOING, tried, error));
                    }
                }
            }
            if self.hang_up.is_hung_up() {
                return Ok(Acquired::Busy(Busy::new(None)));
            }
        }
    }

    async fn try_once(&mut self, patience: &mut Patience, begun: Instant) -> NextStep {
        let sent = BootTime::now();
        let asked = self.ask().await;
        let lasted = begun.elapsed();
        let was_there = match &asked {
            Ok(_) => true,
            Err(failure) => failure.may_have_come && lasted > WAS_THERE,
        };
        if was_there && !matches!(self.wait_end, WaitEnd::Now) {
            patience.renew(lasted);
        }
        match asked {
            Ok(response) => self.heard(&response, sent).await,
            Err(failure) if failure.is_final() => {
                NextStep::Decided(Err(self.target.hopeless(DOING, failure)))
            }
            Err(NoResponse { was_reused: true, .. }) => NextStep::Again,
            Err(failure) => NextStep::Later(failure.error),
        }
    }

    async fn ask(&mut self) -> Result<Response, NoResponse> {
        let wait_ms = match self.wait_end {
            WaitEnd::Now => Some(0),
            WaitEnd::At(point) => {
                let left = point.saturating_duration_since(StdInstant::now());
                Some(u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
            }
            WaitEnd::Never | WaitEnd::WhenTold(_) => None,
        };
        let lease = self.target.options.lease;
        let body = wire::Acquire {
            resource: None,
            client: self.target.client.clone(),
            wait_ms: Some(wait_ms.map(Milliseconds)),
            lease_ms: lease
                .map(|lease| Milliseconds(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX))),
            request_id: Some(self.id.clone()),
        };
        let knew = std::mem::replace(&mut self.may_be_granted, true);
        let asked = self.exchange(&body).await.unwrap_or_else(|_| Err(NoResponse::silence()));
        self.may_be_granted = match &asked {
            Ok(response) => knew && !response::decides(response),
            Err(failure) => knew || failure.may_have_come,
        };
        asked
    }

    async fn exchange(
        &mut self,
        body: &wire::Acquire,
    ) -> Result<Result<Response, NoResponse>, Elapsed> {
        let hang_up = Arc::clone(&self.hang_up);
        let mut asking = pin!(self.target.ask("acquire", body, &hang_up));
        let ended = match &mut self.wait_end {
            WaitEnd::Now => return timeout(RESPONSE_LIMIT, asking).await,
            WaitEnd::At(point) => match point.checked_add(OVERRUN) {
                Some(end) => return timeout_at(Instant::from_std(end), asking).await,
                None => return Ok(asking.await),
            },
            WaitEnd::Never => return Ok(asking.await),
            WaitEnd::WhenTold(end) => end,
        };
        tokio::select! {
            biased;
            asked = &mut asking => return Ok(asked),
            Ok(()) = ended => {}
        }
        // What was granted meanwhile comes now, or with the next try.
        hang_up.trigger();
        (self.wait_end, self.hang_up) = (WaitEnd::Now, Arc::default());
        timeout(RESPONSE_LIMIT, asking).await
    }

    async fn heard(&mut self, response: &Response, sent: BootTime) -> NextStep {
        let granted = match response::read::<Granted<'_>>(response) {
            Ok(granted) => granted,
            Err(refusal) if refusal.is_busy() => {
                return NextStep::Decided(Ok(Acquired::Busy(refusal.busy())));
            }
            Err(refusal) if refusal.is_over() => return self.again(),
            Err(refusal) if refusal.is_passing() => {
                return NextStep::Later(io::Error::other(refusal.message));
            }
            Err(refusal) => return NextStep::Decided(Err(self.target.refused(DOING, refusal))),
        };
        if granted.token.0 == u64::MAX {
            let found = "its token is no number below 2⁶⁴ − 1".to_owned();
            return NextStep::Decided(Err(self.target.strange(DOING, found)));
        }
        let lease = response::lease(granted.lease_ms, self.target.options.lease);
        let lease = Lease::new(Arc::clone(&self.target), granted.token, sent, lease);
        self.enter(Hold::new(lease), sent).await
    }

    /// Give the guard out. A grant that was waited for may be older than its lease here, and
    /// is renewed first. (R1)
    async fn enter(&mut self, mut hold: Hold, mut sent: BootTime) -> NextStep {
        if hold.lease.is_aged(sent) {
            let mut patience = self.target.patience();
            sent = loop {
                let (begun, again) = (Instant::now(), BootTime::now());
                match hold.lease.renew().await {
                    Renewal::Renewed(lease) => {
                        hold.lease.state.begin_anew(again, lease);
                        break again;
                    }
                    Renewal::NotHeld => {
                        hold.forget();
                        return self.again();
                    }
                    Renewal::Failed(error) => {
                        if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await
                        {
                            let error = self.target.unreachable(DOING, tried, error);
                            return NextStep::Decided(Err(error));
                        }
                    }
                }
            };
        }
        hold.keep(sent);
        NextStep::Decided(Ok(Acquired::Held(RemoteGuard::new(hold))))
    }

    /// The caller is gone, and a grant may have been lost on its way: ask once more,
    /// without waiting, and release what comes. (R3)
    async fn settle(mut self) {
        (self.wait_end, self.hang_up) = (WaitEnd::Now, Arc::default());
        let mut patience = self.target.patience();
        loop {
            let begun = Instant::now();
            let error = match self.ask().await {
                Ok(response) => match response::read::<Granted<'_>>(&response) {
                    Ok(Granted { token, .. }) => {
                        let target = Arc::clone(&self.target);
                        return drop(Hold::new(Lease::new(target, token, BootTime::now(), None)));
                    }
                    Err(refusal) if refusal.is_passing() => io::Error::other(refusal.message),
                    Err(_) => return,
                },
                Err(failure) => failure.error,
            };
            if let Err(Exhausted { error, .. }) = patience.pause(begun, error).await {
                return self.target.tell(error, "a lock that nobody wants may be held");
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
