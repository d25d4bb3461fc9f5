//! The time between two looks at a busy lock.
//!
//! 1. A contender listens before the look that it relies on.
//! 2. The close of a file is an event, and so is the end of a process that is followed.
//!    Holders of this crate give such an event at release, and so does each that dies.
//! 3. The event may come a little before the lock is free: then there are rechecks.
//! 4. Some ends give no event. For these a contender looks when time has passed.
//! 5. A contender lets its predecessors go first, for a [`BARGE_DELAY`] after an
//!    event. Then it may barge, until the next event: one that is stopped does not hold up
//!    the rest.
//! 6. A contender with two predecessors or more is asleep until something becomes of one
//!    of the last two, whose [`Presence`] it watches. So a release wakes three processes,
//!    however many wait.
//! 7. It watches first, and looks then whether they still stand in line. A contender gives
//!    up its ticket before it ends its presence. So a waiter that wakes sees the predecessors that are left.
//! 8. A holder has left the line before its user goes on. Its presence ends when its thread
//!    has time, at the latest with the hold.
//!
//! | after | the next look is |
//! |---|---|
//! | an event | at once, and again by [`FIRST_RECHECK`] and [`Policy::last_recheck`] |
//! | a look that found predecessors | after [`BARGE_DELAY`] |
//! | a look from behind two predecessors | after a retry period, each time twice as long |
//! | any other look | by [`Policy::first_look`], at the latest after [`FALLBACK_PERIODS`] |
//!
//! [`BARGE_DELAY`]: super::follow_predecessors::BARGE_DELAY

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::follow_predecessors::PredecessorWatch;
use super::jitter::jittered;
use super::options::WaitOptions;
use crate::sys::events::{Event, Following, Subscription, UNLOCKS_ARE_HEARD};
use crate::sys::path::LockPath;
use crate::sys::sharing::Sharing;
use crate::sys::tickets::Ticket;
use crate::sys::wait_pipe::Presence;

/// How many `retry_period`s pass between two looks while events are heard. They are only
/// for what gives no event (4). More would leave such a lock unused longer.
const FALLBACK_PERIODS: u32 = 30;

/// After a close the lock may not be free yet (3): look again after this, and each time
/// after twice as long. A longer time is lost at each such release.
const FIRST_RECHECK: Duration = Duration::from_millis(1);

/// What differs between the kinds of locks.
pub(crate) struct Policy {
    /// The first look without an event (4), each next one after twice as long. `None` where
    /// an end without an event is rare: all looks are seldom then.
    pub(crate) first_look: Option<Duration>,
    /// The longest time to a recheck (3). Longer ones are for closes that are slow.
    pub(crate) last_recheck: Duration,
}

/// Drop this when there is time: a holder that waited has the lock, and should not wait for
/// that too. What must not be there any longer is to be ended first, as the thread may
/// be busy with the lock for as long as it is held.
fn put_away_later(what: impl Send + 'static) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move { drop(what) })),
        Err(_) => drop(what),
    }
}

/// Waits for the next reason to look at a busy lock: an event, or the passing of time.
pub(crate) struct Wakeup {
    path: Arc<LockPath>,
    /// Names the waiters for the same.
    label: Arc<LockPath>,
    /// `None` for a lock that cannot be shared.
    sharing: Option<Sharing>,
    policy: &'static Policy,
    retry_period: Duration,
    fallback_period: Option<Duration>,
    has_events: bool,
    subscription: Option<Subscription>,
    ticket: Option<Ticket>,
    /// There are no predecessors; that stays so.
    is_first: bool,
    predecessors: PredecessorWatch,
    /// Time has passed since the last event (5).
    may_barge: bool,
    /// An event was the reason for the look that is due.
    has_heard: bool,
    recheck: Option<Duration>,
    next_look: Option<Duration>,
    last_hold: Option<String>,
    /// The last look found other names than the one before.
    has_new_names: bool,
}

/// Where a contender stands when it is about to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    First,
    /// Predecessors go first.
    Behind,
    /// Predecessors had their time (5).
    MayBarge,
}

/// What a contender waits for.
pub(crate) struct Blocker {
    /// Names the hold, where that is known.
    pub(crate) hold: Option<String>,
    /// The names whose close counts: one of them is the holder's file. `None` if no look was
    /// made.
    pub(crate) closes: Option<[PathBuf; 2]>,
    /// The process whose end would free the lock.
    pub(crate) process: Option<u32>,
    /// Its process was seen to run from here.
    pub(crate) was_seen: bool,
    /// When to look again at the latest.
    pub(crate) at_most: Option<Duration>,
}

impl Blocker {
    /// A holder of which nothing is known.
    pub(crate) const UNKNOWN: Self =
        Self { hold: None, closes: None, process: None, was_seen: false, at_most: None };

    /// Something that is no holder, as far as is known. To be looked for again then.
    pub(crate) fn unseen(at_most: Duration) -> Self {
        Self { at_most: Some(at_most), ..Self::UNKNOWN }
    }
}

impl Wakeup {
    pub(crate) fn new(
        path: &Arc<LockPath>,
        label: &Arc<LockPath>,
        sharing: Option<Sharing>,
        policy: &'static Policy,
        wait: &WaitOptions,
        has_events: bool,
    ) -> Self {
        Self {
            path: Arc::clone(path),
            label: Arc::clone(label),
            sharing,
            policy,
            retry_period: wait.retry_period,
            fallback_period: wait.fallback_period,
            has_events,
            subscription: None,
            ticket: None,
            is_first: false,
            predecessors: PredecessorWatch::default(),
            may_barge: false,
            has_heard: false,
            recheck: None,
            next_look: policy.first_look,
            last_hold: None,
            has_new_names: false,
        }
    }

    /// Get ready for a look that is relied on, which comes after this (1).
    pub(crate) fn listen(&mut self) -> Position {
        if !self.has_events {
            return Position::First;
        }
        if self.subscription.is_none() {
            self.subscription = Subscription::begin(&self.path);
        }
        self.stand_in_line();
        if self.may_barge && self.predecessors.is_asleep() {
            if self.predecessors.sleeps_on() {
                return Position::MayBarge;
            }
            self.may_barge = false;
        }
        let is_early = self.is_first || self.may_barge;
        if let (Some(ticket), Some(subscription), false) =
            (&self.ticket, &mut self.subscription, is_early)
        {
            self.predecessors.look(ticket, subscription);
            if self.predecessors.is_asleep() {
                return Position::Behind;
            }
        }
        self.renew_subscription();
        match (self.is_preceded(), self.may_barge) {
            (false, _) => Position::First,
            (true, true) => Position::MayBarge,
            (true, false) => Position::Behind,
        }
    }

    fn stand_in_line(&mut self) {
        match (&mut self.ticket, self.sharing) {
            (Some(ticket), _) => ticket.publish(),
            (None, _) if self.subscription.is_none() => {}
            (ticket, None) => *ticket = Ticket::take(&self.label),
            (ticket, Some(sharing)) => *ticket = Ticket::take_as(&self.label, sharing),
        }
    }

    fn renew_subscription(&mut self) {
        // What is heard is heard of the right directory, or of that it is not.
        let has_heard = std::mem::take(&mut self.has_heard);
        let listens = |subscription: &Subscription| {
            subscription.follows_directory() && !subscription.is_shaken()
        };
        if !has_heard || !self.subscription.as_ref().is_some_and(listens) {
            self.subscription =
                Subscription::follow_directory(self.subscription.take(), &self.path);
            if self.ticket.as_mut().is_some_and(|ticket| ticket.follow(&self.label)) {
                (self.predecessors, self.is_first) = (PredecessorWatch::default(), false);
            }
        }
    }

    fn is_preceded(&mut self) -> bool {
        let Some(ticket) = self.ticket.as_ref().filter(|_| !self.is_first) else {
            return false;
        };
        self.is_first = !ticket.is_preceded();
        !self.is_first
    }

    /// Whether it can be seen in the line.
    pub(crate) fn stands_in_line(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether time has passed since the last event.
    pub(crate) fn may_barge(&self) -> bool {
        self.may_barge
    }

    /// Whether an event is the reason for the look that is due.
    pub(crate) fn has_heard(&self) -> bool {
        self.has_heard
    }

    /// The predecessors, which go first. They see to what an event may have been too early
    /// for.
    pub(crate) fn precedence(&mut self) -> Blocker {
        self.recheck = None;
        Blocker::unseen(self.predecessors.barge_delay(self.retry_period))
    }

    /// The lock was acquired: its successor is next at once, and hears of it when this
    /// thread has time. What is to end with the hold (8).
    pub(crate) fn end(mut self) -> Option<Presence> {
        let mut ticket = self.ticket.take()?;
        ticket.give_up();
        let presence = ticket.presence();
        put_away_later((ticket, self.subscription.take()));
        presence
    }

    /// Whether this contender's turn is near, and it just heard that a file of the lock was
    /// removed or moved.
    pub(crate) fn has_heard_a_write(&self) -> bool {
        let is_near = !self.predecessors.is_asleep();
        let subscription = self.subscription.as_ref().filter(|_| is_near);
        subscription.is_some_and(Subscription::has_heard_a_write)
    }

    /// What hears of the holder's end. `None` for a contender that needs not, as it sleeps
    /// behind its predecessors, or cannot.
    pub(crate) fn subscription(&mut self) -> Option<&mut Subscription> {
        let is_near = !self.predecessors.is_asleep();
        self.subscription.as_mut().filter(|_| is_near)
    }

    /// Until it is worth looking again. Whether that is so by the passing of time alone.
    pub(crate) async fn until_next_look(&mut self, blocker: Blocker) -> bool {
        let is_another = blocker.hold != self.last_hold;
        if is_another {
            // Another hold. The close that was just heard may be its end all the same.
            self.recheck = self.recheck.filter(|recheck| *recheck == FIRST_RECHECK);
            self.last_hold = blocker.hold;
        }
        let longest = |periods| {
            let long = self.retry_period.saturating_mul(periods);
            self.fallback_period.unwrap_or(long)
        };
        if self.predecessors.is_asleep() {
            let (ticket, subscription) = (self.ticket.as_ref(), self.subscription.as_ref());
            let longest = longest(FALLBACK_PERIODS);
            let slept = self.predecessors.sleep(ticket, subscription, self.retry_period, longest);
            self.has_heard = slept.await;
            self.may_barge = !self.has_heard;
            return self.may_barge;
        }
        let Some(subscription) = &mut self.subscription else {
            self.may_barge = blocker.at_most.is_some();
            tokio::time::sleep(shortest(longest(1), blocker.at_most, None)).await;
            return true;
        };
        let mut following = Following::Heard;
        if let Some(closes) = blocker.closes {
            // A look with other names is to follow (1). Where that one finds other names
            // again, tasks hand the file off faster than it can be looked at: then time
            // has to pass, or the thread would do nothing else.
            let is_new = subscription.await_closes(closes);
            let was_new = std::mem::replace(&mut self.has_new_names, is_new);
            if is_new && !was_new {
                return false;
            }
            if is_new {
                self.recheck = Some(FIRST_RECHECK);
            }
            following = subscription.follow_process(blocker.process);
        }
        let periods = match following {
            // It ended since the look, or a contender that judges the dead holder's file
            // was in the way: the next look will tell.
            Following::Gone => {
                let is_news = is_another || blocker.was_seen || !UNLOCKS_ARE_HEARD;
                self.recheck = self.recheck.or(is_news.then_some(FIRST_RECHECK));
                FALLBACK_PERIODS
            }
            Following::Unheard if blocker.was_seen || !UNLOCKS_ARE_HEARD => 1,
            Following::Heard | Following::Unheard => FALLBACK_PERIODS,
        };
        let longest = longest(periods);
        // A blocker's own time goes before the policy's.
        let first_look = self.next_look.filter(|_| blocker.at_most.is_none());
        let period = first_look.map_or(longest, |next_look| next_look.min(longest));
        self.may_barge = true;
        tokio::select! {
            biased;
            heard = subscription.event() => {
                (self.may_barge, self.has_heard) = (false, true);
                self.next_look = self.policy.first_look;
                if heard == Event::Close {
                    self.recheck = Some(FIRST_RECHECK);
                }
                return false;
            }
            () = tokio::time::sleep(shortest(period, blocker.at_most, self.recheck)) => {}
        }
        let is_recheck = self.recheck.is_some();
        if is_recheck {
            let last = self.policy.last_recheck;
            self.recheck = self.recheck.map(|time| time * 2).filter(|time| *time <= last);
        } else if blocker.at_most.is_none() {
            self.next_look = self.next_look.map(|_| period.saturating_mul(2));
        }
        !is_recheck
    }
}

fn shortest(period: Duration, at_most: Option<Duration>, recheck: Option<Duration>) -> Duration {
    [at_most, recheck].into_iter().flatten().fold(jittered(period), Duration::min)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    const POLICY: Policy = Policy { first_look: None, last_recheck: Duration::from_millis(8) };

    /// A look that finds another hold is to be followed at once, but not each time: tasks
    /// can hand a file off faster than it can be looked at.
    #[tokio::test]
    async fn other_names_at_each_look_do_not_keep_the_thread() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = Arc::new(LockPath::new(&directory.path().join("lock")).unwrap());
        let wait = WaitOptions::BUILT_IN;
        let mut wakeup = Wakeup::new(&path, &path, None, &POLICY, &wait, true);
        let blocker = |number: usize| {
            let name = |word| directory.path().join(format!("{word}.{number}"));
            let closes = Some([name("inode"), name("candidate")]);
            Blocker { hold: Some(number.to_string()), closes, ..Blocker::UNKNOWN }
        };
        let mut pending = 0;
        for number in 0..10 {
            wakeup.listen();
            let mut waiting = pin!(wakeup.until_next_look(blocker(number)));
            if waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                pending += 1;
                waiting.await;
            }
        }
        assert!(pending >= 8, "{pending} of 10 waits took no time");
    }

    /// A holder may die after the look that saw it alive, and before its end is listened
    /// for. Elsewhere the close of its file is heard.
    #[cfg(windows)]
    #[tokio::test]
    async fn the_file_of_a_process_that_has_just_ended_is_looked_at_again() {
        const HOUR: Duration = Duration::from_secs(3600);
        let mut child = std::process::Command::new("cmd").args(["/c", "exit"]).spawn().unwrap();
        child.wait().unwrap();
        let directory = tempfile::TempDir::new().unwrap();
        let path = Arc::new(LockPath::new(&directory.path().join("lock")).unwrap());
        let wait = WaitOptions { retry_period: HOUR, ..WaitOptions::BUILT_IN };
        let mut wakeup = Wakeup::new(&path, &path, None, &POLICY, &wait, true);
        for _ in 0..3 {
            let closes = Some(["one", "other"].map(|name| directory.path().join(name)));
            let (hold, process) = (Some("a hold".to_owned()), Some(child.id()));
            wakeup.listen();
            let look =
                wakeup.until_next_look(Blocker { hold, closes, process, ..Blocker::UNKNOWN });
            tokio::time::timeout(Duration::from_secs(60), look).await.expect("a look is due");
        }
    }
}
