//! Whether the lock is held, its waiters, and ending a hold from outside.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Row;

use super::failure::{GivenUp, pause};
use super::options::Table;
use super::record;
use super::target::Target;
use crate::lease::{Patience, RESPONSE_LIMIT, io};
use crate::local::timer::Standing;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};

const DOING: &str = "looking at";

/// So many sessions of a lock are read. If larger, a long queue costs more memory.
const SHOWN: u32 = 256;

/// A lock's sessions, as one look shows them.
#[derive(Default)]
pub(crate) struct Queue {
    /// The first, where several share it.
    pub(crate) holder: Option<Holder>,
    /// The server's processes of all holders, that one's first.
    pub(crate) pids: Vec<i32>,
    /// In their order.
    pub(crate) waiters: Vec<Holder>,
    /// One that vanished, where no session holds the lock.
    pub(crate) vanished: Option<Holder>,
}

impl Queue {
    pub(crate) fn status(self) -> Status {
        match (self.holder, self.vanished) {
            (Some(holder), _) => Status::Held(holder),
            (None, Some(vanished)) => Status::Stale(vanished),
            (None, None) => Status::Free,
        }
    }
}

/// Boxed where it is made: a program that uses the crate has nothing of it to compile.
pub(super) type Work<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Run this on the thread of `lease::io`. It is boxed, so that a caller's future stays small.
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

pub(super) fn queue(target: Arc<Target>) -> Work<Queue> {
    Box::pin(async move {
        let asking = Arc::clone(&target);
        there(
            &target,
            Box::pin(async move {
                let mut patience = asking.patience();
                ask_there(&asking, &mut patience).await
            }),
        )
        .await
    })
}

/// On the thread of `lease::io`.
pub(super) async fn ask_there(target: &Target, patience: &mut Patience) -> Result<Queue, Error> {
    let statement = look(target);
    loop {
        let given_up = |given_up| target.given_up(DOING, given_up);
        let keeper = target.server.live().keeper(patience).await.map_err(given_up)?;
        let begun = Instant::now();
        match keeper.ask_rows(&statement, &[]).await {
            Ok(rows) => return Ok(read(&rows)),
            Err(failure) => pause(failure, begun, patience).await.map_err(given_up)?,
        }
    }
}

/// Sessions that hold the lock or wait for it, holders first, and then a row of one that
/// vanished.
fn look(target: &Target) -> String {
    let (rows, held) = (rows(target), held(target));
    format!(
        "WITH r AS ({rows}), l AS (SELECT l.pid, l.granted, l.waitstart, \
                (EXTRACT(epoch FROM l.waitstart) * 1000)::pg_catalog.int8 AS since_ms \
            FROM pg_catalog.pg_locks l WHERE {held}) \
        (SELECT l.pid, l.granted, coalesce(a.application_name, ''), \
            coalesce(a.usename::text, ''), coalesce(pg_catalog.host(a.client_addr), ''), \
            r.holder, r.owner, l.since_ms \
        FROM l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
        LEFT JOIN r ON r.pid = l.pid AND l.granted \
        ORDER BY l.granted DESC, l.waitstart NULLS LAST, l.pid LIMIT {SHOWN}) \
        UNION ALL (SELECT NULL, NULL, '', '', '', r.holder, r.owner, NULL FROM r \
        WHERE NOT EXISTS (SELECT FROM l WHERE l.granted) LIMIT 1)"
    )
}

/// The rows of holders that did not leave in order.
fn rows(target: &Target) -> String {
    let (form, key) = target.key.row();
    let of_key = format!("form = {form} AND key = {key}");
    match target.options().table {
        Table::Own => format!(
            "SELECT pid, owner, holder FROM lockkeeper.lock WHERE {of_key} AND NOT clean \
             UNION ALL SELECT pid, owner, holder FROM lockkeeper.reader WHERE {of_key}"
        ),
        Table::None => "SELECT NULL::pg_catalog.int4 AS pid, NULL::text AS owner, \
             NULL::text AS holder WHERE false"
            .to_owned(),
    }
}

/// Which rows `l` of `pg_locks` are of the lock.
fn held(target: &Target) -> String {
    let (class, object, sub) = target.key.shown();
    format!(
        "l.locktype = 'advisory' AND l.classid = {class} AND l.objid = {object} \
         AND l.objsubid = {sub} AND l.database = (SELECT oid FROM pg_catalog.pg_database \
            WHERE datname = pg_catalog.current_database())"
    )
}

fn read(rows: &[Row]) -> Queue {
    let mut queue = Queue::default();
    for row in rows {
        let (pid, granted): (Option<i32>, Option<bool>) = (row.get(0), row.get(1));
        let written: (Option<&str>, Option<&str>) = (row.get(5), row.get(6));
        let of_row = |evidence| {
            written.0.zip(written.1).and_then(|(text, owner)| record::holder(text, owner, evidence))
        };
        let Some(pid) = pid else {
            queue.vanished = of_row(Evidence::LeaseOver);
            continue;
        };
        let session = || record::session(row.get(2), row.get(3), row.get(4), pid);
        match granted {
            Some(true) => {
                queue
                    .holder
                    .get_or_insert_with(|| of_row(Evidence::Server).unwrap_or_else(session));
                queue.pids.push(pid);
            }
            _ => queue.waiters.push(Holder {
                since: row.get::<_, Option<i64>>(7).and_then(record::since),
                ..session()
            }),
        }
    }
    queue
}

/// A session that was ended, and what it did beside holding the lock.
pub(crate) struct Ended {
    pub(crate) holder: Holder,
    /// Other advisory locks that it held.
    #[cfg(feature = "cli")]
    pub(crate) other_locks: i64,
    /// The last statement of the transaction that it was in, if the role may see that.
    #[cfg(feature = "cli")]
    pub(crate) transaction: Option<String>,
    /// The role may not see what it did.
    #[cfg(feature = "cli")]
    pub(crate) is_hidden: bool,
}

/// End this session, if it holds the lock. `None`: it does not.
pub(super) fn end(target: Arc<Target>, pid: i32) -> Work<Option<Ended>> {
    Box::pin(async move {
        let asking = Arc::clone(&target);
        there(&target, Box::pin(async move { end_there(&asking, pid).await })).await
    })
}

async fn end_there(target: &Target, pid: i32) -> Result<Option<Ended>, Error> {
    let given_up = |given_up| target.given_up("ending the session that holds", given_up);
    let mut patience = target.patience();
    let keeper = target.server.live().keeper(&mut patience).await.map_err(given_up)?;
    let asked = keeper.ask_rows(&ending(target, pid), &[]).await;
    let rows = asked.map_err(|failure| given_up(GivenUp::Final(failure)))?;
    let Some(row) = rows.first() else { return Ok(None) };
    let written: (Option<&str>, Option<&str>) = (row.get(3), row.get(4));
    let holder =
        written.0.zip(written.1).and_then(|it| record::holder(it.0, it.1, Evidence::Server));
    let holder = holder.unwrap_or_else(|| record::session(row.get(0), row.get(1), row.get(2), pid));
    Ok(Some(Ended {
        holder,
        #[cfg(feature = "cli")]
        other_locks: row.get(5),
        #[cfg(feature = "cli")]
        transaction: row.get::<_, Option<&str>>(6).map(record::statement),
        #[cfg(feature = "cli")]
        is_hidden: row.get(7),
    }))
}

/// A session of this crate that is probed at this moment, and is in no other transaction.
const PROBING: &str = "a.state = 'active' AND a.query LIKE '%''lockkeeper.session''%' \
    AND a.query_start - a.xact_start < '1 second'";

/// One statement looks and ends, so that no other session is hit. All is read before.
fn ending(target: &Target, pid: i32) -> String {
    let rows = rows(target);
    let held = held(target);
    format!(
        "WITH r AS ({rows}), seen AS MATERIALIZED (\
            SELECT coalesce(a.application_name, ''), coalesce(a.usename::text, ''), \
                coalesce(pg_catalog.host(a.client_addr), ''), r.holder, r.owner, \
                (SELECT pg_catalog.count(*) - 1 FROM pg_catalog.pg_locks o \
                    WHERE o.locktype = 'advisory' AND o.granted AND o.pid = l.pid), \
                CASE WHEN a.xact_start IS NOT NULL AND NOT ({PROBING}) THEN a.query END, \
                a.backend_type IS NULL OR a.state IS NULL, l.pid \
            FROM pg_catalog.pg_locks l \
            LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
            LEFT JOIN r ON r.pid = l.pid \
            WHERE {held} AND l.granted AND l.pid = {pid} LIMIT 1) \
        SELECT seen.*, pg_catalog.pg_terminate_backend(seen.pid) FROM seen"
    )
}
