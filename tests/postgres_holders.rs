//! A holder of PostgreSQL's lock: what it is told, and when; what it leaves, and what its
//! successor makes of that.

#![cfg(feature = "postgres")]

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::time::Duration;

use lockkeeper::{Error, LostReason, Status, Table, Takeover};
use postgres_locks::{
    LONG, Waiter, acquire, lock, lost, of_lock, options, release, server, stand, terminate_holder,
    text, text_of_another, with_table,
};
use postgres_support::{Replication, Server, is_there};
use support::{block_on, eventually};

const SHORT: Duration = Duration::from_secs(3);

#[test]
fn a_row_is_clean_before_its_lock_goes() {
    if !is_there() {
        return;
    }
    let server = server();
    let one = lock(&text(server.address()), options(LONG));
    let other = lock(&text_of_another(server.address()), options(LONG));
    let guard = acquire(&one);
    let waiter = Waiter::of(&other);
    stand(&server, &one, 1, 1);
    // The row is kept from being changed.
    let blocker = server.superuser().expect("a session");
    blocker.query("begin; select from lockkeeper.lock for update").expect("the rows");
    let releasing = std::thread::spawn(move || release(guard));
    let changes = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and query like '%clean = true%'";
    server.wait_for(changes, "1");
    stand(&server, &one, 1, 1);
    blocker.query("commit").expect("it is committed");
    releasing.join().expect("it is released");
    let next = waiter.guard();
    assert_eq!(next.recovered_from(), None);
    release(next);
}

#[test]
fn a_holder_that_is_cut_off_is_told_before_the_next_enters() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let guard = acquire(&lock(&text(proxy.address()), options(SHORT)));
    let waiter = Waiter::of(&lock(&text(server.address()), options(SHORT)));
    proxy.stall();
    let next = waiter.guard();
    assert!(guard.is_lost(), "two hold it");
    assert_eq!(lost(&guard).reason, LostReason::Expired);
    assert!(next.fencing_token() > guard.fencing_token());
    assert_eq!(next.recovered_from().and_then(|it| it.pid), Some(std::process::id()));
    release(next);
}

/// The server frees the lock at once, and the holder hears of that later, or never.
#[test]
fn a_lock_whose_session_was_ended_is_kept_for_the_lease_of_its_holder() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let guard = acquire(&lock(&text(proxy.address()), options(SHORT)));
    let next = lock(&text(server.address()), options(SHORT));
    let waiter = Waiter::of(&next);
    stand(&server, &next, 1, 1);
    proxy.stall();
    terminate_holder(&server, &next);
    // The waiter has it, and does not enter.
    stand(&server, &next, 1, 0);
    waiter.expect_waiting();
    assert!(!guard.is_lost(), "its lease is not over");
    let next = waiter.guard();
    assert!(guard.is_lost(), "two hold it");
    assert!(next.recovered_from().is_some());
    release(next);
}

#[test]
fn at_once_is_at_once() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let _guard = acquire(&lock(&text(proxy.address()), options(LONG)));
    let other = lock(&text(server.address()), options(LONG).takeover(Takeover::AtOnce));
    let waiter = Waiter::of(&other);
    stand(&server, &other, 1, 1);
    proxy.stall();
    terminate_holder(&server, &other);
    let next = waiter.guard();
    assert!(next.recovered_from().is_some());
    release(next);
}

/// Of one that vanished, a try that does not wait is told as of a holder, and it can have the
/// lock when the lease is over, though no try waited for that.
#[test]
fn tries_alone_get_the_lock_of_one_that_vanished() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let dead = acquire(&lock(&text(proxy.address()), options(SHORT)));
    let other = lock(&text(server.address()), options(SHORT));
    proxy.stall();
    terminate_holder(&server, &other);
    assert!(block_on(other.try_acquire()).expect("no error").is_none(), "its lease is not over");
    block_on(other.flush());
    let status = block_on(other.status()).expect("a status");
    assert!(matches!(&status, Status::Stale(holder) if holder.pid.is_some()), "{status:?}");
    let mut next = None;
    eventually("a try has it", || {
        next = block_on(other.try_acquire()).expect("no error");
        next.is_some()
    });
    assert!(dead.is_lost(), "two hold it");
    let next = next.expect("it was acquired");
    let named = next.recovered_from().expect("one vanished");
    assert_eq!(named.hold_id.as_deref(), dead.hold_id());
    release(next);
    assert_eq!(acquire(&other).recovered_from(), None, "it is told once");
}

#[test]
fn a_session_that_an_administrator_ends_is_told_at_once() {
    if !is_there() {
        return;
    }
    let server = server();
    let lock = lock(&text(server.address()), options(LONG));
    let guard = acquire(&lock);
    terminate_holder(&server, &lock);
    assert_eq!(lost(&guard).reason, LostReason::Ended);
    let error = block_on(guard.release()).expect_err("it is lost");
    assert!(error.is_lost(), "{error}");
}

#[test]
fn waits_outlive_a_restart_and_holders_are_told_of_it() {
    if !is_there() {
        return;
    }
    let mut server = server();
    let one = lock(&text(server.address()), options(SHORT));
    let other = lock(&text_of_another(server.address()), options(SHORT));
    let guard = acquire(&one);
    let waiter = Waiter::of(&other);
    stand(&server, &one, 1, 1);
    server.restart();
    assert_eq!(lost(&guard).reason, LostReason::Ended);
    let next = waiter.guard();
    assert!(next.fencing_token() > guard.fencing_token());
    release(next);
}

#[test]
fn tokens_grow_over_a_crash_with_the_table_and_without() {
    if !is_there() {
        return;
    }
    let mut server = with_table(Server::builder().set("wal_writer_delay", "10s"));
    for table in [Table::Own, Table::None] {
        let options = options(SHORT).table(table).takeover(Takeover::AtOnce);
        let lock = lock(&text(server.address()), options);
        let guard = acquire(&lock);
        let token = guard.fencing_token();
        server.kill();
        server.start_again();
        assert!(guard.is_lost() || lost(&guard).reason == LostReason::Ended);
        drop(guard);
        let next = acquire(&lock);
        assert!(next.fencing_token() > token, "{table:?}");
        release(next);
    }
}

#[test]
fn a_promoted_standby_gives_greater_tokens_and_the_old_primary_none() {
    if !is_there() {
        return;
    }
    let server = server();
    let standby = server.standby(Replication::Synchronous);
    let one = lock(&text(server.address()), options(SHORT));
    let guard = acquire(&one);
    let token = guard.fencing_token();
    standby.promote();
    // A read is still answered there, and no write.
    assert_eq!(lost(&guard).reason, LostReason::Expired);
    let other = lock(&text(standby.address()), options(SHORT));
    let next = acquire(&other);
    assert!(next.fencing_token() > token);
    release(next);
}

#[test]
fn a_standby_is_no_server() {
    if !is_there() {
        return;
    }
    let server = server();
    let standby = server.standby(Replication::Asynchronous);
    let options = options(SHORT).reconnect(Duration::ZERO);
    let error = block_on(lock(&text(standby.address()), options).acquire()).expect_err("a standby");
    let Error::Unreachable { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("recovery"), "{source}");
}

#[test]
fn statements_of_the_holder_run_in_the_session_that_holds_the_lock() {
    if !is_there() {
        return;
    }
    let server = server();
    let lock = lock(&text(server.address()), options(LONG).own_session(true));
    let guard = acquire(&lock);
    let sql = format!(
        "select count(*) from pg_locks where pid = pg_backend_pid() and {}",
        of_lock(&lock)
    );
    block_on(async {
        let client = guard.client().expect("a session of its own");
        let row = client.query_one(&sql, &[]).await.expect("a row");
        assert_eq!(row.get::<_, i64>(0), 1);
    });
    release(guard);
    let shared = postgres_locks::lock(&text(server.address()), options(LONG));
    let guard = acquire(&shared);
    assert!(guard.client().is_none(), "others' locks are in it");
    release(guard);
}

#[test]
fn a_reader_that_vanished_is_waited_for_by_a_writer_and_not_by_readers() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let far = lock(&text(proxy.address()), options(SHORT));
    let near = lock(&text(server.address()), options(SHORT));
    let reader = block_on(far.acquire_shared()).expect("the lock");
    proxy.stall();
    terminate_holder(&server, &near);
    let beside = block_on(near.acquire_shared()).expect("the lock");
    assert!(!reader.is_lost(), "both read");
    release(beside);
    let writer = acquire(&near);
    assert!(reader.is_lost(), "a reader is beside a writer");
    assert!(writer.recovered_from().is_some());
    release(writer);
}
