//! The lease of this process, and the key that lives as long as it. (M1, M2)

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::client::{ANSWER_LIMIT, Client, GivenUp};
use super::failure::{Failure, Kind};
use super::key;
use super::record::Record;
use super::wire::{
    Answer, LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseRequest, LeaseRevokeResponse, Op, PutRequest, RANGE, RangeRequest,
    RangeResponse, TXN, TxnRequest, TxnResponse,
};
use crate::lease::{LeaseState, Patience, RENEWED_AFTER, Renewal, Running, io};
use crate::sys::boot_clock::BootTime;

/// So many members can be asked for one renewal before the next is due. If larger, each
/// has less time for its answer.
const MEMBERS: u32 = 3;

/// A renewal may take at least this long. If smaller, a busy machine loses short leases.
const RENEWAL_MIN: Duration = Duration::from_millis(250);

/// How often a lease that no lock needs is revoked before it is left to its end.
const REVOKES: u32 = 3;

/// What this process is to the cluster. Dropping it revokes its lease.
pub(super) struct Session {
    client: Arc<Client>,
    pub(super) state: Arc<LeaseState>,
    pub(super) lease: i64,
    /// As the cluster granted it.
    pub(super) ttl: Duration,
    /// S.
    pub(super) key: String,
    epoch: AtomicI64,
    /// Its id.
    cluster: u64,
    _renewing: Running<()>,
}

impl Session {
    /// Grant a lease and put S.
    pub(super) async fn begin(
        client: &Arc<Client>,
        prefix: &str,
        ttl: Duration,
        patience: &mut Patience,
    ) -> Result<Arc<Self>, GivenUp> {
        loop {
            // The base of D: before the request is sent. (E4)
            let (sent, begun) = (BootTime::now(), Instant::now());
            let request =
                LeaseGrantRequest { ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX) };
            let granted: Result<LeaseGrantResponse, _> =
                client.call_within(LEASE_GRANT, &request, patience, &mut false).await;
            let granted = match granted {
                Ok(granted) => granted,
                Err(failure) => {
                    pause(failure, begun, patience).await?;
                    continue;
                }
            };
            let length = seconds(granted.ttl);
            let (Some(length), true) = (length, granted.error.is_empty()) else {
                let text = format!("no lease was granted: {:?}", granted.error);
                return Err(GivenUp::Final(Failure::new(Kind::Refused, text)));
            };
            patience.renew(begun.elapsed());
            let session = Self::of(client, prefix, granted.id, sent, length)?;
            if session.state.over().is_none() && session.put(patience).await? {
                return Ok(Arc::new(session));
            }
        }
    }

    fn of(
        client: &Arc<Client>,
        prefix: &str,
        lease: i64,
        sent: BootTime,
        ttl: Duration,
    ) -> Result<Self, GivenUp> {
        let (key, state) = (key::session(prefix, lease), LeaseState::new(sent, Some(ttl)));
        let state = Arc::new(state);
        let keeper = Keeper { client: Arc::clone(client), lease, key: key.clone(), ttl };
        let kept = Arc::clone(&state);
        let keeping = async move {
            let tell = |error| told(lease, "a lease could not be renewed yet", error);
            kept.keep(sent, || keeper.renew(), tell).await;
        };
        let failed = |error: io::Error| {
            GivenUp::Final(Failure::new(Kind::Refused, format!("no thread: {error}")))
        };
        let renewing = io().map_err(failed)?.run(keeping);
        let (client, epoch) = (Arc::clone(client), AtomicI64::new(0));
        let cluster = client.cluster();
        Ok(Self { client, state, lease, ttl, key, epoch, cluster, _renewing: renewing })
    }

    /// Put S, which begins an epoch; false if the lease is over.
    pub(super) async fn put(&self, patience: &mut Patience) -> Result<bool, GivenUp> {
        let request = TxnRequest { success: vec![self.putting().into()], ..TxnRequest::default() };
        match self.persist::<_, TxnResponse>(TXN, &request, patience, &mut false).await {
            Ok(answer) => {
                self.begin_epoch(answer.header.map_or(0, |header| header.revision));
                Ok(true)
            }
            Err(GivenUp::Final(Failure { kind: Kind::NoLease, .. })) => {
                self.state.end();
                Ok(false)
            }
            Err(given_up) => Err(given_up),
        }
    }

    /// The put of S.
    pub(super) fn putting(&self) -> Op {
        let value = Record::of_this_process(None, None).to_bytes();
        Op::Put(PutRequest { key: self.key.clone().into(), value, lease: self.lease })
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Which counts revisions.
    pub(super) fn domain(&self) -> String {
        format!("etcd:{:x}", self.cluster)
    }

    /// 0: S is not there.
    pub(super) fn begin_epoch(&self, revision: i64) {
        self.epoch.store(revision, Ordering::Relaxed);
    }

    /// [`Client::persist`]; a state that was restored ends the session. (M9)
    pub(super) async fn persist<Q, A>(
        &self,
        path: &'static str,
        request: &Q,
        patience: &mut Patience,
        is_unclear: &mut bool,
    ) -> Result<A, GivenUp>
    where
        Q: prost::Message + Clone + 'static,
        A: Answer,
    {
        let asked = self.client.persist(path, request, patience, is_unclear).await;
        if let Err(GivenUp::Final(failure)) = &asked {
            self.heed(failure);
        }
        asked
    }

    /// [`Client::call`], the same.
    pub(super) async fn call<Q, A>(
        &self,
        path: &'static str,
        request: &Q,
        limit: Duration,
        is_unclear: &mut bool,
    ) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: Answer,
    {
        let asked = self.client.call(path, request, limit, is_unclear).await;
        if let Err(failure) = &asked {
            self.heed(failure);
        }
        asked
    }

    fn heed(&self, failure: &Failure) {
        if failure.kind == Kind::Restored {
            told(self.lease, "a lease is lost", io::Error::other(failure.message.clone()));
            self.state.end();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.state.is_of_this_process() {
            return;
        }
        let (client, request) = (Arc::clone(&self.client), LeaseRequest { id: self.lease });
        let Ok(io) = io() else { return };
        let outstanding = io.outstanding();
        drop(io.spawn(async move {
            for _ in 0..REVOKES {
                let revoked: Result<LeaseRevokeResponse, _> =
                    client.call(LEASE_REVOKE, &request, ANSWER_LIMIT, &mut false).await;
                match revoked {
                    Err(failure) if failure.kind == Kind::Passing => {}
                    // It is gone, or goes by itself.
                    _ => break,
                }
            }
            drop(outstanding);
        }));
    }
}

/// What renews.
struct Keeper {
    client: Arc<Client>,
    lease: i64,
    key: String,
    ttl: Duration,
}

impl Keeper {
    async fn renew(&self) -> Renewal {
        let limit = (self.ttl / (RENEWED_AFTER * MEMBERS)).clamp(RENEWAL_MIN, ANSWER_LIMIT);
        let request = LeaseRequest { id: self.lease };
        let asked: Result<LeaseKeepAliveResponse, _> =
            self.client.ask_by_stream(LEASE_KEEP_ALIVE, request, limit).await;
        match asked {
            Ok(answer) if answer.id != self.lease => {
                Renewal::Failed(io::Error::other("an answer about another lease"))
            }
            Ok(answer) => match seconds(answer.ttl) {
                Some(length) => Renewal::Renewed(Some(length)),
                None => self.confirm(limit).await,
            },
            // No member is of this cluster any more. (M9)
            Err(failure) if matches!(failure.kind, Kind::Foreign | Kind::Restored) => {
                Renewal::NotHeld
            }
            Err(failure) => Renewal::Failed(io::Error::other(failure.message)),
        }
    }

    /// A member says that the lease is over. Before all that hangs on it is called lost, S
    /// is read. (M2)
    async fn confirm(&self, limit: Duration) -> Renewal {
        let request = RangeRequest { key: self.key.clone().into(), ..RangeRequest::default() };
        let read: Result<RangeResponse, _> =
            self.client.call(RANGE, &request, limit, &mut false).await;
        match read {
            Ok(found) if found.kvs.is_empty() => Renewal::NotHeld,
            Ok(_) => Renewal::Failed(io::Error::other("a member does not know the lease yet")),
            Err(failure) if failure.kind == Kind::Restored => Renewal::NotHeld,
            Err(failure) => Renewal::Failed(io::Error::other(failure.message)),
        }
    }
}

/// Log what the user should know, though no call fails.
fn told(lease: i64, what: &'static str, error: io::Error) {
    if let Ok(io) = io() {
        io.log(move || tracing::warn!(lease = %format_args!("{lease:x}"), %error, "{what}"));
    }
}

/// `None` for a lease that is over.
fn seconds(ttl: i64) -> Option<Duration> {
    u64::try_from(ttl).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs)
}

async fn pause(failure: Failure, begun: Instant, patience: &mut Patience) -> Result<(), GivenUp> {
    if failure.kind != Kind::Passing {
        return Err(GivenUp::Final(failure));
    }
    let error = io::Error::other(failure.message);
    patience.pause(begun, error).await.map_err(GivenUp::Exhausted)
}
