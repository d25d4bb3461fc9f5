//! A PostgreSQL server that forgets a hold before the holder is told: a restart, a crash, a
//! network that ends on one side, a standby that is promoted.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use lockkeeper::{AsyncPostgresLock, LostReason, PostgresOptions, Table};
use nix::sys::signal::Signal;
use postgres_locks::{Waiter, acquire, lock, lost, of_lock, options, release, server, stand, text};
use postgres_support::{Proxy, Replication, Server, To, is_there};
use support::{VERY_LONG, block_on};

/// Long enough to restart a server in, on a machine that is busy.
const LEASE: Duration = Duration::from_secs(8);

/// The holder does not hear of it, and its successor enters when it has been told.
#[track_caller]
fn expect_waited_for(free: impl FnOnce(&mut Server, &Proxy)) {
    let mut server = server();
    let proxy = server.proxy();
    let far = lock(&text(proxy.address()), options(LEASE));
    let guard = acquire(&far);
    let near = lock(&text(server.address()), options(LEASE));
    let waiter = Waiter::of(&near);
    stand(&server, &near, 1, 1);
    free(&mut server, &proxy);
    let next = waiter.guard();
    assert!(guard.is_lost(), "two hold it");
    assert!(next.fencing_token() > guard.fencing_token());
    let named = next.recovered_from().and_then(|it| it.hold_id.as_deref());
    assert_eq!(named, guard.hold_id());
    release(next);
}

#[test]
fn a_server_that_restarts_while_its_holder_is_cut_off_keeps_the_lock_for_its_lease() {
    if is_there() {
        expect_waited_for(|server, proxy| {
            proxy.stall();
            server.restart();
        });
    }
}

#[test]
fn a_server_that_crashes_while_its_holder_is_cut_off_keeps_the_lock_for_its_lease() {
    if is_there() {
        expect_waited_for(|server, proxy| {
            proxy.stall();
            server.kill();
            server.start_again();
        });
    }
}

#[test]
fn a_holder_whose_connection_was_reset_at_the_server_alone_is_waited_for() {
    if is_there() {
        expect_waited_for(|_, proxy| proxy.reset(To::Server));
    }
}

#[test]
fn a_holder_whose_connection_was_half_closed_is_told_or_waited_for() {
    if is_there() {
        expect_waited_for(|_, proxy| proxy.half_close(To::Server));
    }
}

/// Its whole server recovers, as after a crash.
#[test]
fn a_holder_whose_process_at_the_server_was_killed_is_waited_for() {
    if is_there() {
        expect_waited_for(|server, proxy| {
            let a = lock("host=localhost user=a", options(LEASE));
            let sql = format!("select pid from pg_locks where granted and {}", of_lock(&a));
            let pid = server.value(&sql).parse().expect("a process id");
            proxy.stall();
            server.signal(pid, Signal::SIGKILL);
        });
    }
}

/// With asynchronous replication a former primary answers writes: its holder is told nothing.
/// What the standby did not get is forgotten there. But tokens grow.
#[test]
fn a_standby_that_has_not_all_gives_greater_tokens_all_the_same() {
    if !is_there() {
        return;
    }
    let server = server();
    let standby = server.standby(Replication::Asynchronous);
    for table in [Table::Own, Table::None] {
        release(acquire(&named(
            server.address(),
            &format!("{table:?}"),
            options(LEASE).table(table),
        )));
    }
    standby.catch_up_with(&server);
    // What the primary writes from now on never arrives.
    server.signal(server.process("walsender"), Signal::SIGSTOP);
    let locks = |address, table| named(address, &format!("{table:?}"), options(LEASE).table(table));
    let guards = [Table::Own, Table::None].map(|table| {
        let old = locks(server.address(), table);
        (0..5).for_each(|_| release(acquire(&old)));
        (acquire(&old), table)
    });
    standby.promote();
    for (guard, table) in &guards {
        let next = acquire(&locks(standby.address(), *table));
        assert!(next.fencing_token() > guard.fencing_token(), "{table:?}");
        release(next);
    }
    // Longer than their lease: their probes are answered.
    std::thread::sleep(LEASE * 3 / 2);
    assert!(guards.iter().all(|(guard, _)| !guard.is_lost()));
}

/// The one that can write is found, by those who wait and by the holder's next try.
#[test]
fn locks_move_to_the_standby_that_is_promoted() {
    if !is_there() {
        return;
    }
    let mut server = server();
    let standby = server.standby(Replication::Synchronous);
    let of_both = |more: &str| {
        let (one, other) = (server.address(), standby.address());
        let text = text(one).replace(&format!("host={}", one.ip()), "");
        let text = text.replace(&format!("port={}", one.port()), "");
        format!(
            "host={},{} port={},{} {text} {more}",
            one.ip(),
            other.ip(),
            one.port(),
            other.port()
        )
    };
    let one = lock(&of_both(""), options(LEASE));
    let another = lock(&of_both("application_name=another"), options(LEASE));
    let guard = acquire(&one);
    let waiter = Waiter::of(&another);
    stand(&server, &one, 1, 1);
    server.kill();
    assert_eq!(lost(&guard).reason, LostReason::Ended);
    standby.promote();
    let next = waiter.guard();
    assert!(next.fencing_token() > guard.fencing_token());
    let named = next.recovered_from().and_then(|it| it.hold_id.as_deref());
    assert_eq!(named, guard.hold_id());
    drop(guard);
    let waiter = Waiter::of(&one);
    stand(&standby, &one, 1, 1);
    release(next);
    release(waiter.guard());
}

/// A release there cannot be answered either, and no other can have been inside before it.
#[test]
fn a_release_at_a_former_primary_ends_with_the_lease() {
    if !is_there() {
        return;
    }
    let server = server();
    let standby = server.standby(Replication::Synchronous);
    // It lasts for longer than a promotion takes.
    let lease = 2 * LEASE;
    let one = lock(&text(server.address()), options(lease));
    let (guard, beside) = (acquire(&one), acquire(&named(server.address(), "b", options(lease))));
    standby.promote();
    let waiter = Waiter::of(&lock(&text(standby.address()), options(lease)));
    block_on(async { tokio::time::timeout(VERY_LONG, guard.release()).await })
        .expect("it ends in time")
        .expect("it was held when it was asked for");
    assert_eq!(lost(&beside).reason, LostReason::Expired);
    release(waiter.guard());
}

fn named(address: SocketAddr, name: &str, options: PostgresOptions) -> AsyncPostgresLock {
    AsyncPostgresLock::with_options(text(address), name, options).expect("a name")
}
