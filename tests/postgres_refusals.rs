//! What a PostgreSQL server refuses, what its defaults would do to a lock, and what is said of
//! both: everything that a user needs, and nothing secret.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::time::Duration;

use lockkeeper::{AsyncPostgresLock, Error, PostgresLocks, PostgresOptions, Status, Table};
use postgres_locks::{
    LONG, Waiter, acquire, lock, options, release, server, stand, text, text_of_another, waiting,
    with_table,
};
use postgres_support::{PASSWORD, ROLE, Server, Session, is_there};
use support::{block_on, eventually};

/// Two processes' worth of sessions hold and wait, for longer than any of these settings lets
/// them by itself.
#[test]
fn defaults_of_a_role_change_no_hold_and_no_wait() {
    if !is_there() {
        return;
    }
    let server = server();
    for setting in ["statement_timeout", "lock_timeout", "idle_session_timeout"] {
        server.sql(&format!("alter role {ROLE} set {setting} = 500"));
    }
    let lease = Duration::from_secs(6);
    let one = lock(&text(server.address()), options(lease));
    let guard = acquire(&one);
    let waiter = Waiter::of(&lock(&text_of_another(server.address()), options(lease)));
    stand(&server, &one, 1, 1);
    let first = waiting(&server, &one);
    // Less than between two probes.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!guard.is_lost(), "idle_session_timeout");
    assert_eq!(waiting(&server, &one), first, "statement_timeout or lock_timeout");
    release(guard);
    release(waiter.guard());
}

/// Settings that an administrator changes reach sessions that are there.
#[test]
fn a_server_that_becomes_read_only_by_default_takes_releases() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let guard = acquire(&one);
    server.sql("alter system set default_transaction_read_only = on");
    server.sql("select pg_reload_conf()");
    server.wait_for("show default_transaction_read_only", "on");
    release(guard);
    assert_eq!(server.value("select bool_and(clean) from lockkeeper.lock"), "t");
    let another = options(LONG).reconnect(Duration::ZERO);
    let another = lock(&text_of_another(server.address()), another);
    let error = block_on(another.try_acquire()).expect_err("a new session is read-only");
    let Error::Unreachable { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("default_transaction_read_only"), "{source}");
}

/// A row that another transaction has changed meanwhile is changed again.
#[test]
fn stricter_isolation_by_default_leaves_no_row_unclean() {
    if !is_there() {
        return;
    }
    let server = server();
    server.sql(&format!("alter role {ROLE} set default_transaction_isolation = serializable"));
    // In a session of its own no statement is cut short after a second.
    let one = lock(&text(server.address()), options(LONG).own_session(true));
    let guard = acquire(&one);
    let program = server.superuser().expect("a session");
    program.query("begin; update lockkeeper.lock set pid = pid").expect("the row");
    let releasing = std::thread::spawn(move || release(guard));
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    server.wait_for(waits, "1");
    program.query("commit").expect("its end");
    releasing.join().expect("it is released");
    assert_eq!(server.value("select clean from lockkeeper.lock"), "t");
}

/// Operators and functions of another schema, found before PostgreSQL's own.
#[test]
fn a_search_path_with_other_operators_changes_nothing() {
    if !is_there() {
        return;
    }
    let server = server();
    server.sql(&format!(
        "create schema evil; grant usage on schema evil to {ROLE}; \
         create function evil.no(smallint, integer) returns boolean language sql \
            as 'select false'; \
         create operator evil.= (leftarg = smallint, rightarg = integer, function = evil.no); \
         create function evil.no(bigint, bigint) returns boolean language sql as 'select false'; \
         create operator evil.= (leftarg = bigint, rightarg = bigint, function = evil.no); \
         create function evil.no(text, text) returns boolean language sql as 'select false'; \
         create operator evil.= (leftarg = text, rightarg = text, function = evil.no); \
         alter role {ROLE} set search_path = evil, pg_catalog"
    ));
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    for lock in [&one, &other] {
        let guard = acquire(lock);
        assert_eq!(guard.recovered_from(), None, "a row that was left clean");
        let status = block_on(other.status()).expect("a status");
        let Status::Held(holder) = &status else { panic!("{status:?}") };
        assert_eq!(holder.hold_id.as_deref(), guard.hold_id());
        release(guard);
    }
}

/// Any session takes all that is left, and then no session can lock anything.
#[test]
fn a_server_without_memory_for_locks_is_waited_for_and_named() {
    if !is_there() {
        return;
    }
    let builder = Server::builder().max_connections(20).set("max_locks_per_transaction", "10");
    let server = with_table(builder);
    let with = |reconnect| options(LONG).table(Table::None).reconnect(reconnect);
    let one = lock(&text(server.address()), with(Duration::ZERO));
    let other = lock(&text_of_another(server.address()), with(support::HOUR));
    [&one, &other].into_iter().for_each(|lock| release(acquire(lock)));
    let greedy = server.superuser().expect("a session");
    let much = "select count(pg_advisory_lock(number)) from generate_series(1, 100000) number";
    greedy.query(much).expect_err("it has all");
    let error = block_on(one.try_acquire()).expect_err("no memory");
    let Error::Unreachable { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("out of shared memory (53200)"), "{source}");
    let waiter = Waiter::of(&other);
    std::thread::sleep(support::QUIET);
    waiter.expect_waiting();
    greedy.query("select pg_advisory_unlock_all()").expect("unlocked");
    release(waiter.guard());
    release(acquire(&one));
}

#[test]
fn a_server_without_a_session_for_a_try_is_named() {
    if !is_there() {
        return;
    }
    let server = with_table(Server::builder().max_connections(5));
    // All that are not kept for superusers, once those that set it up have ended.
    let mut taken = Vec::new();
    eventually("all sessions are taken", || {
        taken.extend(Session::open(&server.config()));
        taken.len() == 2
    });
    let one = lock(&text(server.address()), options(LONG).reconnect(Duration::ZERO));
    let error = block_on(one.try_acquire()).expect_err("no session");
    let Error::Unreachable { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("53300"), "{source}");
    let patient = lock(&text(server.address()), options(LONG));
    let waiter = Waiter::of(&patient);
    std::thread::sleep(support::QUIET);
    waiter.expect_waiting();
    drop(taken);
    release(waiter.guard());
}

/// Each is one lock, and nothing else.
#[test]
fn names_and_notes_are_texts() {
    if !is_there() {
        return;
    }
    const SQL: &str = "'; DROP TABLE lockkeeper.lock; --";
    let server = server();
    let names = [SQL, "a'b\"c", "$1", "%s\\", "\u{fc} \u{1f512}", " ", &"x".repeat(1024)];
    let note = format!("{SQL} \"}} \\ \u{fc}");
    let mut keys = std::collections::HashSet::new();
    for name in names {
        let text = format!("{} application_name='it\\'s \"{SQL}\"'", text(server.address()));
        let text = text.replace("; --\"'", "; --\\\"'").replace(SQL, &SQL.replace('\'', "\\'"));
        let options = options(LONG).note(&note);
        let lock = AsyncPostgresLock::with_options(&text, name, options).expect("options");
        assert!(keys.insert(lock.key()), "{name}");
        let guard = acquire(&lock);
        let status = block_on(lock.status()).expect("a status");
        let Status::Held(holder) = &status else { panic!("{status:?}") };
        assert_eq!(holder.note.as_deref(), Some(&*note));
        assert_eq!(holder.pid, Some(std::process::id()));
        assert_eq!(guard.fencing_token().number() & 0xff_ffff_ffff, 1, "{name}");
        let bare = lock_without_table(&text, name);
        let waiter = Waiter::of(&bare);
        server.wait_for("select count(*) from pg_locks where not granted", "1");
        let waiters = block_on(lock.waiters()).expect("the waiters");
        let shown = waiters.first().and_then(|it| it.name.as_deref()).unwrap_or_default();
        assert!(shown.contains("it's") && shown.contains("DROP TABLE"), "{shown}");
        release(guard);
        release(waiter.guard());
    }
    assert_eq!(server.value("select count(*) from lockkeeper.lock"), names.len().to_string());
}

fn lock_without_table(text: &str, name: &str) -> AsyncPostgresLock {
    AsyncPostgresLock::with_options(text, name, options(LONG).table(Table::None)).expect("options")
}

/// What another program wrote into a row is a text as well.
#[test]
fn what_a_row_says_is_no_sql() {
    if !is_there() {
        return;
    }
    let server = server();
    let locks = PostgresLocks::with_options(text(server.address()), options(LONG)).expect("one");
    let [a, b] = ["a", "b"].map(|name| locks.lock(name).expect("a name"));
    [&a, &b].into_iter().for_each(|lock| release(acquire(lock)));
    server.sql(
        "update lockkeeper.lock set clean = false, owner = $$' or '' = '$$, holder = $$'$$, \
         lease_ms = 2000",
    );
    let reader = block_on(a.acquire_shared()).expect("the lock");
    // The lease of that one was waited for, and not that of the other lock.
    assert_eq!(server.value("select count(*) from lockkeeper.lock where clean"), "1");
    release(reader);
    release(acquire(&a));
}

#[test]
fn passwords_are_shown_nowhere() {
    if !is_there() {
        return;
    }
    const WRONG: &str = "another secret of app";
    let server = server();
    let address = server.address();
    let is_said = |what: &dyn std::fmt::Debug| {
        let said = format!("{what:?} {what:#?}");
        said.contains("secret")
    };
    let right = lock(&text(address), options(LONG));
    let locks = PostgresLocks::with_options(text(address), options(LONG)).expect("options");
    let guard = acquire(&right);
    let status = block_on(right.status()).expect("a status");
    assert!(!is_said(&right) && !is_said(&locks) && !is_said(&guard) && !is_said(&status));
    assert!(!right.server().contains("secret"), "{}", right.server());
    release(guard);
    for wrong in [
        text(address).replace(PASSWORD, WRONG),
        text(address).replace("dbname=postgres", "dbname=nothing"),
        text(address).replace(&format!("port={}", address.port()), "port=1"),
    ] {
        let wrong = lock(&wrong, options(LONG).reconnect(Duration::ZERO));
        let error = block_on(wrong.try_acquire()).expect_err("it is wrong");
        let shown = format!("{error}");
        assert!(shown.contains("\"a\" at postgres://"), "{shown}");
        assert!(!is_said(&error) && !shown.contains("secret"), "{error:?}");
    }
    // A text that cannot be read: any part of it may be a piece of a password.
    let broken = format!("host=a password={PASSWORD}");
    let error = PostgresLocks::with_options(broken, PostgresOptions::default());
    let error = error.expect_err("a word without a value");
    assert!(!is_said(&error) && !error.to_string().contains("secret"), "{error:?}");
}
