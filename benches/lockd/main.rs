//! The daemon beside a server that does what the original does, in Python.
//!
//! `cargo bench --features lockd --bench lockd`. Each of eight clients locks
//! and unlocks a resource of its own, one call after the other, on a connection
//! that it keeps if the server does. The servers take turns, in processes of
//! their own and on one file system. Seconds for each turn: `LOCKD_SECONDS`,
//! default 3; turns of each: `LOCKD_TURNS`, default 3. A server that only answers
//! shows what the rest is of.
//!
//! Clients that ask as fast as they are answered keep each server as busy as it
//! can be, so that their times say how many calls it serves, once more. That is
//! why the daemon is also measured with no more calls than Python's server has
//! just served in such a turn.

mod bare;
mod caller;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use caller::Caller;
use futures::future::join_all;
use lockkeeper::lockd::{Server, ServerOptions};
use tokio_util::sync::CancellationToken;

const CLIENTS: usize = 8;
const ROLE: &str = "LOCKD_BENCH_ROLE";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bare,
    Python,
    Unsynced,
    Synced,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Bare, "a server that only answers"),
    (Kind::Python, "Python's SimpleXMLRPCServer"),
    (Kind::Unsynced, "this daemon, without syncing"),
    (Kind::Synced, "this daemon, with syncing"),
];

/// Those that Python's server sets the pace for.
const PACED: [(Kind, &str); 3] = [
    (Kind::Bare, "a server that only answers, paced"),
    (Kind::Unsynced, "this daemon, without syncing, paced"),
    (Kind::Synced, "this daemon, with syncing, paced"),
];

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return serve(&role);
    }
    let seconds = Duration::from_secs_f64(setting("LOCKD_SECONDS", 3.0));
    let turns = setting("LOCKD_TURNS", 3.0) as usize;
    let mut runs: [Vec<Figures>; 4] = Default::default();
    let mut paced: [Vec<Figures>; 3] = Default::default();
    for _ in 0..turns {
        for ((kind, _), runs) in KINDS.iter().zip(&mut runs) {
            runs.push(measure(*kind, Load::Full, seconds));
        }
        let [_, python, ..] = &runs;
        let load = Load::Pairs(python[python.len() - 1].pairs_per_second);
        for ((kind, _), paced) in PACED.iter().zip(&mut paced) {
            paced.push(measure(*kind, load, seconds));
        }
    }
    report(&runs.map(median), &paced.map(median));
}

/// How many calls the clients make.
#[derive(Clone, Copy)]
enum Load {
    /// The next when the last is answered.
    Full,
    /// So many pairs in a second from all together, at set times; one that is
    /// late is made at once.
    Pairs(f64),
}

impl Load {
    /// When this client makes this pair.
    fn due(self, start: Instant, client: usize, pair: usize) -> Instant {
        match self {
            Load::Full => start,
            Load::Pairs(per_second) => {
                start + Duration::from_secs_f64((pair * CLIENTS + client) as f64 / per_second)
            }
        }
    }
}

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// What one turn of one server gave.
#[derive(Clone, Copy)]
struct Figures {
    pairs_per_second: f64,
    p50: Duration,
    p99: Duration,
    longest: Duration,
    /// Time of a processor that the server took for each pair: it says more
    /// than the others where the machine is busy with something else.
    processor: Duration,
}

/// The turn in the middle, by pairs per second.
fn median(mut runs: Vec<Figures>) -> Figures {
    runs.sort_by(|one, other| one.pairs_per_second.total_cmp(&other.pairs_per_second));
    runs[runs.len() / 2]
}

fn report(figures: &[Figures; 4], paced: &[Figures; 3]) {
    println!("\n{CLIENTS} clients, lock and unlock; times of one call");
    println!(
        "{:<37} {:>9} {:>11} {:>11} {:>11} {:>13}",
        "", "pairs/s", "p50", "p99", "longest", "CPU per pair"
    );
    for ((_, name), run) in KINDS.iter().zip(figures) {
        run.print(name);
    }
    for ((_, name), run) in PACED.iter().zip(paced) {
        run.print(name);
    }
    let [bare, python, unsynced, synced] = figures;
    let faster = |run: &Figures| run.pairs_per_second / python.pairs_per_second;
    println!(
        "\npairs per second, × Python's: {:.1} without syncing, {:.1} with",
        faster(unsynced),
        faster(synced)
    );
    let slower = |run: &Figures| micros(run.p99) / micros(python.p99);
    println!(
        "p99, × Python's: {:.3} without syncing, {:.3} with; only answering {:.3}",
        slower(unsynced),
        slower(synced),
        slower(bare)
    );
    let [bare, unsynced, synced] = paced;
    println!(
        "the same, paced: {:.3} without syncing, {:.3} with; only answering {:.3}",
        slower(unsynced),
        slower(synced),
        slower(bare)
    );
}

impl Figures {
    fn print(&self, name: &str) {
        println!(
            "{name:<37} {:>9.0} {:>8.0} µs {:>8.0} µs {:>8.0} µs {:>10.0} µs",
            self.pairs_per_second,
            micros(self.p50),
            micros(self.p99),
            micros(self.longest),
            micros(self.processor)
        );
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A server in a process of its own.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(kind: Kind, directory: &Path) -> (Running, SocketAddr) {
    let mut command = if kind == Kind::Python {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/lockd/original.py");
        let mut command = Command::new("python3");
        command.arg(program).arg(directory);
        command
    } else {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let sync = match kind {
            Kind::Bare => "bare",
            Kind::Synced => "sync",
            _ => "no-sync",
        };
        command.env(ROLE, format!("{sync} {}", directory.display()));
        command
    };
    let mut child = command.stdout(Stdio::piped()).spawn().expect("a server");
    let mut port = String::new();
    let output = child.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut port).expect("its port");
    let port: u16 = port.trim().parse().expect("a port");
    (Running(child), SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Be the daemon, until killed.
fn serve(role: &str) {
    let (sync, directory) = role.split_once(' ').expect("a setting and a directory");
    // As `lockkeeper serve` has it.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if sync == "bare" {
        return runtime.block_on(bare::serve());
    }
    let options = ServerOptions::new(directory)
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .sync(sync == "sync");
    runtime.block_on(async {
        let server = Server::bind(options).await.expect("a server");
        println!("{}", server.address().port());
        server.serve(CancellationToken::new()).await.expect("it served");
    });
}

fn measure(kind: Kind, load: Load, time: Duration) -> Figures {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = tempfile::TempDir::new_in(base).expect("a directory");
    let (running, address) = start(kind, directory.path());
    let before = processor_time(running.0.id());
    let mut times = call(address, load, time);
    let processor = processor_time(running.0.id()) - before;
    times.sort();
    Figures {
        processor: processor.mul_f64(2.0 / times.len() as f64),
        pairs_per_second: times.len() as f64 / 2.0 / time.as_secs_f64(),
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        longest: times[times.len() - 1],
    }
}

/// All clients in one thread: it is the server that is to be kept busy.
fn call(address: SocketAddr, load: Load, time: Duration) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut clients: Vec<_> = (0..CLIENTS).map(|number| Caller::new(address, number)).collect();
        for client in &mut clients {
            client.pair(&mut Vec::new()).await;
        }
        let start = Instant::now();
        let calls = clients.into_iter().enumerate().map(|(number, mut client)| async move {
            let mut times = Vec::new();
            for pair in 0.. {
                tokio::time::sleep_until(load.due(start, number, pair).into()).await;
                if start.elapsed() >= time {
                    break;
                }
                client.pair(&mut times).await;
            }
            times
        });
        let calls: Vec<_> = calls.map(tokio::spawn).collect();
        join_all(calls).await.into_iter().flat_map(|times| times.expect("a client")).collect()
    })
}

/// What the threads of a process have had of the processors.
fn processor_time(id: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).expect("its threads");
    let nanoseconds = tasks.filter_map(|task| {
        // A thread may have ended just now.
        let times = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        times.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}
