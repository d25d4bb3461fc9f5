//! What many cost that wait or hold: sessions, memory, time of a processor, statements.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::time::Duration;

use lockkeeper::{AsyncPostgresLock, PostgresGuard, PostgresLocks};
use tokio::task::JoinSet;

use crate::cost::{connections, memory, processor_time};
use crate::postgres_support::Server;
use crate::role;

/// An idle session reports what it did up to ten seconds later.
const SETTLED: Duration = Duration::from_secs(15);

/// Three probes of a lease of 15 s are in it.
const LOOK: Duration = Duration::from_secs(15);

pub(crate) fn run(server: &Server) {
    println!("\nin one process, for {LOOK:?} after they have come; lease 15 s (tmpfs)");
    println!(
        "{:<38} {:>9} {:>9} {:>13} {:>13} {:>14}",
        "", "sessions", "memory", "client's CPU", "server's CPU", "transactions/s"
    );
    let locks = PostgresLocks::new(crate::text(server.address())).expect("its locks");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Another process holds what is waited for.
    let one = runtime.block_on(async { locks.lock("crowd").expect("a lock").acquire().await });
    let _one = one.expect("the lock");
    let each = (0..200).map(|number| locks.lock(format!("each-{number}")).expect("a lock"));
    let holding = runtime.block_on(acquire_all(each.collect()));
    for (role, name) in [
        ("one-waits", "one waiter"),
        ("all-wait-for-one", "200 waiters of one lock"),
        ("each-waits", "200 waiters, each of its lock"),
        ("holds", "500 held locks"),
    ] {
        row(server, role, name);
    }
    drop(holding);
}

fn row(server: &Server, role: &str, name: &str) {
    let mut player = role::start(&format!("{role} {}", server.address()));
    let mut lines = BufReader::new(player.stdout.take().expect("its output")).lines();
    let next = |lines: &mut std::io::Lines<_>| lines.next().expect("a line").expect("a line");
    let before: u64 = next(&mut lines).parse().expect("its memory");
    player.stdin.as_mut().expect("its input").write_all(b".").expect("it reads");
    assert_eq!(next(&mut lines), "there");
    std::thread::sleep(SETTLED);
    let cpu = (processor_time(player.id()), server_time(server));
    let transactions = transactions(server);
    std::thread::sleep(LOOK);
    let part = |used: Duration| 100.0 * used.as_secs_f64() / LOOK.as_secs_f64();
    let mine = part(processor_time(player.id()).saturating_sub(cpu.0));
    let of_server = part(server_time(server).saturating_sub(cpu.1));
    let transactions = self::transactions(server) - transactions;
    let memory = memory(player.id()).saturating_sub(before) as f64 / 1024.0;
    println!(
        "{name:<38} {:>9} {memory:>5.1} MiB {mine:>12.2}% {of_server:>12.2}% {:>14.1}",
        connections(player.id()),
        transactions as f64 / LOOK.as_secs_f64()
    );
    player.ask_to_end();
    let _ = player.wait();
}

/// Of all its processes.
fn server_time(server: &Server) -> Duration {
    let pids = server.process_ids().into_iter();
    // One may have ended just now.
    let there = pids.filter(|pid| std::path::Path::new(&format!("/proc/{pid}/task")).exists());
    there.map(processor_time).sum()
}

/// By all sessions; what the bench itself asks is among them.
fn transactions(server: &Server) -> u64 {
    let sql = "select sum(xact_commit + xact_rollback) from pg_stat_database";
    server.value(sql).parse().expect("a number")
}

/// The process of a row.
pub(crate) async fn one_of_them(address: SocketAddr, role: &str) {
    let locks = PostgresLocks::new(crate::text(address)).expect("its locks");
    let named = |name: &str| locks.lock(name).expect("a lock");
    // What one lock needs is there before the memory is looked at.
    drop(named("warm").acquire().await.expect("the lock"));
    role::say(&format!("{}\n", memory(std::process::id())));
    let mut begin = [0];
    std::io::Read::read_exact(&mut std::io::stdin(), &mut begin).expect("the bench");
    let count = match role {
        "one-waits" => 1,
        "holds" => 500,
        _ => 200,
    };
    let name = |number: usize| match role {
        "holds" => format!("held-{number}"),
        "each-waits" => format!("each-{number}"),
        _ => "crowd".to_owned(),
    };
    let wanted: Vec<_> = (0..count).map(|number| named(&name(number))).collect();
    let mut waiting = JoinSet::new();
    let mut held = Vec::new();
    if role == "holds" {
        held = acquire_all(wanted).await;
    } else {
        for lock in wanted {
            waiting.spawn(async move { lock.acquire().await });
        }
    }
    role::say("there\n");
    let _ = role::asked_to_end().await;
    waiting.abort_all();
    drop(held);
}

async fn acquire_all(locks: Vec<AsyncPostgresLock>) -> Vec<PostgresGuard> {
    let mut acquiring = JoinSet::new();
    for lock in locks {
        acquiring.spawn(async move { lock.acquire().await.expect("the lock") });
    }
    acquiring.join_all().await
}
