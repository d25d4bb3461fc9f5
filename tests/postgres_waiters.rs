//! Waiting for PostgreSQL's lock, giving the wait up, and what is refused.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::time::Duration;

use lockkeeper::{
    AsyncPostgresLock, Error, Lock, PostgresLocks, PostgresOptions, Table, Takeover, Wait,
};
use postgres_locks::{
    LONG, Waiter, acquire, grant, lock, of_lock, options, release, server, stand, text,
    text_of_another, waiting, with_table,
};
use postgres_support::{PgBouncer, Pooling, ROLE, Server, To, is_there};
use server_support::Substitution;
use support::{block_on, eventually};

/// The code and the text of a refusal.
#[track_caller]
fn refused(lock: &AsyncPostgresLock) -> (String, String) {
    let error = block_on(lock.try_acquire()).expect_err("it is refused");
    assert!(error.to_string().contains("\"a\" at postgres://"), "{error}");
    let Error::Refused { code, message, .. } = error else { panic!("{error:?}") };
    (code, message)
}

#[test]
fn a_wait_that_is_dropped_leaves_no_session_that_waits_or_holds() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let guard = acquire(&one);
    block_on(async {
        let mut waiting = std::pin::pin!(other.acquire());
        assert!(futures::poll!(&mut waiting).is_pending());
        let limit = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
        assert!(limit.is_err(), "it is held");
    });
    block_on(other.flush());
    stand(&server, &one, 1, 0);
    release(guard);
    release(acquire(&one));
    stand(&server, &one, 0, 0);
}

/// It would be granted the lock before those behind it, and its session closes.
#[test]
fn one_try_never_stands_in_the_queue() {
    if !is_there() {
        return;
    }
    let server = with_table(Server::builder().set("log_statement", "all"));
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let guard = acquire(&one);
    let waits = || server.log().matches("pg_catalog.pg_advisory_lock(").count();
    block_on(async {
        for _ in 0..10 {
            let tried = other.acquire_timeout(Duration::ZERO).await;
            assert!(tried.is_err_and(|error| error.is_timeout()));
            assert!(other.try_acquire().await.expect("an answer").is_none());
            let tried = Lock::acquire_within(&other, Wait::No).await;
            assert!(tried.expect("an answer").held().is_none());
        }
        other.flush().await;
    });
    assert_eq!(waits(), 0, "{}", server.log());
    // What is looked for is what a wait looks like.
    let waiter = Waiter::of(&other);
    stand(&server, &one, 1, 1);
    assert_eq!(waits(), 1);
    release(guard);
    release(waiter.guard());
}

/// The cancel and the grant race. No round leaves the lock with a session that nobody has.
#[test]
fn a_cancel_that_races_the_grant_leaves_nothing() {
    const ROUNDS: u32 = 400;
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let mut granted = 0;
    block_on(async {
        for round in 0..ROUNDS {
            let guard = one.acquire().await.expect("the lock");
            let waiting = tokio::spawn(other.acquire());
            let busy = async {
                while other.waiters().await.expect("no error").is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            if round % 8 == 0 {
                busy.await;
            }
            let releasing = tokio::spawn(guard.release());
            tokio::time::sleep(Duration::from_micros(u64::from(round % 40) * 100)).await;
            waiting.abort();
            releasing.await.expect("no panic").expect("it was held");
            if let Ok(Ok(guard)) = waiting.await {
                granted += 1;
                guard.release().await.expect("it was held");
            }
            other.flush().await;
            let next = one.try_acquire().await.expect("no error");
            let next = next.unwrap_or_else(|| panic!("round {round}: the lock is left"));
            assert_eq!(next.recovered_from(), None, "round {round}: a row is left");
            next.release().await.expect("it was held");
        }
    });
    println!("{granted} of {ROUNDS} were granted");
    stand(&server, &one, 0, 0);
}

#[test]
fn poolers_of_transactions_and_statements_are_refused_before_a_lock_is_taken() {
    if !is_there() {
        return;
    }
    let server = server();
    for pooling in [Pooling::Transaction, Pooling::Statement] {
        let pooler = PgBouncer::start(pooling, &server);
        let through = lock(&text(pooler.address()), options(LONG).reconnect(Duration::ZERO));
        for _ in 0..2 {
            let (code, message) = refused(&through);
            assert!(code == "pooler" && message.contains("pool sessions"), "{code}: {message}");
        }
        stand(&server, &through, 0, 0);
        // The session goes to other clients, whose statements it must not bound.
        let next = postgres_support::Session::open(&pooler.config()).expect("a session");
        let settings = "select string_agg(name || '=' || setting, ' ' order by name) \
                        from pg_settings where source = 'session' \
                        and name not in ('application_name', 'client_encoding', 'DateStyle', \
                        'TimeZone', 'standard_conforming_strings')";
        assert_eq!(next.value(settings), "", "settings are left in the pool");
    }
    let pooler = PgBouncer::start(Pooling::Session, &server);
    let through = lock(&text(pooler.address()), options(LONG));
    let guard = acquire(&through);
    let direct = lock(&text(server.address()), options(LONG));
    assert!(block_on(direct.try_acquire()).expect("no error").is_none());
    release(guard);
    release(acquire(&direct));
}

/// As the page about PostgreSQL has it, for programs in other languages.
#[test]
fn the_key_of_a_name_can_be_computed_in_sql() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    for name in ["import", "a", "größer", "it's"] {
        let lock = AsyncPostgresLock::new(text(server.address()), name).expect("a name");
        let name = name.replace('\'', "''");
        let key = format!(
            "select ('x' || encode(substr(sha256('\\x6c6f636b6b656570657220706f737467726573206c6f636b203100' \
             || convert_to('{name}', 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint"
        );
        assert_eq!(server.value(&key), lock.key().to_string(), "{name}");
    }
}

/// The second session of a process is another one than the first, and does not show the pooler.
#[test]
fn a_pooler_that_gives_out_its_sessions_in_turn_is_refused_before_a_lock_is_taken() {
    if !is_there() {
        return;
    }
    let server = server();
    for sessions in 2..=4 {
        let pooler =
            PgBouncer::start_with(Pooling::Transaction, &server, &["server_round_robin = 1"]);
        let open = || postgres_support::Session::open(&pooler.config()).expect("a session");
        let clients: Vec<_> = (0..sessions).map(|_| open()).collect();
        for statement in ["begin", "commit"] {
            clients.iter().for_each(|it| drop(it.query(statement).expect("done")));
        }
        let through = lock(&text(pooler.address()), options(LONG).reconnect(Duration::ZERO));
        let (code, message) = refused(&through);
        assert_eq!(code, "pooler", "{message}");
        stand(&server, &through, 0, 0);
    }
}

/// Without a lock of a session, as in a pool of transactions.
#[test]
fn a_transaction_of_another_program_takes_turns_by_the_same_key() {
    if !is_there() {
        return;
    }
    let server = server();
    let pooler = PgBouncer::start(Pooling::Transaction, &server);
    let lock = lock(&text(server.address()), options(LONG));
    let take = format!("select pg_try_advisory_xact_lock({})", lock.key());
    let program = postgres_support::Session::open(&pooler.config()).expect("a session");
    program.query("begin").expect("a transaction");
    assert_eq!(program.value(&take), "t");
    assert!(block_on(lock.try_acquire()).expect("no error").is_none(), "the program has it");
    program.query("commit").expect("its end");
    let guard = acquire(&lock);
    assert_eq!(program.value(&take), "f", "the guard has it");
    release(guard);
}

#[test]
fn a_table_that_is_missing_altered_or_anothers_is_refused() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let at = |name: &str| {
        // Each looks for itself.
        let text = format!("{} application_name={name}", text(server.address()));
        lock(&text, options(LONG).reconnect(Duration::ZERO))
    };
    let (_, message) = refused(&at("missing"));
    assert!(message.contains("postgres-schema") && message.contains("table=none"), "{message}");
    let bare = lock(&text(server.address()), options(LONG).table(Table::None));
    release(acquire(&bare));

    server.sql(PostgresLocks::SCHEMA);
    let error = block_on(at("rights").try_acquire()).expect_err("no rights");
    assert!(matches!(error, Error::Forbidden { .. }), "{error:?}");
    grant(&server, ROLE);
    release(acquire(&at("right")));

    server.create_role("eve", "secret");
    server.sql("alter table lockkeeper.lock owner to eve");
    let (_, message) = refused(&at("anothers"));
    assert!(message.contains("belongs to eve"), "{message}");
    server.sql("alter table lockkeeper.lock owner to postgres");

    server.sql(
        "create function f() returns trigger language plpgsql as 'begin return null; end'; \
         create trigger t before update on lockkeeper.lock for each row execute function f()",
    );
    let (_, message) = refused(&at("trigger"));
    assert!(message.contains("a trigger"), "{message}");
    server.sql("drop trigger t on lockkeeper.lock");

    // PostgreSQL remembers a trigger until the next VACUUM.
    server.sql("vacuum lockkeeper.lock");
    release(acquire(&at("vacuumed")));
    for (number, (alter, undo)) in [
        (
            "create rule r as on delete to lockkeeper.reader do also nothing",
            "drop rule r on lockkeeper.reader; vacuum lockkeeper.reader",
        ),
        (
            "alter table lockkeeper.lock enable row level security",
            "alter table lockkeeper.lock disable row level security",
        ),
        ("alter table lockkeeper.reader set unlogged", "alter table lockkeeper.reader set logged"),
    ]
    .into_iter()
    .enumerate()
    {
        server.sql(alter);
        let (_, message) = refused(&at(&format!("altered{number}")));
        assert!(message.contains("a trigger, a rule or row security"), "{alter}: {message}");
        undo.split("; ").for_each(|undo| drop(server.sql(undo)));
    }
    server.sql("alter table lockkeeper.lock rename to l");
    for (kind, make) in [
        ("view", "create view lockkeeper.lock as select * from lockkeeper.l"),
        // A part of it could have a trigger of its own.
        (
            "table",
            "create table lockkeeper.lock (like lockkeeper.l including all) partition by list (form)",
        ),
    ] {
        server.sql(make);
        grant(&server, ROLE);
        let (_, message) = refused(&at(kind));
        assert!(message.contains("a trigger, a rule or row security"), "{kind}: {message}");
        server.sql(&format!("drop {kind} lockkeeper.lock"));
    }
    server.sql("alter table lockkeeper.l rename to lock");
    for anothers in ["schema lockkeeper", "table lockkeeper.reader"] {
        server.sql(&format!("alter {anothers} owner to eve"));
        let (_, message) = refused(&at(&anothers.replace(' ', "-")));
        assert!(message.contains("belongs to eve"), "{anothers}: {message}");
        server.sql(&format!("alter {anothers} owner to postgres"));
    }
    server.sql("alter table lockkeeper.lock alter column pid type bigint");
    let (_, message) = refused(&at("columns"));
    assert!(message.contains("other columns"), "{message}");

    server.sql("comment on schema lockkeeper is 'lockkeeper 2'");
    let (_, message) = refused(&at("version"));
    assert!(message.contains("version 2"), "{message}");
}

#[test]
fn more_locks_than_the_options_allow_are_refused() {
    if !is_there() {
        return;
    }
    let server = server();
    let options = options(LONG).most_locks(2);
    let locks = PostgresLocks::with_options(text(server.address()), options).expect("options");
    let locks = ["a", "b", "c"].map(|name| locks.lock(name).expect("a name"));
    let guards = [acquire(&locks[0]), acquire(&locks[1])];
    let error = block_on(locks[2].try_acquire()).expect_err("one too many");
    let Error::Refused { code, .. } = &error else { panic!("{error:?}") };
    assert_eq!(code, "too_many_locks");
    guards.into_iter().for_each(release);
    release(acquire(&locks[2]));
}

/// A wait needs a session of its own. Where there is none it goes on all the same.
#[test]
fn a_server_without_a_free_session_is_waited_for() {
    if !is_there() {
        return;
    }
    let server = postgres_locks::with_table(Server::builder().max_connections(10));
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let guard = acquire(&one);
    // So that it has a session for its tries.
    assert!(block_on(other.try_acquire()).expect("no error").is_none());
    let mut taken = Vec::new();
    while let Ok(session) = postgres_support::Session::open(&server.config()) {
        taken.push(session);
    }
    let waiter = Waiter::of(&other);
    release(guard);
    release(waiter.guard());
}

/// Two tasks of a process, of which one has its turn at a time.
#[test]
fn a_limit_without_a_free_session_is_a_limit() {
    if !is_there() {
        return;
    }
    let server = postgres_locks::with_table(Server::builder().max_connections(10));
    let one = lock(&text(server.address()), options(LONG));
    let limit = Duration::from_secs(3);
    let other = lock(&text_of_another(server.address()), options(LONG).timeout(limit));
    let guard = acquire(&one);
    // The sessions that this process has are for waits for another lock.
    let locks = PostgresLocks::with_options(text(server.address()), options(LONG)).expect("one");
    let b = acquire(&locks.lock("b").expect("a name"));
    let locks = PostgresLocks::with_options(text_of_another(server.address()), options(LONG));
    let waits_for_b = Waiter::of(&locks.expect("one").lock("b").expect("a name"));
    server.wait_for("select count(*) from pg_locks where not granted", "1");
    let mut taken = Vec::new();
    while let Ok(session) = postgres_support::Session::open(&server.config()) {
        taken.push(session);
    }
    let waiters = [(); 4].map(|()| Waiter::of(&other));
    for waiter in waiters {
        let error = waiter.outcome().expect_err("it is held");
        let Error::Timeout { holder, .. } = &error else { panic!("{error:?}") };
        assert_eq!(holder.as_ref().and_then(|it| it.pid), Some(std::process::id()));
    }
    release(guard);
    release(b);
    release(waits_for_b.guard());
}

/// Each task has its own limit and its own patience, and no other's before it.
#[test]
fn many_tasks_are_told_at_their_limits_of_a_server_that_is_away() {
    const TASKS: usize = 150;
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    // Taken, and never answered.
    proxy.stall();
    let text = format!("{} connect_timeout=2", text(proxy.address()));
    let patient = PostgresLocks::with_options(&text, options(LONG)).expect("options");
    let patient = Waiter::of(&patient.lock("patient").expect("a name"));
    eventually("it connects", || proxy.accepted() > 0);
    let options = options(LONG).reconnect(Duration::from_secs(1));
    let locks = PostgresLocks::with_options(&text, options).expect("options");
    block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..TASKS {
            let lock = locks.lock(number.to_string()).expect("a name");
            let limit = [None, Some(Duration::ZERO), Some(Duration::from_millis(100))][number % 3];
            tasks.spawn(lock.acquire_timeout(limit));
        }
        let all = tokio::time::timeout(support::VERY_LONG, tasks.join_all()).await;
        for ended in all.expect("all are told in time") {
            let error = ended.expect_err("it is away");
            assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        }
    });
    patient.expect_waiting();
    proxy.go_on();
    release(patient.guard());
}

/// What is ridden out is counted from when it began, and not from when the wait did.
#[test]
fn a_wait_that_lasts_longer_than_trouble_is_ridden_out_outlives_its_session() {
    if !is_there() {
        return;
    }
    const RECONNECT: Duration = Duration::from_secs(2);
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let guard = acquire(&one);
    let other = lock(&text_of_another(server.address()), options(LONG).reconnect(RECONNECT));
    let waiter = Waiter::of(&other);
    stand(&server, &one, 1, 1);
    std::thread::sleep(RECONNECT * 2);
    let first = waiting(&server, &other);
    server.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity \
                where application_name = 'another'",
    );
    eventually("it stands again", || {
        waiter.expect_waiting();
        let sql = "select pid from pg_locks where locktype = 'advisory' and not granted";
        server.sql(sql).first().is_some_and(|row| row[0] != first.to_string())
    });
    release(guard);
    release(waiter.guard());
}

/// It is not probed while it waits, and the server does not take it for idle.
#[test]
fn a_wait_that_is_longer_than_the_lease_keeps_its_place() {
    if !is_there() {
        return;
    }
    let lease = Duration::from_secs(5);
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let guard = acquire(&one);
    let waiter = Waiter::of(&lock(&text_of_another(server.address()), options(lease)));
    stand(&server, &one, 1, 1);
    let first = waiting(&server, &one);
    std::thread::sleep(lease * 3 / 2);
    assert_eq!(waiting(&server, &one), first);
    release(guard);
    let guard = waiter.guard();
    let holder = format!("select pid from pg_locks where granted and {}", of_lock(&one));
    assert_eq!(server.value(&holder), first.to_string(), "the session that has waited");
    // Now it is probed again.
    std::thread::sleep(lease * 3 / 2);
    assert!(!guard.is_lost(), "{:?}", postgres_locks::lost(&guard));
    release(guard);
}

/// The server forgot the wait, and its client is not told: it looks now and then.
#[test]
fn a_wait_whose_connection_is_dead_at_the_server_alone_goes_on() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let one = lock(&text(server.address()), options(LONG));
    let guard = acquire(&one);
    let waiter = Waiter::of(&lock(&text(proxy.address()), options(Duration::from_secs(2))));
    stand(&server, &one, 1, 1);
    let first = waiting(&server, &one).to_string();
    proxy.reset(To::Server);
    let waits = format!("select pid from pg_locks where not granted and {}", of_lock(&one));
    eventually("another session waits, and that alone", || {
        let pids = server.sql(&waits);
        pids.len() == 1 && pids[0][0] != first
    });
    waiter.expect_waiting();
    release(guard);
    // Its lease is short, and may be over before a release.
    drop(waiter.guard());
}

/// An idle process has the session of its tries, and two that have waited.
#[test]
fn sessions_of_many_waits_are_ended() {
    if !is_there() {
        return;
    }
    let server = server();
    let names = ["a", "b", "c", "d", "e", "f"];
    let locks = |text: &str| {
        let locks = PostgresLocks::with_options(text, options(LONG)).expect("options");
        names.map(|name| locks.lock(name).expect("a name"))
    };
    let guards = locks(&text(server.address())).map(|lock| acquire(&lock));
    let others = locks(&text_of_another(server.address()));
    let waiters = others.each_ref().map(Waiter::of);
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    server.wait_for(waits, "6");
    guards.into_iter().for_each(release);
    waiters.into_iter().for_each(|waiter| release(waiter.guard()));
    let count = "select count(*) from pg_stat_activity where application_name = 'another'";
    server.wait_for(count, "3");
    // Those are used again.
    let guard = acquire(&locks(&text(server.address()))[0]);
    let waiter = Waiter::of(&others[0]);
    server.wait_for(waits, "1");
    assert_eq!(server.value(count), "3");
    release(guard);
    release(waiter.guard());
}

#[test]
fn many_locks_share_a_session() {
    const LOCKS: usize = 300;
    if !is_there() {
        return;
    }
    let server = server();
    let locks = PostgresLocks::with_options(text(server.address()), options(LONG)).expect("one");
    let guards: Vec<_> = (0..LOCKS)
        .map(|number| acquire(&locks.lock(format!("l{number}")).expect("a name")))
        .collect();
    // Two that hold, and two for waits.
    let sessions = server.backends_of(ROLE).len();
    assert!(sessions <= 4, "{sessions} sessions");
    let most = "select max(held) from (select count(*) held from pg_locks \
                where locktype = 'advisory' group by pid) s";
    assert_eq!(server.value(most), "256", "more are lost with one session");
    guards.into_iter().for_each(release);
}

#[test]
fn a_statement_that_blocks_costs_no_other_lock() {
    if !is_there() {
        return;
    }
    let server = server();
    let short = Duration::from_secs(10);
    let locks = PostgresLocks::with_options(text(server.address()), options(short)).expect("one");
    let [a, b] = ["a", "b"].map(|name| locks.lock(name).expect("a name"));
    let guard = acquire(&a);
    release(acquire(&b));
    let blocker = server.superuser().expect("a session");
    blocker.query("begin; lock table lockkeeper.lock").expect("the table");
    let waiter = Waiter::of(&b);
    let started = "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock'";
    server.wait_for(started, "t");
    // Longer than the lease: what blocks is ended each second, and probes come between.
    std::thread::sleep(short * 5 / 4);
    assert!(!guard.is_lost(), "the session of all was held up");
    blocker.query("commit").expect("its end");
    release(waiter.guard());
    release(guard);
    eventually("nothing is left", || {
        server.value("select count(*) from pg_locks where locktype = 'advisory'") == "0"
    });
}

/// As its administrator does, with one statement or another.
#[test]
fn a_wait_that_is_cancelled_or_terminated_at_the_server_goes_on() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let guard = acquire(&one);
    let waiter = Waiter::of(&other);
    for end in ["pg_cancel_backend", "pg_terminate_backend", "pg_cancel_backend"] {
        stand(&server, &one, 1, 1);
        let pid = waiting(&server, &one);
        assert_eq!(server.value(&format!("select {end}({pid})")), "t");
        eventually("another session waits", || {
            let sql = "select pid from pg_locks where locktype = 'advisory' and not granted";
            server.sql(sql).first().is_some_and(|row| row[0] != pid.to_string())
        });
        waiter.expect_waiting();
    }
    release(guard);
    release(waiter.guard());
    stand(&server, &one, 0, 0);
}

/// A session of its own, in which nothing is left of the wait that ended.
#[test]
fn a_statement_that_waits_is_made_anew_and_lets_vacuum_clean_up() {
    if !is_there() {
        return;
    }
    let server = postgres_locks::with_table(Server::builder().set("autovacuum", "off"));
    server.sql("create table busy as select generate_series(1, 1000)");
    let one = lock(&text(server.address()), options(LONG));
    let guard = acquire(&one);
    // A minute is long for a test.
    let hasty = Substitution::between(
        server.address(),
        "set_config('lock_timeout', '60000'",
        "set_config('lock_timeout', '00500'",
    );
    // Nothing is ridden out here: that it waits for long is no trouble.
    let strict = options(LONG).reconnect(Duration::ZERO);
    let waiter = Waiter::of(&lock(&text_of_another(hasty.address()), strict));
    stand(&server, &one, 1, 1);
    // Between two of its waits it may just be in none.
    let waiters = || {
        let sql = format!("select pid from pg_locks where not granted and {}", of_lock(&one));
        server.sql(&sql).first().map(|row| row[0].clone())
    };
    let mut first = None;
    eventually("a session waits", || {
        first = waiters();
        first.is_some()
    });
    assert!(hasty.count() > 0, "no bound was set");
    server.sql("delete from busy");
    // What the statement of now pins is newer than the garbage.
    eventually("VACUUM leaves nothing", || {
        server.sql("vacuum busy");
        server.value("select pg_relation_size('busy')") == "0"
    });
    waiter.expect_waiting();
    // A session whose wait failed is not used again.
    eventually("another session waits", || waiters().is_some_and(|pid| Some(pid) != first));
    release(guard);
    release(waiter.guard());
    stand(&server, &one, 0, 0);
}

/// 1. A waiter is granted the lock, and writes its row.
/// 2. Another program has the row, and waits for the lock behind it.
#[test]
fn a_deadlock_with_another_program_is_ridden_out() {
    if !is_there() {
        return;
    }
    let deadlocks = |server: &Server| server.log().matches("deadlock detected").count();
    // The program looks for deadlocks late, so that the lock's session is the one that fails.
    let server = postgres_locks::with_table(Server::builder().set("deadlock_timeout", "50"));
    let program = server.superuser().expect("a session");
    program.query("set deadlock_timeout = '1h'").expect("a setting");
    let one = lock(&text(server.address()), options(LONG));
    // What that leaves is not in order, as it cannot change its row.
    let other = options(LONG).takeover(Takeover::AtOnce);
    let other = lock(&text_of_another(server.address()), other);
    let guard = acquire(&one);
    let waiter = Waiter::of(&other);
    stand(&server, &one, 1, 1);
    program.query("begin; select from lockkeeper.lock for update").expect("the rows");
    let waits = program.start(&format!("select pg_advisory_lock({})", one.key()));
    stand(&server, &one, 1, 2);
    // The release itself is the first.
    release(guard);
    eventually("the waiter is the second", || deadlocks(&server) > 1);
    waits.wait().expect("the lock");
    program.query(&format!("select pg_advisory_unlock({})", one.key())).expect("unlocked");
    program.query("commit").expect("its end");
    release(waiter.guard());
    stand(&server, &one, 0, 0);
}

/// Another program takes turns by the same keys, shared or not.
#[test]
fn keys_are_those_of_other_programs() {
    if !is_there() {
        return;
    }
    let server = server();
    let program = server.session();
    let with = |options: PostgresOptions| lock(&text(server.address()), options);
    for (own, key) in [
        (with(options(LONG).raw_key(-7)), "-7"),
        (with(options(LONG).raw_key(i64::MIN)), "'-9223372036854775808'"),
        (with(options(LONG).raw_keys(-1, 7)), "-1, 7"),
        (with(options(LONG).raw_keys(i32::MAX, i32::MIN)), "2147483647, '-2147483648'"),
        (with(options(LONG)), &with(options(LONG)).key().to_string()),
    ] {
        let ask = |function: &str| program.value(&format!("select {function}({key})"));
        assert_eq!(own.key().to_string(), key);
        let guard = acquire(&own);
        assert_eq!(ask("pg_try_advisory_lock"), "f", "{key}");
        assert_eq!(ask("pg_try_advisory_lock_shared"), "f", "{key}");
        release(guard);
        let reader = block_on(own.acquire_shared()).expect("a reader");
        assert_eq!(ask("pg_try_advisory_lock"), "f", "{key}");
        assert_eq!(ask("pg_try_advisory_lock_shared"), "t", "{key}");
        release(reader);
        assert!(block_on(own.try_acquire()).expect("no error").is_none(), "{key}");
        let waiter = Waiter::of(&own);
        server.wait_for("select count(*) from pg_locks where not granted", "1");
        ask("pg_advisory_unlock_shared");
        release(waiter.guard());
        assert_eq!(ask("pg_try_advisory_lock"), "t", "{key}");
        let status = block_on(own.status()).expect("a status");
        assert!(format!("{status:?}").contains("the session "), "{status:?}");
        ask("pg_advisory_unlock");
    }
    // One key and two are different locks, whatever their bits.
    let (one, two) = (with(options(LONG).raw_key(1 << 32 | 2)), with(options(LONG).raw_keys(1, 2)));
    let guards = [acquire(&one), acquire(&two)];
    assert_eq!(server.value("select count(*) from lockkeeper.lock where not clean"), "2");
    guards.into_iter().for_each(release);
}
