//! Starts the servers and the clients, kills and stops them, and tells what came of it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::dice::Dice;
use crate::due::Due;
use crate::engine::{Actions, Servers, Traces};
use crate::network::Network;
use crate::oracle::{self, Findings, now};
use crate::process::Process;
use crate::settings::{Job, Settings};

/// Between two things that go wrong, on average.
const PAUSE_MS: u64 = 500;

/// Each so many clients has a lease of this length.
const SHORT: (u64, Duration) = (3, Duration::from_secs(2));

/// After a lease is over, the servers take at most so long to delete what it kept; as much
/// again for a machine that is busy.
const REVOKED_AFTER: Duration = Duration::from_secs(10);

/// Tasks that do not end by then are stuck.
const QUIET_MAX: Duration = Duration::from_secs(90);

/// So many faults of a kind are printed.
const SHOWN: usize = 10;

pub(crate) fn run(settings: &Settings) -> ExitCode {
    let name = format!("engine-torture-{}", std::process::id());
    let home = settings.directory.join(&name);
    for directory in ["records", "servers"] {
        fs::create_dir_all(home.join(directory)).expect("a directory");
    }
    eprintln!("seed {}, in {}", settings.seed, home.display());
    let runtime = Runtime::new().expect("a runtime");
    let mut conductor = Conductor::new(settings, name, home.clone(), &runtime);
    conductor.storm();
    let calm = conductor.calm();
    let orphans = conductor.end();
    let longest = if settings.is_at_once { settings.ttl.max(SHORT.1) } else { Duration::ZERO };
    let findings = Findings::read(&home.join("records"), longest).expect("the records");
    let is_good = conductor.tell(&findings, calm, &orphans);
    drop(conductor);
    if is_good {
        let _ = fs::remove_dir_all(home);
        return ExitCode::SUCCESS;
    }
    println!("records, actions and logs are in {}", home.display());
    ExitCode::FAILURE
}

struct Conductor<'a> {
    settings: &'a Settings,
    prefix: String,
    home: PathBuf,
    own: Option<Own>,
    clients: Vec<Client>,
    /// How many clients were started so far.
    started: u64,
    dice: Dice,
    /// The clients that are to be resumed, and when.
    resumes: Due<usize>,
    counts: Counts,
    actions: Actions,
    stuck: usize,
}

/// Servers of this run, and the network before them.
struct Own {
    servers: Box<dyn Servers>,
    network: Network,
}

struct Client {
    process: Process,
    record: PathBuf,
    ttl: Duration,
    is_stopped: bool,
}

impl Client {
    fn seems_to_hold(&self) -> bool {
        !self.is_stopped && oracle::ends_in_a_hold(&self.record)
    }
}

#[derive(Default)]
struct Counts {
    client_kills: u64,
    client_stops: u64,
    /// Of those, longer than the lease.
    long_stops: u64,
}

impl<'a> Conductor<'a> {
    fn new(settings: &'a Settings, prefix: String, home: PathBuf, runtime: &Runtime) -> Self {
        let own = settings.at.is_none().then(|| {
            let servers = settings.engine.start(&home.join("servers"));
            let network = Network::new(&servers.addresses(), settings.clients, runtime.handle());
            Own { servers, network }
        });
        let actions = Actions::create(&home.join("actions")).expect("a file");
        let mut conductor = Self {
            settings,
            prefix,
            home,
            own,
            clients: Vec::new(),
            started: 0,
            dice: Dice::new(settings.seed),
            resumes: Due::new(),
            counts: Counts::default(),
            actions,
            stuck: 0,
        };
        for at in 0..usize::try_from(settings.clients).expect("some") {
            let client = conductor.start_client(at);
            conductor.clients.push(client);
        }
        conductor
    }

    /// Where the check looks, without the proxies.
    fn at(&self) -> String {
        match (&self.own, &self.settings.at) {
            (Some(own), _) => self.settings.engine.address(&own.servers.addresses()),
            (None, at) => at.clone().expect("one of them"),
        }
    }

    /// The one at this place; it wants the same locks as the one before it there.
    fn start_client(&mut self, at: usize) -> Client {
        let number = self.started;
        self.started += 1;
        let ttl = match number % SHORT.0 {
            0 => SHORT.1,
            _ => self.settings.ttl,
        };
        let servers = match (&self.own, &self.settings.at) {
            (Some(own), _) => self.settings.engine.address(&own.network.addresses(at, number)),
            (None, at) => at.clone().expect("one of them"),
        };
        let job = Job {
            engine: self.settings.engine,
            at: servers,
            prefix: self.prefix.clone(),
            record: self.home.join(format!("records/{number}")),
            ttl,
            tasks: self.settings.tasks,
            locks: self.settings.locks,
            place: at as u64,
            seed: self.settings.seed + number,
            is_blind: self.settings.is_blind,
            is_at_once: self.settings.is_at_once,
        };
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(job.to_arguments()).stdin(Stdio::piped()).stdout(Stdio::piped());
        // So are sessions called in PostgreSQL.
        command.env("PGAPPNAME", &self.prefix);
        let process = Process(command.spawn().expect("a client"));
        Client { process, record: job.record, ttl, is_stopped: false }
    }

    fn storm(&mut self) {
        let end = Instant::now() + self.settings.time;
        let mut next = Instant::now();
        while Instant::now() < end {
            let now = Instant::now();
            self.resume_clients(now);
            if let Some(own) = &mut self.own {
                own.servers.tick(now, &self.actions);
                own.network.tick(now);
            }
            if Instant::now() >= next {
                self.do_something();
                next = Instant::now() + self.dice.millis(0, 2 * PAUSE_MS);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn do_something(&mut self) {
        let (client, what) = (self.some_client(), self.dice.below(20));
        match (&mut self.own, what) {
            (Some(own), 0..3) => own.servers.harm(&mut self.dice, &self.actions),
            (Some(own), 3..9) => own.network.harm(client, &mut self.dice, &self.actions),
            (Some(_), 9..14) | (None, 0..7) => self.kill_client(client),
            _ => self.stop_client(client),
        }
    }

    /// In most cases one that holds a lock, as far as its record tells.
    fn some_client(&mut self) -> usize {
        let first = self.below(self.clients.len());
        let count = if self.dice.once_in(4) { 1 } else { self.clients.len() };
        let mut clients = (first..first + count).map(|at| at % self.clients.len());
        clients.find(|at| self.clients[*at].seems_to_hold()).unwrap_or(first)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.dice.below(end as u64)).expect("less than end")
    }

    fn kill_client(&mut self, client: usize) {
        let pid = self.clients[client].process.0.id();
        self.actions.note(&format!("kill client {pid}"));
        self.clients[client] = self.start_client(client);
        self.counts.client_kills += 1;
    }

    fn stop_client(&mut self, at: usize) {
        if self.clients[at].is_stopped {
            return;
        }
        let ttl = u64::try_from(self.clients[at].ttl.as_millis()).expect("some seconds");
        // A client that asks no guard is found out where others have got in meanwhile.
        let is_long = self.settings.is_blind || self.dice.once_in(3);
        let time = match is_long {
            true => self.dice.millis(ttl, ttl + 4000),
            false => self.dice.millis(10, 1000),
        };
        let client = &mut self.clients[at];
        client.process.signal(Signal::STOP);
        client.is_stopped = true;
        let pid = client.process.0.id();
        self.actions.note(&format!("stop client {pid} for {time:?}"));
        self.counts.client_stops += 1;
        self.counts.long_stops += u64::from(is_long);
        self.resumes.at(Instant::now() + time, at);
    }

    fn resume_clients(&mut self, now: Instant) {
        while let Some(at) = self.resumes.next(now) {
            self.resume_client(at);
        }
    }

    fn resume_client(&mut self, at: usize) {
        let client = &mut self.clients[at];
        // It may have been killed, and another one be in its place.
        if std::mem::take(&mut client.is_stopped) {
            client.process.signal(Signal::CONT);
            self.actions.note(&format!("resume client {}", client.process.0.id()));
        }
    }

    /// All goes well again, and every lock is to be held after that. Gives when it began.
    fn calm(&mut self) -> u64 {
        while let Some(at) = self.resumes.any() {
            self.resume_client(at);
        }
        if let Some(own) = &mut self.own {
            own.network.heal();
            own.servers.heal(&self.actions);
        }
        self.actions.note("calm");
        // Servers serve by then, and leases of the dead are over.
        thread::sleep(2 * self.settings.ttl + REVOKED_AFTER);
        let calm = now();
        thread::sleep(Duration::from_secs(5));
        calm
    }

    /// Ends the clients, and gives what is left of them: first of their locks, then of all.
    fn end(&mut self) -> Vec<String> {
        self.actions.note("the tasks end");
        let (tell, told) = mpsc::channel();
        for client in &mut self.clients {
            let _ = client.process.0.stdin.as_mut().expect("its input").write_all(b".");
            let (output, tell) =
                (client.process.0.stdout.take().expect("its output"), tell.clone());
            thread::spawn(move || {
                let line = BufReader::new(output).lines().next();
                let _ = tell.send(line.is_some_and(|line| line.is_ok_and(|line| line == "quiet")));
            });
        }
        let deadline = Instant::now() + QUIET_MAX;
        for _ in 0..self.clients.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.stuck += usize::from(!told.recv_timeout(left).unwrap_or(false));
        }
        // The clients live, and so do their leases: what is left now would stay.
        let mut left = self.left(false);
        self.actions.note("the clients end");
        for client in &mut self.clients {
            drop(client.process.0.stdin.take());
        }
        let deadline = Instant::now() + REVOKED_AFTER;
        while Instant::now() < deadline {
            let is_over =
                |client: &mut Client| client.process.0.try_wait().is_ok_and(|it| it.is_some());
            if self.clients.iter_mut().all(is_over) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.clients.clear();
        left.extend(self.left(true));
        left
    }

    /// What does not go in the time of a lease.
    fn left(&self, has_ended: bool) -> Vec<String> {
        let (at, deadline) = (self.at(), Instant::now() + self.settings.ttl + REVOKED_AFTER);
        let traces = Traces { at: &at, prefix: &self.prefix, locks: self.settings.locks };
        loop {
            match self.settings.engine.left(&traces, has_ended) {
                Some(left) if left.is_empty() => {
                    if has_ended {
                        self.settings.engine.forget(&traces);
                    }
                    return left;
                }
                Some(left) if Instant::now() > deadline => return left,
                None if Instant::now() > deadline => return vec!["no server answers".to_owned()],
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn tell(&self, findings: &Findings, calm: u64, orphans: &[String]) -> bool {
        let Counts { client_kills, client_stops, long_stops } = &self.counts;
        let Settings { time, seed, clients, tasks, locks, ttl, .. } = self.settings;
        let line = |name: &str, value: String| println!("{name:<20}{value}");
        let place = match &self.own {
            // It may have a password in it.
            None => format!("{} at a place of the user's", self.settings.engine.name()),
            Some(own) => own.servers.name(),
        };
        line("lockkeeper", format!("{}, {place}", env!("CARGO_PKG_VERSION")));
        line(
            "settings",
            format!(
                "{time:?}, seed {seed}, {clients} clients of {tasks} tasks, {locks} locks, leases \
                 of {ttl:?} and {:?}{}{}",
                SHORT.1,
                if self.settings.is_at_once { ", takeover at once" } else { "" },
                if self.settings.is_blind { ", BLIND" } else { "" }
            ),
        );
        let count = findings.count();
        let per_second = count as f64 / time.as_secs_f64();
        line("holds", format!("{count} ({per_second:.0} a second); {}", listed(&findings.ends)));
        line("waits without one", listed(&findings.waits));
        if let Some(own) = &self.own {
            line("servers", own.servers.told());
            line("network", own.network.told());
        }
        let cut_off = findings.cut_off;
        line(
            "clients",
            format!(
                "{client_kills} kills (in {cut_off} holds), {client_stops} stops ({long_stops} \
                 longer than the lease)"
            ),
        );
        let (gap, since) = findings.longest_gap;
        line("no holder", format!("for at most {:.1} s, from {since}", gap.as_secs_f64()));
        let not_held = findings.not_held_after(calm, *locks);
        line("not held at the end", not_held.to_string());
        line("stuck clients", self.stuck.to_string());
        if self.settings.is_at_once {
            let (count, longest) = findings.overlaps_in_a_lease;
            line("taken over in time", format!("{count} overlaps of at most {longest:?}"));
        }
        let kinds: [(&str, &[String]); 4] = [
            ("overlaps", &findings.overlaps),
            ("tokens not greater", &findings.tokens_not_greater),
            ("left behind", orphans),
            ("wrong answers", &findings.faults),
        ];
        for (name, found) in kinds {
            line(name, found.len().to_string());
            found.iter().take(SHOWN).for_each(|fault| line("", fault.clone()));
        }
        let is_quiet = kinds.iter().all(|(_, found)| found.is_empty());
        let is_good = is_quiet && self.stuck == 0 && not_held == 0 && count > 0;
        line("verdict", if is_good { "good" } else { "BAD" }.to_owned());
        is_good
    }
}

fn listed(counts: &std::collections::BTreeMap<String, usize>) -> String {
    let parts: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    parts.join(", ")
}
