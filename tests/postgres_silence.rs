//! A server that is there and says nothing.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::time::Duration;

use lockkeeper::{AsyncPostgresLock, Error};
use postgres_locks::{LONG, acquire, lock, options, release, server, stand, text, text_of_another};
use postgres_support::is_there;
use support::{VERY_LONG, block_on, eventually};

/// What must end, ends in time, though a lease is longer than any test.
#[track_caller]
fn soon<T>(future: impl Future<Output = T>) -> T {
    let ended = block_on(async { tokio::time::timeout(VERY_LONG, future).await });
    ended.expect("it ends in time")
}

#[test]
fn a_server_that_says_nothing_holds_up_no_limit() {
    if !is_there() {
        return;
    }
    let server = server();
    let impatient = options(LONG).reconnect(Duration::ZERO);
    let held = lock(&text(server.address()), impatient.clone());
    let guard = acquire(&held);
    // Its sessions are there, and those of another process are not. Each lock is another: what
    // was asked and not answered keeps its turn among the tasks of the process.
    let another = format!("{} connect_timeout=2", text_of_another(server.address()));
    for text in [text(server.address()), another] {
        let lock = |name| AsyncPostgresLock::with_options(&text, name, impatient.clone()).unwrap();
        server.stop();
        let outcomes = [
            soon(lock("b").acquire_timeout(Duration::from_millis(100))).map(drop),
            soon(lock("c").try_acquire()).map(drop),
            soon(lock("a").status()).map(drop),
        ];
        for error in outcomes.map(|outcome| outcome.expect_err("nothing is known")) {
            assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        }
        server.resume();
    }
    // Nor does a session that is being made.
    let patient = format!("{} application_name=third connect_timeout=1000", text(server.address()));
    server.stop();
    let limited = lock(&patient, options(LONG)).acquire_timeout(Duration::from_millis(100));
    assert!(matches!(soon(limited), Err(Error::Unreachable { .. })));
    server.resume();
    assert!(!guard.is_lost(), "its lease is long");
    release(guard);
    soon(held.flush());
    stand(&server, &held, 0, 0);
    release(acquire(&held));
}

/// Else the holder's own statements would be waited for as long as the machine is silent.
#[test]
fn a_session_whose_lease_is_over_is_closed() {
    if !is_there() {
        return;
    }
    let server = server();
    let own = lock(&text(server.address()), options(Duration::from_secs(2)).own_session(true));
    let mut held = None;
    // A busy machine may lose the lock before: then it is acquired again.
    eventually("it is held as the server stops", || {
        let guard = acquire(&own);
        server.stop();
        if guard.is_lost() {
            server.resume();
        } else {
            held = Some(guard);
        }
        held.is_some()
    });
    let guard = held.expect("it is held");
    let work = guard.client().expect("a session of its own").batch_execute("select 1");
    soon(work).expect_err("it ends with the session");
    let lost = postgres_locks::lost(&guard);
    assert!(lost.to_string().contains("lease"), "{lost}");
    soon(guard.release()).expect_err("it was lost");
    soon(own.flush());
    server.resume();
    stand(&server, &own, 0, 0);
    release(acquire(&lock(&text(server.address()), options(LONG))));
}
