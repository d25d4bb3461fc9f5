//! A holder of PostgreSQL's lock: what it is told, and when; what it leaves, and what its
//! successor makes of that.

#![allow(unsafe_code)]

mod postgres_locks;
mod postgres_support;
mod server_support;
mod strace_support;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use lockkeeper::{
    AsyncPostgresLock, Error, LostReason, PostgresGuard, PostgresLocks, Status, Table, Takeover,
};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use postgres_locks::{
    LONG, Waiter, acquire, has_terminated_holder, lock, lost, of_lock, options, release, server,
    stand, terminate_holder, text, text_of_another, with_table,
};
use postgres_support::{Proxy, Replication, Server, To, is_there};
use strace_support::Faults;
use support::{Process, block_on, eventually};

const SHORT: Duration = Duration::from_secs(3);

/// Not over within a few statements, on a machine that is busy.
const LASTING: Duration = Duration::from_secs(8);

/// A holder that is cut off, and is not told that its session was ended. On a busy machine it
/// may lose the lock before: then there is another one.
#[track_caller]
fn cut_off(
    server: &Server,
    lease: Duration,
    acquiring: impl Fn(&AsyncPostgresLock) -> PostgresGuard,
) -> (Proxy, PostgresGuard) {
    let near = lock(&text(server.address()), options(LONG));
    let mut found = None;
    eventually("one is cut off that holds the lock", || {
        let proxy = server.proxy();
        let guard = acquiring(&lock(&text(proxy.address()), options(lease)));
        proxy.stall();
        if has_terminated_holder(server, &near) && !guard.is_lost() {
            found = Some((proxy, guard));
        }
        found.is_some()
    });
    found.expect("there is one")
}

#[test]
fn a_row_is_clean_before_its_lock_goes() {
    if !is_there() {
        return;
    }
    let server = server();
    // In a session of its own no statement is cut short after a second.
    let one = lock(&text(server.address()), options(LONG).own_session(true));
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
    let waiter = Waiter::of(&lock(&text(server.address()), options(LONG)));
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
    let guard = acquire(&lock(&text(proxy.address()), options(LASTING)));
    let next = lock(&text(server.address()), options(LASTING));
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
    let dead = acquire(&lock(&text(proxy.address()), options(LASTING)));
    let other = lock(&text(server.address()), options(LASTING));
    proxy.stall();
    terminate_holder(&server, &other);
    stand(&server, &other, 0, 0);
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
    let one = lock(&text(server.address()), options(LASTING));
    let other = lock(&text_of_another(server.address()), options(LASTING));
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
    let mut server = with_table(
        Server::builder().set("wal_writer_delay", "10s").set("synchronous_commit", "off"),
    );
    // The table itself was committed by such a default.
    server.sql("checkpoint");
    for table in [Table::Own, Table::None] {
        let options = options(LONG).table(table).takeover(Takeover::AtOnce);
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
    let other = lock(&text(standby.address()), options(LONG));
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
    let near = lock(&text(server.address()), options(LONG));
    let shared = |lock: &AsyncPostgresLock| block_on(lock.acquire_shared()).expect("the lock");
    for (lease, is_reader_next) in [(LONG, true), (SHORT, false)] {
        let (_proxy, reader) = cut_off(&server, lease, shared);
        if is_reader_next {
            // Its lease is not over for long.
            release(shared(&near));
            server.sql("delete from lockkeeper.reader");
        } else {
            let writer = acquire(&near);
            assert!(reader.is_lost(), "a reader is beside a writer");
            assert!(writer.recovered_from().is_some());
            release(writer);
        }
    }
}

/// 1. A holder with a long lease is cut off, and its session ends.
/// 2. Its successor has the lock, waits for that lease, and dies with a short one of its own.
/// 3. The next waits for the first holder all the same.
#[test]
fn a_successor_that_dies_while_it_waits_hands_the_wait_on() {
    const TEST: &str = "a_successor_that_dies_while_it_waits_hands_the_wait_on";
    if let Some((_, text)) = support::role() {
        return drop(acquire(&lock(text.to_str().expect("a text"), options(SHORT))));
    }
    if !is_there() {
        return;
    }
    let server = server();
    let near = lock(&text(server.address()), options(LONG));
    let (_proxy, guard) = cut_off(&server, SHORT * 4, acquire);
    stand(&server, &near, 0, 0);
    let mut process = Process::play(TEST, "dies", Path::new(&text(server.address())));
    let waits = format!(
        "select pid is not null from lockkeeper.lock where owner <> '{}'",
        guard.hold_id().expect("a table")
    );
    eventually("it has written its row", || server.sql(&waits) == [["t"]]);
    process.kill();
    let next = acquire(&near);
    assert!(guard.is_lost(), "two hold it");
    release(next);
}

#[test]
fn a_writer_that_vanished_is_waited_for_by_readers_and_told_once() {
    if !is_there() {
        return;
    }
    let server = server();
    let near = lock(&text(server.address()), options(LONG));
    let (_proxy, writer) = cut_off(&server, SHORT, acquire);
    let reader = block_on(near.acquire_shared()).expect("the lock");
    assert!(writer.is_lost(), "a reader is beside a writer");
    let named = reader.recovered_from().and_then(|it| it.hold_id.as_deref());
    assert_eq!(named, writer.hold_id());
    let beside = block_on(near.acquire_shared()).expect("the lock");
    assert_eq!(beside.recovered_from(), None, "it is told once");
    [reader, beside].into_iter().for_each(release);
    let next = acquire(&near);
    assert_eq!(next.recovered_from(), None, "readers left in order");
    assert!(next.fencing_token() > writer.fencing_token());
    release(next);
}

/// What may be relied on of a lease. (L3)
fn relied_on(lease: Duration) -> Duration {
    lease * 10 / 11 - Duration::from_millis(250)
}

/// The server may have ended a session that waited as soon as it had granted the lock.
#[test]
fn a_lease_is_relied_on_from_before_the_row_was_written() {
    if !is_there() {
        return;
    }
    const DELAY: Duration = Duration::from_millis(500);
    let server = server();
    let proxy = server.proxy();
    proxy.delay(To::Client, DELAY);
    let guard = acquire(&lock(&text(proxy.address()), options(LONG).own_session(true)));
    let left = guard.valid_until().saturating_duration_since(Instant::now());
    assert!(left <= relied_on(LONG) - DELAY, "{:?} less", relied_on(LONG) - left);
    release(guard);
}

#[test]
fn a_lease_is_relied_on_from_before_its_probe_was_sent() {
    if !is_there() {
        return;
    }
    const LEASE: Duration = Duration::from_secs(6);
    const DELAY: Duration = Duration::from_millis(500);
    let server = server();
    let proxy = server.proxy();
    proxy.delay(To::Client, DELAY);
    let guard = acquire(&lock(&text(proxy.address()), options(LEASE)));
    let (first, mut probes) = (guard.valid_until(), Vec::new());
    eventually("it is probed twice", || {
        let (until, now) = (guard.valid_until(), Instant::now());
        let left = until.saturating_duration_since(now);
        assert!(left <= relied_on(LEASE) - DELAY, "{:?} less", relied_on(LEASE) - left);
        assert!(!guard.is_lost(), "{:?}", lost(&guard));
        // By more than two clocks differ that are read one after the other.
        if until > *probes.last().unwrap_or(&first) + DELAY {
            probes.push(until);
        }
        probes.len() >= 2
    });
    release(guard);
}

/// The row is written when the session is not relied on any more.
#[test]
fn an_answer_that_comes_after_the_lease_is_over_is_no_hold() {
    if !is_there() {
        return;
    }
    let server = server();
    // There is a row to be blocked.
    release(acquire(&lock(&text(server.address()), options(LONG))));
    let own = lock(&text(server.address()), options(SHORT).own_session(true));
    let blocker = server.superuser().expect("a session");
    let writes = "select pid from pg_stat_activity where wait_event_type = 'Lock' \
                  and wait_event <> 'advisory'";
    let holder = format!("select pid from pg_locks where granted and {}", of_lock(&own));
    // A busy machine may lose the lock before it is looked at: then that is repeated.
    eventually("it is acquired by a lease that is not over", || {
        blocker.query("begin; select from lockkeeper.lock for update").expect("the rows");
        let waiter = Waiter::of(&own);
        let mut first = None;
        eventually("its row is being written", || {
            first = server.sql(writes).first().map(|row| row[0].clone());
            first.is_some()
        });
        std::thread::sleep(SHORT);
        blocker.query("commit").expect("its end");
        let guard = waiter.guard();
        let pid = server.sql(&holder).first().map(|row| row[0].clone());
        let is_held = !guard.is_lost();
        if is_held {
            assert!(pid.is_some() && pid != first, "the same session holds it: {pid:?}");
        }
        // Its lease may be over by now.
        let _ = block_on(guard.release());
        is_held
    });
}

/// No runtime runs here: the thread of the crate tells it.
#[test]
fn a_holder_whose_runtime_does_not_run_is_told_while_the_server_is_stopped() {
    if !is_there() {
        return;
    }
    let server = server();
    let guard = acquire(&lock(&text(server.address()), options(SHORT)));
    let token = guard.lost_token();
    server.stop();
    eventually("it is told", || token.is_cancelled());
    assert!(guard.is_lost());
    server.resume();
    let next = acquire(&lock(&text_of_another(server.address()), options(LONG)));
    assert!(next.fencing_token() > guard.fencing_token());
    release(next);
}

/// The probe that is under way when the network ends.
#[test]
fn a_probe_that_hangs_delays_no_word_of_the_loss() {
    if !is_there() {
        return;
    }
    let server = server();
    let proxy = server.proxy();
    let guard = acquire(&lock(&text(proxy.address()), options(SHORT)));
    let token = guard.lost_token();
    proxy.stall();
    let next = acquire(&lock(&text(server.address()), options(LONG)));
    // Not by the clock, which the guard itself would read.
    assert!(token.is_cancelled(), "another holds it, and it was not told");
    release(next);
}

/// The server ends a session that is not probed, though nothing tells it that its client does
/// not run: its connection is open.
#[test]
fn a_process_that_was_stopped_beyond_its_lease_sees_the_loss_first_of_all() {
    const TEST: &str = "a_process_that_was_stopped_beyond_its_lease_sees_the_loss_first_of_all";
    if let Some((_, text)) = support::role() {
        let guard = acquire(&lock(text.to_str().expect("a text"), options(SHORT)));
        support::tell("held");
        support::told();
        return support::tell(&format!("lost: {}", guard.is_lost()));
    }
    if !is_there() {
        return;
    }
    let server = server();
    let text = text(server.address());
    let mut process = Process::play(TEST, "holds", Path::new(&text));
    process.expect("held");
    process.stop();
    let next = acquire(&lock(&text, options(LONG)));
    assert_eq!(next.recovered_from().and_then(|it| it.pid), Some(process.id()));
    process.tell("look");
    process.signal(Signal::SIGCONT);
    process.expect("lost: true");
    release(next);
}

/// The thread of the crate does not run either: the guard reads the clock.
#[test]
fn a_holder_whom_no_thread_tells_sees_the_loss_by_the_clock() {
    const TEST: &str = "a_holder_whom_no_thread_tells_sees_the_loss_by_the_clock";
    if let Some((_, text)) = support::role() {
        let guard = acquire(&lock(text.to_str().expect("a text"), options(SHORT)));
        let token = guard.lost_token();
        support::tell("held");
        support::told();
        let is_told = token.is_cancelled();
        return support::tell(&format!("told: {is_told}, lost: {}", guard.is_lost()));
    }
    if !is_there() || !strace_support::is_there() {
        return;
    }
    let server = server();
    let text = text(server.address());
    let thread = "lockkeeper-io";
    let calls = "epoll_wait,epoll_pwait,epoll_pwait2";
    // On a busy machine it may lose the lock, and be told, before its thread is held up.
    eventually("no thread tells it", || {
        let mut process = Process::play(TEST, "holds", Path::new(&text));
        process.expect("held");
        let _slow = Faults::of_thread(process.id(), thread, calls, "delay_exit=3600000000");
        let next = acquire(&lock(&text, options(LONG)));
        process.tell("look");
        let said = process.next();
        release(next);
        assert!(said.ends_with("lost: true"), "{said}");
        said.starts_with("told: false")
    });
}

#[test]
fn a_session_that_is_no_more_ours_is_told_at_the_next_probe() {
    if !is_there() {
        return;
    }
    let server = server();
    let lock = lock(&text(server.address()), options(LASTING).own_session(true));
    for statement in ["SET lockkeeper.session = 'another'", "DISCARD ALL"] {
        let guard = acquire(&lock);
        let token = guard.fencing_token();
        block_on(guard.client().expect("its own").batch_execute(statement)).expect("done");
        assert_eq!(lost(&guard).reason, LostReason::Ended, "{statement}");
        drop(guard);
        let next = acquire(&lock);
        assert!(next.fencing_token() > token);
        release(next);
    }
}

/// A holder's statement is not ended by what the server bounds statements and idle
/// transactions to.
#[test]
fn a_holder_may_take_its_time_in_its_session() {
    if !is_there() {
        return;
    }
    let server = server();
    for setting in ["statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"] {
        server.sql(&format!("alter role app set {setting} = 300"));
    }
    let guard = acquire(&lock(&text(server.address()), options(LONG).own_session(true)));
    let client = guard.client().expect("its own session");
    block_on(client.batch_execute("BEGIN; SELECT pg_sleep(0.6)")).expect("it is not cancelled");
    std::thread::sleep(Duration::from_millis(600));
    block_on(client.batch_execute("COMMIT")).expect("the session lives");
    release(guard);
}

/// Acquire and fork: the child does this and exits, the parent goes on when it is gone.
fn fork_holding(text: &Path, act: impl FnOnce(PostgresGuard, &AsyncPostgresLock)) {
    let lock = lock(text.to_str().expect("a text"), options(LONG));
    let guard = acquire(&lock);
    // SAFETY: the other threads of this process wait, and the child waits for none of them.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            act(guard, &lock);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            support::tell(&format!("lost here: {}", guard.is_lost()));
            support::told();
            block_on(guard.release()).expect("the hold is as it was");
            support::tell("released");
        }
    }
}

#[test]
fn a_forked_child_has_lost_the_lock_and_leaves_its_parents() {
    const TEST: &str = "a_forked_child_has_lost_the_lock_and_leaves_its_parents";
    if let Some((role, text)) = support::role() {
        return fork_holding(&text, |guard, lock| {
            let is_told = guard.is_lost() && guard.lost_token().is_cancelled();
            let reason = lost(&guard).reason;
            support::tell(&format!("lost in the child: {is_told} {reason:?}"));
            match role.as_str() {
                "drops" => {
                    drop(guard);
                    // What it would release is released then.
                    block_on(lock.flush());
                }
                "releases" => support::tell(&format!("{}", block_on(guard.release()).is_err())),
                "tries" => {
                    let is_busy = block_on(lock.try_acquire()).expect("no error").is_none();
                    support::tell(&format!("busy: {is_busy}"));
                }
                "acquires" => {
                    let text = text.to_str().expect("a text");
                    let locks = PostgresLocks::with_options(text, options(LONG)).expect("options");
                    release(acquire(&locks.lock("b").expect("a name")));
                    support::tell("held beside");
                }
                _ => std::mem::forget(guard),
            }
        });
    }
    if !is_there() {
        return;
    }
    let server = server();
    let text = text(server.address());
    let lock = lock(&text, options(LONG));
    for role in ["drops", "releases", "tries", "acquires", "exits"] {
        let mut parent = Process::play(TEST, role, Path::new(&text));
        parent.expect("lost in the child: true Forked");
        match role {
            "releases" => parent.expect("true"),
            "tries" => parent.expect("busy: true"),
            "acquires" => parent.expect("held beside"),
            _ => {}
        }
        parent.expect("lost here: false");
        stand(&server, &lock, 1, 0);
        parent.tell("release");
        parent.expect("released");
        stand(&server, &lock, 0, 0);
    }
}

/// Each of these has a runtime that ends with it.
#[test]
fn a_lock_is_used_from_several_runtimes() {
    if !is_there() {
        return;
    }
    let server = server();
    let lock = lock(&text(server.address()), options(LONG));
    let first = acquire(&lock);
    let waiters = [(); 3].map(|()| Waiter::of(&lock));
    release(first);
    // In the order in which they came, which is not known.
    let acquire_and_release = |waiter: Waiter| std::thread::spawn(move || release(waiter.guard()));
    for thread in waiters.map(acquire_and_release) {
        thread.join().expect("it is acquired and released");
    }
    stand(&server, &lock, 0, 0);
}

/// As the page about PostgreSQL has it: the row of the hold is locked by the transaction that
/// does the work.
#[test]
fn a_transaction_that_locks_the_row_of_its_hold_is_a_fence() {
    if !is_there() {
        return;
    }
    let server = server();
    let first = lock(&text(server.address()), options(LONG).takeover(Takeover::AtOnce));
    let second = lock(&text_of_another(server.address()), options(LONG).takeover(Takeover::AtOnce));
    let guard = acquire(&first);
    let holds = |guard: &PostgresGuard| {
        let hold_id = guard.hold_id().expect("with the table");
        format!("select 1 from lockkeeper.lock where owner = '{hold_id}' and not clean for share")
    };
    let work = postgres_support::Session::open(&server.config()).expect("a session");
    work.query("begin").expect("a transaction");
    assert_eq!(work.query(&holds(&guard)).expect("rows").len(), 1);
    terminate_holder(&server, &first);
    let waiter = Waiter::of(&second);
    let blocked = "select count(*) from pg_locks where not granted and locktype <> 'advisory'";
    server.wait_for(blocked, "1");
    waiter.expect_waiting();
    work.query("commit").expect("its end");
    let next = waiter.guard();
    assert!(work.query(&holds(&guard)).expect("rows").is_empty(), "it comes too late");
    assert_eq!(work.query(&holds(&next)).expect("rows").len(), 1);
    release(next);
    drop(guard);
}
