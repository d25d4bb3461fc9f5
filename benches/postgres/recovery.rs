//! From the SIGKILL of a holder to the next hold.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockkeeper::{AsyncPostgresLock, PostgresOptions, Takeover};
use tokio::runtime::Runtime;

use crate::role;

const KILLS: u32 = 5;

pub(crate) fn run(address: SocketAddr) {
    println!("\nfrom SIGKILL of the holder to the next hold, lease 5 s (tmpfs)");
    for takeover in ["at_once", "after_lease"] {
        let kills =
            (0..KILLS).map(|kill| std::thread::spawn(move || recover(address, takeover, kill)));
        let kills: Vec<_> = kills.collect();
        let mut times: Vec<_> =
            kills.into_iter().map(|it| it.join().expect("it recovers")).collect();
        times.sort();
        let times: Vec<_> = times.iter().map(|it| format!("{:.4} s", it.as_secs_f64())).collect();
        println!("{takeover:<12} {}", times.join(", "));
    }
}

fn recover(address: SocketAddr, takeover: &str, kill: u32) -> Duration {
    let name = format!("recovery-{takeover}-{kill}");
    let mut holder = role::start(&format!("recovery {address} {takeover} {name}"));
    let output = holder.stdout.take().expect("its output");
    let line = BufReader::new(output).lines().next().expect("a line").expect("a line");
    assert_eq!(line, "held");
    let runtime = Runtime::new().expect("a runtime");
    let lock = lock(address, takeover, &name);
    let waiting = runtime.spawn(async move { lock.acquire().await.map(|_guard| Instant::now()) });
    // It waits by then.
    std::thread::sleep(Duration::from_millis(500 + 300 * u64::from(kill)));
    let killed = Instant::now();
    holder.kill().expect("it runs");
    runtime.block_on(waiting).expect("no panic").expect("the lock") - killed
}

/// The holder that is killed.
pub(crate) async fn hold(address: SocketAddr, takeover: &str, name: &str) {
    let _guard = lock(address, takeover, name).acquire().await.expect("the lock");
    role::say("held\n");
    std::future::pending::<()>().await;
}

fn lock(address: SocketAddr, takeover: &str, name: &str) -> AsyncPostgresLock {
    let takeover = if takeover == "at_once" { Takeover::AtOnce } else { Takeover::AfterLease };
    let options = PostgresOptions::default().lease(Duration::from_secs(5)).takeover(takeover);
    AsyncPostgresLock::with_options(crate::text(address), name, options).expect("a lock")
}
