//! From a release in one process to the task that runs in another, beside bare sessions.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::Duration;

use lockkeeper::{AsyncPostgresLock, PostgresOptions, Table};

use crate::bare::Bare;
use crate::figures::{micros, p50, quantile};
use crate::role::{self, Player, now};
use crate::settings;

/// Long enough that the other one waits by then.
const HOLD: Duration = Duration::from_millis(8);

pub(crate) fn run(address: SocketAddr, disk: &str) {
    let [mut bare, mut without, mut ours] = [const { Vec::new() }; 3];
    for turn in 0..settings::turns() {
        bare.extend(play("bare-hand-over", address, &turn.to_string()));
        without.extend(play("hand-over", address, &format!("none-{turn}")));
        ours.extend(play("hand-over", address, &format!("own-{turn}")));
    }
    println!(
        "\nfrom a release to the next holder's task, two processes ({disk}; {} times)",
        ours.len()
    );
    let floor = p50(&mut bare);
    for (name, times) in [
        ("pg_advisory_lock of two bare sessions", &mut bare),
        ("this crate's lock, without a table", &mut without),
        ("this crate's lock, with the table", &mut ours),
    ] {
        println!(
            "{name:<46} {:>8.0} µs p50 {:>8.0} µs p90 {:>6.2} × bare",
            micros(p50(times)),
            micros(quantile(times, 0.9)),
            micros(p50(times)) / micros(floor)
        );
    }
}

/// Two processes in turns. Each says when it began and when it ended.
fn play(kind: &str, address: SocketAddr, turn: &str) -> Vec<Duration> {
    let mut players: Vec<Player> =
        (0..2).map(|number| role::start(&format!("{kind} {address} {number} {turn}"))).collect();
    std::thread::sleep(settings::seconds());
    let mut holds: Vec<(u64, u64)> = Vec::new();
    players.iter_mut().for_each(Player::ask_to_end);
    for mut player in players {
        let output = player.stdout.take().expect("its output");
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let (from, to) = line.split_once(' ').expect("two numbers");
            holds.push((from.parse().expect("a number"), to.parse().expect("a number")));
        }
    }
    holds.sort_unstable();
    // The first ones have no other that waits.
    let pairs = holds.windows(2).skip(10);
    pairs.map(|pair| Duration::from_nanos(pair[1].0.saturating_sub(pair[0].1))).collect()
}

/// One of two that take turns with a lock.
pub(crate) async fn holder(address: SocketAddr, turn: &str) {
    let table = if turn.starts_with("none") { Table::None } else { Table::Own };
    let options = PostgresOptions::default().table(table);
    let name = format!("hand-over-{turn}");
    let lock = AsyncPostgresLock::with_options(crate::text(address), name, options);
    let lock = lock.expect("a lock");
    role::until_asked_to_end(async || {
        let guard = lock.acquire().await.expect("the lock");
        let from = now();
        tokio::time::sleep(HOLD).await;
        let to = now();
        guard.release().await.expect("its release");
        Some((from, to))
    })
    .await;
}

/// The same by the bare functions.
pub(crate) async fn bare(address: SocketAddr, turn: &str) {
    let bare = Bare::connect(address).await;
    let key = 1000 + turn.parse::<i64>().expect("a number");
    role::until_asked_to_end(async || {
        bare.lock(key).await;
        let from = now();
        tokio::time::sleep(HOLD).await;
        let to = now();
        bare.unlock(key).await;
        Some((from, to))
    })
    .await;
}
