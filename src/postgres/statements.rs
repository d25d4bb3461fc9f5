//! What is said to the server about one lock.
//!
//! A text is the same for all locks of a session, so that the server plans it once: `$1` is
//! the key of the lock's row, `$2` its form, `$3` the owner, `$4` its record and `$5` its lease
//! in milliseconds.

use std::sync::Arc;

use tokio_postgres::Row as Answer;
use tokio_postgres::types::Type;

use super::failure::Failure;
use super::key::{LockKey, Mode};
use super::lock_session::{LockSession, Parameter};

/// One lock in one session, by one owner.
#[derive(Clone)]
pub(super) struct Statements {
    pub(super) session: Arc<LockSession>,
    pub(super) key: LockKey,
    pub(super) mode: Mode,
    /// What no other hold is called.
    pub(super) owner: Arc<str>,
}

const OF_KEY: &str = "form = $2 AND key = $1";

const OF_OWNER: &str = "form = $2 AND key = $1 AND owner = $3";

/// What becomes of the row at a release. (P10)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// There is none.
    None,
    /// The holder leaves all in order.
    Clean,
    /// As it was before: what was left by a holder that vanished is still left.
    AsBefore,
}

impl Statements {
    /// The value is `true` if it is held by that; NULL if the session is not ours.
    pub(super) async fn try_lock(&self) -> Result<Option<bool>, Failure> {
        let function = format!("pg_catalog.pg_try_advisory_lock{}", self.mode.suffix());
        let text = self.session.if_ours(&format!("{function}({})", self.key.of_parameter()));
        let (_, key) = self.key.row();
        let rows = self.session.ask_again(&text, &[(&key, Type::INT8)]).await?;
        Ok(first(&rows))
    }

    /// Waits in the server's queue; the same values.
    pub(super) async fn lock(&self) -> Result<Option<bool>, Failure> {
        let function = format!("pg_catalog.pg_advisory_lock{}", self.mode.suffix());
        let waiting = format!("{function}({})::text IS NOT NULL", self.key.arguments());
        let text = self.session.if_ours(&waiting);
        let rows = self.session.ask_for_as_long_as_it_takes(&text, &[]).await?;
        Ok(first(&rows))
    }

    /// The value is `true` if it was held; NULL if the session is not ours.
    pub(super) async fn unlock(&self, row: Row) -> Result<Option<bool>, Failure> {
        let function = format!("pg_catalog.pg_advisory_unlock{}", self.mode.suffix());
        let text = self.session.if_ours(&format!("{function}({})", self.key.of_parameter()));
        let (form, key) = self.key.row();
        let parameters: [Parameter<'_>; 3] =
            [(&key, Type::INT8), (&form, Type::INT2), (&&*self.owner, Type::TEXT)];
        let Some(change) = self.change(row) else {
            let rows = self.session.ask_rows(&text, &parameters[..1]).await?;
            return Ok(first(&rows));
        };
        // The row is counted so that it is changed before the lock goes. A successor that is
        // in before the commit waits for it at the row.
        let text = format!(
            "WITH done AS ({change} RETURNING 1) {text} FROM (SELECT count(*) FROM done) d"
        );
        let rows = self.session.ask_again(&text, &parameters).await?;
        Ok(first(&rows))
    }

    fn change(&self, row: Row) -> Option<String> {
        Some(match (self.mode, row) {
            (_, Row::None) => return None,
            (Mode::Shared, _) => format!("DELETE FROM lockkeeper.reader WHERE {OF_OWNER}"),
            (Mode::Exclusive, Row::Clean) => {
                format!("UPDATE lockkeeper.lock SET clean = true WHERE {OF_OWNER}")
            }
            (Mode::Exclusive, Row::AsBefore) => format!(
                "UPDATE lockkeeper.lock SET clean = former_owner IS NULL, \
                 owner = coalesce(former_owner, owner), holder = coalesce(former, holder), \
                 lease_ms = coalesce(former_lease_ms, lease_ms), vanished_at = former_vanished_at WHERE {OF_OWNER}"
            ),
        })
    }

    /// Writes who holds it, by its record, with a lease of so many milliseconds. Columns: the
    /// counter, the name of the current file of the log, and of a holder that vanished its
    /// record, its owner and for how many milliseconds its lease may still be relied on.
    pub(super) async fn record(&self, holder: &str, lease: i64) -> Result<Vec<Answer>, Failure> {
        let (form, key) = self.key.row();
        let parameters: [Parameter<'_>; 5] = [
            (&key, Type::INT8),
            (&form, Type::INT2),
            (&&*self.owner, Type::TEXT),
            (&holder, Type::TEXT),
            (&lease, Type::INT8),
        ];
        self.session.ask_again(&self.recording(), &parameters).await
    }

    fn recording(&self) -> String {
        const LOG: &str = "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn())";
        const NOW: &str = "pg_catalog.clock_timestamp()";
        let left = |lease: &str, since: &str| {
            format!(
                "greatest(0, least({lease}, {lease} - (EXTRACT(epoch FROM {NOW} - {since}) \
                 * 1000)::pg_catalog.int8))"
            )
        };
        match self.mode {
            Mode::Exclusive => format!(
                "WITH gone AS (DELETE FROM lockkeeper.reader WHERE {OF_KEY} \
                    RETURNING owner, holder, lease_ms), \
                dead AS (SELECT (pg_catalog.array_agg(owner))[1] AS owner, \
                    (pg_catalog.array_agg(holder))[1] AS holder, \
                    pg_catalog.max(lease_ms) AS lease_ms FROM gone), \
                put AS (INSERT INTO lockkeeper.lock AS l \
                        (form, key, counter, owner, pid, holder, lease_ms, clean, \
                        former, former_owner, former_lease_ms, former_vanished_at) \
                    SELECT $2, $1, 1, $3, pg_catalog.pg_backend_pid(), $4, \
                        greatest($5, dead.lease_ms), false, dead.holder, dead.owner, \
                        dead.lease_ms, CASE WHEN dead.owner IS NOT NULL THEN {NOW} END FROM dead \
                    ON CONFLICT (form, key) DO UPDATE SET counter = l.counter + 1, \
                        owner = excluded.owner, pid = excluded.pid, holder = excluded.holder, \
                        lease_ms = greatest(excluded.lease_ms, \
                            CASE WHEN NOT l.clean THEN l.lease_ms END), \
                        clean = false, vanished_at = NULL, \
                        former = CASE WHEN l.clean THEN excluded.former ELSE l.holder END, \
                        former_owner = \
                            CASE WHEN l.clean THEN excluded.former_owner ELSE l.owner END, \
                        former_lease_ms = greatest(excluded.former_lease_ms, \
                            CASE WHEN NOT l.clean THEN l.lease_ms END), \
                        former_vanished_at = CASE WHEN l.clean OR excluded.former_owner IS NOT NULL \
                            THEN excluded.former_vanished_at \
                            ELSE coalesce(l.vanished_at, {NOW}) END \
                    RETURNING counter, former, former_owner, former_lease_ms, former_vanished_at) \
                SELECT counter, {LOG}, former, former_owner, \
                    CASE WHEN former_owner IS NOT NULL THEN {} END FROM put",
                left("former_lease_ms", "former_vanished_at")
            ),
            Mode::Shared => format!(
                "WITH put AS (INSERT INTO lockkeeper.lock AS l \
                        (form, key, counter, owner, pid, holder, lease_ms, clean) \
                    VALUES ($2, $1, 1, '', 0, '', 0, true) \
                    ON CONFLICT (form, key) DO UPDATE SET counter = l.counter + 1, \
                        vanished_at = CASE WHEN NOT l.clean THEN \
                            coalesce(l.vanished_at, {NOW}) END \
                    RETURNING counter, owner, holder, lease_ms, clean, vanished_at), \
                reader AS (INSERT INTO lockkeeper.reader (form, key, owner, pid, holder, lease_ms) \
                    VALUES ($2, $1, $3, pg_catalog.pg_backend_pid(), $4, $5)) \
                SELECT counter, {LOG}, CASE WHEN NOT clean THEN holder END, \
                    CASE WHEN NOT clean THEN owner END, CASE WHEN NOT clean THEN {} END FROM put",
                left("lease_ms", "vanished_at")
            ),
        }
    }

    /// The lease of a holder that vanished has been waited for, by one who shares the lock.
    pub(super) async fn is_over(&self, owner: &str) -> Result<(), Failure> {
        let (form, key) = self.key.row();
        let parameters: [Parameter<'_>; 3] =
            [(&key, Type::INT8), (&form, Type::INT2), (&owner, Type::TEXT)];
        let text =
            format!("UPDATE lockkeeper.lock SET clean = true, vanished_at = NULL WHERE {OF_OWNER}");
        self.session.ask_rows(&text, &parameters).await.map(drop)
    }

    /// A number that grows, where there is no table; durable with the message. Columns as of
    /// [`record`](Self::record).
    pub(super) async fn number(&self) -> Result<Vec<Answer>, Failure> {
        const TEXT: &str = "SELECT pg_catalog.pg_current_xact_id()::text::pg_catalog.int8, \
             pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), NULL::text, NULL::text, \
             NULL::pg_catalog.int8, \
             pg_catalog.pg_logical_emit_message(true, 'lockkeeper', '')::text";
        self.session.ask_again(TEXT, &[]).await
    }
}

fn first(rows: &[Answer]) -> Option<bool> {
    rows.first().and_then(|row| row.get(0))
}
