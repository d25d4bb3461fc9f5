//! Whether the lock is held, its waiters, and ending a hold from outside.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::acquire::in_order;
use super::record::{self, Record};
use super::target::Target;
use super::wire::{
    Compare, CompareTarget, CompareWith, DeleteRangeRequest, KeyValue, Op, PutRequest, RANGE,
    RangeRequest, RangeResponse, TXN, TxnRequest, TxnResponse,
};
use crate::lease::{RESPONSE_LIMIT, io};
use crate::local::timer::Standing;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};

const DOING: &str = "looking at";

/// So many of a queue are read. If larger, a long queue costs more memory.
const SHOWN: i64 = 256;

async fn keys(target: &Target) -> Result<Vec<KeyValue>, Error> {
    Ok(read(target).await?.kvs)
}

/// The keys of the queue, the holder's first.
pub(super) async fn read(target: &Target) -> Result<RangeResponse, Error> {
    let failed = |error| target.unreachable(DOING, Duration::ZERO, error);
    let client = Arc::clone(&target.cluster.live().map_err(failed)?.client);
    let request = RangeRequest { limit: SHOWN, ..in_order(&target.queue) };
    let mut patience = target.patience();
    let read: Result<RangeResponse, _> =
        client.persist(RANGE, &request, &mut patience, &mut false).await;
    read.map_err(|given_up| target.given_up(DOING, given_up))
}

/// Boxed where it is made: a program that uses the crate has nothing of it to compile.
pub(super) type Work<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Run this on the thread of `lease::io`. (M0) It is boxed, so that a caller's future stays
/// small.
async fn there<T, F>(target: &Target, work: F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    let _standing = Standing::at_most(RESPONSE_LIMIT);
    let failed = |error| target.unreachable(DOING, Duration::ZERO, error);
    let done = io().map_err(failed)?.run(work).await;
    done.unwrap_or_else(|error| Err(failed(error)))
}

pub(super) fn ask(target: Arc<Target>) -> Work<Status> {
    Box::pin(async move {
        let asking = Arc::clone(&target);
        let keys = there(&target, Box::pin(async move { keys(&asking).await })).await?;
        Ok(status(&target, &keys))
    })
}

/// The contenders behind the holder, in their order.
pub(super) fn waiters(target: Arc<Target>) -> Work<Vec<Holder>> {
    Box::pin(async move {
        let asking = Arc::clone(&target);
        let keys = there(&target, Box::pin(async move { keys(&asking).await })).await?;
        Ok(behind(&target, &keys))
    })
}

/// A lock's queue, as one look shows it.
#[cfg(feature = "cli")]
pub(crate) struct Queue {
    pub(crate) status: Status,
    /// The lease of the holder.
    pub(crate) lease: Option<i64>,
    /// In their order.
    pub(crate) waiters: Vec<Holder>,
}

#[cfg(feature = "cli")]
pub(super) fn queue(target: Arc<Target>) -> Work<Queue> {
    Box::pin(async move {
        let asking = Arc::clone(&target);
        let keys = there(&target, Box::pin(async move { keys(&asking).await })).await?;
        Ok(Queue {
            status: status(&target, &keys),
            lease: keys.first().map(|kv| kv.lease).filter(|&lease| lease != 0),
            waiters: behind(&target, &keys),
        })
    })
}

fn behind(target: &Target, keys: &[KeyValue]) -> Vec<Holder> {
    keys.iter().skip(1).map(|kv| record::holder(kv, &target.queue)).collect()
}

pub(super) fn status(target: &Target, keys: &[KeyValue]) -> Status {
    let Some(lowest) = keys.first() else { return Status::Free };
    Status::Held(match record::why_foreign(lowest, &target.queue) {
        Some(why) => {
            let why = format!("the key {:?}: {why}", record::shown_key(&lowest.key));
            Holder::nobody(Evidence::Unknown(why))
        }
        None => record::holder(lowest, &target.queue),
    })
}

/// Ask the holder to release. `None`: there is none.
pub(super) fn revoke(target: Arc<Target>) -> Work<Option<Holder>> {
    Box::pin(async move {
        let asking = Arc::clone(&target);
        there(&target, Box::pin(async move { revoke_there(&asking).await })).await
    })
}

async fn revoke_there(target: &Target) -> Result<Option<Holder>, Error> {
    loop {
        let keys = keys(target).await?;
        let Some(lowest) = keys.first() else { return Ok(None) };
        let holder = record::holder(lowest, &target.queue);
        let Some(record) = Record::read(&lowest.value) else {
            let (lock, holder) = (target.name(), Box::new(holder));
            return Err(Error::CannotAsk { lock, holder });
        };
        let value = record.revoked().to_bytes();
        let put = PutRequest { key: lowest.key.clone(), value, lease: lowest.lease };
        if change(target, lowest, Op::Put(put)).await? {
            return Ok(Some(holder));
        }
    }
}

/// End the hold of this lease by deleting its key; its holder is told. `None`: it is not
/// the holder's.
pub(super) fn end(target: Arc<Target>, lease: i64) -> Work<Option<Holder>> {
    Box::pin(async move {
        let asking = Arc::clone(&target);
        there(&target, Box::pin(async move { end_there(&asking, lease).await })).await
    })
}

async fn end_there(target: &Target, lease: i64) -> Result<Option<Holder>, Error> {
    let keys = keys(target).await?;
    let Some(lowest) = keys.first().filter(|kv| kv.lease == lease) else { return Ok(None) };
    let delete = Op::Delete(DeleteRangeRequest { key: lowest.key.clone() });
    let is_ended = change(target, lowest, delete).await?;
    Ok(is_ended.then(|| record::holder(lowest, &target.queue)))
}

/// Change a key if it is still the one that was seen.
async fn change(target: &Target, seen: &KeyValue, op: Op) -> Result<bool, Error> {
    const DOING: &str = "ending";
    let compare = Compare {
        target: CompareTarget::Create as i32,
        key: seen.key.clone(),
        with: Some(CompareWith::Create(seen.create_revision)),
        range_end: Vec::new(),
    };
    let request =
        TxnRequest { compare: vec![compare], success: vec![op.into()], failure: Vec::new() };
    let failed = |error| target.unreachable(DOING, Duration::ZERO, error);
    let client = Arc::clone(&target.cluster.live().map_err(failed)?.client);
    let (mut patience, mut is_unclear) = (target.patience(), false);
    let asked: Result<TxnResponse, _> =
        client.persist(TXN, &request, &mut patience, &mut is_unclear).await;
    let answer = asked.map_err(|given_up| target.given_up(DOING, given_up))?;
    // An unclear one before may have been carried out.
    Ok(answer.succeeded || is_unclear)
}
