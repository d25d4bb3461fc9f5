//! Sessions with a real server.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::server::{Builder, Server};
use super::*;

/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(LONG, work).await.unwrap_or_else(|_| panic!("{what} never came"))
}

async fn value(session: &Session, statement: &str) -> String {
    let rows = session.client.query_typed(statement, &[]).await.unwrap();
    rows[0].get(0)
}

#[tokio::test]
async fn a_session_knows_its_server_and_itself() {
    let Some(server) = Server::start() else { return };
    server.sql("CREATE ROLE bob LOGIN");
    server.sql("CREATE DATABASE \"a b\"");
    let session = open(&format!("{} user=bob dbname='a b'", server.socket())).await.unwrap();
    let database = server.sql("SELECT oid FROM pg_database WHERE datname = 'a b'");
    assert_eq!(session.server.database.to_string(), database);
    let system = server.sql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(session.server.system.unwrap().to_string(), system);
    assert_eq!(session.server.version.to_string(), server.sql("SHOW server_version_num"));
    let activity = "SELECT usename || ' ' || datname || ' ' || application_name \
                    FROM pg_stat_activity WHERE pid = ";
    let activity = server.sql(&format!("{activity}{}", session.pid));
    let (_, named) = activity.split_once("bob a b lockkeeper: ").expect("its name");
    assert!(named.contains(&format!("(pid {} on ", std::process::id())), "{activity}");
    assert!(session.over().is_none());
    // Nothing was prepared, and nothing set.
    assert_eq!(value(&session, "SELECT count(*)::text FROM pg_prepared_statements").await, "0");
    let set = "SELECT count(*)::text FROM pg_settings WHERE source = 'session'";
    assert_eq!(value(&session, set).await, "0");
}

#[tokio::test]
async fn what_a_text_says_of_the_session_is_so() {
    let Some(server) = Server::start() else { return };
    let text = format!(
        "{} user=postgres application_name=mine options='-c lock_timeout=7s'",
        server.socket()
    );
    let session = open(&text).await.unwrap();
    assert_eq!(value(&session, "SHOW application_name").await, "mine");
    assert_eq!(value(&session, "SHOW lock_timeout").await, "7s");
    // A session that has begun may say much.
    let long = value(&session, "SELECT repeat('x', 3 * 1024 * 1024)").await;
    assert_eq!(long.len(), 3 * 1024 * 1024);
}

#[tokio::test]
async fn a_role_that_may_not_ask_for_it_has_no_system_identifier() {
    let Some(server) = Server::start() else { return };
    server.sql("CREATE ROLE bob LOGIN");
    server.sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC");
    let text = format!("{} user=bob dbname=postgres", server.socket());
    let session = open(&text).await.unwrap();
    assert_eq!(session.server.system, None);
}

#[tokio::test]
async fn the_end_of_a_session_is_told_with_the_reason() {
    let Some(server) = Server::start() else { return };
    let text = format!("{} user=postgres", server.socket());
    let session = open(&text).await.unwrap();
    let ended = session.ended();
    server.sql(&format!("SELECT pg_terminate_backend({})", session.pid));
    let why = soon("the end", ended).await;
    assert_eq!((why.kind, why.state.as_deref()), (Kind::Passing, Some("57P01")), "{why:?}");
    assert!(session.over().unwrap().is("57P01"));

    let session = open(&text).await.unwrap();
    server.signal(Signal::SIGQUIT);
    let why = soon("the end of the server", session.ended()).await;
    assert_eq!(why.kind, Kind::Passing, "{why:?}");
    drop(server);
    let why = refused(&text).await;
    assert_eq!(why.kind, Kind::Passing, "{why:?}");
}

#[tokio::test]
async fn a_session_that_is_ended_here_is_gone_there() {
    let Some(server) = Server::start() else { return };
    let session = open(&format!("{} user=postgres", server.tcp())).await.unwrap();
    let (pid, ended) = (session.pid, session.ended());
    let is_there =
        || server.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"));
    // Under a statement that does not end by itself: only the connection tells the server.
    session.client.simple_query("SET client_connection_check_interval = '50ms'").await.unwrap();
    let sleeping = session.client.query_typed("SELECT pg_sleep(3600)", &[]);
    let ending = async {
        while server.sql(&format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}"))
            != "PgSleep"
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        session.end();
        soon("the end", ended).await
    };
    let (slept, why) = tokio::join!(sleeping, ending);
    assert!(slept.is_err());
    assert_eq!((why.kind, why.message.as_str()), (Kind::Passing, "the session was ended here"));
    let gone = async {
        while is_there() != "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the end of the server's process", gone).await;
}

/// A cancel that came later than it said would hit the next statement.
#[tokio::test]
async fn a_cancel_hits_the_statement_that_is_under_way_and_no_later_one() {
    let Some(server) = Server::start() else { return };
    for text in [server.socket(), server.tcp()] {
        let session = open(&format!("{text} user=postgres")).await.unwrap();
        let sleeping = session.client.query_typed("SELECT pg_sleep(3600)", &[]);
        let mut sleeping = std::pin::pin!(sleeping);
        let mut cancelled = 0;
        for _ in 0..200 {
            // Perhaps before the statement, perhaps within, perhaps after it.
            let quick = session.client.query_typed("SELECT 1", &[]);
            let (quick, cancel) = tokio::join!(quick, session.cancel());
            cancel.unwrap();
            cancelled += usize::from(quick.is_err());
            assert_eq!(value(&session, "SELECT 'unhurt'").await, "unhurt", "{cancelled}");
        }
        println!("{cancelled} of 200 were hit");
        let cancelling = async {
            let event = "SELECT wait_event FROM pg_stat_activity WHERE pid = ";
            while server.sql(&format!("{event}{}", session.pid)) != "PgSleep" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            session.cancel().await.unwrap();
        };
        let (slept, ()) =
            soon("the cancel", async { tokio::join!(&mut sleeping, cancelling) }).await;
        let failure = Failure::of(&slept.unwrap_err());
        assert!(failure.is("57014"), "{failure:?}");
    }
}

#[tokio::test]
async fn a_standby_is_passed_over() {
    let Some(primary) = Server::start() else { return };
    let builder = Builder::new().unwrap();
    builder.write("data/standby.signal", b"");
    let standby = builder.start();
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    let text = |ports: &str| format!("host=127.0.0.1,127.0.0.1 port={ports} user=postgres");
    let session = open(&text(&format!("{},{}", standby.port, primary.port))).await.unwrap();
    let system = primary.sql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(session.server.system.unwrap().to_string(), system);
    let why = refused(&format!("{} user=postgres", standby.tcp())).await;
    assert_eq!(why.kind, Kind::ReadOnly, "{why:?}");
    assert!(why.message.contains("in recovery"), "{why:?}");
    // A silent host, and one that is not there, are passed over as well.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().port();
    let ports = format!("{silent},1,{}", primary.port);
    let text = format!("host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=postgres");
    let text = format!("{text} connect_timeout=2");
    let access = access(&text).unwrap();
    // On a busy machine the third may take longer than its limit too.
    let third = async { while open_by(access.clone()).await.is_err() {} };
    soon("the third host", third).await;
    // The next session waits for none of them.
    assert_eq!(access.order().collect::<Vec<_>>(), [2, 0, 1]);
}

#[tokio::test]
async fn a_server_that_is_read_only_is_not_taken() {
    let Some(builder) = Builder::new() else { return };
    let server = builder.set("default_transaction_read_only=on").start();
    let why = refused(&format!("{} user=postgres", server.socket())).await;
    assert_eq!(why.kind, Kind::ReadOnly, "{why:?}");
    assert!(why.message.contains("default_transaction_read_only"), "{why:?}");
}

#[tokio::test]
async fn passwords_are_told_and_never_shown() {
    let Some(builder) = Builder::new() else { return };
    let server = builder.start();
    server.sql("CREATE ROLE word LOGIN PASSWORD 'hunter2:\\é'");
    server.sql("SET password_encryption = md5; CREATE ROLE old LOGIN PASSWORD 'hunter2'");
    let tcp = server.tcp();
    for user in [r"user=word password='hunter2:\\é'", "user=old password=hunter2"] {
        open(&format!("{tcp} dbname=postgres {user}")).await.unwrap();
    }
    // As .pgpass has it.
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = format!("127.0.0.1:{}:*:word:hunter2\\:\\\\é\n", server.port);
    std::fs::write(file.path(), line).unwrap();
    let text = format!("{tcp} dbname=postgres user=word passfile={}", file.path().display());
    open(&text).await.unwrap();
    for (text, part) in [
        ("user=word password=wronghunter2", "28P01"),
        ("user=word", "set PGPASSWORD"),
        ("user=none password=hunter2", "28000"),
        ("user=client password=hunter2", "28000"),
    ] {
        let why = refused(&format!("{tcp} dbname=postgres {text}")).await;
        assert_eq!(why.kind, Kind::Forbidden, "{text}: {why:?}");
        assert!(why.message.contains(part), "{text}: {why:?}");
        assert!(!format!("{why:?}").contains("hunter2"), "{why:?}");
    }
}

#[tokio::test]
async fn refusals_of_the_server_are_told_apart() {
    let Some(builder) = Builder::new() else { return };
    let server = builder.set("max_connections=4").set("superuser_reserved_connections=0").start();
    let text = format!("{} user=postgres", server.socket());
    let why = refused(&format!("{text} dbname=none")).await;
    assert_eq!((why.kind, why.state.as_deref()), (Kind::Refused, Some("3D000")), "{why:?}");
    // Those that ended may still be counted for a moment.
    let mut sessions = Vec::new();
    let all = async {
        while sessions.len() < 4 {
            sessions.extend(open(&text).await);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("there are four");
    let why = refused(&text).await;
    assert_eq!((why.kind, why.state.as_deref()), (Kind::Passing, Some("53300")), "{why:?}");
}
