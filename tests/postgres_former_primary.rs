//! A former primary that runs on, and knows nothing of the new one. It takes sessions and
//! answers reads, and stores nothing that is answered.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::time::Duration;

use lockkeeper::{AsyncPostgresLock, PostgresGuard};
use postgres_locks::{LONG, Waiter, acquire, lock, options, release, server, standing};
use postgres_support::{PASSWORD, ROLE, Replication, Server, is_there};
use support::eventually;

const LEASE: Duration = Duration::from_secs(3);

/// Both hosts, in this order.
fn text_of(one: &Server, other: &Server) -> String {
    let (host, port) = (one.address().ip(), one.address().port());
    let (other_host, other_port) = (other.address().ip(), other.address().port());
    format!(
        "host={host},{other_host} port={port},{other_port} user={ROLE} password='{PASSWORD}' \
         dbname=postgres connect_timeout=2"
    )
}

/// A holder, and a contender that waits behind it. On a busy machine the holder may lose the
/// lock before: then both begin anew.
#[track_caller]
fn held_and_waited_for(
    server: &Server,
    one: &AsyncPostgresLock,
    other: &AsyncPostgresLock,
) -> (PostgresGuard, Waiter) {
    let mut both = None;
    eventually("one waits behind a holder", || {
        let (guard, waiter) = (acquire(one), Waiter::of(other));
        eventually("it waits, or the holder has lost the lock", || {
            guard.is_lost() || server.value(&standing(other)) == "1 1"
        });
        if guard.is_lost() {
            drop(waiter.guard());
        } else {
            both = Some((guard, waiter));
        }
        both.is_some()
    });
    both.expect("there are both")
}

#[test]
fn a_former_primary_that_runs_on_is_passed_over() {
    if !is_there() {
        return;
    }
    let former = server();
    let standby = former.standby(Replication::Synchronous);
    let one = lock(&text_of(&former, &standby), options(LEASE));
    let another = format!("{} application_name=another", text_of(&former, &standby));
    // It looks once in a lease whether it still waits.
    let another = lock(&another, options(LEASE));
    let (before, waiter) = held_and_waited_for(&former, &one, &another);
    standby.promote();
    let next = waiter.guard();
    assert!(before.is_lost(), "two hold it");
    assert!(next.fencing_token().number() > before.fencing_token().number());
    // Each lease is short, and may be over before a release.
    drop((next, before));
    drop(acquire(&one));
    // As one that comes new.
    let new = format!("{} application_name=new", text_of(&former, &standby));
    release(acquire(&lock(&new, options(LONG))));
    // No process of the server waits for a standby for ever because of that.
    let tries = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' \
                 and query like '%set_config(''synchronous_commit'', ''on'', true)%'";
    former.wait_for(tries, "0");
}
