//! What is said to the server about one lock.

use super::key::{LockKey, Mode};
use super::lock_session::LockSession;

/// One lock in one session, by one owner.
pub(super) struct Statements<'a> {
    pub(super) session: &'a LockSession,
    pub(super) key: LockKey,
    pub(super) mode: Mode,
    /// What no other hold is called: digits and letters.
    pub(super) owner: &'a str,
}

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

impl Statements<'_> {
    /// `true` if it is held by that; NULL if the session is not ours.
    pub(super) fn try_lock(&self) -> String {
        let function = format!("pg_catalog.pg_try_advisory_lock{}", self.mode.suffix());
        self.session.if_ours(&format!("{function}({})", self.key.arguments()))
    }

    /// Waits in the server's queue; the same results.
    pub(super) fn lock(&self) -> String {
        let function = format!("pg_catalog.pg_advisory_lock{}", self.mode.suffix());
        let waiting = format!("{function}({})::text IS NOT NULL", self.key.arguments());
        self.session.if_ours(&waiting)
    }

    /// `true` if it was held; NULL if the session is not ours.
    pub(super) fn unlock(&self, row: Row) -> String {
        let function = format!("pg_catalog.pg_advisory_unlock{}", self.mode.suffix());
        let unlock = self.session.if_ours(&format!("{function}({})", self.key.arguments()));
        let (form, key) = self.key.row();
        let of_owner = format!("form = {form} AND key = {key} AND owner = '{}'", self.owner);
        let change = match (self.mode, row) {
            (_, Row::None) => return unlock,
            (Mode::Shared, _) => format!("DELETE FROM lockkeeper.reader WHERE {of_owner}"),
            (Mode::Exclusive, Row::Clean) => {
                format!("UPDATE lockkeeper.lock SET clean = true WHERE {of_owner}")
            }
            (Mode::Exclusive, Row::AsBefore) => format!(
                "UPDATE lockkeeper.lock SET clean = former_owner IS NULL, \
                 owner = coalesce(former_owner, owner), holder = coalesce(former, holder), \
                 vanished_at = former_vanished_at WHERE {of_owner}"
            ),
        };
        // The row is counted so that it is changed before the lock goes. A successor that is
        // in before the commit waits for it at the row.
        format!("WITH done AS ({change} RETURNING 1) {unlock} FROM (SELECT count(*) FROM done) d")
    }

    /// Writes who holds it, `$1`, with a lease of `$2` ms. Columns: the counter, the name of
    /// the current file of the log, and of a holder that vanished its record, its owner and
    /// for how many ms its lease may still be relied on.
    pub(super) fn record(&self) -> String {
        const LOG: &str = "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn())";
        const NOW: &str = "pg_catalog.clock_timestamp()";
        let (form, key) = self.key.row();
        let owner = self.owner;
        let of_key = format!("form = {form} AND key = {key}");
        let left = |lease: &str, since: &str| {
            format!(
                "greatest(0, least({lease}, {lease} - (EXTRACT(epoch FROM {NOW} - {since}) \
                 * 1000)::pg_catalog.int8))"
            )
        };
        match self.mode {
            Mode::Exclusive => format!(
                "WITH gone AS (DELETE FROM lockkeeper.reader WHERE {of_key} \
                    RETURNING owner, holder, lease_ms), \
                dead AS (SELECT (pg_catalog.array_agg(owner))[1] AS owner, \
                    (pg_catalog.array_agg(holder))[1] AS holder, \
                    pg_catalog.max(lease_ms) AS lease_ms FROM gone), \
                put AS (INSERT INTO lockkeeper.lock AS l \
                        (form, key, counter, owner, pid, holder, lease_ms, clean, \
                        former, former_owner, former_lease_ms, former_vanished_at) \
                    SELECT {form}, {key}, 1, '{owner}', pg_catalog.pg_backend_pid(), $1, \
                        greatest($2, dead.lease_ms), false, dead.holder, dead.owner, \
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
                    VALUES ({form}, {key}, 1, '', 0, '', 0, true) \
                    ON CONFLICT (form, key) DO UPDATE SET counter = l.counter + 1, \
                        vanished_at = CASE WHEN NOT l.clean THEN \
                            coalesce(l.vanished_at, {NOW}) END \
                    RETURNING counter, owner, holder, lease_ms, clean, vanished_at), \
                reader AS (INSERT INTO lockkeeper.reader (form, key, owner, pid, holder, lease_ms) \
                    VALUES ({form}, {key}, '{owner}', pg_catalog.pg_backend_pid(), $1, $2)) \
                SELECT counter, {LOG}, CASE WHEN NOT clean THEN holder END, \
                    CASE WHEN NOT clean THEN owner END, CASE WHEN NOT clean THEN {} END FROM put",
                left("lease_ms", "vanished_at")
            ),
        }
    }

    /// The lease of a holder that vanished has been waited for, by one who shares the lock.
    pub(super) fn is_over(&self, owner: &str) -> String {
        let (form, key) = self.key.row();
        format!(
            "UPDATE lockkeeper.lock SET clean = true, vanished_at = NULL \
             WHERE form = {form} AND key = {key} AND owner = '{owner}'"
        )
    }

    /// A number that grows, where there is no table; durable with the message.
    pub(super) fn number(&self) -> String {
        "SELECT pg_catalog.pg_current_xact_id()::text::pg_catalog.int8, \
         pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), NULL::text, NULL::text, \
         NULL::pg_catalog.int8, \
         pg_catalog.pg_logical_emit_message(true, 'lockkeeper', '')::text"
            .to_owned()
    }
}
