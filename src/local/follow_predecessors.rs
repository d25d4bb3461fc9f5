//! A contender with at least two predecessors does not watch the lock's directory. It
//! watches only those two, and sleeps until one of them acquires the lock, gives up or
//! dies.
//!
//! The first two of a line always listen. They may both be stopped, or busy with
//! something else, while the lock is free. The contender behind them finds that out by
//! looking, and does not sleep behind them again.

use std::time::Duration;

use crate::sys::events::Subscription;
use crate::sys::tickets::{Ahead, Predecessor, Ticket};

/// How long a contender lets its predecessors go first, once the lock may be free:
/// many times what a process takes to wake. If longer, each stopped predecessor leaves
/// the lock unused so much longer.
pub(crate) const BARGE_DELAY: Duration = Duration::from_millis(10);

/// A line that changes under each of so many looks in a row moves on fast: the contender
/// stays awake until the next event. More looks would delay it.
const LOOKS_MAX: usize = 3;

/// The predecessors of one contender.
#[derive(Default)]
pub(crate) struct PredecessorWatch {
    sleep: Option<Sleep>,
    /// The contender does not sleep behind these: they may not act.
    wakeful: Option<[Predecessor; 2]>,
    /// The last two that were seen just before the contender.
    behind: Option<[Predecessor; 2]>,
    /// There are two or more, whose end cannot be heard of.
    is_far: bool,
}

/// Until something becomes of one of two predecessors.
#[derive(Clone, Copy)]
struct Sleep {
    predecessors: [Predecessor; 2],
    /// So many looks were made since anything was heard.
    looks: u32,
}

impl PredecessorWatch {
    pub(crate) fn is_asleep(&self) -> bool {
        self.sleep.is_some()
    }

    /// After [`sleep`](Self::sleep) ended with time: whether to go on with it
    /// once a look was made.
    pub(crate) fn sleeps_on(&mut self) -> bool {
        let stopped =
            self.sleep.take_if(|sleep| sleep.predecessors.iter().any(Predecessor::is_stopped));
        self.wakeful = stopped.map(|sleep| sleep.predecessors).or(self.wakeful);
        self.is_asleep()
    }

    /// Look for predecessors. With two, whose end will be heard, the contender is asleep
    /// now.
    ///
    /// 1. The contender sees its last two predecessors.
    /// 2. One of them gives up its ticket, and then closes its pipe.
    /// 3. The contender watches the pipes, which hear of later ends only.
    ///
    /// So it looks again once it watches, and sleeps if it sees the same two.
    pub(crate) fn look(&mut self, ticket: &Ticket, subscription: &mut Subscription) {
        (self.sleep, self.is_far) = (None, false);
        let mut ahead = ticket.ahead();
        for _ in 0..LOOKS_MAX {
            let Ahead::More(predecessors) = ahead else { break };
            if self.must_stay_awake(predecessors) {
                break;
            }
            if !subscription.follow_predecessors(predecessors) {
                self.is_far = true;
                break;
            }
            let now_ahead = ticket.ahead();
            if now_ahead == ahead {
                self.sleep = Some(Sleep { predecessors, looks: 0 });
                break;
            }
            ahead = now_ahead;
        }
    }

    /// How long predecessors may leave the lock free. The first two of a line see to each
    /// other. A contender that is awake behind them, as processes of other users are, need
    /// not look after each release.
    pub(crate) fn barge_delay(&self, period: Duration) -> Duration {
        if self.is_far { period.max(BARGE_DELAY) } else { BARGE_DELAY }
    }

    fn must_stay_awake(&mut self, predecessors: [Predecessor; 2]) -> bool {
        let [last, second] = predecessors;
        // The last went and the second is still there: it may not act.
        let is_stuck = |behind: [Predecessor; 2]| behind[1].is_same(&last);
        if self.behind.replace(predecessors).is_some_and(is_stuck) {
            self.wakeful = Some(predecessors);
        }
        let are_these =
            |these: [Predecessor; 2]| these[0].is_same(&last) && these[1].is_same(&second);
        self.wakeful.is_some_and(are_these)
    }

    /// Until something is heard, which is the answer, or it is time to look. The third of
    /// the line looks each `period`, the others each time after twice as long.
    pub(crate) async fn sleep(
        &mut self,
        ticket: Option<&Ticket>,
        subscription: Option<&Subscription>,
        period: Duration,
        longest: Duration,
    ) -> bool {
        let (Some(sleep), Some(subscription)) = (&mut self.sleep, subscription) else {
            return false;
        };
        let is_third = ticket.is_some_and(|ticket| ticket.are_first(sleep.predecessors));
        let doublings = if is_third { 0 } else { sleep.looks.min(16) };
        let time = period.saturating_mul(1 << doublings).min(longest);
        tokio::select! {
            biased;
            _ = subscription.event() => true,
            () = tokio::time::sleep(super::jitter::jittered(time)) => {
                sleep.looks += 1;
                false
            }
        }
    }
}
