//! From a release in one process to the task that runs in another, beside a bare watch.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::Duration;

use lockkeeper::EtcdLocks;

use crate::bare::Bare;
use crate::figures::{micros, p50, quantile};
use crate::role::{self, Player, now};
use crate::settings;

/// How far the engine may be from its floor.
const BAR: f64 = 1.2;

/// Long enough that the other one waits by then; short of the time after which a hold is watched.
const HOLD: Duration = Duration::from_millis(8);

pub(crate) fn run(address: SocketAddr, disk: &str) {
    let [mut bare, mut ours] = [const { Vec::new() }; 2];
    for turn in 0..settings::turns() {
        bare.extend(play("bare-hand-over", address, turn));
        ours.extend(play("hand-over", address, turn));
    }
    println!(
        "\nfrom a release to the next holder's task, two processes ({disk}; {} times)",
        ours.len()
    );
    for (name, times) in [("a bare watch of a key", &mut bare), ("this crate's lock", &mut ours)] {
        println!(
            "{name:<46} {:>8.0} µs p50 {:>8.0} µs p90",
            micros(p50(times)),
            micros(quantile(times, 0.9))
        );
    }
    let ratio = micros(p50(&mut ours)) / micros(p50(&mut bare));
    println!(
        "{ratio:.2} × the bare watch; bar: {BAR}, {}",
        if ratio <= BAR { "met" } else { "MISSED" }
    );
}

/// Two processes in turns. Each says when it began and when it ended.
fn play(kind: &str, address: SocketAddr, turn: usize) -> Vec<Duration> {
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
    let locks = EtcdLocks::new(address.to_string()).expect("its locks");
    let lock = locks.lock(format!("hand-over-{turn}")).expect("a lock");
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

/// The same with no lock: the delete of the other one's key is the sign to go on.
pub(crate) async fn watcher(address: SocketAddr, number: usize, turn: &str) {
    let bare = Bare::connect(address).await;
    let lease = bare.lease(60).await;
    let key = |number: usize| format!("bare-hand-over-{turn}/{number}");
    let mut watch = bare.watch(&key(1 - number)).await;
    // The other one watches by then.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut is_first = number == 0;
    role::until_asked_to_end(async || {
        if !std::mem::take(&mut is_first) {
            watch.deleted().await;
        }
        let from = now();
        bare.put(&key(number), lease).await;
        tokio::time::sleep(HOLD).await;
        let to = now();
        bare.delete(&key(number)).await;
        Some((from, to))
    })
    .await;
}
