//! The command for locks that PostgreSQL keeps: `break`, and the SQL of their table.

use super::exit::{self, Failure};
use super::named::usage;
use super::text::print;
use super::{Break, runtime};
use crate::{AsyncPostgresLock, Lock, PostgresLocks, Status};

pub(super) const SCHEMA_EXAMPLES: &str = "\
Examples:
  lockkeeper postgres-schema | psql -1 -v ON_ERROR_STOP=1 app

Run the SQL once for each database, as its owner or a superuser. It has its version in it, and
what each role that locks needs to be granted. A lock with ?table=none in its URL does without:
nothing is then known of the last holder.";

pub(super) fn print_schema() -> u8 {
    print(PostgresLocks::SCHEMA.trim_end());
    0
}

/// What was done, in a line.
pub(super) fn break_lock(arguments: &Break, lock: &AsyncPostgresLock) -> Result<String, Failure> {
    let Some(text) = &arguments.force else {
        return Err(usage(
            "PostgreSQL frees what the dead held, with their sessions, and a living holder cannot \
             be asked: --force PID ends the session of the holder (status shows it)"
                .to_owned(),
        ));
    };
    let pid = text.parse().ok().filter(|pid| *pid > 0).ok_or_else(|| {
        usage(format!(
            "--force {text} must be the server's process of the holder's session, as status shows it"
        ))
    })?;
    runtime()?.block_on(force(lock, pid))
}

async fn force(lock: &AsyncPostgresLock, pid: i32) -> Result<String, Failure> {
    let name = lock.name();
    if let Some(ended) = lock.end(pid).await? {
        let mut beside = Vec::new();
        if ended.other_locks > 0 {
            beside.push(format!("other advisory locks that it held: {}", ended.other_locks));
        }
        if let Some(statement) = ended.transaction {
            beside.push(format!("its transaction is rolled back: {statement}"));
        }
        if ended.is_hidden {
            beside.push("its transaction, if any, is not shown to this role".to_owned());
        }
        let beside =
            if beside.is_empty() { "it did nothing else".into() } else { beside.join("; ") };
        return Ok(format!("{name}: ended the session {pid} of {}; {beside}", ended.holder));
    }
    let queue = lock.queue().await?;
    let session = queue.pids.first().copied().unwrap_or(0);
    let Status::Held(holder) = queue.status() else {
        return Ok(format!("{name}: free, nothing to end"));
    };
    let message = format!(
        "refused: the session {pid} does not hold {name}, but {holder} ({}): end its session with \
         --force {session}",
        holder.evidence
    );
    Err(Failure { code: exit::HELD, message })
}
