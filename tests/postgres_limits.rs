//! Limits of a wait for PostgreSQL's lock: one try, the last look, and what is left behind.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::time::Duration;

use lockkeeper::{AsyncPostgresLock, Error, PostgresOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres_locks::{
    LONG, acquire, lock, options, release, server, sessions, stand, terminate_holder, text,
    text_of_another, waiting, with_table,
};
use postgres_support::{Server, is_there};
use support::{QUIET, block_on, eventually};

fn named(text: &str, name: &str, options: PostgresOptions) -> AsyncPostgresLock {
    AsyncPostgresLock::with_options(text, name, options).expect("options")
}

/// No spare session is there, and to make one takes longer than there is time.
#[test]
fn one_try_in_a_session_of_its_own_is_made_however_long_that_takes() {
    if !is_there() {
        return;
    }
    let server = server();
    let own = options(LONG).own_session(true);
    let locks = ["a", "b", "c"].map(|name| named(&text(server.address()), name, own.clone()));
    let guards = locks.map(|lock| {
        block_on(lock.acquire_timeout(Duration::ZERO)).expect("it is free, and was tried")
    });
    guards.into_iter().for_each(release);
}

/// The waiter has written its own record by then.
#[test]
fn a_limit_in_the_wait_for_one_that_vanished_names_that_one() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG).note("the one that vanished"));
    let guard = acquire(&one);
    terminate_holder(&server, &one);
    stand(&server, &one, 0, 0);
    let other = lock(&text_of_another(server.address()), options(LONG).note("another"));
    for limit in [Duration::ZERO, QUIET] {
        let error = block_on(other.acquire_timeout(limit)).expect_err("its lease is not over");
        let Error::Timeout { holder: Some(holder), .. } = error else { panic!("{error:?}") };
        assert_eq!(holder.note.as_deref(), Some("the one that vanished"));
        assert!(holder.evidence.is_alive());
        block_on(other.flush());
    }
    drop(guard);
}

/// It is granted the lock before its limit, and says so after that.
#[test]
fn a_grant_that_is_late_to_be_told_is_seen_at_the_limit() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let mut limit = Duration::from_secs(1);
    loop {
        let guard = acquire(&one);
        let begun = std::time::Instant::now();
        let acquiring = other.acquire_timeout(limit);
        let waiter = std::thread::spawn(move || block_on(acquiring));
        stand(&server, &one, 1, 1);
        let backend = Pid::from_raw(i32::try_from(waiting(&server, &one)).expect("a process id"));
        kill(backend, Signal::SIGSTOP).expect("it can be stopped");
        release(guard);
        let is_in_time = begun.elapsed() < limit;
        std::thread::sleep(limit.saturating_sub(begun.elapsed()) + QUIET);
        kill(backend, Signal::SIGCONT).expect("it can go on");
        let outcome = waiter.join().expect("no panic");
        if is_in_time {
            return release(outcome.expect("it was granted in time"));
        }
        outcome.into_iter().for_each(release);
        limit *= 2;
    }
}

/// Each statement of a session that holds locks has a limit of a second at the server.
#[test]
fn a_release_that_the_server_cancels_leaves_in_order_all_the_same() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let guard = acquire(&one);
    let other = server.superuser().expect("a session");
    other.query("begin").unwrap();
    other.query("select from lockkeeper.lock for update").unwrap();
    let released = std::thread::spawn(|| block_on(guard.release()));
    eventually("it is cancelled", || server.log().contains("due to statement timeout"));
    other.query("commit").unwrap();
    released.join().expect("no panic").expect("it is released");
    // Else the lease would be waited for, as of one that vanished.
    let guard = acquire(&lock(&text_of_another(server.address()), options(LONG)));
    assert_eq!(guard.recovered_from(), None);
    release(guard);
}

/// Its first write waits for a standby that is away, at the server, though its client is gone.
#[test]
fn a_session_that_is_given_up_as_it_is_made_leaves_no_process_at_the_server() {
    if !is_there() {
        return;
    }
    let server = server();
    server.sql("alter system set synchronous_standby_names = 'nobody'");
    server.sql("select pg_reload_conf()");
    server.wait_for("show synchronous_standby_names", "nobody");
    let text = format!("{} connect_timeout=60", text(server.address()));
    let in_vain = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    let one = lock(&text, options(LONG));
    let mut waiting = Box::pin(one.acquire());
    block_on(async {
        assert!(futures::poll!(&mut waiting).is_pending());
        support::eventually_async("it writes", || server.value(in_vain) == "1").await;
    });
    drop(waiting);
    sessions(&server, 0);
    // And one whose limit is over.
    let error = block_on(one.acquire_timeout(Duration::ZERO)).expect_err("nothing is stored");
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    sessions(&server, 0);
}

/// A clock that stands has no time to wait either.
#[test]
fn one_try_by_a_paused_clock_stands_in_no_queue() {
    if !is_there() {
        return;
    }
    let server = with_table(Server::builder().set("log_statement", "all"));
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let guard = acquire(&one);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        for _ in 0..10 {
            let tried = other.acquire_timeout(Duration::ZERO).await;
            assert!(tried.is_err_and(|error| error.is_timeout()));
        }
        other.flush().await;
    });
    assert!(!server.log().contains("pg_catalog.pg_advisory_lock("), "{}", server.log());
    release(guard);
}
