//! What a thousand cost that wait or hold: connections, memory, time of a processor, requests.

use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use lockkeeper::{AsyncEtcdLock, EtcdLocks};
use tokio::task::JoinSet;

use crate::cost::{connections, memory, processor_time};
use crate::role;
use crate::server::Member;

const MANY: usize = 1000;

/// Two renewals of a lease of 15 s are in it.
const LOOK: Duration = Duration::from_secs(10);

/// How much of a core an idle client may take.
const BAR: f64 = 0.5;

pub(crate) fn run(member: &Member) {
    println!("\n{MANY} in one process, for {LOOK:?} after they have come; lease 15 s (tmpfs)");
    println!(
        "{:<34} {:>11} {:>9} {:>13} {:>13} {:>10}",
        "", "connections", "memory", "client's CPU", "server's CPU", "requests/s"
    );
    let locks = EtcdLocks::new(member.address.to_string()).expect("its locks");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Another process holds what is waited for.
    let one = runtime.block_on(async { locks.lock("crowd").expect("a lock").acquire().await });
    let _one = one.expect("the lock");
    let each = (0..MANY).map(|number| locks.lock(format!("each-{number}")).expect("a lock"));
    let holding = runtime.block_on(acquire_all(each.collect()));
    for (role, name) in [
        ("one-waits", "one waiter"),
        ("all-wait-for-one", "1000 waiters of one lock"),
        ("each-waits", "1000 waiters, each of its lock"),
        ("holds", "1000 held locks"),
    ] {
        row(member, role, name);
    }
    drop(holding);
}

fn row(member: &Member, role: &str, name: &str) {
    let mut player = role::start(&format!("{role} {}", member.address));
    let mut lines = BufReader::new(player.stdout.take().expect("its output")).lines();
    let next = |lines: &mut std::io::Lines<_>| lines.next().expect("a line").expect("a line");
    let before: u64 = next(&mut lines).parse().expect("its memory");
    player.stdin.as_mut().expect("its input").write_all(b".").expect("it reads");
    assert_eq!(next(&mut lines), "there");
    std::thread::sleep(Duration::from_secs(3));
    let pids = [player.id(), member.id()];
    let (cpu, requests) = (pids.map(processor_time), member.requests());
    std::thread::sleep(LOOK);
    let cpu = [0, 1].map(|at| {
        let used = processor_time(pids[at]) - cpu[at];
        100.0 * used.as_secs_f64() / LOOK.as_secs_f64()
    });
    let requests = (member.requests() - requests) as f64 / LOOK.as_secs_f64();
    let memory = memory(pids[0]).saturating_sub(before) as f64 / 1024.0;
    println!(
        "{name:<34} {:>11} {memory:>5.1} MiB {:>12.2}% {:>12.2}% {requests:>10.1}{}",
        connections(pids[0]),
        cpu[0],
        cpu[1],
        if cpu[0] <= BAR { "" } else { "  MISSED: at most 0.5 % of a core" }
    );
    player.ask_to_end();
    let _ = player.wait();
}

/// The process of a row.
pub(crate) async fn one_of_them(address: &str, role: &str) {
    let locks = EtcdLocks::new(address).expect("its locks");
    let named = |name: &str| locks.lock(name).expect("a lock");
    // What one lock needs is there before the memory is looked at.
    drop(named("warm").acquire().await.expect("the lock"));
    role::say(&format!("{}\n", memory(std::process::id())));
    let mut begin = [0];
    std::io::Read::read_exact(&mut std::io::stdin(), &mut begin).expect("the bench");
    let count = if role == "one-waits" { 1 } else { MANY };
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

async fn acquire_all(locks: Vec<AsyncEtcdLock>) -> Vec<lockkeeper::EtcdGuard> {
    let mut acquiring = JoinSet::new();
    for lock in locks {
        acquiring.spawn(async move { lock.acquire().await.expect("the lock") });
    }
    acquiring.join_all().await
}
