//! The ground that the tests of locks in PostgreSQL stand on: servers that crash, freeze and
//! fail over as they are told, and what is true of PostgreSQL and PgBouncer themselves. No
//! test here uses lockkeeper: each says what a lock by advisory locks has to reckon with.

mod postgres_support;
mod server_support;
mod support;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postgres_support::{
    PASSWORD, PgBouncer, Pooling, ROLE, Replication, Server, Session, Shutdown, Statement, Tls, To,
    is_there, psql,
};
use support::{HOUR, Process, QUIET, eventually, role, tell};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, NoTls};

const TRY: &str = "select pg_try_advisory_lock(42)";
const LOCK: &str = "select pg_advisory_lock(42)";
const UNLOCK: &str = "select pg_advisory_unlock(42)";

/// How many sessions hold the lock, or wait for it.
const HOLDERS: &str = "select count(*) from pg_locks where locktype = 'advisory' and granted";
const WAITERS: &str = "select count(*) from pg_locks where locktype = 'advisory' and not granted";

#[track_caller]
fn expect_code<T: std::fmt::Debug>(result: Result<T, Error>, code: &SqlState) -> String {
    let error = result.expect_err("it fails");
    assert_eq!(error.code(), Some(code), "{error:?}");
    error.as_db_error().expect("an error of the server").message().to_owned()
}

/// A session that waits for the lock.
fn waiter(server: &Server) -> (Session, Statement) {
    let session = server.session();
    let waits = session.start(LOCK);
    (session, waits)
}

#[test]
fn a_server_starts_with_a_role_that_has_a_password() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    assert_eq!(server.value("show server_version_num")[..2], *"15");
    assert_eq!(server.value("show fsync"), "on");
    assert_eq!(server.value("show lc_messages"), "C");
    assert_eq!(server.session().value("select current_user"), ROLE);
    let wrong = Session::open(&server.config_of(ROLE, "wrong")).map(drop);
    expect_code(wrong, &SqlState::INVALID_PASSWORD);
    let superuser = Session::open(&server.config_of("postgres", "")).map(drop);
    expect_code(superuser, &SqlState::INVALID_PASSWORD);
    server.create_role("worker", "another secret");
    let worker = Session::open(&server.config_of("worker", "another secret")).expect("a session");
    assert_eq!(server.backends_of("worker"), [worker.backend()]);
}

#[test]
fn a_server_that_is_killed_or_shut_down_has_what_was_committed() {
    if !is_there() {
        return;
    }
    let mut server = Server::start();
    server.sql("create table kept (number int)");
    let ends = [None, Some(Shutdown::Immediate), Some(Shutdown::Fast)];
    for (number, end) in ends.into_iter().enumerate() {
        server.sql(&format!("insert into kept values ({number})"));
        let session = server.session();
        match end {
            None => server.kill(),
            Some(how) => server.shut_down(how),
        }
        eventually("its session is told", || session.is_closed());
        assert!(server.try_sql("select 1").is_err());
        server.start_again();
        assert_eq!(server.value("select count(*) from kept"), (number + 1).to_string());
    }
    server.restart();
    assert_eq!(server.value("select count(*) from kept"), "3");
}

#[test]
fn a_server_that_is_stopped_says_nothing_until_it_is_resumed() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let session = server.session();
    server.stop();
    let statement = session.start("select 1");
    std::thread::sleep(QUIET);
    assert!(!statement.has_ended() && !session.is_closed());
    server.resume();
    assert_eq!(statement.wait().expect("an answer"), [["1"]]);
}

#[test]
fn sessions_run_out() {
    if !is_there() {
        return;
    }
    let server = Server::builder().max_connections(5).start();
    let open = || Session::open(&server.config());
    // The sessions of the start may still be about to end.
    let mut sessions = Vec::new();
    eventually("two are open", || {
        sessions.extend(open());
        sessions.len() == 2
    });
    expect_code(open().map(drop), &SqlState::TOO_MANY_CONNECTIONS);
    drop(sessions);
    eventually("there is room again", || open().is_ok());
}

#[test]
fn a_certificate_is_for_the_server_its_proxies_and_its_standby() {
    if !is_there() {
        return;
    }
    let server = Server::builder().tls(Tls::Mutual).start();
    let (proxy, standby) = (server.proxy(), server.standby(Replication::Asynchronous));
    let files = server.certificates();
    let connects = |address: SocketAddr, name: &str, more: &str| {
        let connection = format!(
            "host={name} hostaddr={} port={} user={ROLE} password='{PASSWORD}' dbname=postgres \
             sslrootcert={} {more}",
            address.ip(),
            address.port(),
            files.ca.display()
        );
        let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let output = psql(&connection, sql).output().expect("psql");
        let said = if output.status.success() { output.stdout } else { output.stderr };
        String::from_utf8_lossy(&said).into_owned()
    };
    let own = format!(
        "sslmode=verify-full sslcert={} sslkey={}",
        files.client.display(),
        files.client_key.display()
    );
    for address in [server.address(), proxy.address(), standby.address()] {
        assert_eq!(connects(address, &address.ip().to_string(), &own), "t\n");
        assert_eq!(connects(address, "postgres.test", &own), "t\n");
    }
    let said = connects(server.address(), "another.test", &own);
    assert!(said.contains("does not match host name"), "{said}");
    let said = connects(server.address(), "postgres.test", "sslmode=verify-full sslcert=none");
    assert!(said.contains("requires a valid client certificate"), "{said}");
    let said = connects(server.address(), "postgres.test", "sslmode=disable");
    assert!(said.contains("no pg_hba.conf entry"), "{said}");
}

#[test]
fn only_a_server_that_asks_for_it_has_a_system_identifier_of_its_own() {
    if !is_there() {
        return;
    }
    let identifier = |server: Server| {
        // As an ordinary role.
        server.session().value("select system_identifier from pg_control_system()")
    };
    let copies = [identifier(Server::start()), identifier(Server::start())];
    assert_eq!(copies[0], copies[1]);
    assert_ne!(copies[0], identifier(Server::builder().own_identifier().start()));
}

#[test]
fn a_standby_follows_and_is_promoted() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    server.sql("create table kept (number int)");
    let standby = server.standby(Replication::Asynchronous);
    server.sql("insert into kept values (1)");
    standby.catch_up_with(&server);
    let insert = "insert into kept values (2)";
    assert_eq!(standby.value("select count(*) from kept"), "1");
    expect_code(standby.try_sql(insert), &SqlState::READ_ONLY_SQL_TRANSACTION);
    standby.promote();
    standby.sql(insert);
    assert_eq!(standby.value("select count(*) from kept"), "2");
    assert_eq!(server.value("select count(*) from kept"), "1");
    assert_ne!(server.address(), standby.address());
}

#[test]
fn pgbouncer_pools_sessions_transactions_or_statements() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    for pooling in [Pooling::Session, Pooling::Transaction, Pooling::Statement] {
        let pooler = PgBouncer::start(pooling, &server);
        let [one, other] = [(); 2].map(|()| Session::open(&pooler.config()).expect("a session"));
        let shares = one.backend() == other.backend();
        assert_eq!(shares, pooling != Pooling::Session, "{pooling:?}");
        assert_eq!(one.query("begin").is_ok(), pooling != Pooling::Statement, "{pooling:?}");
    }
}

/// How many processes have their working directory there, and whether this shared memory is
/// there.
fn left_of(directory: &Path, segment: &str) -> (usize, bool) {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let links = all.filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok());
    let processes = links.filter(|cwd| cwd.starts_with(directory)).count();
    let memory = std::fs::read_to_string("/proc/sysvipc/shm").expect("/proc/sysvipc/shm");
    let mut ids = memory.lines().filter_map(|line| line.split_whitespace().nth(1));
    (processes, ids.any(|id| id == segment))
}

/// The number of the shared memory that a server has.
fn segment(home: &Path) -> String {
    let pid_file = std::fs::read_to_string(home.join("data/postmaster.pid")).expect("a pid file");
    let line = pid_file.lines().nth(6).expect("a line on shared memory");
    line.split_whitespace().nth(1).expect("its number").to_owned()
}

#[track_caller]
fn expect_nothing_left(home: &Path, segment: &str) {
    assert_eq!(left_of(home, segment), (0, false));
    assert!(!home.exists());
}

#[test]
fn nothing_is_left_of_a_server_that_is_dropped_also_by_a_test_that_fails() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let (home, segment) = (server.sockets().to_owned(), segment(server.sockets()));
    assert!(left_of(&home, &segment).0 > 1 && left_of(&home, &segment).1);
    server.signal(server.process("walwriter"), Signal::SIGSTOP);
    let fails = std::thread::spawn(move || {
        let _pooler = PgBouncer::start(Pooling::Session, &server);
        server.stop();
        std::panic::resume_unwind(Box::new("as a test that fails"));
    });
    assert!(fails.join().is_err());
    expect_nothing_left(&home, &segment);
}

#[test]
fn nothing_is_left_of_a_server_whose_test_was_killed() {
    if !is_there() {
        return;
    }
    let test = "nothing_is_left_of_a_server_whose_test_was_killed";
    if role().is_some() {
        let server = Server::start();
        server.signal(server.process("walwriter"), Signal::SIGSTOP);
        tell(server.sockets().to_str().expect("a path"));
        std::thread::sleep(HOUR);
    }
    let mut process = Process::play(test, "starts", Path::new(""));
    let home = process.next();
    let (home, segment) = (Path::new(&home), segment(Path::new(&home)));
    assert!(left_of(home, &segment).0 > 1);
    process.kill();
    eventually("all is gone", || left_of(home, &segment) == (0, false) && !home.exists());
}

#[test]
fn an_ordinary_role_may_ask_all_that_a_lock_needs() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    server.create_role("other", "secret");
    let other = server.config_of("other", "secret").application_name("a holder").clone();
    let other = Session::open(&other).expect("a session");
    assert_eq!(other.value(TRY), "t");
    let session = server.session();
    session.value("select oid from pg_database where datname = current_database()");
    session.value("select pg_walfile_name(pg_current_wal_lsn())");
    session.value("select pg_current_xact_id()");
    session.value("select pg_logical_emit_message(true, 'lockkeeper', '')");
    let seen = "select usename, application_name, backend_start is null, client_addr is null, \
                state is null from pg_locks join pg_stat_activity using (pid) \
                where locktype = 'advisory'";
    let rows = session.query(seen).expect("rows");
    assert_eq!(rows, [["other", "a holder", "t", "t", "t"]], "of another role no more is seen");
    let (_waiter, _waits) = waiter(&server);
    let since = "select count(*) from pg_locks where not granted and waitstart is not null";
    eventually("since when it waits is seen", || session.value(since) == "1");
    let before = "select pg_blocking_pids(pid) from pg_locks where not granted";
    assert_eq!(session.value(before), format!("{{{}}}", other.backend()));
}

#[test]
fn a_key_of_64_bits_is_shown_as_two_unsigned_numbers() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let session = server.session();
    for key in ["-1", "-9223372036854775808", "9223372036854775807", "42"] {
        session.value(&format!("select pg_advisory_lock({key})"));
        let shown = "select (classid::int8 << 32) | objid::int8, objsubid from pg_locks \
                     where locktype = 'advisory'";
        assert_eq!(server.sql(shown), [[key, "1"]]);
        session.value("select pg_advisory_unlock_all()");
    }
    session.value("select pg_advisory_lock(-1, 2)");
    let shown = "select classid, objid, objsubid from pg_locks where locktype = 'advisory'";
    assert_eq!(server.sql(shown), [["4294967295", "2", "2"]], "two numbers are another lock");
}

#[test]
fn a_key_is_another_lock_in_another_database() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let session = server.session();
    assert_eq!(session.value(TRY), "t");
    let another = Session::open(server.config().dbname("template1")).expect("a session");
    assert_eq!(another.value(TRY), "t");
    let shown = "select count(distinct database) from pg_locks where locktype = 'advisory'";
    assert_eq!(server.value(shown), "2");
}

#[test]
fn a_session_is_granted_again_what_it_holds_and_holds_it_twice() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let (session, other) = (server.session(), server.session());
    assert_eq!((session.value(TRY), session.value(TRY)), ("t".into(), "t".into()));
    assert_eq!(session.value(UNLOCK), "t");
    assert_eq!(other.value(TRY), "f");
    assert_eq!(session.value(UNLOCK), "t");
    assert_eq!(other.value(TRY), "t");
    assert_eq!(session.value(UNLOCK), "f", "it holds it no more");
}

#[test]
fn waiters_are_granted_in_their_order() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let holder = server.session();
    holder.value(LOCK);
    let mut waiters = Vec::new();
    for number in 1..=4 {
        waiters.push(waiter(&server));
        server.wait_for(WAITERS, &number.to_string());
    }
    holder.value(UNLOCK);
    while !waiters.is_empty() {
        let (session, waits) = waiters.remove(0);
        waits.wait().expect("the lock");
        let still = waiters.len().to_string();
        assert_eq!(server.value(WAITERS), still);
        session.value(UNLOCK);
    }
}

/// The name of one session for all, which it has before anything else is done in it.
/// Empty and NULL are both none: `DISCARD ALL` leaves the one, a new session has the other.
fn claim(nonce: &str) -> String {
    let set = "current_setting('lockkeeper.session', true)";
    let take = format!("set_config('lockkeeper.session', '{nonce}', false)");
    format!("select case when coalesce({set}, '') = '' then {take} else {set} end")
}

/// Takes the lock only in a session that is called so.
fn try_as(nonce: &str) -> String {
    let ours = format!("current_setting('lockkeeper.session', true) = '{nonce}'");
    format!("select case when {ours} then pg_try_advisory_lock(42) end")
}

#[test]
fn transaction_pooling_lets_two_hold_and_keeps_the_lock_when_both_have_left() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let pooler = PgBouncer::start(Pooling::Transaction, &server);
    let [one, other] = [(); 2].map(|()| Session::open(&pooler.config()).expect("a session"));
    assert_eq!((one.value(TRY), other.value(TRY)), ("t".to_owned(), "t".to_owned()));
    let sees_itself = "select count(*) from pg_locks where locktype = 'advisory' and granted \
                       and pid = pg_backend_pid()";
    assert_eq!((one.value(sees_itself), other.value(sees_itself)), ("1".into(), "1".into()));
    drop((one, other));
    assert_eq!(server.session().value(TRY), "f");
    assert_eq!(Session::open(&pooler.config()).expect("a session").value(TRY), "t", "a third");
}

#[test]
fn a_nonce_in_the_session_shows_the_pooler_before_a_lock_is_taken() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    for pooling in [Pooling::Transaction, Pooling::Statement] {
        let pooler = PgBouncer::start(pooling, &server);
        let first = Session::open(&pooler.config()).expect("a session");
        assert_eq!(first.value(&claim("a")), "a");
        let second = Session::open(&pooler.config()).expect("a session");
        assert_eq!(second.value(&claim("b")), "a", "{pooling:?}");
        assert_eq!(second.value(&try_as("b")), "", "nothing was taken");
        assert_eq!(server.value(HOLDERS), "0");
        drop((first, second));
        // It stays in the pool, for a process that starts later.
        let later = Session::open(&pooler.config()).expect("a session");
        assert_eq!(later.value(&claim("c")), "a");
    }
    let pooler = PgBouncer::start_with(Pooling::Session, &server, &["default_pool_size = 2"]);
    let first = Session::open(&pooler.config()).expect("a session");
    let second = Session::open(&pooler.config()).expect("a session");
    assert_eq!((first.value(&claim("a")), second.value(&claim("b"))), ("a".into(), "b".into()));
    assert_eq!((first.value(&try_as("a")), second.value(&try_as("b"))), ("t".into(), "f".into()));
    drop(first);
    // It gets the first's session, from which PgBouncer has discarded all.
    let third = Session::open(&pooler.config()).expect("a session");
    assert_eq!((third.value(&claim("c")), third.value(&try_as("c"))), ("c".into(), "t".into()));
}

#[test]
fn a_nonce_that_is_looked_for_and_set_by_two_statements_lets_two_hold() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    for one_statement in [false, true] {
        // The sessions of a PgBouncer that was killed may be there for a moment.
        server.wait_for(HOLDERS, "0");
        let pooler = PgBouncer::start(Pooling::Transaction, &server);
        let [holder, busy, second] =
            [(); 3].map(|()| Session::open(&pooler.config()).expect("a session"));
        holder.value(&claim("a"));
        assert_eq!(holder.value(&try_as("a")), "t");
        // 1. Another client has the holder's session, so that the second looks in a new one.
        busy.query("begin").expect("a transaction");
        let (claim, look) = (claim("b"), "select current_setting('lockkeeper.session', true)");
        let said = second.value(if one_statement { &claim } else { look });
        assert_eq!(said, if one_statement { "b" } else { "" });
        // 2. The holder's session comes back, and is the next that is given out.
        busy.query("commit").expect("its end");
        if !one_statement {
            second.value("select set_config('lockkeeper.session', 'b', false)");
        }
        // 3. The second takes the lock in the session that holds it.
        assert_eq!(second.value(&try_as("b")), if one_statement { "" } else { "t" });
    }
}

#[test]
fn a_statement_without_a_name_passes_a_pooler_and_one_with_a_name_does_not() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let pooler = PgBouncer::start(Pooling::Transaction, &server);
    let [one, other] = [(); 2].map(|()| Session::open(&pooler.config()).expect("a session"));
    let unnamed = async |client: Arc<Client>| client.query_typed("select 1", &[]).await;
    for session in [&one, &other, &one, &other] {
        assert_eq!(session.with(unnamed).expect("rows").len(), 1);
    }
    let prepare = async |client: Arc<Client>| client.prepare("select 1").await;
    let named = one.with(prepare).expect("a statement");
    other.query("begin").expect("a transaction in the session that knows the statement");
    let run = async move |client: Arc<Client>| client.query(&named, &[]).await;
    expect_code(one.with(run), &SqlState::INVALID_SQL_STATEMENT_NAME);
}

#[test]
fn a_lock_of_a_transaction_excludes_through_transaction_pooling() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let pooler = PgBouncer::start(Pooling::Transaction, &server);
    let [one, other] = [(); 2].map(|()| Session::open(&pooler.config()).expect("a session"));
    one.query("begin; select pg_advisory_xact_lock(42)").expect("the lock");
    let try_xact = "select pg_try_advisory_xact_lock(42)";
    assert_eq!(other.value(try_xact), "f");
    assert_eq!(server.session().value(TRY), "f", "it excludes a lock of a session too");
    let waits = other.start("begin; select pg_advisory_xact_lock(42)");
    server.wait_for(WAITERS, "1");
    one.query("commit").expect("its end");
    waits.wait().expect("the lock");
    assert_eq!(one.value(try_xact), "f");
    other.query("rollback").expect("its end");
    assert_eq!(one.value(try_xact), "t");
    assert_eq!(server.value(HOLDERS), "0", "nothing stays in the pool");
}

#[test]
fn a_hot_standby_grants_what_the_primary_has_granted() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let standby = server.standby(Replication::Asynchronous);
    let (holder, session) = (server.session(), standby.session());
    assert_eq!((holder.value(TRY), session.value(TRY)), ("t".into(), "t".into()));
    let checked = "select case when not pg_is_in_recovery() then pg_try_advisory_lock(43) end";
    assert_eq!(session.value(checked), "");
    standby.promote();
    assert_eq!(session.value("select pg_is_in_recovery()"), "f", "the session lives on");
    assert_eq!(standby.session().value(TRY), "f", "and so does what it was granted");
}

#[test]
fn a_session_that_is_idle_for_too_long_frees_a_client_that_vanished_behind_a_proxy() {
    const LIMIT: Duration = Duration::from_secs(1);
    if !is_there() {
        return;
    }
    let server = Server::start();
    let proxy = server.proxy();
    let [vanishes, unbounded] =
        [(); 2].map(|()| Session::open(&server.config_through(&proxy)).expect("a session"));
    unbounded.value("select pg_advisory_lock(43)");
    let first = server.session();
    first.value(LOCK);
    let limit = LIMIT.as_millis();
    let waits = vanishes.start(&format!("set idle_session_timeout = {limit}; {LOCK}"));
    server.wait_for(WAITERS, "1");
    proxy.stall();
    // While it waits it is not idle: it is granted the lock, and then idle for the limit.
    let (next, granted) = waiter(&server);
    server.wait_for(WAITERS, "2");
    let released = Instant::now();
    first.value(UNLOCK);
    granted.wait().expect("the lock");
    assert!(released.elapsed() >= LIMIT, "never early");
    assert!(!waits.has_ended() && !vanishes.is_closed(), "it is not told");
    assert_eq!(next.value("select pg_try_advisory_lock(43)"), "f", "without a limit it is kept");
}

#[test]
fn a_session_whose_server_was_reset_is_free_before_its_client_knows() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let proxy = server.proxy();
    let holder = Session::open(&server.config_through(&proxy)).expect("a session");
    holder.value(LOCK);
    let (_next, granted) = waiter(&server);
    server.wait_for(WAITERS, "1");
    proxy.reset(To::Server);
    granted.wait().expect("the lock");
    assert!(!holder.is_closed());
}

#[test]
fn a_waiter_whose_client_is_gone_leaves_only_if_the_server_looks() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let holder = server.session();
    holder.value(LOCK);
    let blind = server.session();
    let pid = blind.backend().to_string();
    let _waits = blind.start(LOCK);
    server.wait_for(WAITERS, "1");
    let looks = server.session();
    looks.query("set client_connection_check_interval = 50").expect("an interval");
    let _waits = looks.start(LOCK);
    server.wait_for(WAITERS, "2");
    blind.vanish();
    looks.vanish();
    server.wait_for(WAITERS, "1");
    assert_eq!(server.value("select pid from pg_locks where not granted"), pid);
    holder.value(UNLOCK);
    // It is granted the lock, and ends when it finds no one to tell.
    server.wait_for("select count(*) from pg_locks where locktype = 'advisory'", "0");
}

#[test]
fn a_backend_that_is_killed_takes_all_locks_of_the_server_with_it() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let (holder, other) = (server.session(), server.session());
    holder.value(LOCK);
    server.signal(other.backend(), Signal::SIGKILL);
    eventually("the holder is told", || holder.is_closed());
    eventually("another holds", || {
        let session = Session::open(&server.config());
        session.is_ok_and(|session| session.query(TRY).is_ok_and(|rows| rows == [["t"]]))
    });
}

const PROBE: &str = "select pg_logical_emit_message(true, 'lockkeeper', '') is not null";

#[test]
fn an_old_primary_answers_reads_and_with_synchronous_replication_no_writes() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let standby = server.standby(Replication::Synchronous);
    let (holder, second) = (server.session(), server.session());
    holder.value(LOCK);
    assert_eq!(holder.value(PROBE), "t");
    standby.promote();
    assert_eq!(standby.session().value(TRY), "t", "two hold");
    assert_eq!(holder.value("select 1"), "1");
    let probe = holder.start(PROBE);
    let pid = format!("pid = {}", second.backend());
    let second_probe = second.start(PROBE);
    server.wait_for("select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "2");
    assert!(!probe.has_ended());
    // A cancelled one succeeds: it is committed here alone, which only a warning says.
    server.sql(&format!("select pg_cancel_backend(pid) from pg_stat_activity where {pid}"));
    assert_eq!(second_probe.wait().expect("an answer"), [["t"]]);
    assert!(server.log().contains("canceling wait for synchronous replication"));
    assert!(!probe.has_ended());
}

#[test]
fn a_bound_of_the_server_does_not_end_a_wait_for_the_standby() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let mut standby = server.standby(Replication::Synchronous);
    let session = server.session();
    let pid = session.backend();
    let waits = format!("select wait_event = 'SyncRep' from pg_stat_activity where pid = {pid}");
    session.query("set statement_timeout = 300").expect("a limit");
    standby.kill();
    let mut probe = session.start(PROBE);
    eventually("it waits for the standby", || {
        // On a busy machine the bound may come before the wait.
        if probe.has_ended() {
            let ended = std::mem::replace(&mut probe, session.start(PROBE));
            expect_code(ended.wait(), &SqlState::QUERY_CANCELED);
        }
        server.value(&waits) == "t"
    });
    // Longer than the bound.
    std::thread::sleep(QUIET);
    assert!(!probe.has_ended());
    standby.start_again();
    assert_eq!(probe.wait().expect("an answer"), [["t"]]);
}

#[test]
fn an_old_primary_answers_writes_with_asynchronous_replication() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let standby = server.standby(Replication::Asynchronous);
    let holder = server.session();
    holder.value(LOCK);
    standby.promote();
    assert_eq!(standby.session().value(TRY), "t", "two hold");
    assert_eq!(holder.value(PROBE), "t");
}

/// Kills the server at a moment when what is not yet stored is lost, and starts it again.
fn crash(server: &mut Server) {
    server.kill();
    server.start_again();
}

/// Takes the next number in a session of its own, after the process was stopped that stores
/// in the background what was committed asynchronously.
fn number(server: &Server, set: &str, sql: &str) -> u64 {
    server.signal(server.process("walwriter"), Signal::SIGSTOP);
    let session = server.session();
    session.query(set).expect("a setting");
    session.value(sql).parse().expect("a number")
}

#[test]
fn a_number_that_was_not_stored_is_given_out_again_after_a_crash() {
    const OFF: &str = "set synchronous_commit = off";
    const ON: &str = "set synchronous_commit = on";
    if !is_there() {
        return;
    }
    let mut server = Server::builder().set("autovacuum", "off").start();
    server.sql(&format!(
        "create table counter as select 0 as token; create sequence numbers; \
         alter table counter owner to {ROLE}; alter sequence numbers owner to {ROLE}"
    ));
    let row = "update counter set token = token + 1 returning token";
    let sequence = "select nextval('numbers')";
    let id = "select pg_current_xact_id()";
    let stored_id =
        "select pg_current_xact_id() from pg_logical_emit_message(true, 'lockkeeper', '')";
    let repeats = |server: &mut Server, set: &str, sql: &str| {
        let first = number(server, set, sql);
        crash(server);
        let second = number(server, set, sql);
        crash(server);
        assert!(second >= first, "{sql}: {first}, {second}");
        second == first
    };
    for (set, sql, expected) in [
        (OFF, row, true),
        (ON, row, false),
        (OFF, sequence, true),
        (ON, sequence, false),
        (ON, id, true),
        (OFF, stored_id, true),
        (ON, stored_id, false),
    ] {
        assert_eq!(repeats(&mut server, set, sql), expected, "{set}: {sql}");
    }
}

#[test]
fn a_number_of_a_sequence_rests_on_a_commit_of_another_session() {
    if !is_there() {
        return;
    }
    let mut server = Server::builder().set("autovacuum", "off").start();
    server.sql(&format!("create sequence numbers; alter sequence numbers owner to {ROLE}"));
    server.signal(server.process("walwriter"), Signal::SIGSTOP);
    let next = "select nextval('numbers')";
    // It logs some numbers in advance, and has not yet committed.
    let first = server.session();
    first.query("begin").expect("a transaction");
    assert_eq!(first.value(next), "1");
    assert_eq!(server.session().value(next), "2", "its own commit has nothing to store");
    crash(&mut server);
    let session = server.session();
    assert_eq!([session.value(next), session.value(next)], ["1", "2"]);
}

/// The one that is written in now.
const TIMELINE: &str =
    "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int";

#[test]
fn the_timeline_of_the_write_position_grows_at_once_with_a_promotion() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    server.sql("create table counter as select 1 as token");
    let standby = server.standby(Replication::Asynchronous);
    standby.catch_up_with(&server);
    // What the primary writes from now on never arrives.
    server.signal(server.process("walsender"), Signal::SIGSTOP);
    let next = "update counter set token = token + 1 returning token";
    assert_eq!((server.value(next), server.value(next)), ("2".into(), "3".into()));
    // Else it would soon store the new timeline.
    standby.signal(standby.process("checkpointer"), Signal::SIGSTOP);
    let before = standby.superuser().expect("a session");
    standby.promote();
    let stored = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(server.value(TIMELINE), "1");
    for session in [before, standby.superuser().expect("a session")] {
        assert_eq!((session.value(TIMELINE), session.value(stored)), ("2".into(), "1".into()));
    }
    assert_eq!(standby.value(next), "2", "the counter alone repeats");
}

#[test]
fn two_standbys_that_are_promoted_have_one_timeline() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let standbys = [(); 2].map(|()| server.standby(Replication::Asynchronous));
    for standby in &standbys {
        standby.promote();
        assert_eq!(standby.value(TIMELINE), "2");
    }
}

/// A connection whose write side stays open. `cancel_query_raw` closes it behind its request,
/// and PgBouncer 1.18 then dies: "disconnect_client(): bad client state: 0". That is its issue
/// 801: it forgets a client that closes before the server has been asked.
struct KeptOpen(TcpStream);

impl AsyncRead for KeptOpen {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for KeptOpen {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Asks for the end of what the client runs, and does not wait until that has been done.
async fn ask_to_cancel(client: &Client, address: SocketAddr) -> KeptOpen {
    let mut stream = KeptOpen(TcpStream::connect(address).await.expect("a connection"));
    let token = client.cancel_token();
    token.cancel_query_raw(&mut stream, NoTls).await.expect("a request");
    stream
}

/// When this end of the request's connection is read, the signal has been sent.
async fn read_to_end(mut stream: KeptOpen) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[test]
fn a_cancel_that_is_late_hits_the_next_statement_and_leaves_the_lock() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let proxy = server.proxy();
    let holder = server.session();
    holder.value(LOCK);
    let (session, waits) = waiter(&server);
    server.wait_for(WAITERS, "1");
    proxy.stall();
    let address = proxy.address();
    let stream = session.with(|client| async move { ask_to_cancel(&client, address).await });
    holder.value(UNLOCK);
    waits.wait().expect("the lock");
    let next = session.start("select pg_sleep(3600)");
    server.wait_for("select count(*) from pg_stat_activity where wait_event = 'PgSleep'", "1");
    proxy.go_on();
    expect_code(next.wait(), &SqlState::QUERY_CANCELED);
    assert_eq!(server.value(HOLDERS), "1");
    drop(stream);
}

#[test]
fn a_cancel_whose_end_is_read_hits_no_later_statement() {
    const ROUNDS: usize = 100;
    if !is_there() {
        return;
    }
    let server = Server::start();
    let pooler = PgBouncer::start(Pooling::Session, &server);
    for config in [server.config(), pooler.config()] {
        let session = Session::open(&config).expect("a session");
        let address = (config.get_hosts(), config.get_ports()[0]);
        let [tokio_postgres::config::Host::Tcp(host)] = address.0 else { panic!("one host") };
        let address = SocketAddr::new(host.parse().expect("an address"), address.1);
        let mut cancelled = 0;
        for round in 0..ROUNDS {
            let microseconds = round % 10 * 100;
            let sql = format!("select pg_sleep({microseconds}e-6)");
            let races = session.start(&sql);
            session.with(|client: Arc<Client>| async move {
                read_to_end(ask_to_cancel(&client, address).await).await;
            });
            cancelled += usize::from(races.wait().is_err());
            assert_eq!(session.value("select 1"), "1");
        }
        println!("{address}: {cancelled} of {ROUNDS} were cancelled in time");
    }
}

#[test]
fn a_waiting_statement_keeps_vacuum_from_what_became_garbage_since() {
    if !is_there() {
        return;
    }
    let server = Server::builder().set("autovacuum", "off").start();
    server.sql("create table busy as select generate_series(1, 1000)");
    let holder = server.session();
    holder.value(LOCK);
    let (_session, waits) = waiter(&server);
    server.wait_for(WAITERS, "1");
    let pins = "select count(*) from pg_stat_activity where backend_xmin is not null \
                and pid <> pg_backend_pid()";
    // The holder is idle and pins nothing.
    server.wait_for(pins, "1");
    server.sql("delete from busy");
    server.sql("vacuum busy");
    assert_ne!(server.value("select pg_relation_size('busy')"), "0");
    holder.value(UNLOCK);
    waits.wait().expect("the lock");
    server.wait_for(pins, "0");
    server.sql("vacuum busy");
    assert_eq!(server.value("select pg_relation_size('busy')"), "0");
}

#[test]
fn too_many_advisory_locks_leave_no_shared_memory_for_anyone() {
    if !is_there() {
        return;
    }
    let small = Server::builder().max_connections(10).set("max_locks_per_transaction", "10");
    let server = small.start();
    let superuser = server.superuser().expect("a session");
    let greedy = server.session();
    let much = "select count(pg_advisory_lock(number)) from generate_series(1, 100000) number";
    let said = expect_code(greedy.query(much), &SqlState::OUT_OF_MEMORY);
    assert_eq!(said, "out of shared memory");
    let held: u32 = superuser.value(HOLDERS).parse().expect("a number");
    println!("{held} advisory locks took it all, with room for 10 a transaction");
    assert!(held > 100, "those that were taken before the error are kept");
    expect_code(Session::open(&server.config()).map(drop), &SqlState::OUT_OF_MEMORY);
    greedy.value("select pg_advisory_unlock_all()");
    server.session();
}

#[test]
fn a_wait_that_is_ended_by_the_server_has_one_of_three_codes_and_takes_nothing() {
    if !is_there() {
        return;
    }
    let server = Server::builder().set("deadlock_timeout", "1h").start();
    let (holder, session) = (server.superuser().expect("a session"), server.session());
    holder.value(LOCK);
    session.value("select pg_advisory_lock(43)");
    session.query("set lock_timeout = 20").expect("a limit");
    let said = expect_code(session.query(LOCK), &SqlState::LOCK_NOT_AVAILABLE);
    assert_eq!(said, "canceling statement due to lock timeout");
    // Such a limit might end the statement that takes it back: so its session has no other.
    let limited = Session::open(server.config().options("-c statement_timeout=500"));
    let said = expect_code(limited.expect("a session").query(LOCK), &SqlState::QUERY_CANCELED);
    assert_eq!(said, "canceling statement due to statement timeout");
    session.query("set lock_timeout = 0").expect("no limit");
    let waits = session.start(LOCK);
    server.wait_for(WAITERS, "1");
    let cancel = "select pg_cancel_backend(pid) from pg_locks \
                  where locktype = 'advisory' and not granted";
    server.sql(cancel);
    let said = expect_code(waits.wait(), &SqlState::QUERY_CANCELED);
    assert_eq!(said, "canceling statement due to user request");
    let waits = session.start(LOCK);
    server.wait_for(WAITERS, "1");
    holder.query("set deadlock_timeout = 10").expect("it looks soon, and the other never");
    let circle = holder.query("select pg_advisory_lock(43)");
    expect_code(circle, &SqlState::T_R_DEADLOCK_DETECTED);
    assert!(!waits.has_ended(), "the other waits on");
    assert_eq!(holder.value(UNLOCK), "t", "it held what it held");
    waits.wait().expect("the lock");
    assert_eq!(server.value(HOLDERS), "2");
}

/// A session that waits for the lock and is stopped while it does.
fn stopped_waiter(server: &Server, set: &str) -> (Session, u32, Statement) {
    loop {
        let session = server.session();
        session.query(set).expect("a setting");
        let (pid, waits) = (session.backend(), session.start(LOCK));
        eventually("it waits, or did", || waits.has_ended() || server.value(WAITERS) == "1");
        server.signal(pid, Signal::SIGSTOP);
        if server.value(WAITERS) == "1" {
            return (session, pid, waits);
        }
        // It was stopped too late, on a busy machine.
        server.signal(pid, Signal::SIGCONT);
    }
}

#[test]
fn a_wait_may_be_ended_after_its_grant_and_then_the_session_holds_the_lock() {
    const LIMIT: Duration = Duration::from_secs(1);
    if !is_there() {
        return;
    }
    let server = Server::start();
    let limit = format!("set lock_timeout = {}", LIMIT.as_millis());
    for (set, code) in [
        (&*limit, SqlState::LOCK_NOT_AVAILABLE),
        ("set lock_timeout = 0", SqlState::QUERY_CANCELED),
    ] {
        let holder = server.session();
        holder.value(LOCK);
        // 1. The waiter does not run when its limit passes, or when it is cancelled.
        let (session, pid, waits) = stopped_waiter(&server, set);
        std::thread::sleep(LIMIT);
        if code == SqlState::QUERY_CANCELED {
            server.sql(&format!("select pg_cancel_backend({pid})"));
        }
        // 2. The holder releases: it grants the lock to the waiter.
        holder.value(UNLOCK);
        assert_eq!((server.value(HOLDERS), server.value(WAITERS)), ("1".into(), "0".into()));
        // 3. The waiter runs, and ends its wait before it looks whether it was granted.
        server.signal(pid, Signal::SIGCONT);
        expect_code(waits.wait(), &code);
        assert_eq!(holder.value(TRY), "f", "the session holds it");
        // 4. It asks again in the same session, and holds it twice.
        session.value(LOCK);
        session.value(UNLOCK);
        assert_eq!(holder.value(TRY), "f", "one release is not enough");
        session.value(UNLOCK);
        assert_eq!(holder.value(TRY), "t");
    }
}

#[test]
fn a_lock_of_a_session_outlives_the_error_of_its_statement() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let session = server.session();
    let fails = session.query("select pg_advisory_lock(42), 1 / (random() * 0)::int");
    expect_code(fails, &SqlState::DIVISION_BY_ZERO);
    assert_eq!(server.value(HOLDERS), "1");
    session.query("begin; select pg_advisory_unlock(42); rollback").expect("its end");
    assert_eq!(server.value(HOLDERS), "0", "nor is its release rolled back");
}
