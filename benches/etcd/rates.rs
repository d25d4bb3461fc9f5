//! How many pairs a second, by locks of their own and by one lock.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockkeeper::EtcdLocks;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::bare::Bare;
use crate::figures::median;
use crate::role::{self, Player, now};
use crate::settings;

/// How long each holder keeps the lock that all want.
const HOLD: Duration = Duration::from_millis(1);

const PROCESSES: usize = 4;

/// Tasks of one process, each with a lock of its own, beside bare pairs over one connection.
pub(crate) fn run(address: SocketAddr, disk: &str) {
    println!("\npairs a second, each client with its own lock ({disk})");
    println!("{:<30} {:>10} {:>12} {:>8}", "clients", "bare", "this crate", "ratio");
    for clients in [1, 8, 32] {
        let [mut bare, mut ours] = [const { Vec::new() }; 2];
        for turn in 0..settings::turns() {
            bare.push(in_tasks(clients, address, turn, false));
            ours.push(in_tasks(clients, address, turn, true));
        }
        tell(&format!("{clients} in one process"), &mut bare, &mut ours);
    }
    let [mut bare, mut ours] = [const { Vec::new() }; 2];
    for turn in 0..settings::turns() {
        bare.push(in_processes("bare-pairs", address, turn));
        ours.push(in_processes("pairs", address, turn));
    }
    tell("8 processes of one", &mut bare, &mut ours);
}

fn tell(name: &str, bare: &mut [f64], ours: &mut [f64]) {
    let (bare, ours) = (median(bare), median(ours));
    println!("{name:<30} {bare:>10.0} {ours:>12.0} {:>8.2}", ours / bare);
}

fn in_tasks(clients: usize, address: SocketAddr, turn: usize, is_ours: bool) -> f64 {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let bare = Bare::connect(address).await;
        let lease = bare.lease(60).await;
        let locks = EtcdLocks::new(address.to_string()).expect("its locks");
        let end = Instant::now() + settings::seconds();
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let lock = locks.lock(format!("rates-{turn}-{client}")).expect("a lock");
            let bare = bare.clone();
            tasks.spawn(async move {
                let mut count = 0;
                while Instant::now() < end {
                    if is_ours {
                        let guard = lock.acquire().await.expect("the lock");
                        guard.release().await.expect("its release");
                    } else {
                        let key = format!("bare/{turn}/{client}/{count:032x}");
                        bare.put(&key, lease).await;
                        bare.delete(&key).await;
                    }
                    count += 1;
                }
                count
            });
        }
        let counts = tasks.join_all().await;
        f64::from(counts.iter().sum::<u32>()) / settings::seconds().as_secs_f64()
    })
}

fn in_processes(kind: &str, address: SocketAddr, turn: usize) -> f64 {
    let roles = (0..8).map(|number| format!("{kind} {address} {turn}-{number}"));
    let times = play(&roles.collect::<Vec<_>>());
    rate(times.iter().flatten().copied().collect())
}

/// What each of these processes measured, in the same seconds.
fn play(roles: &[String]) -> Vec<Vec<(u64, u64)>> {
    let mut players: Vec<Player> = roles.iter().map(|role| role::start(role)).collect();
    // They are all there by then.
    std::thread::sleep(Duration::from_millis(500));
    let from = now();
    std::thread::sleep(settings::seconds());
    let to = now();
    players.iter_mut().for_each(Player::ask_to_end);
    let read = |player: &mut Player| {
        let output = player.stdout.take().expect("its output");
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        let times = lines.map(|line| {
            let (from, to) = line.split_once(' ').expect("two numbers");
            (from.parse().expect("a number"), to.parse().expect("a number"))
        });
        times.filter(|time: &(u64, u64)| time.0 >= from && time.1 <= to).collect()
    };
    players.iter_mut().map(read).collect()
}

fn rate(times: Vec<(u64, u64)>) -> f64 {
    times.len() as f64 / settings::seconds().as_secs_f64()
}

/// Processes that hold one lock for a moment each.
pub(crate) fn one_lock(address: SocketAddr, disk: &str) {
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    for turn in 0..settings::turns() {
        let role = format!("one-lock {address} one-lock-{turn}");
        let times = play(&vec![role; PROCESSES]);
        let counts = times.iter().map(Vec::len);
        let (least, sum) = (counts.clone().min().unwrap_or(0), counts.sum::<usize>());
        rates.push(sum as f64 / settings::seconds().as_secs_f64());
        shares.push(least as f64 * PROCESSES as f64 / sum as f64);
    }
    println!(
        "\n{PROCESSES} processes, one lock, held for {HOLD:?} ({disk}): {:.0} holds a second; \
         least/mean {:.2}",
        median(&mut rates),
        median(&mut shares)
    );
}

/// One of those.
pub(crate) async fn one_of_many(address: SocketAddr, name: &str) {
    let locks = EtcdLocks::new(address.to_string()).expect("its locks");
    let lock = locks.lock(name).expect("a lock");
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
