//! The table of holders and tokens: what makes it, and whether it is the right one.
//!
//! S1. No statement of this crate makes or changes a table: a role that only locks may not
//!     do so, and two that make one at a time fail.
//! S2. A table is used only if it is the one that `SQL` makes: its columns, no trigger or
//!     rule, and an owner that may do anything with the database anyway. Another owner could
//!     have its code run by the role of the lock.

use super::failure::{Failure, Kind};
use super::lock_session::LockSession;

/// The version of the table.
const VERSION: &str = "1";

/// What makes the schema, for an administrator.
pub(crate) const SQL: &str = "\
-- Tokens and holders of lockkeeper's locks, version 1. Run it once for each database, as the
-- owner of the database or a superuser:
--
--     lockkeeper postgres-schema | psql -1 -v ON_ERROR_STOP=1 app
--
-- Then let the roles that lock use it:
--
--     GRANT USAGE ON SCHEMA lockkeeper TO app;
--     GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA lockkeeper TO app;
CREATE SCHEMA lockkeeper;
COMMENT ON SCHEMA lockkeeper IS 'lockkeeper 1';

-- A row for each lock that was ever held.
CREATE TABLE lockkeeper.lock (
    form smallint NOT NULL,
    key bigint NOT NULL,
    counter bigint NOT NULL,
    owner text NOT NULL,
    pid integer NOT NULL,
    holder text NOT NULL,
    lease_ms bigint NOT NULL,
    clean boolean NOT NULL,
    vanished_at timestamptz,
    former text,
    former_owner text,
    former_lease_ms bigint,
    former_vanished_at timestamptz,
    PRIMARY KEY (form, key)
) WITH (fillfactor = 50);

-- A row for each holder that shares a lock.
CREATE TABLE lockkeeper.reader (
    form smallint NOT NULL,
    key bigint NOT NULL,
    owner text NOT NULL,
    pid integer NOT NULL,
    holder text NOT NULL,
    lease_ms bigint NOT NULL,
    PRIMARY KEY (form, key, owner)
);
";

/// The version, the owners that are none of those allowed, what is attached, and columns.
const LOOK: &str = "\
SELECT pg_catalog.obj_description(n.oid, 'pg_namespace'),
    pg_catalog.string_agg(c.relname || '(' || (
        SELECT pg_catalog.string_agg(a.attname || ' ' || a.atttypid::pg_catalog.regtype::text,
            ', ' ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) || ')',
        ' ' ORDER BY c.relname),
    pg_catalog.bool_or(c.relhastriggers OR c.relhasrules OR c.relrowsecurity
        OR c.relkind <> 'r' OR c.relpersistence <> 'p'),
    pg_catalog.string_agg(DISTINCT r.rolname, ', ') FILTER (WHERE NOT r.rolsuper
        AND r.rolname <> 'pg_database_owner' AND r.oid <> d.datdba)
FROM pg_catalog.pg_namespace n
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname IN ('lock', 'reader')
JOIN pg_catalog.pg_roles r ON r.oid IN (c.relowner, n.nspowner)
JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
WHERE n.nspname = 'lockkeeper'
GROUP BY n.oid";

const REMEDY: &str = "an administrator makes it with `lockkeeper postgres-schema | psql`, or the \
    lock does without it (table=none)";

/// Whether the table is there and the right one. (S2)
pub(super) async fn check(session: &LockSession) -> Result<(), Failure> {
    let refused = |why: String| Err(Failure::new(Kind::Refused, why));
    let Some(row) = session.ask_rows(LOOK, &[]).await?.into_iter().next() else {
        let database = &session.raw.server.database;
        return refused(format!(
            "the database (oid {database}) has no table of lockkeeper: {REMEDY}"
        ));
    };
    let (version, columns): (Option<&str>, &str) = (row.get(0), row.get(1));
    let (is_altered, others): (bool, Option<&str>) = (row.get(2), row.get(3));
    let version = version.and_then(|text| text.strip_prefix("lockkeeper ")).unwrap_or("none");
    if version != VERSION {
        let version = crate::lease::shown(version);
        return refused(format!(
            "its table is of version {version}, and this program knows {VERSION}"
        ));
    }
    // Two rows for each table, where their owners differ.
    let expected = columns_of(SQL);
    if columns
        .split(") ")
        .map(|it| it.trim_end_matches(')'))
        .any(|it| !expected.contains(&it.to_owned()))
    {
        return refused(format!("its table has other columns than it should: {REMEDY}"));
    }
    if is_altered {
        return refused(
            "its table has a trigger, a rule or row security, or is unlogged, so it \
            could say anything"
                .to_owned(),
        );
    }
    if let Some(others) = others {
        let others = crate::lease::shown(others);
        return refused(format!(
            "its table belongs to {others}: let the database's owner have it (ALTER TABLE \
             lockkeeper.lock OWNER TO …), or that role decides who holds a lock"
        ));
    }
    Ok(())
}

/// As [`LOOK`] shows them.
fn columns_of(sql: &str) -> Vec<String> {
    let tables = sql.split("CREATE TABLE lockkeeper.").skip(1);
    let table = |text: &str| {
        let (name, rest) = text.split_once(" (").expect("BUG: a table without columns");
        let lines = rest.lines().map(str::trim).skip(1);
        let columns = lines.take_while(|line| !line.starts_with("PRIMARY"));
        let columns: Vec<_> = columns
            .map(|line| line.trim_end_matches(',').trim_end_matches(" NOT NULL"))
            .map(|line| line.replace("timestamptz", "timestamp with time zone"))
            .collect();
        format!("{name}({}", columns.join(", "))
    };
    tables.map(table).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_the_sql() {
        let columns = columns_of(SQL);
        assert_eq!(columns.len(), 2);
        assert!(columns[0].starts_with("lock(form smallint, key bigint, counter bigint"));
        assert_eq!(
            columns[1],
            "reader(form smallint, key bigint, owner text, pid integer, holder text, \
             lease_ms bigint"
        );
    }
}
