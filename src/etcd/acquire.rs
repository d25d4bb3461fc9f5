//! One acquisition, from its place in the process's queue to a hold.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{ANSWER_LIMIT, GivenUp};
use super::cluster::Live;
use super::failure::{Failure, Kind};
use super::guard::EtcdGuard;
use super::hold::Hold;
use super::key::{self, just_behind};
use super::key_watch::{Happened, Watched};
use super::place::{Parts, Place};
use super::record::{self, Record};
use super::session::Session;
use super::target::Target;
use super::wire::{
    Compare, CompareTarget, CompareWith, KeyValue, Op, OpResponse, PutRequest, RANGE, RangeRequest,
    RangeResponse, ResponseOp, SortOrder, SortTarget, TXN, TxnRequest, TxnResponse,
};
use crate::lease::{self, Acquiring, Background, Gone, Patience, WaitEnd};
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder};
use crate::lock::name::LockName;
use crate::lock::wait::{Acquired, Busy};
use crate::sys::random;

const DOING: &str = "locking";

/// A wait for a predecessor that was shorter says nothing of its death: no lease ends so
/// soon after its renewal. If larger, more deaths go untold.
const DEATH_TOLD: Duration = Duration::from_secs(1);

/// Between two looks while watches break at once. If larger, a waiter is woken later then.
const BLIND: Duration = Duration::from_millis(50);

type Decided = lease::Decided<EtcdGuard>;

impl lease::Target for Target {
    type Guard = EtcdGuard;

    fn name(&self) -> LockName {
        Target::name(self)
    }

    fn background(&self) -> &Background {
        &self.background
    }

    fn failed(&self, error: io::Error) -> Error {
        self.unreachable(DOING, Duration::ZERO, error)
    }

    fn acquire(
        self: &Arc<Self>,
        end: WaitEnd,
        outcome: oneshot::Sender<Decided>,
        gone: Gone,
    ) -> Result<Acquiring, Error> {
        let live = self.cluster.live().map_err(|error| lease::Target::failed(&**self, error))?;
        let (target, live) = (Arc::clone(self), Arc::clone(live));
        let mut acquisition = Acquisition { target, live, end, heard: None };
        Ok(Box::pin(lease::unless_gone(async move { acquisition.acquire().await }, outcome, gone)))
    }
}

struct Acquisition {
    target: Arc<Target>,
    live: Arc<Live>,
    end: WaitEnd,
    /// The last that was heard of a holder.
    heard: Option<Busy>,
}

/// Where an acquisition is.
enum Step {
    /// The turn in this process has come: a key is to be put.
    Put(OwnedSemaphorePermit),
    /// The key is there, and a lower one.
    Wait(Place, Waiting),
    /// The key is there, of this create revision: whether it is the lowest is not known.
    Look(Place, i64),
    Decided(Decided),
}

/// What is waited for. (M6)
struct Waiting {
    /// Of our key.
    create_revision: i64,
    predecessor: KeyValue,
    /// The predecessor holds the lock.
    is_lowest: bool,
    /// The revision after the look.
    from: i64,
}

impl Acquisition {
    async fn acquire(&mut self) -> Decided {
        let mut patience = self.target.patience().until(self.end.deadline());
        let mut step = match self.turn(&mut patience).await? {
            Some(turn) => Step::Put(turn),
            None => return self.busy(),
        };
        loop {
            step = match step {
                Step::Put(turn) => self.put(turn, &mut patience).await?,
                Step::Look(place, create_revision) => {
                    self.look(place, create_revision, &mut patience).await?
                }
                Step::Wait(place, waiting) => self.wait(place, waiting).await?,
                Step::Decided(decided) => return decided,
            };
        }
    }

    /// The turn among the tasks of this process; `None` if the wait ends first. (E6)
    async fn turn(
        &mut self,
        patience: &mut Patience,
    ) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let queue = self.live.queue(&self.target.queue);
        if let Ok(turn) = Arc::clone(&queue).try_acquire_owned() {
            return Ok(Some(turn));
        }
        let mut turn = pin!(queue.acquire_owned());
        tokio::select! {
            biased;
            turn = &mut turn => return Ok(turn.ok()),
            () = self.end.reached() => {}
        }
        // It is held here, or was a moment ago.
        let session = self.live.session(self.target.options(), patience).await;
        let session = session.map_err(|given_up| self.target.given_up(DOING, given_up))?;
        let lowest = lowest(&self.target.queue);
        let read: Result<RangeResponse, _> =
            session.call(RANGE, &lowest, ANSWER_LIMIT, &mut false).await;
        if let Ok(RangeResponse { kvs, .. }) = read {
            self.foreign(kvs.first())?;
            self.hear(kvs.first());
        }
        self.heard.get_or_insert(Busy::new(None));
        Ok(None)
    }

    /// M3.
    async fn put(
        &mut self,
        turn: OwnedSemaphorePermit,
        patience: &mut Patience,
    ) -> Result<Step, Error> {
        let session = self.live.session(self.target.options(), patience).await;
        let session = session.map_err(|given_up| self.given_up(given_up))?;
        let mut place = self.place(session, turn)?;
        // A contender that does not wait puts its key only if it has the lock by that.
        let only_if_free = self.end.is_now();
        let options = self.target.options();
        let value = Record::of_this_process(options.name.as_deref(), options.note.as_deref());
        let value = value.to_bytes();
        loop {
            if place.parts().session.epoch() == 0 {
                // S was deleted, as under NOSPACE.
                let session = Arc::clone(&place.parts().session);
                match session.put(patience).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(Step::Put(place.forget().expect("BUG: no turn"))),
                    Err(given_up) => {
                        end(place);
                        return Err(self.given_up(given_up));
                    }
                }
            }
            let request = self.putting(&place, &value, only_if_free);
            let parts = place.parts_mut();
            let session = Arc::clone(&parts.session);
            let put: Result<TxnResponse, _> =
                session.persist(TXN, &request, patience, &mut parts.is_unclear).await;
            let answer = match put {
                Ok(answer) => answer,
                Err(GivenUp::Final(Failure { kind: Kind::NoLease, .. })) => {
                    session.state.end();
                    return Ok(Step::Put(place.leave().expect("BUG: no turn")));
                }
                Err(GivenUp::Final(Failure { kind: Kind::Restored, .. })) => {
                    return Ok(Step::Put(place.leave().expect("BUG: no turn")));
                }
                Err(given_up) => {
                    end(place);
                    return Err(self.given_up(given_up));
                }
            };
            let revision = answer.header.map_or(0, |header| header.revision);
            if answer.succeeded {
                return Ok(self.acquired(place, revision, revision, None));
            }
            let (is_put, mut ranges) = otherwise(answer.responses);
            if is_put {
                let (lowest, last_two) = (ranges.next(), ranges.next().unwrap_or_default());
                let lowest = lowest.and_then(|lowest| lowest.into_iter().next());
                let own = place.parts().key.as_bytes();
                let predecessor = last_two.into_iter().find(|kv| kv.key != own);
                return self.stand(place, revision, lowest, predecessor, revision);
            }
            let (own, lowest, s) = (ranges.next(), ranges.next(), ranges.next());
            let [own, lowest, s] =
                [own, lowest, s].map(|found| found.and_then(|kvs| kvs.into_iter().next()));
            if let Some(own) = own {
                // An earlier, unclear one was carried out. (M4)
                return Ok(Step::Look(place, own.create_revision));
            }
            let epoch = s.map_or(0, |s| s.mod_revision);
            if epoch == place.parts().session.epoch() && only_if_free {
                end(place);
                self.foreign(lowest.as_ref())?;
                self.hear(lowest.as_ref());
                return Ok(Step::Decided(self.busy()));
            }
            place.parts().session.begin_epoch(epoch);
        }
    }

    fn place(&self, session: Arc<Session>, turn: OwnedSemaphorePermit) -> Result<Place, Error> {
        let mut owner = [0_u8; 8];
        let drawn = random::fill(&mut owner).map_err(io::Error::from);
        drawn.map_err(|error| lease::Target::failed(&*self.target, error))?;
        let key = key::place(&self.target.queue, session.lease, u64::from_ne_bytes(owner));
        let (target, live) = (Arc::clone(&self.target), Arc::clone(&self.live));
        let turn = Some(turn);
        Ok(Place::new(Parts { target, live, session, turn, key, is_unclear: false }))
    }

    /// A key that is put where there is none has the lock by that. (M3)
    fn putting(&self, place: &Place, value: &[u8], only_if_free: bool) -> TxnRequest {
        let Parts { target, session, key, .. } = place.parts();
        let compare = |target: CompareTarget, key: Vec<u8>, range_end, with| Compare {
            target: target as i32,
            key,
            range_end,
            with: Some(with),
        };
        let (own, s) = (key.clone().into_bytes(), session.key.clone().into_bytes());
        // As many keys as have a create revision of 0: none.
        let (queue, end) = (target.queue.clone().into_bytes(), key::range_end(&target.queue));
        let is_free = compare(CompareTarget::Create, queue, end, CompareWith::Create(0));
        let is_new =
            compare(CompareTarget::Create, own.clone(), Vec::new(), CompareWith::Create(0));
        let epoch = CompareWith::Mod(session.epoch());
        let is_of_epoch = compare(CompareTarget::Mod, s.clone(), Vec::new(), epoch);
        let put = PutRequest { key: own.clone(), value: value.to_vec(), lease: session.lease };
        let last_two = RangeRequest {
            limit: 2,
            sort_order: SortOrder::Descend as i32,
            ..in_order(&target.queue)
        };
        let [own, s] = [own, s].map(|key| RangeRequest { key, ..RangeRequest::default() });
        let lowest = lowest(&target.queue);
        let found = [own, lowest.clone(), s].map(|range| Op::Range(range).into()).to_vec();
        let failure = match only_if_free {
            true => found,
            false => {
                let stand = [Op::Put(put.clone()), Op::Range(lowest), Op::Range(last_two)];
                let queued = TxnRequest {
                    compare: vec![is_new, is_of_epoch.clone()],
                    success: stand.map(Into::into).to_vec(),
                    failure: found,
                };
                vec![Op::Txn(queued).into()]
            }
        };
        let (compare, success) = (vec![is_free, is_of_epoch], vec![Op::Put(put).into()]);
        TxnRequest { compare, success, failure }
    }

    /// M5.
    async fn look(
        &mut self,
        place: Place,
        create_revision: i64,
        patience: &mut Patience,
    ) -> Result<Step, Error> {
        let parts = place.parts();
        let own = RangeRequest { key: parts.key.clone().into(), ..RangeRequest::default() };
        let before = RangeRequest {
            limit: 1,
            sort_order: SortOrder::Descend as i32,
            max_create_revision: create_revision - 1,
            ..in_order(&self.target.queue)
        };
        let ops = [own, lowest(&self.target.queue), before].map(|range| Op::Range(range).into());
        let request = TxnRequest { success: ops.to_vec(), ..TxnRequest::default() };
        let read: Result<TxnResponse, _> =
            parts.session.persist(TXN, &request, patience, &mut false).await;
        let answer = match read {
            Ok(answer) => answer,
            Err(GivenUp::Final(Failure { kind: Kind::Restored, .. })) => return Ok(again(place)),
            Err(given_up) => return Err(self.given_up(given_up)),
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        let mut found = ranges(answer.responses).map(|kvs| kvs.into_iter().next());
        let (own, lowest, before) = (found.next(), found.next(), found.next());
        if own.flatten().is_none() {
            // Its lease had ended, or an operator deleted it.
            return Ok(again(place));
        }
        self.stand(place, create_revision, lowest.flatten(), before.flatten(), revision)
    }

    /// Whether the place is the first, as of `revision`.
    fn stand(
        &mut self,
        place: Place,
        create_revision: i64,
        lowest: Option<KeyValue>,
        predecessor: Option<KeyValue>,
        revision: i64,
    ) -> Result<Step, Error> {
        let Some(lowest) = lowest else { return Ok(again(place)) };
        if lowest.key == place.parts().key.as_bytes() {
            return Ok(self.acquired(place, create_revision, revision, None));
        }
        self.foreign(Some(&lowest))?;
        self.hear(Some(&lowest));
        let Some(predecessor) = predecessor else { return Ok(again(place)) };
        self.foreign(Some(&predecessor))?;
        let is_lowest = predecessor.key == lowest.key;
        let from = revision + 1;
        Ok(Step::Wait(place, Waiting { create_revision, predecessor, is_lowest, from }))
    }

    /// M6.
    async fn wait(&mut self, place: Place, waiting: Waiting) -> Result<Step, Error> {
        let Waiting { create_revision, predecessor, is_lowest, from } = waiting;
        let begun = Instant::now();
        let own = place.parts().key.clone().into_bytes();
        let session = Arc::clone(&place.parts().session);
        let (first, last) =
            if own < predecessor.key { (&own, &predecessor.key) } else { (&predecessor.key, &own) };
        let (key, range_end) = (first.clone(), just_behind(last));
        let mut watch = self.live.watches.watch(Watched { key, range_end, from, with_puts: false });
        let looks_at = begun + session.ttl;
        let is_over = loop {
            let happened = tokio::select! {
                biased;
                happened = watch.next() => happened,
                () = self.end.reached() => break true,
                _ = session.state.lost() => return Ok(again(place)),
                () = sleep_until(looks_at) => break false,
            };
            match happened {
                Happened::Deleted { key, .. } if key == own => return Ok(again(place)),
                Happened::Deleted { key, revision, before } if key == predecessor.key => {
                    if !is_lowest {
                        break false;
                    }
                    let recovered = match begun.elapsed() >= DEATH_TOLD {
                        true => self.dead(&session, before.unwrap_or(predecessor), revision).await,
                        false => None,
                    };
                    return Ok(self.acquired(place, create_revision, revision, recovered));
                }
                Happened::Deleted { .. } | Happened::Put(_) => {}
                Happened::Broken => {
                    if begun.elapsed() < BLIND {
                        sleep(BLIND).await;
                    }
                    break false;
                }
            }
        };
        drop(watch);
        if !is_over {
            return Ok(Step::Look(place, create_revision));
        }
        // At the limit there is a last look.
        self.end = WaitEnd::Now;
        let mut patience = Patience::new(Duration::ZERO);
        match self.look(place, create_revision, &mut patience).await {
            Ok(Step::Decided(decided)) => Ok(Step::Decided(decided)),
            _ => Ok(Step::Decided(self.busy())),
        }
    }

    /// The owner of a key that went, if that was with its session: at the revision of a
    /// release the session is still there.
    async fn dead(&self, session: &Session, gone: KeyValue, revision: i64) -> Option<Holder> {
        Record::read(&gone.value)?;
        let s = key::session(&self.target.options().prefix, gone.lease);
        let request = RangeRequest { key: s.into(), revision, ..RangeRequest::default() };
        let read: Result<RangeResponse, _> =
            session.call(RANGE, &request, ANSWER_LIMIT, &mut false).await;
        let is_dead = read.is_ok_and(|found| found.kvs.is_empty());
        is_dead.then(|| Holder {
            evidence: Evidence::LeaseOver,
            ..record::holder(&gone, &self.target.queue)
        })
    }

    /// M7, M11.
    fn acquired(
        &self,
        place: Place,
        create_revision: i64,
        token: i64,
        recovered_from: Option<Holder>,
    ) -> Step {
        if place.parts().session.state.over().is_some() {
            return again(place);
        }
        let token = u64::try_from(token).unwrap_or(0);
        let hold = Hold::new(place, create_revision, token, recovered_from);
        Step::Decided(Ok(Acquired::Held(EtcdGuard::new(hold))))
    }

    fn hear(&mut self, lowest: Option<&KeyValue>) {
        let holder = lowest.map(|kv| Box::new(record::holder(kv, &self.target.queue)));
        self.heard = Some(Busy::new(holder));
    }

    fn busy(&mut self) -> Decided {
        Ok(Acquired::Busy(self.heard.take().unwrap_or(Busy::new(None))))
    }

    /// M5.
    fn foreign(&self, lowest: Option<&KeyValue>) -> Result<(), Error> {
        let Some(why) = lowest.and_then(|kv| record::why_foreign(kv, &self.target.queue)) else {
            return Ok(());
        };
        let key = lowest.map_or_else(String::new, |kv| record::shown_key(&kv.key));
        Err(Error::Foreign { lock: self.target.name(), key, why: why.to_owned() })
    }

    /// A wait that has heard of a holder ends with that, and not with silence.
    fn given_up(&self, given_up: GivenUp) -> Error {
        self.target.given_up(DOING, given_up)
    }
}

/// Delete the key in the background, if it may be there. A key that may not be deleted, and
/// was never put, would keep the turn up to the end of the session. (M8)
fn end(place: Place) {
    if !place.parts().is_unclear {
        drop(place.forget());
    }
}

/// From the beginning, with another key; what there may be of this one is deleted.
fn again(place: Place) -> Step {
    Step::Put(place.leave().expect("BUG: a place without a turn"))
}

/// All keys of a queue, the lowest create revision first.
pub(super) fn in_order(queue: &str) -> RangeRequest {
    RangeRequest {
        key: queue.as_bytes().to_vec(),
        range_end: key::range_end(queue),
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Create as i32,
        ..RangeRequest::default()
    }
}

fn lowest(queue: &str) -> RangeRequest {
    RangeRequest { limit: 1, ..in_order(queue) }
}

/// Of a queue that was not empty: whether the key was put, and what each range found.
fn otherwise(responses: Vec<ResponseOp>) -> (bool, impl Iterator<Item = Vec<KeyValue>>) {
    match responses.first().and_then(|part| part.response.as_ref()) {
        Some(OpResponse::Txn(queued)) => (queued.succeeded, ranges(queued.responses.clone())),
        _ => (false, ranges(responses)),
    }
}

/// What each range of a transaction found.
fn ranges(responses: Vec<ResponseOp>) -> impl Iterator<Item = Vec<KeyValue>> {
    responses.into_iter().filter_map(|part| match part.response {
        Some(OpResponse::Range(found)) => Some(found.kvs),
        _ => None,
    })
}
