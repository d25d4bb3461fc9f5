//! A former primary that runs on, and knows nothing of the new one. It takes sessions and
//! answers reads, and stores nothing that is answered.

mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::time::Duration;

use postgres_locks::{Waiter, acquire, lock, options, release, server, stand};
use postgres_support::{PASSWORD, ROLE, Replication, Server, is_there};

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

#[test]
fn a_former_primary_that_runs_on_is_passed_over() {
    if !is_there() {
        return;
    }
    let former = server();
    let standby = former.standby(Replication::Synchronous);
    let one = lock(&text_of(&former, &standby), options(LEASE));
    let before = acquire(&one);
    let waiter = Waiter::of(&lock(
        &format!("{} application_name=another", text_of(&former, &standby)),
        options(LEASE),
    ));
    stand(&former, &one, 1, 1);
    standby.promote();
    let next = waiter.guard();
    assert!(before.is_lost(), "two hold it");
    assert!(next.fencing_token().number() > before.fencing_token().number());
    release(next);
    drop(before);
    release(acquire(&one));
    // As one that comes new.
    let new = format!("{} application_name=new", text_of(&former, &standby));
    release(acquire(&lock(&new, options(LEASE))));
    // No process of the server waits for a standby for ever because of that.
    let tries = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' \
                 and query like '%set_config(''synchronous_commit'', ''on'', true)%'";
    former.wait_for(tries, "0");
}
