//! Other locks in PostgreSQL, in situations that each lock there has to survive. Real servers,
//! and a lease of three seconds. Prints `peer | situation | result`:
//!
//!     tests/peers/postgres.sh
//!
//! Each client has connections of its own, as a process has.
//!
//! 1. *A guard is dropped*, and its process lives. When is the lock free?
//! 2. *A wait is dropped*, a hundred times. Is the lock granted to it all the same, when the
//!    holder has left?
//! 3. *The session of a holder is ended* by an administrator. Is the holder told? What does its
//!    release say?
//! 4. *The server is restarted.* The same, and how long are two inside?
//! 5. *A pooler is between*: PgBouncer that pools transactions. How often are two inside?
//! 6. *Nothing goes wrong.* How many times a second do one task and eight tasks of a process
//!    each acquire and release a lock of their own? The figures depend on the machine.

#[path = "../../postgres_locks/mod.rs"]
mod postgres_locks;
#[path = "../../postgres_support/mod.rs"]
mod postgres_support;
#[path = "../../server_support/mod.rs"]
mod server_support;
#[path = "../../support/mod.rs"]
mod support;

mod distributed_lock;
mod ours;
mod sqlx_lock;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use postgres_support::{PASSWORD, PgBouncer, Pooling, ROLE, Server, is_there};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

/// A way to lock that is compared.
trait Peer: 'static {
    /// Connections as a process has them.
    type Client: Send + Sync + 'static;
    type Guard: Send + Sync + 'static;

    const NAME: &str;

    fn connect(
        url: String,
        number: usize,
    ) -> impl Future<Output = Result<Self::Client, String>> + Send;

    /// Waits for as long as it takes.
    fn acquire(
        client: &Self::Client,
        lock: &str,
    ) -> impl Future<Output = Result<Self::Guard, String>> + Send;

    fn release(guard: Self::Guard) -> impl Future<Output = Result<(), String>> + Send;

    /// Whether the guard says that the lock is lost; `None` if it never does.
    fn is_told(guard: &Self::Guard) -> Option<bool>;
}

/// Of this crate's lock.
const LEASE: Duration = Duration::from_secs(3);

/// What has not come by then is said never to come.
const LONG: Duration = Duration::from_secs(15);

/// What a peer does by itself, it has done within this time, also on a busy machine.
const SOON: Duration = Duration::from_secs(2);

const LOCK: &str = "lock";

fn url(address: SocketAddr) -> String {
    format!("postgres://{ROLE}:{}@{address}/postgres", PASSWORD.replace(' ', "%20"))
}

async fn client<P: Peer>(server: &Server, number: usize) -> P::Client {
    P::connect(url(server.address()), number).await.expect("a connection")
}

/// Acquires it, again and again where that fails; the time that took.
async fn next<P: Peer>(client: &P::Client) -> Option<(P::Guard, Duration)> {
    let begun = Instant::now();
    let acquiring = async {
        loop {
            match P::acquire(client, LOCK).await {
                Ok(guard) => return guard,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let guard = timeout(LONG, acquiring).await.ok()?;
    Some((guard, begun.elapsed()))
}

/// Whether this comes true within the time.
async fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > limit {
            return false;
        }
        sleep(Duration::from_millis(5)).await;
    }
    true
}

/// How many are held or waited for.
fn locks(server: &Server) -> usize {
    let count = "select count(*) from pg_locks where locktype = 'advisory'";
    server.value(count).parse().expect("a number")
}

async fn guard_dropped<P: Peer>(server: Server) -> String {
    let (one, other) = (client::<P>(&server, 0).await, client::<P>(&server, 1).await);
    // Both have what they need for a lock.
    for client in [&one, &other] {
        let guard = P::acquire(client, LOCK).await.expect("it is free");
        P::release(guard).await.expect("it was held");
    }
    drop(P::acquire(&one, LOCK).await.expect("it is free"));
    match next::<P>(&other).await {
        Some((_, time)) => format!("free after {}", shown(time)),
        None => format!("not free in {}", shown(LONG)),
    }
}

async fn wait_dropped<P: Peer>(server: Server) -> String {
    const ROUNDS: u32 = 100;
    /// By then it waits at the server.
    const WAIT: Duration = Duration::from_millis(200);
    let (one, other) = (client::<P>(&server, 0).await, client::<P>(&server, 1).await);
    let mut stuck = 0;
    for round in 0..ROUNDS {
        let lock = format!("{LOCK}-{round}");
        let held = P::acquire(&one, &lock).await.expect("it is free");
        let waited = timeout(WAIT, P::acquire(&other, &lock)).await;
        assert!(waited.is_err(), "it is held");
        P::release(held).await.expect("it was held");
        stuck += usize::from(!within(SOON, || locks(&server) <= stuck).await);
    }
    format!("{stuck} of {ROUNDS} locks are held by nobody, for as long as the process lives")
}

async fn session_ended<P: Peer>(server: Server) -> String {
    let (one, other) = (client::<P>(&server, 0).await, client::<P>(&server, 1).await);
    let guard = P::acquire(&one, LOCK).await.expect("it is free");
    server.sql("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'");
    told::<P>(guard, &other).await
}

async fn server_restarted<P: Peer>(mut server: Server) -> String {
    let (one, other) = (client::<P>(&server, 0).await, client::<P>(&server, 1).await);
    let guard = P::acquire(&one, LOCK).await.expect("it is free");
    server.restart();
    let result = told::<P>(guard, &other).await;
    drop(server);
    result
}

/// What a holder hears whose session has just been ended, when another asks for the lock.
async fn told<P: Peer>(guard: P::Guard, other: &P::Client) -> String {
    let ended = Instant::now();
    let looking = tokio::spawn(async move {
        let mut told = None;
        within(LONG, || {
            told = (P::is_told(&guard) == Some(true)).then(|| ended.elapsed());
            told.is_some()
        })
        .await;
        (guard, told)
    });
    let next = next::<P>(other).await.map(|(_guard, time)| time);
    let (guard, told) = looking.await.expect("no panic");
    let told = match (told, P::is_told(&guard)) {
        (Some(time), _) => format!("told after {}", shown(time)),
        (None, None) => "cannot be told".to_owned(),
        (None, _) => format!("not told in {}", shown(LONG)),
    };
    let next = next.map_or_else(
        || format!("no other is in within {}", shown(LONG)),
        |time| format!("the next is in after {}", shown(time)),
    );
    let released = match P::release(guard).await {
        Ok(()) => "Ok".to_owned(),
        Err(error) => format!("an error: {error}"),
    };
    format!("{told}; {next}; the release says {released}")
}

async fn pooled<P: Peer>(server: Server) -> String {
    const CLIENTS: usize = 8;
    const TIME: Duration = Duration::from_secs(5);
    // Fewer sessions than clients, and what sqlx sends at its start, as in production.
    let settings = ["default_pool_size = 4", "ignore_startup_parameters = extra_float_digits"];
    let pooler = PgBouncer::start_with(Pooling::Transaction, &server, &settings);
    let (inside, holds, overlaps) =
        (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        let url = url(pooler.address());
        let (inside, holds, overlaps) =
            (Arc::clone(&inside), Arc::clone(&holds), Arc::clone(&overlaps));
        tasks.push(tokio::spawn(async move {
            let mut failed = BTreeMap::<String, u32>::new();
            let begun = Instant::now();
            let client = P::connect(url, number).await?;
            while begun.elapsed() < TIME {
                match timeout(TIME, P::acquire(&client, LOCK)).await {
                    Ok(Ok(guard)) => {
                        holds.fetch_add(1, Ordering::SeqCst);
                        let others = inside.fetch_add(1, Ordering::SeqCst);
                        overlaps.fetch_add(u32::from(others > 0), Ordering::SeqCst);
                        sleep(Duration::from_millis(5)).await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if tokio::spawn(P::release(guard)).await.is_err() {
                            *failed.entry("its release panics".to_owned()).or_default() += 1;
                        }
                    }
                    Ok(Err(error)) => {
                        *failed.entry(error).or_default() += 1;
                        sleep(Duration::from_millis(100)).await;
                    }
                    Err(_) => *failed.entry("it waits for ever".to_owned()).or_default() += 1,
                }
            }
            Ok::<_, String>(failed)
        }));
    }
    let mut failed = BTreeMap::<String, u32>::new();
    for task in tasks {
        match task.await {
            Ok(Ok(all)) => {
                all.into_iter().for_each(|(why, count)| *failed.entry(why).or_default() += count);
            }
            Ok(Err(why)) => *failed.entry(why).or_default() += 1,
            Err(_) => *failed.entry("it panics".to_owned()).or_default() += 1,
        }
    }
    let (holds, overlaps) = (holds.load(Ordering::SeqCst), overlaps.load(Ordering::SeqCst));
    let (all, most) =
        (failed.values().sum::<u32>(), failed.iter().max_by_key(|(_, count)| **count));
    let failed = most.map(|(why, _)| format!("; {all} fail, as in: {why}")).unwrap_or_default();
    format!("{overlaps} of {holds} holds beside another{failed}")
}

async fn pairs<P: Peer>(server: Server) -> String {
    const TURNS: usize = 5;
    const TURN: Duration = Duration::from_secs(1);
    let client = Arc::new(client::<P>(&server, 0).await);
    let mut shown = Vec::new();
    for tasks in [1, 8] {
        let mut rates = Vec::new();
        for turn in 0..TURNS {
            let end = Instant::now() + TURN;
            let running = (0..tasks).map(|task| {
                let (client, lock) = (Arc::clone(&client), format!("{LOCK}-{task}"));
                tokio::spawn(async move {
                    let mut count = 0_usize;
                    while Instant::now() < end {
                        let guard = P::acquire(&client, &lock).await.expect("it is free");
                        P::release(guard).await.expect("it was held");
                        count += 1;
                    }
                    count
                })
            });
            let mut count = 0;
            for task in running.collect::<Vec<_>>() {
                count += task.await.expect("no panic");
            }
            // The first has all that is made once.
            if turn > 0 {
                rates.push(count);
            }
        }
        rates.sort_unstable();
        shown.push(format!("{} a second with {tasks} tasks", rates[rates.len() / 2]));
    }
    shown.join(", ")
}

fn shown(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{} ms", time.as_millis()),
        seconds => format!("{seconds:.1} s"),
    }
}

fn rows<P: Peer>(wanted: &str) {
    if !P::NAME.contains(wanted) {
        return;
    }
    let row = |situation: &str, run: &mut dyn FnMut(&Runtime, Server) -> String| {
        let runtime = Runtime::new().expect("a runtime");
        let result = run(&runtime, postgres_locks::server());
        println!("{} | {situation} | {result}", P::NAME);
        runtime.shutdown_background();
    };
    row("guard dropped", &mut |runtime, server| runtime.block_on(guard_dropped::<P>(server)));
    row("wait dropped", &mut |runtime, server| runtime.block_on(wait_dropped::<P>(server)));
    row("session ended", &mut |runtime, server| runtime.block_on(session_ended::<P>(server)));
    row("server restarted", &mut |runtime, server| runtime.block_on(server_restarted::<P>(server)));
    row("PgBouncer, transactions", &mut |runtime, server| runtime.block_on(pooled::<P>(server)));
    row("pairs", &mut |runtime, server| runtime.block_on(pairs::<P>(server)));
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    if !is_there() {
        std::process::exit(1);
    }
    rows::<ours::Ours<true>>(&wanted);
    rows::<ours::Ours<false>>(&wanted);
    rows::<distributed_lock::DistributedLock>(&wanted);
    rows::<sqlx_lock::Sqlx>(&wanted);
}
