//! A place in a lock's queue: a key at the cluster, and how it goes. (M8)

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep};

use super::client::{ANSWER_LIMIT, GivenUp};
use super::cluster::Live;
use super::failure::{Failure, Kind};
use super::session::Session;
use super::target::Target;
use super::wire::{DeleteRangeRequest, Op, OpResponse, TXN, TxnRequest, TxnResponse};
use crate::lease::Exhausted;
use crate::lock::error::{Error, LostReason};

const DOING: &str = "unlocking";

/// Between two tries to delete a key that may not be deleted. If larger, a lock whose
/// rights were given back is free later.
const REFUSED: Duration = Duration::from_secs(1);

/// Where a contender stands. Dropping it deletes the key in the background, and passes the
/// turn in this process on when that is confirmed.
pub(super) struct Place {
    parts: Option<Parts>,
}

pub(super) struct Parts {
    pub(super) target: Arc<Target>,
    pub(super) live: Arc<Live>,
    pub(super) session: Arc<Session>,
    /// E6.
    pub(super) turn: Option<OwnedSemaphorePermit>,
    /// K.
    pub(super) key: String,
    /// A put of K may be carried out later. (M4)
    pub(super) is_unclear: bool,
}

/// What became of a key.
type Left = Result<(), Error>;

impl Place {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts: Some(parts) }
    }

    pub(super) fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("BUG: a place was used after its end")
    }

    pub(super) fn parts_mut(&mut self) -> &mut Parts {
        self.parts.as_mut().expect("BUG: a place was used after its end")
    }

    /// The key was not put, and never will be: only the turn is left.
    pub(super) fn forget(mut self) -> Option<OwnedSemaphorePermit> {
        self.parts.take().and_then(|parts| parts.turn)
    }

    /// Leave the key to be deleted, and go on with the turn.
    pub(super) fn leave(mut self) -> Option<OwnedSemaphorePermit> {
        self.parts_mut().turn.take()
    }

    /// Delete the key.
    ///
    /// # Errors
    /// What the system refused.
    pub(super) fn delete(mut self) -> io::Result<oneshot::Receiver<Left>> {
        let parts = self.parts.take().expect("BUG: a place ended twice");
        parts.begin_to_delete()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        if !parts.session.state.is_of_this_process() {
            // All of it is the parent's, down to its memory. (C2)
            return mem::forget(parts);
        }
        let name = parts.target.name();
        if let Err(error) = parts.begin_to_delete() {
            tracing::warn!(lock = %name, %error, "a key is left to the end of its lease");
        }
    }
}

impl Parts {
    fn begin_to_delete(self) -> io::Result<oneshot::Receiver<Left>> {
        let (report, reported) = oneshot::channel();
        let target = Arc::clone(&self.target);
        drop(target.background.start(self.delete(report))?);
        Ok(reported)
    }

    /// Until that is confirmed, or the lease is over. The report comes with that, or
    /// earlier with an error.
    async fn delete(mut self, report: oneshot::Sender<Left>) {
        let (mut patience, mut report) = (self.target.patience(), Some(report));
        let (mut may_be_done, mut has_space) = (false, true);
        let mut tell = |left: Left| {
            if let Some(report) = report.take() {
                if let Err(Err(error)) = report.send(left) {
                    tracing::debug!("{error}");
                }
            }
        };
        loop {
            let is_in_time = self.session.state.over().is_none();
            let begun = Instant::now();
            let (request, mut is_unclear) = (self.deleting(has_space), false);
            let asked: Result<TxnResponse, Failure> =
                self.session.call(TXN, &request, ANSWER_LIMIT, &mut is_unclear).await;
            let failure = match asked {
                Ok(answer) => {
                    self.end_epoch(&answer, has_space);
                    return tell(
                        match deleted(&answer) || may_be_done || is_unclear && is_in_time {
                            true => Ok(()),
                            false => Err(self.target.lost(LostReason::Ended).into()),
                        },
                    );
                }
                Err(failure) => failure,
            };
            may_be_done |= is_unclear && is_in_time;
            match failure.kind {
                // With the lease all its keys are gone.
                Kind::NoLease | Kind::Restored => {
                    return tell(match may_be_done {
                        true => Ok(()),
                        false => Err(self.target.lost(LostReason::Ended).into()),
                    });
                }
                Kind::NoSpace if has_space => has_space = false,
                Kind::Passing => {
                    let error = io::Error::other(failure.message);
                    if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await {
                        tell(Err(self.target.unreachable(DOING, tried, error)));
                        sleep(REFUSED).await;
                    }
                }
                _ => {
                    let given_up = GivenUp::Final(failure);
                    tell(Err(self.target.given_up(DOING, given_up)));
                    sleep(REFUSED).await;
                }
            }
            if self.session.state.over().is_some() {
                // The cluster deletes the key, if it is there.
                let error = io::Error::other("its lease was over first");
                return tell(Err(self.target.unreachable(DOING, begun.elapsed(), error)));
            }
        }
    }

    fn deleting(&self, has_space: bool) -> TxnRequest {
        let key = self.key.clone().into();
        let mut success = vec![Op::Delete(DeleteRangeRequest { key })];
        if self.is_unclear {
            // The barrier. (M8)
            success.push(match has_space {
                true => self.session.putting(),
                false => Op::Delete(DeleteRangeRequest { key: self.session.key.clone().into() }),
            });
        }
        let success = success.into_iter().map(Into::into).collect();
        TxnRequest { success, ..TxnRequest::default() }
    }

    fn end_epoch(&mut self, answer: &TxnResponse, has_space: bool) {
        if self.is_unclear {
            let revision = answer.header.map_or(0, |header| header.revision);
            self.session.begin_epoch(if has_space { revision } else { 0 });
        }
    }
}

/// Whether K was there.
fn deleted(answer: &TxnResponse) -> bool {
    let first = answer.responses.first().and_then(|part| part.response.as_ref());
    matches!(first, Some(OpResponse::Delete(deleted)) if deleted.deleted > 0)
}
