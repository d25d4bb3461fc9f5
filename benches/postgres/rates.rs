//! How many pairs a second, by locks of their own and by one lock.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockkeeper::{AsyncPostgresLock, PostgresLocks, PostgresOptions, Table};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::bare::Bare;
use crate::figures::median;
use crate::role::{self, Player, now};
use crate::settings;

/// How long each holder keeps the lock that all want.
const HOLD: Duration = Duration::from_millis(1);

const PROCESSES: usize = 4;

#[derive(Clone, Copy)]
enum Kind {
    /// A session for each client, and no number.
    Bare,
    /// One session for all clients of the process.
    OneSession,
    Ours(Table),
}

/// Tasks of one process, each with a lock of its own, beside bare functions.
pub(crate) fn run(address: SocketAddr, disk: &str) {
    println!("\npairs a second, each client with its own lock ({disk})");
    println!(
        "{:<12} {:>16} {:>16} {:>16} {:>16}",
        "clients", "bare, a session", "bare, one for", "this crate", "this crate"
    );
    println!("{:<12} {:>16} {:>16} {:>16} {:>16}", "", "each", "all", "no table", "table");
    let kinds = [Kind::Bare, Kind::OneSession, Kind::Ours(Table::None), Kind::Ours(Table::Own)];
    for clients in [1, 8, 32] {
        let mut rates = [const { Vec::new() }; 4];
        for turn in 0..settings::turns() {
            for (kind, rates) in kinds.iter().zip(&mut rates) {
                rates.push(in_tasks(clients, address, turn, *kind));
            }
        }
        let [bare, one, none, own] = rates.map(|mut rates| median(&mut rates));
        println!("{clients:<12} {bare:>16.0} {one:>16.0} {none:>16.0} {own:>16.0}");
    }
}

fn in_tasks(clients: usize, address: SocketAddr, turn: usize, kind: Kind) -> f64 {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let one = Bare::connect(address).await;
        let mut bares = Vec::new();
        let mut locks = Vec::new();
        for client in 0..clients {
            match kind {
                Kind::Bare => bares.push(Bare::connect(address).await),
                Kind::OneSession => bares.push(one.clone()),
                Kind::Ours(table) => {
                    let options = PostgresOptions::default().table(table);
                    let all = PostgresLocks::with_options(crate::text(address), options);
                    let name = format!("rates-{turn}-{client}");
                    let lock = all.expect("locks").lock(name).expect("a lock");
                    // Its row is there.
                    lock.acquire().await.expect("the lock").release().await.expect("its release");
                    locks.push(lock);
                }
            }
        }
        let end = Instant::now() + settings::seconds();
        let mut tasks = JoinSet::new();
        for (client, bare) in (0_i64..).zip(bares) {
            tasks.spawn(async move {
                let mut count = 0;
                while Instant::now() < end {
                    bare.try_lock(10 + client).await;
                    bare.unlock(10 + client).await;
                    count += 1;
                }
                count
            });
        }
        for lock in locks {
            tasks.spawn(async move {
                let mut count = 0;
                while Instant::now() < end {
                    let guard = lock.acquire().await.expect("the lock");
                    guard.release().await.expect("its release");
                    count += 1;
                }
                count
            });
        }
        let count: u32 = tasks.join_all().await.into_iter().sum();
        f64::from(count) / settings::seconds().as_secs_f64()
    })
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
    let lock = AsyncPostgresLock::new(crate::text(address), name).expect("a lock");
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
