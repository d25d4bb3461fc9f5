//! A lease, and how it is kept up.
//!
//! A server counts a lease of the length T from when the request came that began or
//! renewed it. Here it counts from before that request was sent, and may be relied on
//! for T × 10/11 − 0.25 s: up to D. The eleventh is for two clocks with rates that differ
//! by a tenth. The quarter of a second is for a thread that does not run at once. Both
//! clocks run while their machine is suspended.

use std::future::{Future, pending};
use std::io;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::sys::boot_clock::{Alarm, BootTime};
use crate::sys::mutex::Mutex;
use crate::sys::process_key::{ProcessKey, this_process};

/// A lease is renewed when a third of it has passed: two more tries are left then. If
/// larger, renewals cost more.
pub(crate) const RENEWED_AFTER: u32 = 3;

/// An eleventh of a lease is kept back for clocks that do not run alike. If larger, clocks
/// may differ less.
const DRIFT: u32 = 11;

/// And so much for a thread that runs late, or a quarter of what is left if that is less.
/// If larger, short leases are lost without need.
const LATENESS: Duration = Duration::from_millis(250);

/// Between two looks at a hold without a lease. If larger, its end is noticed later.
const LOOK: Duration = Duration::from_secs(10);

/// As many tries to renew fit between two renewals. If larger, a server that is away is
/// asked more often.
const TRIES: u32 = 10;

/// What this process knows of a lease.
pub(crate) struct LeaseState {
    process: ProcessKey,
    terms: Mutex<Terms>,
    /// Cancelled when the lease is over.
    lost: CancellationToken,
}

struct Terms {
    /// As the server granted it; `None` is for ever.
    length: Option<Duration>,
    /// D.
    deadline: Option<BootTime>,
    over: Option<Over>,
}

/// Why a lease cannot be relied on any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// D has passed.
    Expired,
    /// The server says so.
    Ended,
    /// The lease is that of the process from which this one was forked.
    Forked,
}

/// What a request to renew came to.
pub(crate) enum Renewal {
    /// For so long, from when the request was sent.
    Renewed(Option<Duration>),
    /// There is no such lease, or not any more.
    NotHeld,
    Failed(io::Error),
}

impl LeaseState {
    /// `sent`: before the request was sent that was granted.
    pub(crate) fn new(sent: BootTime, length: Option<Duration>) -> Self {
        let terms = Terms { length, deadline: deadline(sent, length), over: None };
        let (process, lost) = (this_process(), CancellationToken::new());
        Self { process, terms: Mutex::new(terms), lost }
    }

    /// Asked before any mutex is locked, which a thread of the parent may hold. (L2)
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == this_process()
    }

    /// Why the lease is over, if it is, by the clock of now. (L4)
    pub(crate) fn over(&self) -> Option<Over> {
        if !self.is_of_this_process() {
            return Some(Over::Forked);
        }
        let mut terms = self.terms();
        if terms.over.is_none() && terms.deadline.is_some_and(BootTime::is_past) {
            terms.over = Some(Over::Expired);
            self.lost.cancel();
        }
        terms.over
    }

    /// How much longer the lease may be relied on as things are.
    #[cfg(any(feature = "etcd", feature = "postgres"))]
    pub(crate) fn remaining(&self) -> Duration {
        match self.over() {
            Some(_) => Duration::ZERO,
            None => self.terms().deadline.map_or(Duration::MAX, BootTime::remaining),
        }
    }

    /// Resolves when the lease is over, which [`keep`](Self::keep) notices.
    pub(crate) async fn lost(&self) -> Over {
        loop {
            if let Some(over) = self.over() {
                return over;
            }
            self.lost.cancelled().await;
        }
    }

    /// Cancelled when the lease is over.
    pub(crate) fn lost_token(&self) -> CancellationToken {
        match self.over() {
            // (L2)
            Some(_) => {
                let cancelled = CancellationToken::new();
                cancelled.cancel();
                cancelled
            }
            None => self.lost.child_token(),
        }
    }

    /// For a lease that no guard relies on yet: it begins though it is over by the clock.
    pub(crate) fn begin_anew(&self, sent: BootTime, length: Option<Duration>) {
        let mut terms = self.terms();
        (terms.length, terms.deadline) = (length, deadline(sent, length));
    }

    /// The server counts from `sent`. (L4)
    fn renewed(&self, sent: BootTime, length: Option<Duration>) {
        if self.over().is_none() {
            self.begin_anew(sent, length);
        }
    }

    /// The server says so.
    pub(crate) fn end(&self) {
        self.terms().over.get_or_insert(Over::Ended);
        self.lost.cancel();
    }

    /// Renew until the lease is over, on the thread of (L1).
    pub(crate) async fn keep<R, F>(&self, sent: BootTime, mut renew: R, tell: impl Fn(io::Error))
    where
        R: FnMut() -> F,
        F: Future<Output = Renewal>,
    {
        let alarm = Alarm::new();
        let (mut next, mut is_told) = (sent.after(self.period()), false);
        while self.over().is_none() {
            let deadline = self.terms().deadline;
            if !next.is_past() {
                sleep_until(&alarm, Some(deadline.map_or(next, |deadline| deadline.min(next))))
                    .await;
                continue;
            }
            let begun = BootTime::now();
            let renewal = tokio::select! {
                biased;
                () = sleep_until(&alarm, deadline) => continue,
                renewal = renew() => renewal,
            };
            match renewal {
                Renewal::Renewed(length) => {
                    self.renewed(begun, length);
                    (next, is_told) = (begun.after(self.period()), false);
                }
                Renewal::NotHeld => return self.end(),
                Renewal::Failed(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tell(error);
                    }
                    next = BootTime::now().after(self.period() / TRIES);
                }
            }
        }
    }

    fn period(&self) -> Duration {
        self.terms().length.map_or(LOOK, |length| length / RENEWED_AFTER)
    }

    fn terms(&self) -> MutexGuard<'_, Terms> {
        self.terms.lock()
    }
}

/// D.
fn deadline(sent: BootTime, length: Option<Duration>) -> Option<BootTime> {
    length.map(|length| sent.after(relied_on(length)))
}

fn relied_on(length: Duration) -> Duration {
    let left = length - length / DRIFT;
    left - LATENESS.min(left / 4)
}

/// Until this point, or for ever. Without an alarm, as when no more files can be opened,
/// by Tokio's clock, which a suspend delays.
async fn sleep_until(alarm: &io::Result<Alarm>, point: Option<BootTime>) {
    let Some(point) = point else {
        return pending().await;
    };
    match alarm {
        Ok(alarm) if alarm.ring_at(Some(point)).await.is_ok() => {}
        _ => tokio::time::sleep(point.remaining()).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_drift_and_a_quarter_of_a_second_are_kept_back() {
        let relied_on = |millis| relied_on(Duration::from_millis(millis)).as_micros();
        assert_eq!(relied_on(11_000), 9_750_000);
        assert_eq!(relied_on(30_000), 27_022_727);
        // The shortest with the whole quarter of a second, and shorter ones.
        assert_eq!(relied_on(1_100), 750_000);
        assert_eq!(relied_on(550), 375_000);
        assert_eq!(relied_on(110), 75_000);
        assert!(super::relied_on(Duration::MAX) < Duration::MAX);
    }

    #[test]
    fn what_is_over_stays_over() {
        let lease = LeaseState::new(BootTime::now(), Some(Duration::ZERO));
        let token = lease.lost.child_token();
        assert_eq!(lease.over(), Some(Over::Expired));
        assert!(token.is_cancelled());
        let length = Some(Duration::from_secs(3600));
        lease.renewed(BootTime::now(), length);
        assert_eq!(lease.over(), Some(Over::Expired));
        lease.end();
        assert_eq!(lease.over(), Some(Over::Expired));
    }
}
