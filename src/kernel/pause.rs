//! The time between two looks at a busy kernel lock.
//!
//! 1. A contender listens before the look it relies on.
//! 2. The close of a file that was open for writing is an event; holders of
//!    this crate give it at release, and so do all that die. A close of a file
//!    that was open for reading is none, so the process that took the lock is
//!    followed, where the kernel tells which it is.
//! 3. An unlock without a close is no event. For that a contender looks, each
//!    time after twice as long.
//! 4. An event may come before the lock is free: then there are echoes.
//! 5. Who came earlier goes first. A writer lets earlier ones pass for
//!    [`DEFERENCE`] after an event. A reader lets earlier writers pass as long
//!    as anybody has the lock, and so long after: readers who come all the time
//!    cannot keep a writer out, and a writer that is stopped while it waits
//!    cannot keep readers out.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::arrivals::Ticket;
use super::attempt::Carrier;
use super::call::{Claim, Sharing};
use super::holder;
use super::site::{Site, Terms};
use crate::wait::Listening;

/// How many `retry_period`s may pass between two looks while events are heard.
const FALLBACK_PERIODS: u32 = 30;

/// The first look without an event (3): most waits are over by then, and need
/// not ask whose process to follow.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// After an event the lock may not be free yet (4).
const FIRST_ECHO: Duration = Duration::from_millis(1);
const LAST_ECHO: Duration = Duration::from_millis(8);

/// How long the lock may be free before who came later takes it (5): many
/// times what a process needs to wake.
const DEFERENCE: Duration = Duration::from_millis(10);

/// What the next look may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Others go first.
    None,
    /// Try for a shared lock only if nobody has any.
    IfFree,
    Full,
}

impl Right {
    /// For a try after which there is no other.
    pub(super) fn at_last(self, sharing: Sharing) -> Self {
        match (self, sharing) {
            (Right::None, Sharing::Shared) => Right::IfFree,
            (Right::None, Sharing::Exclusive) => Right::Full,
            (right, _) => right,
        }
    }
}

pub(super) struct Pause {
    terms: Arc<Terms>,
    site: Arc<Site>,
    sharing: Sharing,
    listening: Option<Listening>,
    ticket: Option<Ticket>,
    /// Time has passed since the last event.
    is_quiet: bool,
    echo: Option<Duration>,
    next_look: Duration,
}

impl Pause {
    pub(super) fn new(terms: &Arc<Terms>, site: &Arc<Site>, sharing: Sharing) -> Self {
        Self {
            terms: Arc::clone(terms),
            site: Arc::clone(site),
            sharing,
            listening: None,
            ticket: None,
            is_quiet: false,
            echo: None,
            next_look: FIRST_LOOK,
        }
    }

    /// To be called before the look that is relied on (1).
    pub(super) fn listen(&mut self) {
        if !self.site.place.has_events() {
            return;
        }
        self.listening = Listening::renew(self.listening.take(), &self.terms.path);
        if self.ticket.is_none() && self.listening.is_some() {
            let directory = self.terms.path.directory();
            self.ticket = Ticket::take(directory, &self.terms.label, self.sharing);
        }
    }

    pub(super) fn right(&self) -> Right {
        if !self.ticket.as_ref().is_some_and(Ticket::is_preceded) {
            return Right::Full;
        }
        match (self.is_quiet, self.sharing) {
            (false, _) => Right::None,
            (true, Sharing::Exclusive) => Right::Full,
            (true, Sharing::Shared) => Right::IfFree,
        }
    }

    /// Until it is worth looking again. `is_passed` says that this contender has
    /// no right to try now, so that others can go first.
    pub(super) async fn until_next_look(&mut self, file: Option<&mut Carrier>, is_passed: bool) {
        let shared = &self.terms.options.shared;
        let longest = shared.fallback_period;
        let Some(listening) = &self.listening else {
            return sleep(jittered(longest.unwrap_or(shared.retry_period))).await;
        };
        let longest = longest.unwrap_or(shared.retry_period.saturating_mul(FALLBACK_PERIODS));
        let next_look = self.next_look.min(longest);
        let time = match self.echo {
            _ if is_passed => DEFERENCE,
            Some(echo) => echo.min(next_look),
            None => next_look,
        };
        let is_heard = tokio::select! {
            biased;
            _ = listening.event() => true,
            () = changed_here(file) => true,
            () = sleep(jittered(time)) => false,
        };
        if is_heard {
            (self.is_quiet, self.echo) = (false, Some(FIRST_ECHO));
            self.next_look = FIRST_LOOK;
        } else if is_passed {
            self.is_quiet = true;
        } else if self.echo.is_some() {
            self.echo = self.echo.map(|echo| echo * 2).filter(|echo| *echo <= LAST_ECHO);
        } else {
            self.is_quiet = true;
            self.next_look = next_look.saturating_mul(2);
        }
    }

    /// Hear of the end of the process that is in the way (2), once the wait is
    /// not a short one.
    pub(super) fn follow(&mut self, file: &Carrier, claim: Claim) {
        if !self.is_quiet {
            return;
        }
        let pid = holder::process_in_the_way(file, file.inode().identity, claim);
        if let Some(listening) = &mut self.listening {
            listening.follow(pid.filter(|pid| *pid != std::process::id()));
        }
    }
}

/// POSIX locks of this process end without any event from the kernel.
async fn changed_here(file: Option<&mut Carrier>) {
    match file {
        Some(Carrier::Posix(file)) => file.changed().await,
        _ => std::future::pending().await,
    }
}

/// Between three and five quarters of `period`, so that contenders do not
/// march in step.
fn jittered(period: Duration) -> Duration {
    let bits = RandomState::new().build_hasher().finish() as u16;
    period.mul_f64(0.75 + f64::from(bits) / f64::from(u16::MAX) / 2.0)
}
