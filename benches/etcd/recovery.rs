//! From the SIGKILL of a holder to the next hold.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockkeeper::{EtcdLocks, EtcdOptions};
use tokio::runtime::Runtime;

use crate::role;

const KILLS: u32 = 3;

pub(crate) fn run(address: SocketAddr) {
    println!("\nfrom SIGKILL of the holder to the next hold (tmpfs)");
    let ttls = [5, 15];
    let threads = ttls.map(|ttl| {
        std::thread::spawn(move || {
            // Killed at different times after a renewal.
            let kills = (0..KILLS).map(|kill| {
                let after = Duration::from_secs(ttl) / 3 * kill / KILLS;
                std::thread::spawn(move || recover(address, ttl, kill, after))
            });
            let kills: Vec<_> = kills.collect();
            kills.into_iter().map(|it| it.join().expect("it recovers")).collect::<Vec<_>>()
        })
    });
    for (ttl, thread) in ttls.into_iter().zip(threads) {
        let mut times = thread.join().expect("it recovers");
        times.sort();
        let times: Vec<_> = times.iter().map(|it| format!("{:.2} s", it.as_secs_f64())).collect();
        println!("lease of {ttl:>2} s: {}", times.join(", "));
    }
}

fn recover(address: SocketAddr, ttl: u64, kill: u32, after: Duration) -> Duration {
    let name = format!("recovery-{ttl}-{kill}");
    let mut holder = role::start(&format!("recovery {address} {ttl} {name}"));
    let output = holder.stdout.take().expect("its output");
    let line = BufReader::new(output).lines().next().expect("a line").expect("a line");
    assert_eq!(line, "held");
    let runtime = Runtime::new().expect("a runtime");
    let lock = lock(address, ttl, &name);
    let waiting = runtime.spawn(async move { lock.acquire().await.map(|_guard| Instant::now()) });
    // It waits by then.
    std::thread::sleep(Duration::from_millis(500) + after);
    let killed = Instant::now();
    holder.kill().expect("it runs");
    runtime.block_on(waiting).expect("no panic").expect("the lock") - killed
}

/// The holder that is killed.
pub(crate) async fn hold(address: SocketAddr, ttl: u64, name: &str) {
    let _guard = lock(address, ttl, name).acquire().await.expect("the lock");
    role::say("held\n");
    std::future::pending::<()>().await;
}

fn lock(address: SocketAddr, ttl: u64, name: &str) -> lockkeeper::AsyncEtcdLock {
    let options = EtcdOptions::default().ttl(Duration::from_secs(ttl));
    let locks = EtcdLocks::with_options(address.to_string(), options).expect("its locks");
    locks.lock(name).expect("a lock")
}
