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
//!
//! With `--front` the daemon speaks TLS, and half of the clients come through nginx, as
//! `lockkeeper::_docs::behind_a_proxy` sets it up. Each ten seconds the daemon gets a new
//! certificate and a SIGHUP, and half of its ends are orderly (SIGTERM). It needs
//! `openssl` and `nginx`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockkeeper::lockd::{Server, ServerOptions};
use lockkeeper::{AsyncRemoteLock, Error, LostReason, RemoteGuard, RemoteOptions};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
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

/// How long a certificate is served.
const CERTIFICATE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["daemon", directory, address, ref front @ ..] => {
            daemon(directory.as_ref(), address, front.first().map(Path::new));
        }
        ["steady", url, name, ref front @ ..] => client(url, name, None, front.first().copied()),
        ["mortal", url, name, ref front @ ..] => {
            client(url, name, Some(MORTAL_LEASE), front.first().copied());
        }
        [] => return conduct(60, false, false),
        [seconds, ref flags @ ..] => {
            let seconds = seconds.parse().expect("how many seconds");
            return match flags {
                [] => conduct(seconds, false, false),
                ["--forget"] => conduct(seconds, true, false),
                ["--front"] => conduct(seconds, false, true),
                _ => panic!("usage: lockd_torture [SECONDS [--forget | --front]]"),
            };
        }
    }
    ExitCode::SUCCESS
}

fn daemon(directory: &Path, address: &str, front: Option<&Path>) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let address: SocketAddr = address.parse().expect("an address");
        let mut options = ServerOptions::new(directory).listen(address);
        if let Some(front) = front {
            options = options.tls(front.join("cert.pem"), front.join("key.pem"));
        }
        let server = Server::bind(options).await.expect("a server");
        let (reloader, stop) = (server.reloader(), CancellationToken::new());
        let mut hang_up = signal(SignalKind::hangup()).expect("a signal");
        let mut terminate = signal(SignalKind::terminate()).expect("a signal");
        let stopping = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = hang_up.recv() => reloader.reload().expect("a good certificate"),
                    _ = terminate.recv() => stopping.cancel(),
                }
            }
        });
        say(&server.address().to_string());
        server.serve(stop).await.expect("it served");
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("somebody who listens");
}

// ---- clients

fn client(url: &str, name: &str, lease: Option<Duration>, ca: Option<&str>) {
    let options = RemoteOptions::default().lease(lease).reconnect(Duration::from_secs(60));
    let options = match ca {
        Some(file) => options.ca_file(file),
        None => options,
    };
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let tasks = (0..TASKS).map(|task| {
            let (url, client) = (url.to_owned(), format!("{name} {task}"));
            let kind = if lease.is_some() { "mortal" } else { "steady" };
            let resource = format!("{kind} {}", task % RESOURCES);
            tokio::spawn(use_again_and_again(url, client, resource, options.clone()))
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
    options: RemoteOptions,
) {
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
    let token = guard.fencing_token();
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
        Err(Error::Lost(lost)) if lost.reason == LostReason::Expired => {
            say(&format!("L|{resource}|{token}"));
        }
        Err(error) => say(&format!("X|{resource}|{token}|{error}")),
    }
}

/// The moment is taken before the guard is asked.
fn still_holds(resource: &str, guard: &RemoteGuard) {
    let now = now();
    if !guard.is_lost() {
        say(&format!("H|{resource}|{}|{now}", guard.fencing_token()));
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

fn conduct(seconds: u64, forgets: bool, is_fronted: bool) -> ExitCode {
    let directory = std::env::temp_dir().join(format!("lockd-torture-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    let home = directory.with_extension("front");
    let authority = is_fronted.then(|| Authority::new(&home));
    let front = authority.as_ref().map(|_| home.as_path());
    let (mut server, address) = start_daemon(&directory, "127.0.0.1:0", front);
    let mut nginx = front.map(|home| start_nginx(home, &address));
    let record = Record::default();
    let kinds = ["steady", "steady", "mortal", "mortal"];
    // The first of each kind comes through nginx, if there is one.
    let url = |at: usize| match &nginx {
        Some((_, proxy)) if at % 2 == 0 => format!("http://{proxy}/locks"),
        Some(_) => format!("https://{address}"),
        None => format!("http://{address}"),
    };
    let start =
        |at: usize, number: usize| start_client(kinds[at], number, &url(at), front, &record);
    let mut clients: Vec<_> = (0..kinds.len()).map(|at| start(at, at)).collect();
    let (mut dice, mut kills, mut stops, mut deaths) = (Dice::new(), 0, 0, 0);
    let begin = Instant::now();
    let (end, mut certificates) = (begin + Duration::from_secs(seconds), 1);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1 + dice.below(LIFE)));
        if let Some(authority) = &authority {
            if begin.elapsed() > CERTIFICATE * certificates {
                authority.certify();
                signal_to(&server, Signal::HUP);
                certificates += 1;
                // It is not the end that comes next.
                continue;
            }
        }
        if is_fronted && dice.below(2) == 0 {
            signal_to(&server, Signal::TERM);
            let status = server.wait().expect("it ends");
            assert!(status.success(), "an orderly end: {status}");
            stops += 1;
        } else {
            kill(&mut server);
            kills += 1;
        }
        if forgets {
            forget(&directory);
        }
        if dice.below(MERCY) == 0 {
            let at = 2 + dice.below(2) as usize;
            kill(&mut clients[at].0);
            clients[at] = start(at, at + 10 * (kills + stops));
            deaths += 1;
        }
        (server, _) = start_daemon(&directory, &address, front);
    }
    for (mut client, reader) in clients {
        kill(&mut client);
        reader.join().expect("it read");
    }
    kill(&mut server);
    if let Some((nginx, _)) = &mut nginx {
        kill(nginx);
    }
    let _ = (std::fs::remove_dir_all(&directory), std::fs::remove_dir_all(&home));
    let lines = std::mem::take(&mut *record.lock().unwrap_or_else(PoisonError::into_inner));
    println!("{kills} kills and {stops} stops of the daemon, {deaths} kills of clients");
    if is_fronted {
        println!("{certificates} certificates");
    }
    judge(&lines)
}

/// Who makes certificates.
struct Authority {
    home: PathBuf,
}

impl Authority {
    fn new(home: &Path) -> Self {
        std::fs::create_dir(home).expect("a directory");
        let authority = Self { home: home.to_owned() };
        authority.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=torture -out ca.pem -keyout ca.key");
        authority.certify();
        authority
    }

    /// A new certificate, which is there as a whole or not at all.
    fn certify(&self) {
        let names = "subjectAltName=IP:127.0.0.1\n";
        std::fs::write(self.home.join("names"), names).expect("a file");
        self.openssl(
            "req -new -newkey rsa:2048 -nodes -subj /CN=daemon -out new.csr -keyout new.key",
        );
        self.openssl("x509 -req -in new.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names -out new.pem");
        for (new, name) in [("new.key", "key.pem"), ("new.pem", "cert.pem")] {
            std::fs::rename(self.home.join(new), self.home.join(name)).expect("a file");
        }
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.current_dir(&self.home).args(arguments.split(' ')).stderr(Stdio::null());
        assert!(command.status().expect("openssl").success(), "openssl {arguments}");
    }
}

/// nginx in front of the daemon, and its address.
fn start_nginx(home: &Path, daemon: &str) -> (Child, String) {
    let document = include_str!("../src/docs/behind_a_proxy.md");
    let (_, rest) = document.split_once("```nginx\n").expect("a configuration");
    let (location, _) = rest.split_once("```").expect("its end");
    let location = location.replace("http://127.0.0.1:8000", &format!("https://{daemon}"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let path = home.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {path}/{kind};"))
        .concat();
    let configuration = format!(
        "daemon off; master_process off; pid {path}/pid; error_log {path}/errors;\n\
         events {{}}\nhttp {{ access_log off; {temporary}\n\
         server {{ listen {address};\n{location}\n}} }}"
    );
    std::fs::write(home.join("nginx.conf"), configuration).expect("a file");
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-e").arg(home.join("errors")).arg("-c").arg(home.join("nginx.conf"));
    (command.stdin(Stdio::null()).spawn().expect("nginx"), address)
}

fn signal_to(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it runs");
}

fn this_program(arguments: &[&str]) -> Child {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::piped()).spawn().expect("a process")
}

fn start_daemon(directory: &Path, address: &str, front: Option<&Path>) -> (Child, String) {
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (directory, front) = (path(directory), front.map(path));
    let arguments = ["daemon", &directory, address].into_iter().chain(front.as_deref());
    let mut child = this_program(&arguments.collect::<Vec<_>>());
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("its output");
    BufReader::new(output).read_line(&mut line).expect("its address");
    assert!(!line.is_empty(), "the daemon does not start");
    (child, line.trim().to_owned())
}

fn start_client(
    kind: &str,
    number: usize,
    url: &str,
    front: Option<&Path>,
    record: &Record,
) -> (Child, JoinHandle<()>) {
    let ca = front.map(|home| home.join("ca.pem").display().to_string());
    let name = format!("{kind} {number}");
    let arguments = [kind, url, &name].into_iter().chain(ca.as_deref());
    let mut child = this_program(&arguments.collect::<Vec<_>>());
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
