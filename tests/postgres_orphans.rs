//! What a holder or a waiter leaves at PostgreSQL when it goes: nothing, whatever the network
//! and the server do meanwhile.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use lockkeeper::Takeover;
use nix::sys::signal::Signal;
use postgres_locks::{
    LONG, Waiter, acquire, lock, options, release, server, stand, terminate_holder, text,
    text_of_another, waiting,
};
use postgres_support::{ROLE, Server, To, is_there};
use server_support::Substitution;
use support::{Process, VERY_LONG, block_on, eventually, role, tell, told};

const SHORT: Duration = Duration::from_secs(3);

/// How long the exit of a process waits for a release.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// It ends, however that went.
#[track_caller]
fn ended<T>(future: impl Future<Output = T>) -> T {
    let ended = block_on(async { tokio::time::timeout(VERY_LONG, future).await });
    ended.expect("it ends in time")
}

/// Whether the row says that the last holder left in order.
#[track_caller]
fn expect_clean(server: &Server, is_clean: bool) {
    let said = if is_clean { "t" } else { "f" };
    server.wait_for("select bool_and(clean) from lockkeeper.lock", said);
}

/// No byte arrives, and neither end is told.
#[test]
fn a_release_that_gets_no_answer_ends_with_the_lease() {
    if !is_there() {
        return;
    }
    let server = server();
    let near = lock(&text(server.address()), options(LONG));
    for has_own_session in [false, true] {
        let proxy = server.proxy();
        let far = lock(&text(proxy.address()), options(SHORT).own_session(has_own_session));
        eventually("a release is asked for in time", || {
            let guard = acquire(&far);
            proxy.stall();
            // It was held until it was asked for: no other can have been inside. On a busy
            // machine it may be lost before.
            let released = ended(guard.release());
            release(acquire(&near));
            proxy.go_on();
            released.inspect_err(|error| assert!(error.is_lost(), "{error}")).is_ok()
        });
        let guard = acquire(&far);
        proxy.stall();
        drop(guard);
        ended(far.flush());
        release(acquire(&near));
    }
}

#[test]
fn a_release_whose_answer_is_lost_is_a_release() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let far = lock(&text(proxy.address()), options(LONG));
    let guard = acquire(&far);
    proxy.stall_to(To::Client);
    let releasing = std::thread::spawn(move || ended(guard.release()));
    stand(&server, &far, 0, 0);
    proxy.drop_all();
    releasing.join().expect("no panic").expect("it is released");
    expect_clean(&server, true);
    let next = acquire(&lock(&text(server.address()), options(LONG)));
    assert_eq!(next.recovered_from(), None);
    release(next);
}

/// The server is asked again, in the same session, for what it did not do in time.
#[test]
fn a_release_that_the_server_does_not_carry_out_in_time_is_asked_again() {
    if !is_there() {
        return;
    }
    let server = server();
    let locks = lock(&text(server.address()), options(LONG));
    let guard = acquire(&locks);
    let blocker = server.superuser().expect("a session");
    blocker.query("begin; select from lockkeeper.lock for update").expect("the rows");
    // The row is blocked for longer than one statement may take.
    ended(guard.release()).expect("it is released");
    stand(&server, &locks, 0, 0);
    blocker.query("commit").expect("its end");
    // The row could not be changed: it is as that of a holder that vanished.
    expect_clean(&server, false);
}

/// The lock goes with the statement, though its transaction fails at the end.
#[test]
fn a_release_that_fails_behind_the_unlock_is_a_release() {
    if !is_there() {
        return;
    }
    let server = server();
    let lock = lock(&text(server.address()), options(LONG));
    let guard = acquire(&lock);
    server.sql(
        "create function f() returns trigger language plpgsql \
            as 'begin raise exception ''not today''; end'; \
         create constraint trigger t after update on lockkeeper.lock \
            deferrable initially deferred for each row execute function f()",
    );
    ended(guard.release()).expect("it is released");
    stand(&server, &lock, 0, 0);
    expect_clean(&server, false);
}

/// What the session holds no more was not released, but lost.
#[test]
fn a_lock_that_was_unlocked_behind_the_guard_is_lost_at_its_release() {
    if !is_there() {
        return;
    }
    let server = server();
    let lock = lock(&text(server.address()), options(LONG).own_session(true));
    for unlock in [
        "SELECT pg_advisory_unlock_all()",
        "DISCARD ALL",
        // Its name is that of another client's session.
        "SET lockkeeper.session = 'another'",
    ] {
        let guard = acquire(&lock);
        block_on(guard.client().expect("its own session").batch_execute(unlock)).expect("done");
        assert!(!guard.is_lost(), "nothing tells of it before the next probe");
        let error = ended(guard.release()).expect_err("it was lost");
        assert!(error.is_lost(), "{unlock}: {error:?}");
    }
}

/// A session is used again for the next hold. What the last one did in it is not.
#[test]
fn a_transaction_that_a_holder_leaves_open_ends_with_the_hold() {
    if !is_there() {
        return;
    }
    let server = server();
    server.sql(&format!("create table t (number int); grant all on t to {ROLE}"));
    server.sql(&format!("create role another; grant another to {ROLE}"));
    let own = lock(&text(server.address()), options(LONG).own_session(true));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let mut token = acquire(&own).fencing_token();
    for left in [
        "BEGIN; INSERT INTO public.t VALUES (1)",
        "BEGIN; INSERT INTO public.nothing VALUES (1)",
        "SET default_transaction_read_only = on",
        "SET ROLE another",
    ] {
        let guard = acquire(&own);
        let client = guard.client().expect("its own session");
        let is_done = block_on(client.batch_execute(left)).is_ok();
        assert_eq!(is_done, !left.contains("nothing"));
        ended(guard.release()).expect("it was held");
        for lock in [&other, &own] {
            let guard = acquire(lock);
            assert!(guard.fencing_token() > token, "after {left}");
            assert_eq!(guard.recovered_from(), None, "after {left}");
            token = guard.fencing_token();
            release(guard);
        }
    }
    assert_eq!(server.value("select count(*) from t"), "0", "it was not committed");
}

/// The connection of a process that is gone is closed. A server that waits for a lock looks
/// whether its client is there.
#[test]
fn a_waiter_that_dies_leaves_the_queue_though_the_lock_is_held() {
    const TEST: &str = "a_waiter_that_dies_leaves_the_queue_though_the_lock_is_held";
    if let Some((_, text)) = role() {
        let lock = lock(text.to_str().expect("a text"), options(LONG));
        return drop(block_on(lock.acquire()));
    }
    if !is_there() {
        return;
    }
    let server = server();
    // Else its statement would end soon, as each does that waits for a minute.
    let patient = Substitution::between(
        server.address(),
        "set_config('lock_timeout', '60000'",
        "set_config('lock_timeout', '99999'",
    );
    let lock = lock(&text(server.address()), options(LONG));
    let guard = acquire(&lock);
    let mut process = Process::play(TEST, "waits", Path::new(&text(patient.address())));
    stand(&server, &lock, 1, 1);
    assert!(patient.count() > 0, "no bound was set");
    process.kill();
    stand(&server, &lock, 1, 0);
    release(guard);
}

#[test]
fn a_guard_that_is_dropped_as_the_last_thing_leaves_its_row_clean() {
    const TEST: &str = "a_guard_that_is_dropped_as_the_last_thing_leaves_its_row_clean";
    if let Some((_, text)) = role() {
        let guard = acquire(&lock(text.to_str().expect("a text"), options(LONG)));
        tell("held");
        told();
        drop(guard);
        // As the return from `main` does.
        std::process::exit(0);
    }
    if !is_there() {
        return;
    }
    let server = server();
    let text = text(server.address());
    for round in 1..=10 {
        eventually("the release is in time for the exit", || {
            let mut process = Process::play(TEST, "drops", Path::new(&text));
            process.expect("held");
            let begun = Instant::now();
            assert!(process.wait().success());
            // On a busy machine the server may be too late: that proves nothing.
            let is_late = begun.elapsed() >= EXIT_LIMIT;
            let is_clean = server.value("select bool_and(clean) from lockkeeper.lock") == "t";
            assert!(is_clean || is_late, "in round {round}");
            if !is_clean {
                // Else the next would wait for its lease.
                server.sql("update lockkeeper.lock set clean = true");
            }
            is_clean
        });
    }
}

/// 1. The waiter's process at the server does not run when its statement is cancelled.
/// 2. The holder releases, which grants the lock to the waiter.
/// 3. The process runs. It ends the statement, and keeps the lock.
#[test]
fn a_lock_that_is_granted_to_a_statement_that_fails_is_not_left() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    for _ in 0..3 {
        let guard = acquire(&one);
        let waiter = Waiter::of(&other);
        stand(&server, &one, 1, 1);
        let pid = waiting(&server, &one);
        server.signal(pid, Signal::SIGSTOP);
        assert_eq!(server.value(&format!("select pg_cancel_backend({pid})")), "t");
        release(guard);
        stand(&server, &one, 1, 0);
        server.signal(pid, Signal::SIGCONT);
        release(waiter.guard());
        stand(&server, &one, 0, 0);
    }
}

/// One that vanished is still waited for and named, whatever happens in between.
#[test]
fn a_wait_that_is_given_up_leaves_the_row_as_it_was() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let far = lock(&text(proxy.address()), options(LONG));
    let dead = acquire(&far);
    let id = dead.hold_id().expect("a table").to_owned();
    let near = lock(&text(server.address()), options(LONG * 2));
    proxy.stall();
    terminate_holder(&server, &far);
    stand(&server, &far, 0, 0);
    let row = "select owner || ' ' || clean || ' ' || lease_ms from lockkeeper.lock";
    let before = server.value(row);
    assert!(before.starts_with(&id) && before.contains(" false "), "{before}");

    // At its limit, while it waits for the lease of the dead.
    let limited = near.acquire_timeout(Duration::from_millis(300));
    let error = block_on(limited).expect_err("its lease is not over");
    assert!(error.is_timeout(), "{error:?}");
    block_on(near.flush());
    assert_eq!(server.value(row), before);

    // Dropped while its row is being written.
    let blocker = server.superuser().expect("a session");
    blocker.query("begin; select from lockkeeper.lock for update").expect("the rows");
    block_on(async {
        let mut acquiring = std::pin::pin!(near.acquire());
        assert!(futures::poll!(&mut acquiring).is_pending());
        let blocked = "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock'";
        server.wait_for(blocked, "t");
    });
    blocker.query("commit").expect("its end");
    block_on(near.flush());
    stand(&server, &near, 0, 0);
    assert_eq!(server.value(row), before);

    // Killed while it waits: the dead is named all the same, beside its lease.
    let at_once = lock(&text(server.address()), options(LONG).takeover(Takeover::AtOnce));
    let guard = acquire(&at_once);
    assert_eq!(guard.recovered_from().and_then(|it| it.hold_id.as_deref()), Some(&*id));
    release(guard);
    assert_eq!(acquire(&near).recovered_from(), None);
}
