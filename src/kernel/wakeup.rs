//! The time between two looks at a busy kernel lock.
//!
//! 1. A contender listens before the look it relies on.
//! 2. The close of a file that was open for writing is an event; holders of
//!    this crate give it at release, and so do all that die. A close of a file
//!    that was open for reading is one for who watches that very file, which one
//!    contender of a process can. The others, and those for a directory, follow
//!    the process that took the lock, where the kernel tells which it is: it takes
//!    long to, at the cost of all processors.
//! 3. An unlock without a close is no event. For that a contender looks, each
//!    time after twice as long.
//! 4. An event may come before the lock is free: then there are echoes.
//! 5. Who came earlier goes first. A writer lets earlier ones pass for
//!    [a while](Line::deference) after an event. A reader lets earlier writers pass as long
//!    as anybody has the lock, and so long after: readers who come all the time
//!    cannot keep a writer out, and a writer that is stopped while it waits
//!    cannot keep readers out.
//! 6. Whoever comes after two writers or more is asleep until something becomes
//!    of one of the last two, whose [`Presence`] it watches. It watches first and
//!    looks then whether they still stand in line, and who goes gives up its ticket
//!    before it ends its presence: so whoever wakes sees who is left, and the
//!    first two of the line listen, or the one that is second now watches who was
//!    first. Whoever has the lock has left the line before its user goes on, but ends
//!    its presence when its thread has time, at the latest when it has given the lock
//!    back. Should those before be stopped, a look now and then finds that out.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FileType;
use tokio::time::sleep;

use super::holder;
use super::open_file::OpenFile;
use super::shared::{LockInner, LockState};
use super::syscalls::{LockSpec, Sharing};
use crate::local::executor::Started;
use crate::local::follow_predecessors::Line;
use crate::local::wakeup::{jittered, put_away_later};
use crate::sys::inotify::{Following, Subscription};
use crate::sys::tickets::{Ahead, Ticket};
use crate::sys::wait_pipe::Presence;

/// How many `retry_period`s may pass between two looks while events are heard.
const FALLBACK_PERIODS: u32 = 30;

/// The first look without an event (3): most waits are over by then, and need
/// not ask whose process to follow.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// After an event the lock may not be free yet (4).
const FIRST_ECHO: Duration = Duration::from_millis(1);
const LAST_ECHO: Duration = Duration::from_millis(8);

/// What the next look may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayTry {
    /// Others go first.
    None,
    /// Try for a shared lock only if nobody has any.
    IfFree,
    Full,
}

impl MayTry {
    /// For a try after which there is no other.
    pub(super) fn at_last(self, sharing: Sharing) -> Self {
        match (self, sharing) {
            (MayTry::None, Sharing::Shared) => MayTry::IfFree,
            (MayTry::None, Sharing::Exclusive) => MayTry::Full,
            (right, _) => right,
        }
    }
}

pub(super) struct Wakeup {
    lock: Arc<LockInner>,
    state: Arc<LockState>,
    sharing: Sharing,
    ticket: Option<Ticket>,
    subscription: Option<Subscription>,
    line: Line,
    /// Nobody came earlier; that stays so.
    is_first: bool,
    /// Somebody did, as was just seen.
    is_behind: bool,
    /// An event was the reason for the look that is due.
    has_heard: bool,
    /// Time has passed since the last event.
    is_quiet: bool,
    /// Which process is in the way is being asked: the kernel lists all locks.
    asking: Option<Started<Option<u32>>>,
    /// Once between two looks.
    may_ask: bool,
    /// Any close of the file will be heard, or the end of a process that was in
    /// the way. Until anything is, it is not asked again which that is.
    is_following: bool,
    echo: Option<Duration>,
    next_look: Duration,
}

impl Wakeup {
    pub(super) fn new(lock: &Arc<LockInner>, state: &Arc<LockState>, sharing: Sharing) -> Self {
        Self {
            lock: Arc::clone(lock),
            state: Arc::clone(state),
            sharing,
            ticket: None,
            subscription: None,
            line: Line::default(),
            is_first: false,
            is_behind: false,
            has_heard: false,
            is_quiet: false,
            asking: None,
            may_ask: false,
            is_following: false,
            echo: None,
            next_look: FIRST_LOOK,
        }
    }

    /// To be called before the look that is relied on (1).
    pub(super) fn listen(&mut self) {
        if !self.state.executor.has_events() {
            return;
        }
        if self.subscription.is_none() {
            self.subscription = Subscription::begin(&self.lock.path);
            self.is_following = false;
        }
        if self.ticket.is_none() && self.subscription.is_some() {
            self.ticket = Ticket::take_as(&self.lock.label, self.sharing);
        } else if let Some(ticket) = &mut self.ticket {
            ticket.publish();
        }
        let has_heard = std::mem::take(&mut self.has_heard);
        if self.may_sleep() {
            return;
        }
        // What is heard is heard of the right directory, or of that it is not.
        let listens = |subscription: &Subscription| {
            subscription.follows_directory() && !subscription.is_shaken()
        };
        if !has_heard || !self.subscription.as_ref().is_some_and(listens) {
            self.subscription =
                Subscription::follow_directory(self.subscription.take(), &self.lock.path);
            if self.ticket.as_mut().is_some_and(|ticket| ticket.follow(&self.lock.label)) {
                (self.line, self.is_first) = (Line::default(), false);
            }
        }
    }

    /// Whether others will look before this one needs to, and will be heard (6).
    fn may_sleep(&mut self) -> bool {
        self.is_behind = false;
        if self.is_quiet {
            return self.line.is_asleep() && self.line.sleeps_on();
        }
        if let (Some(ticket), Some(subscription), false) =
            (&self.ticket, &mut self.subscription, self.is_first)
        {
            self.is_behind = self.line.look(ticket, subscription) != Ahead::Nobody;
        }
        self.line.is_asleep()
    }

    /// The lock was acquired: somebody else is next at once. What is to end with the
    /// hold (6).
    pub(super) fn end(mut self) -> Option<Presence> {
        let mut ticket = self.ticket.take()?;
        ticket.give_up();
        let presence = ticket.presence();
        put_away_later((ticket, self.subscription.take())); // (6)
        presence
    }

    pub(super) fn may_try(&mut self) -> MayTry {
        if !self.is_preceded() {
            return MayTry::Full;
        }
        match (self.is_quiet, self.sharing) {
            (false, _) => MayTry::None,
            (true, Sharing::Exclusive) => MayTry::Full,
            (true, Sharing::Shared) => MayTry::IfFree,
        }
    }

    fn is_preceded(&mut self) -> bool {
        let Some(ticket) = &self.ticket else {
            // It cannot be seen in the line, but those it would get in the way of can.
            let waiters = self.state.waiters(&self.lock);
            let is_shared = self.sharing == Sharing::Shared;
            return is_shared && waiters.is_some_and(|others| others.precede(self.sharing));
        };
        if self.is_first {
            return false;
        }
        let is_preceded = self.is_behind || self.line.is_asleep() || ticket.is_preceded();
        self.is_first = !is_preceded;
        is_preceded
    }

    /// Until it is worth looking again. `is_passed` says that this contender has
    /// no right to try now, so that others can go first.
    pub(super) async fn until_next_look(&mut self, is_passed: bool) {
        if self.line.is_asleep() {
            let shared = &self.lock.options.wait;
            let longest = shared.retry_period.saturating_mul(FALLBACK_PERIODS);
            let longest = shared.fallback_period.unwrap_or(longest);
            let (ticket, subscription) = (self.ticket.as_ref(), self.subscription.as_ref());
            let slept = self.line.sleep(ticket, subscription, shared.retry_period, longest);
            self.is_quiet = !slept.await;
            self.may_ask = self.is_quiet;
            return;
        }
        let shared = &self.lock.options.wait;
        let longest = shared.fallback_period;
        let deference = self.line.deference(shared.retry_period);
        let Some(subscription) = &self.subscription else {
            let time = longest.unwrap_or(shared.retry_period);
            let time = if is_passed { time.min(deference) } else { time };
            self.is_quiet = is_passed;
            return sleep(jittered(time)).await;
        };
        let longest = longest.unwrap_or(shared.retry_period.saturating_mul(FALLBACK_PERIODS));
        let next_look = self.next_look.min(longest);
        let time = match self.echo {
            _ if is_passed => deference,
            Some(echo) => echo.min(next_look),
            None => next_look,
        };
        let is_heard = tokio::select! {
            biased;
            _ = subscription.event() => {
                self.has_heard = true;
                true
            }
            pid = answer(&mut self.asking) => return self.hear_of_end(pid),
            () = sleep(jittered(time)) => false,
        };
        if is_heard {
            (self.is_quiet, self.is_following) = (false, false);
            // Another may have the lock now.
            self.asking = None;
            self.echo = Some(FIRST_ECHO);
            self.next_look = FIRST_LOOK;
        } else if is_passed {
            (self.is_quiet, self.may_ask) = (true, true);
        } else if self.echo.is_some() {
            self.echo = self.echo.map(|echo| echo * 2).filter(|echo| *echo <= LAST_ECHO);
        } else {
            (self.is_quiet, self.may_ask) = (true, true);
            self.next_look = next_look.saturating_mul(2);
        }
    }

    /// Hear of any close of the file, or of the end of the process that is in the
    /// way (2), once the wait is not a short one. Whether to look again first (1).
    pub(super) fn follow(&mut self, file: &OpenFile, spec: LockSpec) -> bool {
        if !self.is_quiet || self.line.is_asleep() || self.is_following || self.asking.is_some() {
            return false;
        }
        if !std::mem::take(&mut self.may_ask) {
            return false;
        }
        let hears =
            |subscription: &mut Subscription| subscription.follow_closes(file, file.identity);
        if file.kind == FileType::RegularFile && self.subscription.as_mut().is_some_and(hears) {
            self.is_following = true;
            return true;
        }
        match holder::process_in_the_way(&self.state, file, spec) {
            Started::Done(pid) => self.hear_of_end(pid),
            asking @ Started::Running(_) => self.asking = Some(asking),
        }
        false
    }

    /// It may have ended meanwhile, so a look has to follow.
    fn hear_of_end(&mut self, pid: Option<u32>) {
        if let Some(subscription) = &mut self.subscription {
            let pid = pid.filter(|pid| *pid != std::process::id());
            self.is_following =
                subscription.follow_process(pid) == Following::Heard && pid.is_some();
        }
    }
}

/// What was asked, once it is answered.
async fn answer(asking: &mut Option<Started<Option<u32>>>) -> Option<u32> {
    let Some(Started::Running(answer)) = asking else {
        return std::future::pending().await;
    };
    let pid = answer.await.ok().flatten();
    *asking = None;
    pid
}
