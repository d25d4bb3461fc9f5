//! Kill the lock daemon over and over while clients use it, and see whether
//! two ever hold the same lock.
//!
//! ```sh
//! cargo run --release --features lockd,lockd-client --example lockd_torture -- 60
//! ```
//!
//! The daemon is killed with `kill -9` and started again all the time. Steady
//! clients hold locks without a lease; mortal ones hold them with a short one,
//! and are killed as well. Each writes down, by the clock of the machine, when
//! it asked, when it was told that it holds, when it still held, and when it
//! gave back. When all is over that is all the check looks at:
//!
//! 1. who is told that it holds, holds alone until it says the last time that
//!    it still does;
//! 2. no token is given twice, and one that was asked for after another was
//!    given is greater;
//! 3. nobody who did not let its lease run out is told that it does not hold.
//!
//! With `--forget` the locks are removed from the directory at each kill: then
//! the check must fail, or it checks nothing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockkeeper::lockd::{Server, ServerOptions};
use lockkeeper::{AsyncRemoteLock, RemoteError, RemoteGuard, RemoteLostReason, RemoteOptions};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Each kind of client contends for as many locks.
const RESOURCES: u64 = 3;

/// And so many tasks do in each process.
const TASKS: u64 = 6;

const MORTAL_LEASE: Duration = Duration::from_secs(1);

/// The longest that the daemon lives.
const LIFE: u64 = 700;

/// Of so many kills of the daemon, one is followed by that of a client.
const MERCY: u64 = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["daemon", directory, address] => daemon(directory.as_ref(), address),
        ["steady", url, name] => client(url, name, None),
        ["mortal", url, name] => client(url, name, Some(MORTAL_LEASE)),
        [] => return conduct(60, false),
        [seconds] => return conduct(seconds.parse().expect("how many seconds"), false),
        [seconds, "--forget"] => return conduct(seconds.parse().expect("how many seconds"), true),
        _ => panic!("usage: lockd_torture [SECONDS [--forget]]"),
    }
    ExitCode::SUCCESS
}

fn daemon(directory: &Path, address: &str) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let address: SocketAddr = address.parse().expect("an address");
        let server = Server::bind(ServerOptions::new(directory).listen(address)).await;
        let server = server.expect("a server");
        say(&server.address().to_string());
        server.serve(CancellationToken::new()).await.expect("it served");
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("somebody who listens");
}

// ---- clients

fn client(url: &str, name: &str, lease: Option<Duration>) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let tasks = (0..TASKS).map(|task| {
            let (url, client) = (url.to_owned(), format!("{name} {task}"));
            let kind = if lease.is_some() { "mortal" } else { "steady" };
            let resource = format!("{kind} {}", task % RESOURCES);
            tokio::spawn(use_again_and_again(url, client, resource, lease))
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no panic");
        }
    });
}

async fn use_again_and_again(
    url: String,
    client: String,
    resource: String,
    lease: Option<Duration>,
) {
    let options = RemoteOptions::default().lease(lease).reconnect(Duration::from_secs(60));
    let lock = AsyncRemoteLock::with_options(url, &resource, client, options).expect("a lock");
    let mut dice = Dice::new();
    loop {
        let asked = now();
        // Some give up, at any moment of the way.
        let limit = match dice.below(3) {
            0 => Duration::from_micros(dice.below(20_000)),
            _ => Duration::from_secs(3600),
        };
        match tokio::time::timeout(limit, lock.acquire()).await {
            Ok(Ok(guard)) => use_once(&resource, guard, asked, &mut dice).await,
            Ok(Err(error)) => say(&format!("X|{resource}|0|{error}")),
            Err(_) => {}
        }
    }
}

async fn use_once(resource: &str, guard: RemoteGuard, asked: u128, dice: &mut Dice) {
    let token = guard.token();
    say(&format!("G|{resource}|{token}|{asked}|{}", now()));
    for _ in 0..dice.below(4) {
        sleep(Duration::from_millis(dice.below(15))).await;
        still_holds(resource, &guard);
    }
    still_holds(resource, &guard);
    if dice.below(4) == 0 {
        // It is given back in the background.
        return;
    }
    match guard.release().await {
        Ok(()) => say(&format!("R|{resource}|{token}")),
        Err(RemoteError::Lost(lost)) if lost.reason == RemoteLostReason::Expired => {
            say(&format!("L|{resource}|{token}"));
        }
        Err(error) => say(&format!("X|{resource}|{token}|{error}")),
    }
}

/// The moment is taken before the guard is asked.
fn still_holds(resource: &str, guard: &RemoteGuard) {
    let now = now();
    if !guard.is_lost() {
        say(&format!("H|{resource}|{}|{now}", guard.token()));
    }
}

/// Nanoseconds since the boot.
fn now() -> u128 {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.try_into().expect("nanoseconds"))
        .as_nanos()
}

/// Good enough to be irregular.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        Self(now() as u64 ^ u64::from(std::process::id()) << 32 | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

// ---- who starts and kills them

type Record = Arc<Mutex<Vec<String>>>;

fn conduct(seconds: u64, forgets: bool) -> ExitCode {
    let directory = std::env::temp_dir().join(format!("lockd-torture-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    let (mut server, address) = start_daemon(&directory, "127.0.0.1:0");
    let record = Record::default();
    let kinds = ["steady", "steady", "mortal", "mortal"];
    let mut clients: Vec<(Child, JoinHandle<()>)> = kinds
        .iter()
        .enumerate()
        .map(|(at, kind)| start_client(kind, at, &address, &record))
        .collect();
    let (mut dice, mut kills, mut deaths) = (Dice::new(), 0, 0);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1 + dice.below(LIFE)));
        kill(&mut server);
        kills += 1;
        if forgets {
            forget(&directory);
        }
        if dice.below(MERCY) == 0 {
            let at = 2 + dice.below(2) as usize;
            kill(&mut clients[at].0);
            clients[at] = start_client(kinds[at], at + 10 * kills, &address, &record);
            deaths += 1;
        }
        (server, _) = start_daemon(&directory, &address);
    }
    for (mut client, reader) in clients {
        kill(&mut client);
        reader.join().expect("it read");
    }
    kill(&mut server);
    let _ = std::fs::remove_dir_all(&directory);
    let lines = std::mem::take(&mut *record.lock().unwrap_or_else(PoisonError::into_inner));
    println!("{kills} kills of the daemon, {deaths} of clients");
    judge(&lines)
}

fn this_program(arguments: &[&str]) -> Child {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::piped()).spawn().expect("a process")
}

fn start_daemon(directory: &Path, address: &str) -> (Child, String) {
    let path = directory.to_str().expect("a path in UTF-8");
    let mut child = this_program(&["daemon", path, address]);
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("its output");
    BufReader::new(output).read_line(&mut line).expect("its address");
    assert!(!line.is_empty(), "the daemon does not start");
    (child, line.trim().to_owned())
}

fn start_client(
    kind: &str,
    number: usize,
    address: &str,
    record: &Record,
) -> (Child, JoinHandle<()>) {
    let mut child =
        this_program(&[kind, &format!("http://{address}"), &format!("{kind} {number}")]);
    let (output, record) = (child.stdout.take().expect("its output"), Arc::clone(record));
    let read = move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            record.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    };
    (child, std::thread::spawn(read))
}

fn kill(child: &mut Child) {
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}

/// What no daemon may do.
fn forget(directory: &Path) {
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "lock") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

// ---- the check

/// What one client said of one grant.
struct Tenure {
    resource: String,
    token: u64,
    asked: u128,
    told: u128,
    /// It held at least until then.
    held: u128,
}

#[derive(Default)]
struct Findings {
    tenures: Vec<Tenure>,
    at: BTreeMap<u64, usize>,
    released: usize,
    expired: usize,
    faults: Vec<String>,
}

fn judge(lines: &[String]) -> ExitCode {
    let mut findings = Findings::default();
    // A line that was cut by a kill says nothing.
    for line in lines {
        findings.take(line);
    }
    findings.check_alone();
    findings.check_tokens();
    let Findings { tenures, released, expired, faults, .. } = findings;
    println!("{} grants, {released} releases, {expired} expired", tenures.len());
    for fault in faults.iter().take(20) {
        println!("FAULT: {fault}");
    }
    println!("{} faults", faults.len());
    if faults.is_empty() && !tenures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Findings {
    fn take(&mut self, line: &str) {
        let parts: Vec<&str> = line.split('|').collect();
        let number = |text: &str| text.parse::<u128>().ok();
        match parts[..] {
            ["G", resource, token, asked, told] => {
                let (Some(token), Some(asked), Some(told)) =
                    (token.parse().ok(), number(asked), number(told))
                else {
                    return;
                };
                let resource = resource.to_owned();
                let tenure = Tenure { resource, token, asked, told, held: told };
                if self.at.insert(token, self.tenures.len()).is_some() {
                    self.faults.push(format!("token {token} was given twice"));
                }
                self.tenures.push(tenure);
            }
            ["H", _, token, until] => {
                let at = token.parse().ok().and_then(|token: u64| self.at.get(&token));
                if let (Some(&at), Some(until)) = (at, number(until)) {
                    self.tenures[at].held = self.tenures[at].held.max(until);
                }
            }
            ["R", ..] => self.released += 1,
            ["L", ..] => self.expired += 1,
            ["X", ..] => self.faults.push(line.to_owned()),
            _ => {}
        }
    }

    /// 1. In the order of their tokens, no one was told before the last ended.
    fn check_alone(&mut self) {
        let mut by_resource: BTreeMap<&str, Vec<&Tenure>> = BTreeMap::new();
        for tenure in &self.tenures {
            by_resource.entry(&tenure.resource).or_default().push(tenure);
        }
        for tenures in by_resource.values_mut() {
            tenures.sort_by_key(|tenure| tenure.token);
            for pair in tenures.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                if second.told < first.held {
                    self.faults.push(format!(
                        "{}: {} was told {} ns before {} ended",
                        first.resource,
                        second.token,
                        first.held - second.told,
                        first.token
                    ));
                }
            }
        }
    }

    /// 2. Whoever asked after another was told has the greater token.
    fn check_tokens(&mut self) {
        let mut by_told: Vec<&Tenure> = self.tenures.iter().collect();
        by_told.sort_by_key(|tenure| tenure.told);
        let mut by_asked = by_told.clone();
        by_asked.sort_by_key(|tenure| tenure.asked);
        let mut told = by_told.into_iter().peekable();
        let mut greatest = 0;
        for tenure in by_asked {
            while let Some(before) = told.next_if(|before| before.told < tenure.asked) {
                greatest = greatest.max(before.token);
            }
            if tenure.token <= greatest {
                self.faults.push(format!("token {} came after {greatest}", tenure.token));
            }
        }
    }
}
