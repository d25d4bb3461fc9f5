//! The time between two looks.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::runtime::Handle;

use super::follow_predecessors::Line;
use super::hold_id::HoldId;
use crate::sys::inotify::{Event, Following, Subscription};
use crate::sys::path::LockPath;
use crate::sys::tickets::Ticket;
use crate::sys::wait_pipe::Presence;

/// How many `retry_period`s pass between two looks while events are heard:
/// they are only for what gives no event.
const FALLBACK_PERIODS: u32 = 30;

/// After a close the kernel lock may not be free yet: look again after 1 ms, 2,
/// 4 and so on up to the last.
const FIRST_ECHO: Duration = Duration::from_millis(1);
const LAST_ECHO: Duration = Duration::from_millis(64);

/// Drop this when there is time: whoever waited has the lock, and should not wait for
/// that too. What must not be there any longer is to be ended first, as the thread may
/// be busy with the lock for as long as it is held.
pub(crate) fn put_away_later(what: impl Send + 'static) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move { drop(what) })),
        Err(_) => drop(what),
    }
}

/// Waits for the next reason to look at a busy lock: an event, or the passing
/// of time.
///
/// Who came first looks at each event of the lock's directory, and so does the
/// second, who goes on if the first does not [in time](Line::deference). Whoever comes
/// after them is asleep until one of the two just before it gets the lock or
/// goes away, so that a release wakes three processes, however many wait.
pub(crate) struct Wakeup {
    path: Arc<LockPath>,
    retry_period: Duration,
    fallback_period: Option<Duration>,
    has_events: bool,
    subscription: Option<Subscription>,
    ticket: Option<Ticket>,
    /// Nobody came earlier; that stays so.
    is_first: bool,
    line: Line,
    /// Time has passed since the last event: nobody seems to make use of it.
    may_barge: bool,
    /// An event was the reason for the look that is due.
    has_heard: bool,
    echo: Option<Duration>,
    last_token: Option<String>,
}

/// What is known of the holder that is waited for.
pub(crate) struct Blocker {
    pub(crate) token: Option<String>,
    /// The inode that is locked.
    pub(crate) inode: Option<u64>,
    /// Whose end would free the lock.
    pub(crate) process: Option<u32>,
    /// Its process was seen to run from here.
    pub(crate) was_seen: bool,
    /// When to look again at the latest.
    pub(crate) at_most: Option<Duration>,
}

impl Blocker {
    /// Something that is no holder, as far as is known. To be looked for again then.
    pub(crate) fn unseen(at_most: Duration) -> Self {
        let at_most = Some(at_most);
        Self { token: None, inode: None, process: None, was_seen: false, at_most }
    }
}

impl Wakeup {
    pub(crate) fn new(
        path: Arc<LockPath>,
        retry_period: Duration,
        fallback_period: Option<Duration>,
        has_events: bool,
    ) -> Self {
        Self {
            path,
            retry_period,
            fallback_period,
            has_events,
            subscription: None,
            ticket: None,
            is_first: false,
            line: Line::default(),
            may_barge: false,
            has_heard: false,
            echo: None,
            last_token: None,
        }
    }

    /// Get ready for a look that is relied on, which comes after this; whether
    /// one is due. Else somebody who came earlier should have the lock first.
    pub(crate) fn is_due(&mut self) -> bool {
        if !self.has_events {
            return true;
        }
        if self.subscription.is_none() {
            self.subscription = Subscription::begin(&self.path);
        }
        if self.ticket.is_none() && self.subscription.is_some() {
            self.ticket = Ticket::take(&self.path);
        } else if let Some(ticket) = &mut self.ticket {
            ticket.publish();
        }
        if self.may_barge && self.line.is_asleep() {
            if self.line.sleeps_on() {
                return true;
            }
            self.may_barge = false;
        }
        let is_early = self.is_first || self.may_barge;
        if let (Some(ticket), Some(subscription), false) =
            (&self.ticket, &mut self.subscription, is_early)
        {
            self.line.look(ticket, subscription);
            if self.line.is_asleep() {
                return false;
            }
        }
        self.listen();
        // That one who is stopped does not hold up the rest, it is bounded.
        self.may_barge || !self.is_preceded()
    }

    fn listen(&mut self) {
        // What is heard is heard of the right directory, or of that it is not.
        let has_heard = std::mem::take(&mut self.has_heard);
        let listens = |subscription: &Subscription| {
            subscription.follows_directory() && !subscription.is_shaken()
        };
        if !has_heard || !self.subscription.as_ref().is_some_and(listens) {
            self.subscription =
                Subscription::follow_directory(self.subscription.take(), &self.path);
            if self.ticket.as_mut().is_some_and(|ticket| ticket.follow(&self.path)) {
                (self.line, self.is_first) = (Line::default(), false);
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

    /// Those who came earlier, and go first. They see to what an event may have been too
    /// early for.
    pub(crate) fn precedence(&mut self) -> Blocker {
        self.echo = None;
        let at_most = Some(self.line.deference(self.retry_period));
        Blocker { token: None, inode: None, process: None, was_seen: false, at_most }
    }

    /// The lock was acquired: somebody else is next at once, and hears of it when this
    /// thread has time. What is to end with the hold, as then at the latest.
    pub(crate) fn end(mut self) -> Option<Presence> {
        let mut ticket = self.ticket.take()?;
        ticket.give_up();
        let presence = ticket.presence();
        put_away_later((ticket, self.subscription.take()));
        presence
    }

    /// Whether this contender's turn is near, and somebody was just heard to remove or
    /// move a lock file in the directory.
    pub(crate) fn has_heard_a_write(&self) -> bool {
        let subscription = self.subscription.as_ref().filter(|_| !self.line.is_asleep());
        subscription.is_some_and(Subscription::has_heard_a_write)
    }

    /// Until it is worth looking again.
    pub(crate) async fn until_next_look(&mut self, obstacle: Blocker) {
        let is_another = obstacle.token != self.last_token;
        if is_another {
            // Another holder. The close that was just heard may be its all the same.
            self.echo = self.echo.filter(|echo| *echo == FIRST_ECHO);
            self.last_token = obstacle.token.clone();
        }
        if self.line.is_asleep() {
            let long = self.retry_period.saturating_mul(FALLBACK_PERIODS);
            let (ticket, subscription) = (self.ticket.as_ref(), self.subscription.as_ref());
            let longest = self.fallback_period.unwrap_or(long);
            let is_heard = self.line.sleep(ticket, subscription, self.retry_period, longest).await;
            (self.may_barge, self.has_heard) = (!is_heard, is_heard);
            return;
        }
        let Some(subscription) = &mut self.subscription else {
            let period = self.fallback_period.unwrap_or(self.retry_period);
            return tokio::time::sleep(shortest(period, obstacle.at_most, None)).await;
        };
        if let Some(inode) = obstacle.inode {
            let token = obstacle.token.and_then(|token| token.parse().ok());
            let unnamed = self.path.directory().join(format!("#{inode}"));
            let named = self.path.candidate(token.unwrap_or(HoldId(0)));
            if subscription.await_closes([unnamed, named]) {
                return;
            }
        }
        self.may_barge = true;
        // Who lets another go first has not looked who holds the lock.
        let following = match obstacle.inode {
            Some(_) => subscription.follow_process(obstacle.process),
            None => Following::Heard,
        };
        let periods = match following {
            // It ended since the look, or somebody who judges the dead one's
            // file was in the way: the next look will tell.
            Following::Gone => {
                let is_news = is_another || obstacle.was_seen;
                self.echo = self.echo.or(is_news.then_some(FIRST_ECHO));
                FALLBACK_PERIODS
            }
            Following::Unheard if obstacle.was_seen => 1,
            Following::Heard | Following::Unheard => FALLBACK_PERIODS,
        };
        let long = self.retry_period.saturating_mul(periods);
        let period = self.fallback_period.unwrap_or(long);
        tokio::select! {
            biased;
            heard = subscription.event() => {
                self.may_barge = false;
                self.has_heard = true;
                if heard == Event::Close {
                    self.echo = Some(FIRST_ECHO);
                }
            }
            () = tokio::time::sleep(shortest(period, obstacle.at_most, self.echo)) => {
                self.echo = self.echo.map(|echo| echo * 2).filter(|echo| *echo <= LAST_ECHO);
            }
        }
    }
}

fn shortest(period: Duration, at_most: Option<Duration>, echo: Option<Duration>) -> Duration {
    [at_most, echo].into_iter().flatten().fold(jittered(period), Duration::min)
}

/// Between two and five quarters of `period`, so that processes do not march in
/// step.
pub(crate) fn jittered(period: Duration) -> Duration {
    // The middle, without random bits, which a running system has.
    let mut bits = (u16::MAX / 2).to_ne_bytes();
    let _ = getrandom(&mut bits, GetRandomFlags::NONBLOCK);
    let share = f64::from(u16::from_ne_bytes(bits)) / f64::from(u16::MAX);
    in_step(period.mul_f64(0.75 + share / 2.0), BEGINNING.elapsed())
}

/// When the first pause of this process began.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Long pauses of one process end together, so that it wakes once for many: a
/// thousand waits for as many locks take a quarter to a seventh as much (`cargo bench
/// --bench waiting -- idle`, and `--bench kernel`). They end at multiples of a time
/// that is at most an eighth of them, which began when others' did not.
fn in_step(pause: Duration, now: Duration) -> Duration {
    const LONG: Duration = Duration::from_secs(1);
    if pause < LONG {
        return pause;
    }
    // Of more than eight hours, an hour will do.
    let step = Duration::from_secs(3600).min(pause / 8).as_millis() as u64;
    let step = Duration::from_millis(1 << step.ilog2()).as_nanos();
    let past = now.saturating_add(pause).as_nanos() % step;
    pause.saturating_sub(Duration::from_nanos(past as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_varies() {
        let period = Duration::from_secs(4);
        let pauses: Vec<_> = (0..100).map(|_| jittered(period)).collect();
        let (least, most) = (Duration::from_millis(2500), Duration::from_secs(5));
        assert!(pauses.iter().all(|pause| (least..=most).contains(pause)));
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn long_pauses_end_together() {
        let step = Duration::from_millis(512);
        let moments = (0..5000).map(|number| Duration::from_micros(number * 1234));
        for (now, pause) in moments.zip([4200, 7300, 8100].into_iter().cycle()) {
            let pause = Duration::from_millis(pause);
            let shorter = in_step(pause, now);
            assert_eq!((now + shorter).as_nanos() % step.as_nanos(), 0, "{now:?} {pause:?}");
            assert!(shorter <= pause && shorter > pause - step, "{shorter:?} of {pause:?}");
        }
        let short = Duration::from_millis(999);
        assert_eq!(in_step(short, short), short);
        // Does not overflow.
        let _ = in_step(Duration::MAX, short);
    }
}
