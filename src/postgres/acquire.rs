//! One acquisition, from its place in the process's queue to a hold.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::failure::{Failure, GivenUp, Kind, pause};
use super::guard::PostgresGuard;
use super::hold::Hold;
use super::key::Mode;
use super::lock_session::{ANSWER_LIMIT, LockSession};
use super::options::Table;
use super::place::{Place, Turn};
use super::record;
use super::server::{Live, permits};
use super::statements::Row;
use super::status::{self, Queue};
use super::target::Target;
use crate::lease::{self, Acquiring, Background, Gone, Patience, WaitEnd};
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder};
use crate::lock::name::LockName;
use crate::lock::wait::{Acquired, Busy};
use crate::sys::boot_clock::BootTime;

const DOING: &str = "locking";

/// Between two tries while the server has no session for a wait. If larger, a waiter is later.
const SLOW: Duration = Duration::from_millis(500);

/// How long the holder is looked for at the end of a wait. If larger, a server that fails holds
/// up a limit for longer; if smaller, a slow one names no holder.
const HOLDER_LIMIT: Duration = Duration::from_secs(2);

/// A token has the timeline above so many bits of the counter. A server that counts one
/// million a second needs twelve days to fill them: of locks none does.
const COUNTER_BITS: u32 = 40;

type Decided = lease::Decided<PostgresGuard>;

/// A lock that is wanted in one mode.
pub(super) struct Wanted {
    pub(super) target: Arc<Target>,
    pub(super) mode: Mode,
}

impl lease::Target for Wanted {
    type Guard = PostgresGuard;

    fn name(&self) -> LockName {
        self.target.name()
    }

    fn background(&self) -> &Background {
        &self.target.background
    }

    fn failed(&self, error: io::Error) -> Error {
        self.target.unreachable(DOING, Duration::ZERO, error)
    }

    fn acquire(
        self: &Arc<Self>,
        end: WaitEnd,
        outcome: oneshot::Sender<Decided>,
        gone: Gone,
    ) -> Result<Acquiring, Error> {
        let (target, live) = (Arc::clone(&self.target), Arc::clone(self.target.server.live()));
        let mode = self.mode;
        let mut acquisition = Acquisition { target, live, mode, end };
        Ok(Box::pin(lease::unless_gone(async move { acquisition.acquire().await }, outcome, gone)))
    }
}

struct Acquisition {
    target: Arc<Target>,
    live: Arc<Live>,
    mode: Mode,
    end: WaitEnd,
}

impl Acquisition {
    async fn acquire(&mut self) -> Decided {
        let mut patience = self.target.patience().until(self.end.deadline());
        let Some(mut turn) = self.turn().await? else { return self.busy().await };
        loop {
            let begun = Instant::now();
            let failure = match self.try_once(turn, &mut patience).await? {
                Tried::Held(guard) => return Ok(Acquired::Held(*guard)),
                Tried::Over(busy) => return Ok(Acquired::Busy(busy)),
                Tried::Busy(again) if self.end.is_now() => {
                    // The turn goes first: a look may take long.
                    drop(again);
                    return self.busy().await;
                }
                Tried::Busy(again) => match self.wait(again, &mut patience).await? {
                    Waited::Held(guard) => return Ok(Acquired::Held(*guard)),
                    Waited::Over(busy) => return Ok(Acquired::Busy(busy)),
                    Waited::Again => None,
                },
                Tried::Failed(failure) => Some(failure),
            };
            if let Some(failure) = failure {
                let paused = pause(failure, begun, &mut patience).await;
                paused.map_err(|given_up| self.given_up(given_up))?;
            }
            match self.turn().await? {
                Some(again) => turn = again,
                None => return self.busy().await,
            }
        }
    }

    /// The turn among the tasks of this process; `None` if the wait ends first. (E6)
    async fn turn(&mut self) -> Result<Option<Turn>, Error> {
        let queue = self.live.queue(self.target.key);
        let many = permits(self.mode);
        let turn = if let Ok(turn) = Arc::clone(&queue).try_acquire_many_owned(many) {
            turn
        } else {
            let mut turn = pin!(queue.acquire_many_owned(many));
            tokio::select! {
                biased;
                turn = &mut turn => turn.expect("BUG: a queue was closed"),
                () = self.end.reached() => return Ok(None),
            }
        };
        let room = self.live.room();
        let room = room.map_err(|failure| self.given_up(GivenUp::Final(failure)))?;
        Ok(Some(Turn { _turn: turn, _room: room }))
    }

    /// In the session of the tries, or in one of its own if the options say so.
    async fn try_once(&mut self, turn: Turn, patience: &mut Patience) -> Result<Tried, Error> {
        let is_alone = self.target.options().has_own_session;
        // Also where another session follows: the pooler is looked for with it. (P7)
        let keeper = self.live.keeper(patience).await;
        let keeper = keeper.map_err(|given_up| self.given_up(given_up))?;
        let session = match is_alone {
            false => keeper,
            // One try, however long that takes.
            true => match self.live.waiter_in_time(patience).await {
                Ok(session) => session,
                Err(failure) => return Ok(Tried::Failed(failure)),
            },
        };
        let mut place = self.place(&session, is_alone, turn)?;
        match place.try_lock().await {
            Ok(true) => Ok(match self.enter(place, is_alone, patience).await {
                Ok(Entered::Held(guard)) => Tried::Held(guard),
                Ok(Entered::Over(busy)) => Tried::Over(busy),
                Err(failure) => Tried::Failed(failure),
            }),
            Ok(false) if is_alone => Ok(Tried::Busy(Again::Place(place))),
            Ok(false) => Ok(Tried::Busy(Again::Turn(place.forget()))),
            Err(failure) => Ok(Tried::Failed(failure)),
        }
    }

    /// A session of its own; `None` if the time that was given is over first.
    async fn waiter(&mut self) -> Option<Result<Arc<LockSession>, Failure>> {
        tokio::select! {
            biased;
            session = self.live.waiter() => Some(session),
            () = self.end.reached() => None,
        }
    }

    fn place(
        &self,
        session: &Arc<LockSession>,
        is_alone: bool,
        turn: Turn,
    ) -> Result<Place, Error> {
        let (target, live) = (Arc::clone(&self.target), Arc::clone(&self.live));
        let made = Place::new(target, live, session.seat(), self.mode, is_alone, turn);
        made.map_err(|error| self.target.unreachable(DOING, Duration::ZERO, error))
    }

    /// In the queue of the server, in a session that holds nothing.
    async fn wait(&mut self, again: Again, patience: &mut Patience) -> Result<Waited, Error> {
        let mut place = match again {
            Again::Place(place) => place,
            Again::Turn(turn) => match self.waiter().await {
                Some(Ok(session)) => self.place(&session, true, turn)?,
                Some(Err(failure)) => return self.slowly(failure).await,
                // There is a last try.
                None => return Ok(Waited::Again),
            },
        };
        let begun = Instant::now();
        if let Err(failure) = place.begin_to_wait() {
            return Err(self.given_up(GivenUp::Final(failure)));
        }
        let asked = loop {
            let slow = sleep(self.target.options().lease);
            tokio::select! {
                biased;
                asked = place.asked() => break asked,
                () = self.end.reached() => match self.last_look(&mut place).await {
                    Ok(asked) => break asked,
                    Err(busy) => return Ok(Waited::Over(busy)),
                },
                () = slow => {}
            }
            // A look now and then, in case that its connection is dead and does not say so.
            patience.renew(begun.elapsed());
            if !self.stands(place.session().pid(), patience).await? {
                return Ok(Waited::Again);
            }
        };
        // What is ridden out begins now, however long was waited.
        patience.renew(begun.elapsed());
        let failure = match asked {
            Ok(true) => match self.enter(place, true, patience).await {
                Ok(Entered::Held(guard)) => return Ok(Waited::Held(guard)),
                Ok(Entered::Over(busy)) => return Ok(Waited::Over(busy)),
                Err(failure) => failure,
            },
            // No statement that waits says so.
            Ok(false) => return Ok(Waited::Again),
            Err(failure) => failure,
        };
        // That it was waited for as long as one statement does is no trouble.
        if !failure.is("55P03") {
            pause(failure, begun, patience).await.map_err(|given_up| self.given_up(given_up))?;
        }
        Ok(Waited::Again)
    }

    /// The server has no session for a wait: it is tried in turns.
    async fn slowly(&mut self, failure: Failure) -> Result<Waited, Error> {
        if failure.kind != Kind::Passing {
            return Err(self.given_up(GivenUp::Final(failure)));
        }
        tokio::select! {
            biased;
            () = self.end.reached() => {}
            () = sleep(SLOW) => {}
        }
        Ok(Waited::Again)
    }

    /// Whether the server has this session wait, or has just granted it the lock.
    async fn stands(&self, pid: i32, patience: &mut Patience) -> Result<bool, Error> {
        let keeper = self.live.keeper(patience).await;
        let keeper = keeper.map_err(|given_up| self.given_up(given_up))?;
        let (class, object, sub) = self.target.key.shown();
        let statement = format!(
            "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' \
             AND pid = {pid} AND classid = {class} AND objid = {object} AND objsubid = {sub}"
        );
        match keeper.ask_rows(&statement, &[]).await {
            Ok(rows) => Ok(rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0)),
            Err(_) => Ok(true),
        }
    }

    /// The server has granted it: write who holds it, and wait for one that vanished, unless
    /// the time that was given is over first. (P9, P10)
    async fn enter(
        &mut self,
        mut place: Place,
        is_alone: bool,
        patience: &mut Patience,
    ) -> Result<Entered, Failure> {
        let options = self.target.options();
        let sent = BootTime::now();
        let begun = Instant::now();
        let session = Arc::clone(place.session());
        if is_alone {
            // It was not probed while it waited.
            session.keep(sent).map_err(|error| Failure::of_io(&error))?;
        }
        let has_table = options.table == Table::Own;
        let rows = if has_table {
            place.set_row(Row::AsBefore);
            let holder = record::of_this_process(
                &self.target.name,
                options.name.as_deref(),
                options.note.as_deref(),
            );
            let lease = i64::try_from(options.lease.as_millis()).unwrap_or(i64::MAX);
            place.parts().statements().record(&holder, lease).await?
        } else {
            place.parts().statements().number().await?
        };
        patience.renew(begun.elapsed());
        let foreign = || Failure::new(Kind::Foreign, "it does not answer as PostgreSQL does");
        let row = rows.first().ok_or_else(foreign)?;
        let token = token(row.get(0), row.get(1)).ok_or_else(foreign)?;
        let (holder, owner): (Option<String>, Option<String>) = (row.get(2), row.get(3));
        let left: Option<i64> = row.get(4);
        if let Some(left) = left.filter(|&left| left > 0 && options.waits_for_the_lease()) {
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            let is_out = tokio::select! {
                biased;
                _ = session.state.lost() => return Err(ended()),
                () = sleep(left) => true,
                () = self.end.reached() => false,
            };
            if !is_out {
                // Its lease is not over, so it may be alive and out of reach.
                let vanished = vanished_holder(holder, owner, Evidence::Server);
                return Ok(Entered::Over(Busy::new(vanished.map(Box::new))));
            }
            if let (Mode::Shared, Some(owner)) = (self.mode, &owner) {
                place.parts().statements().is_over(owner).await?;
            }
        }
        if has_table {
            place.set_row(Row::Clean);
        }
        if session.state.over().is_some() {
            return Err(ended());
        }
        let vanished = vanished_holder(holder, owner, Evidence::LeaseOver);
        Ok(Entered::Held(Box::new(PostgresGuard::new(Hold::new(place, token, vanished)))))
    }

    async fn busy(&self) -> Decided {
        Ok(Acquired::Busy(Busy::new(self.look().await.holder.map(Box::new))))
    }

    /// Nothing is known where the server does not answer in time.
    async fn look(&self) -> Queue {
        let mut patience = Patience::new(HOLDER_LIMIT);
        let looking = status::ask_there(&self.target, &mut patience);
        timeout(HOLDER_LIMIT, looking).await.unwrap_or(Ok(Queue::default())).unwrap_or_default()
    }

    /// At the limit there is a last look: it may be granted, though that was not heard yet.
    /// The answer to the statement that waits, or that another has the lock.
    async fn last_look(&self, place: &mut Place) -> Result<Result<bool, Failure>, Busy> {
        let own = place.session().pid();
        let queue = tokio::select! {
            biased;
            asked = place.asked() => return Ok(asked),
            queue = self.look() => queue,
        };
        if !queue.pids.contains(&own) {
            return Err(Busy::new(queue.holder.map(Box::new)));
        }
        timeout(ANSWER_LIMIT, place.asked()).await.map_err(|_| Busy::new(None))
    }

    fn given_up(&self, given_up: GivenUp) -> Error {
        self.target.given_up(DOING, given_up)
    }
}

fn ended() -> Failure {
    Failure::new(Kind::Passing, "its session ended as it was granted")
}

/// What one try came to.
enum Tried {
    Held(Box<PostgresGuard>),
    /// The time that was given is over, in a wait for one that vanished.
    Over(Busy),
    Busy(Again),
    Failed(Failure),
}

/// With what a wait goes on.
enum Again {
    Turn(Turn),
    /// Of a session of its own.
    Place(Place),
}

/// What a wait came to.
enum Waited {
    Held(Box<PostgresGuard>),
    /// The time that was given is over.
    Over(Busy),
    Again,
}

/// What a grant came to.
enum Entered {
    Held(Box<PostgresGuard>),
    /// The time that was given is over, in a wait for one that vanished.
    Over(Busy),
}

fn vanished_holder(
    record: Option<String>,
    owner: Option<String>,
    evidence: Evidence,
) -> Option<Holder> {
    record.zip(owner).and_then(|(record, owner)| record::holder(&record, &owner, evidence))
}

/// The timeline, which grows with each promotion, above the counter.
fn token(counter: i64, log: &str) -> Option<u64> {
    let counter = u64::try_from(counter).ok().filter(|it| it >> COUNTER_BITS == 0)?;
    let timeline = u32::from_str_radix(log.get(..8)?, 16).ok()?;
    let timeline = u64::from(timeline);
    (timeline >> (u64::BITS - COUNTER_BITS) == 0).then_some(timeline << COUNTER_BITS | counter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_later_timeline_is_greater() {
        let token = |counter, log| token(counter, log).expect("a token");
        assert_eq!(token(7, "000000010000000000000001"), 1 << 40 | 7);
        assert!(token(1, "0000000A0000000000000001") > token(1 << 39, "000000090000000000000001"));
        assert_eq!(super::token(-1, "000000010000000000000001"), None);
        assert_eq!(super::token(1, "0000"), None);
        assert_eq!(super::token(1 << 40, "000000010000000000000001"), None);
    }
}
