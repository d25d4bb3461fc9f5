//! A session that holds locks, and the lease by which it is relied on. (P7, P8, P12)

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::access::Access;
use super::connect::Session;
use super::failure::{Failure, Kind};
use crate::lease::{LeaseState, Renewal, Running, io};
use crate::lock::error::rounded;
use crate::sys::boot_clock::BootTime;
use crate::sys::mutex::Mutex;
use crate::sys::random;

/// What a failure of a session is called that another client has used.
pub(super) const POOLED: &str = "pooler";

/// How long a statement may take that waits for no lock of a user's, in a session that holds
/// locks. If larger, one that blocks holds up the probes of all of them.
const STATEMENT_LIMIT: Duration = Duration::from_secs(1);

/// How long a statement waits for a lock before it is made anew. As long as one runs, VACUUM
/// leaves what has become garbage since it began. If larger, more is left.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// How long an answer may take that waits for no lock of a user's. If larger, a server that
/// says nothing holds up a limit for longer; if smaller, a slow disk looks like one.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How often the server looks whether the client of a statement is still there. If larger, a
/// dropped wait stands in the queue for longer.
const CLIENT_LOOK: Duration = Duration::from_millis(500);

/// A parameter of a statement.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A session whose server process is ours alone. It ends when this is dropped.
pub(super) struct LockSession {
    pub(super) raw: Arc<Session>,
    /// What no other session is called. (P7)
    nonce: String,
    pub(super) state: Arc<LeaseState>,
    lease: Duration,
    keeping: Mutex<Option<Running<()>>>,
    /// Those that are held or asked for in it.
    locks: AtomicUsize,
    /// A statement of it failed in a way that leaves open what it holds. (P12)
    is_retired: AtomicBool,
    /// By their texts, of which there is a handful.
    plans: Mutex<Vec<(String, Plan)>>,
    /// A holder had its statements run in it, which may have left anything.
    is_lent: AtomicBool,
}

/// How far a text is that is asked again and again.
enum Plan {
    Asked,
    Preparing,
    Ready(Statement),
}

/// A place for one lock in a session.
pub(super) struct Seat(Arc<LockSession>);

impl Seat {
    pub(super) fn session(&self) -> &Arc<LockSession> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.locks.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To try and to hold, several at a time.
    Keeper,
    /// To wait for one lock, and to hold that.
    Waiter,
}

impl LockSession {
    /// A session that no other client has had, with a lease that begins now. It is kept up,
    /// and still has the settings of the server: see [`set`](Self::set).
    pub(super) async fn begin(access: &Access, lease: Duration) -> Result<Arc<Self>, Failure> {
        let mut bits = [0_u8; 16];
        let drawn = random::fill(&mut bits).map_err(io::Error::from);
        drawn.map_err(|error| Failure::of_io(&error))?;
        let nonce = format!("{:032x}", u128::from_ne_bytes(bits));
        let raw = Arc::new(Session::open(access).await?);
        let sent = BootTime::now();
        let state = Arc::new(LeaseState::new(sent, Some(lease)));
        let session = Arc::new(Self {
            raw,
            nonce,
            state,
            lease,
            keeping: Mutex::new(None),
            locks: AtomicUsize::new(0),
            is_retired: AtomicBool::new(false),
            plans: Mutex::default(),
            is_lent: AtomicBool::new(false),
        });
        session.keep(sent).map_err(|error| Failure::of_io(&error))?;
        session.claim().await?;
        Ok(session)
    }

    /// In one statement, so that between the look and the claim nothing comes. (P7)
    async fn claim(&self) -> Result<(), Failure> {
        const NOW: &str = "pg_catalog.current_setting('lockkeeper.session', true)";
        let nonce = &self.nonce;
        let claim = format!(
            "SELECT CASE WHEN coalesce({NOW}, '') OPERATOR(pg_catalog.=) '' \
             THEN pg_catalog.set_config('lockkeeper.session', '{nonce}', false) ELSE {NOW} END"
        );
        match self.ask_text(&claim, &[]).await? {
            Some(found) if found == self.nonce => Ok(()),
            _ => Err(pooled()),
        }
    }

    /// Not before the claim: settings would go to other clients of a pooler.
    pub(super) async fn set(&self, used: Use) -> Result<(), Failure> {
        let statement = match used {
            Use::Keeper => STATEMENT_LIMIT,
            Use::Waiter => Duration::ZERO,
        };
        let plans = match used {
            // Of each lock the plan is the same.
            Use::Keeper => "force_generic_plan",
            Use::Waiter => "auto",
        };
        let settings = [
            ("plan_cache_mode", plans.to_owned()),
            ("search_path", "pg_catalog".to_owned()),
            ("statement_timeout", statement.as_millis().to_string()),
            ("lock_timeout", WAIT_LIMIT.as_millis().to_string()),
            ("idle_in_transaction_session_timeout", "0".to_owned()),
            ("idle_session_timeout", self.lease.as_millis().to_string()),
            ("client_connection_check_interval", CLIENT_LOOK.as_millis().to_string()),
            ("synchronous_commit", "on".to_owned()),
            ("default_transaction_read_only", "off".to_owned()),
            ("default_transaction_isolation", "read committed".to_owned()),
        ];
        let all = settings
            .map(|(name, value)| format!("pg_catalog.set_config('{name}', '{value}', false)"));
        self.ask_rows(&format!("SELECT {}", all.join(", ")), &[]).await.map(drop)
    }

    /// The answer to a statement that waits for no lock. A session that gives none takes no
    /// other lock, as it may be out of reach. (P12)
    pub(super) async fn ask_rows(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let asking = self.ask_for_as_long_as_it_takes(statement, parameters);
        timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(|_| {
            self.retire();
            Err(silence())
        })
    }

    pub(super) async fn ask_for_as_long_as_it_takes(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        self.answer(self.raw.client.query_typed(statement, parameters).await)
    }

    /// The same for a text that is asked again and again. From the second time on the server
    /// does not plan it anew, which takes it ten times as long as the rest. (P14)
    pub(super) async fn ask_again(
        &self,
        text: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let asking = async {
            let Some(statement) = self.prepared(text, parameters).await? else {
                return self.ask_for_as_long_as_it_takes(text, parameters).await;
            };
            let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
            self.answer(self.raw.client.query(&statement, &values).await)
        };
        let answer = timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(|_| Err(silence()));
        answer.inspect_err(|_| self.retire())
    }

    /// `None` if it is to be asked without a name: the first time, in a session that was lent,
    /// and while it is being prepared.
    async fn prepared(
        &self,
        text: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Statement>, Failure> {
        if self.is_lent.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let slot = {
            let mut plans = self.plans.lock();
            let Some(slot) = plans.iter().position(|(known, _)| known == text) else {
                plans.push((text.to_owned(), Plan::Asked));
                return Ok(None);
            };
            match &mut plans[slot].1 {
                Plan::Ready(statement) => return Ok(Some(statement.clone())),
                Plan::Preparing => return Ok(None),
                plan @ Plan::Asked => *plan = Plan::Preparing,
            }
            slot
        };
        let types: Vec<_> = parameters.iter().map(|(_, of)| of.clone()).collect();
        let statement = self.answer(self.raw.client.prepare_typed(text, &types).await)?;
        self.plans.lock()[slot].1 = Plan::Ready(statement.clone());
        Ok(Some(statement))
    }

    fn answer<T>(&self, answer: Result<T, tokio_postgres::Error>) -> Result<T, Failure> {
        answer.map_err(|error| self.raw.over().unwrap_or_else(|| Failure::of(&error)))
    }

    /// The first column of the first row.
    pub(super) async fn ask_text(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<String>, Failure> {
        let rows = self.ask_rows(statement, parameters).await?;
        Ok(rows.first().and_then(|row| row.get(0)))
    }

    /// The statement `SELECT … END` whose value is this expression if the session is still
    /// ours and the server no standby, and NULL otherwise. (P7)
    pub(super) fn if_ours(&self, expression: &str) -> String {
        let nonce = &self.nonce;
        format!(
            "SELECT CASE WHEN pg_catalog.current_setting('lockkeeper.session', true) \
             OPERATOR(pg_catalog.=) '{nonce}' AND NOT pg_catalog.pg_is_in_recovery() \
             THEN {expression} END"
        )
    }

    /// Whether another lock may be asked for in it.
    pub(super) fn takes_more(&self, most: usize) -> bool {
        !self.is_retired.load(Ordering::Relaxed)
            && self.locks.load(Ordering::Relaxed) < most
            && self.raw.over().is_none()
            && self.state.over().is_none()
    }

    pub(super) fn seat(self: &Arc<Self>) -> Seat {
        self.locks.fetch_add(1, Ordering::Relaxed);
        Seat(Arc::clone(self))
    }

    /// No other lock is asked for in it. (P12)
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Its client, for statements of the holder. It takes no other lock afterwards.
    pub(super) fn lend(&self) -> &Client {
        self.is_lent.store(true, Ordering::Relaxed);
        self.retire();
        &self.raw.client
    }

    /// End the transaction that a holder may have left, of which the release would be a part,
    /// and undo what the holder may have set.
    pub(super) async fn take_back(&self) -> Result<(), Failure> {
        const UNDO: &str = "ROLLBACK; RESET SESSION AUTHORIZATION; SET statement_timeout = 0";
        if !self.is_lent.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.answer(self.raw.client.batch_execute(UNDO).await)?;
        self.set(Use::Waiter).await
    }

    /// Probe from now on, up to the end of the lease: then the session is ended, and with it
    /// what still waits for an answer. `sent`: before a statement is sent. No guard relies on
    /// the session before that is answered. (P8)
    pub(super) fn keep(&self, sent: BootTime) -> io::Result<()> {
        self.state.begin_anew(sent, Some(self.lease));
        let (state, raw) = (Arc::clone(&self.state), Arc::clone(&self.raw));
        let probe =
            self.if_ours("pg_catalog.pg_logical_emit_message(true, 'lockkeeper', '')::text");
        let lease = self.lease;
        let running = io()?.run(async move {
            let ended = raw.ended();
            let keeping =
                state.keep(sent, || renew(&raw, &probe, lease), |error| told(&raw, error));
            tokio::select! {
                biased;
                failure = ended => {
                    tracing::debug!(error = failure.message, "a session has ended");
                    state.end();
                }
                () = keeping => raw.end(),
            }
        });
        *self.keeping.lock() = Some(running);
        Ok(())
    }

    /// Probe no more: a statement of it is going to wait.
    pub(super) fn rest(&self) {
        *self.keeping.lock() = None;
    }

    /// The server's process that the session is.
    pub(super) fn pid(&self) -> i32 {
        self.raw.pid
    }
}

impl Drop for LockSession {
    fn drop(&mut self) {
        self.raw.end();
    }
}

fn silence() -> Failure {
    let limit = rounded(ANSWER_LIMIT);
    Failure::new(Kind::Passing, format!("the server gave no answer within {limit}"))
}

pub(super) fn pooled() -> Failure {
    Failure {
        state: Some(POOLED.to_owned()),
        ..Failure::new(
            Kind::Refused,
            "a pooler gives several clients one session, so that a lock would not be this \
             client's: connect to PostgreSQL itself, or pool sessions and not transactions or \
             statements",
        )
    }
}

/// By a write: a former primary answers reads. (P8)
fn renew(
    raw: &Arc<Session>,
    probe: &str,
    lease: Duration,
) -> impl Future<Output = Renewal> + use<> {
    let (raw, probe) = (Arc::clone(raw), probe.to_owned());
    async move {
        match raw.client.query_typed(&probe, &[]).await {
            Ok(rows) => match rows.first().and_then(|row| row.get::<_, Option<String>>(0)) {
                Some(_) => Renewal::Renewed(Some(lease)),
                None => Renewal::NotHeld,
            },
            Err(_) if raw.over().is_some() => Renewal::NotHeld,
            Err(error) => Renewal::Failed(io::Error::other(Failure::of(&error).message)),
        }
    }
}

/// Log what the user should know, though no call fails.
fn told(raw: &Session, error: io::Error) {
    let pid = raw.pid;
    if let Ok(io) = io() {
        io.log(move || tracing::warn!(pid, %error, "a session could not be probed yet"));
    }
}
