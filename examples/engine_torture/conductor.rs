//! Starts the members and the clients, kills and stops them, and tells what came of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::dice::Dice;
use crate::etcd::{self, Cluster};
use crate::oracle::{self, Findings, now};
use crate::process::Process;
use crate::proxy::Proxy;
use crate::settings::{Job, Settings};

/// Between two things that go wrong, on average.
const PAUSE_MS: u64 = 500;

/// Each so many clients has a lease of this length.
const SHORT: (u64, Duration) = (3, Duration::from_secs(2));

/// After a lease is over, the cluster takes at most so long to delete its keys; as much again
/// for a machine that is busy.
const REVOKED_AFTER: Duration = Duration::from_secs(10);

/// Tasks that do not end by then are stuck.
const QUIET_MAX: Duration = Duration::from_secs(90);

/// So many faults of a kind are printed.
const SHOWN: usize = 10;

pub(crate) fn run(settings: &Settings) -> ExitCode {
    let name = format!("engine-torture-{}", std::process::id());
    let home = settings.directory.join(&name);
    for directory in ["records", "members"] {
        fs::create_dir_all(home.join(directory)).expect("a directory");
    }
    eprintln!("seed {}, in {}", settings.seed, home.display());
    let runtime = Runtime::new().expect("a runtime");
    let mut conductor = Conductor::new(settings, name, home.clone(), &runtime);
    conductor.storm();
    let calm = conductor.calm();
    let orphans = conductor.end();
    let findings = Findings::read(&home.join("records")).expect("the records");
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
    cluster: Option<Cluster>,
    proxies: Vec<Proxy>,
    clients: Vec<Client>,
    /// How many clients were started so far.
    started: u64,
    dice: Dice,
    /// What has to be undone, and when.
    undo: Vec<(Instant, Undo)>,
    is_down: [bool; 3],
    counts: Counts,
    actions: File,
    stuck: usize,
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

#[derive(Clone, Copy)]
enum Undo {
    Start(usize),
    Resume(usize),
    ResumeClient(usize),
    Heal(usize),
}

#[derive(Default)]
struct Counts {
    member_kills: u64,
    member_stops: u64,
    /// Of those, of leaders.
    leader_kills: u64,
    leader_stops: u64,
    no_majority: u64,
    client_kills: u64,
    client_stops: u64,
    /// Of those, longer than the lease.
    long_stops: u64,
    delays: u64,
    stalls: u64,
    drops: u64,
}

impl<'a> Conductor<'a> {
    fn new(settings: &'a Settings, prefix: String, home: PathBuf, runtime: &Runtime) -> Self {
        let cluster = match settings.at {
            Some(_) => None,
            None => Some(Cluster::start(&home.join("members"))),
        };
        let proxies = cluster.iter().flat_map(Cluster::endpoints);
        let proxies = proxies.map(|address| Proxy::to(address, runtime.handle())).collect();
        let actions = File::create(home.join("actions")).expect("a file");
        let mut conductor = Self {
            settings,
            prefix,
            home,
            cluster,
            proxies,
            clients: Vec::new(),
            started: 0,
            dice: Dice::new(settings.seed),
            undo: Vec::new(),
            is_down: [false; 3],
            counts: Counts::default(),
            actions,
            stuck: 0,
        };
        for _ in 0..settings.clients {
            let client = conductor.start_client();
            conductor.clients.push(client);
        }
        conductor
    }

    /// Where the check looks, without the proxies.
    fn endpoints(&self) -> String {
        match (&self.cluster, &self.settings.at) {
            (Some(cluster), _) => cluster.endpoints().map(|it| it.to_string()).join(","),
            (None, at) => at.clone().expect("one of them"),
        }
    }

    fn start_client(&mut self) -> Client {
        let number = self.started;
        self.started += 1;
        let ttl = match number % SHORT.0 {
            0 => SHORT.1,
            _ => self.settings.ttl,
        };
        // Each begins with another member.
        let proxies = (0..self.proxies.len()).map(|at| {
            let at = (at + usize::try_from(number).expect("a number")) % self.proxies.len();
            self.proxies[at].address.to_string()
        });
        let proxies: Vec<_> = proxies.collect();
        let job = Job {
            endpoints: self.settings.at.clone().unwrap_or_else(|| proxies.join(",")),
            prefix: self.prefix.clone(),
            record: self.home.join(format!("records/{number}")),
            ttl,
            tasks: self.settings.tasks,
            locks: self.settings.locks,
            seed: self.settings.seed + number,
            is_blind: self.settings.is_blind,
        };
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(job.to_arguments()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = Process(command.spawn().expect("a client"));
        Client { process, record: job.record, ttl, is_stopped: false }
    }

    fn note(&mut self, action: &str) {
        let _ = writeln!(self.actions, "{} {action}", now());
    }

    fn storm(&mut self) {
        let end = Instant::now() + self.settings.time;
        let mut next = Instant::now();
        while Instant::now() < end {
            self.undo_what_is_due(Instant::now());
            if Instant::now() >= next {
                self.do_something();
                next = Instant::now() + self.dice.millis(0, 2 * PAUSE_MS);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn do_something(&mut self) {
        let client = self.some_client();
        if self.cluster.is_none() {
            return match self.dice.below(3) {
                0 => self.kill_client(client),
                _ => self.stop_client(client),
            };
        }
        let member = self.some_member();
        match self.dice.below(20) {
            0 => self.kill_member(member),
            1..3 => self.stop_member(member),
            3..8 => self.kill_client(client),
            8..14 => self.stop_client(client),
            14..17 => {
                let by = self.dice.millis(20, 500);
                self.note(&format!("proxy {member} delays by {by:?}"));
                self.proxies[member].delay(by);
                self.counts.delays += 1;
                self.later(1000, 4000, Undo::Heal(member));
            }
            17..19 => {
                self.note(&format!("proxy {member} drops all"));
                self.proxies[member].drop_all();
                self.counts.drops += 1;
            }
            _ => {
                self.note(&format!("proxy {member} stalls"));
                self.proxies[member].stall();
                self.counts.stalls += 1;
                self.later(500, 5000, Undo::Heal(member));
            }
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

    /// In each third case the leader. More, and leases never end: each leader begins them anew.
    fn some_member(&mut self) -> usize {
        let any = self.below(3);
        let cluster = self.cluster.as_ref().expect("members");
        match self.dice.once_in(3) {
            true => (0..3).find(|member| cluster.leads(*member)).unwrap_or(any),
            false => any,
        }
    }

    fn later(&mut self, least: u64, most: u64, undo: Undo) {
        self.undo.push((Instant::now() + self.dice.millis(least, most), undo));
    }

    /// Another one may be down as well, now and then and for a short time.
    fn may_go_down(&mut self, member: usize) -> Option<u64> {
        let others = self.is_down.iter().filter(|is_down| **is_down).count();
        let longest = match others {
            _ if self.is_down[member] => return None,
            0 => 5000,
            _ if self.dice.once_in(4) => 1500,
            _ => return None,
        };
        self.is_down[member] = true;
        self.counts.no_majority += u64::from(others > 0);
        Some(longest)
    }

    fn kill_member(&mut self, member: usize) {
        let Some(longest) = self.may_go_down(member) else { return };
        let cluster = self.cluster.as_mut().expect("members");
        let leads = cluster.leads(member);
        cluster.kill(member);
        self.counts.member_kills += 1;
        self.counts.leader_kills += u64::from(leads);
        self.note(&format!("kill member {member}, leads: {leads}"));
        self.later(50, longest, Undo::Start(member));
    }

    fn stop_member(&mut self, member: usize) {
        let Some(longest) = self.may_go_down(member) else { return };
        let cluster = self.cluster.as_ref().expect("members");
        let leads = cluster.leads(member);
        cluster.stop(member);
        self.counts.member_stops += 1;
        self.counts.leader_stops += u64::from(leads);
        self.note(&format!("stop member {member}, leads: {leads}"));
        self.later(50, longest, Undo::Resume(member));
    }

    fn kill_client(&mut self, client: usize) {
        let pid = self.clients[client].process.0.id();
        self.note(&format!("kill client {pid}"));
        self.clients[client] = self.start_client();
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
        self.note(&format!("stop client {pid} for {time:?}"));
        self.counts.client_stops += 1;
        self.counts.long_stops += u64::from(is_long);
        self.undo.push((Instant::now() + time, Undo::ResumeClient(at)));
    }

    fn undo_what_is_due(&mut self, now: Instant) {
        while let Some(at) = self.undo.iter().position(|(due, _)| *due <= now) {
            match self.undo.swap_remove(at).1 {
                Undo::Start(member) => {
                    self.note(&format!("start member {member}"));
                    self.cluster.as_mut().expect("members").start_again(member);
                    self.is_down[member] = false;
                }
                Undo::Resume(member) => {
                    self.note(&format!("resume member {member}"));
                    self.cluster.as_ref().expect("members").resume(member);
                    self.is_down[member] = false;
                }
                Undo::ResumeClient(at) => {
                    let client = &mut self.clients[at];
                    // It may have been killed, and another one be in its place.
                    if std::mem::take(&mut client.is_stopped) {
                        client.process.signal(Signal::CONT);
                        let pid = client.process.0.id();
                        self.note(&format!("resume client {pid}"));
                    }
                }
                Undo::Heal(member) => {
                    self.note(&format!("proxy {member} heals"));
                    self.proxies[member].heal();
                }
            }
        }
    }

    /// All goes well again, and every lock is to be held after that. Gives when it began.
    fn calm(&mut self) -> u64 {
        self.undo_what_is_due(Instant::now() + Duration::from_secs(3600));
        self.note("calm");
        // Members have elected a leader by then, and leases of the dead are over.
        thread::sleep(2 * self.settings.ttl + REVOKED_AFTER);
        let calm = now();
        thread::sleep(Duration::from_secs(5));
        calm
    }

    /// Ends the clients, and gives the keys that are left: of locks, and then of sessions.
    fn end(&mut self) -> Vec<String> {
        self.note("the tasks end");
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
        let locks = format!("{}/lock-", self.prefix);
        let mut left = self.left(&locks);
        self.note("the clients end");
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
        left.extend(self.left(&format!("{}/", self.prefix)));
        left
    }

    /// The keys that do not go in the time of a lease.
    fn left(&self, prefix: &str) -> Vec<String> {
        let deadline = Instant::now() + self.settings.ttl + REVOKED_AFTER;
        loop {
            let keys = etcd::keys(&self.endpoints(), prefix);
            match keys {
                Some(keys) if keys.is_empty() => return keys,
                Some(keys) if Instant::now() > deadline => return keys,
                None if Instant::now() > deadline => return vec!["no member answers".to_owned()],
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn tell(&self, findings: &Findings, calm: u64, orphans: &[String]) -> bool {
        let Counts {
            member_kills,
            member_stops,
            leader_kills,
            leader_stops,
            no_majority,
            client_kills,
            client_stops,
            long_stops,
            delays,
            stalls,
            drops,
        } = &self.counts;
        let Settings { time, seed, clients, tasks, locks, ttl, at, .. } = self.settings;
        let line = |name: &str, value: String| println!("{name:<20}{value}");
        let place = match at {
            Some(at) => format!("the cluster at {at}"),
            None => format!("three members of {}", Cluster::version()),
        };
        line("lockkeeper", format!("{}, {place}", env!("CARGO_PKG_VERSION")));
        line(
            "settings",
            format!(
                "{time:?}, seed {seed}, {clients} clients of {tasks} tasks, {locks} locks, leases \
                 of {ttl:?} and {:?}{}",
                SHORT.1,
                if self.settings.is_blind { ", BLIND" } else { "" }
            ),
        );
        let count = findings.count();
        let per_second = count as f64 / time.as_secs_f64();
        line("holds", format!("{count} ({per_second:.0} a second); {}", listed(&findings.ends)));
        line("waits without one", listed(&findings.waits));
        if at.is_none() {
            line(
                "members",
                format!(
                    "{member_kills} kills ({leader_kills} of leaders), {member_stops} stops \
                     ({leader_stops} of leaders); {no_majority} times no majority"
                ),
            );
            line("network", format!("{delays} delays, {stalls} stalls, {drops} drops"));
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
        let kinds: [(&str, &[String]); 4] = [
            ("overlaps", &findings.overlaps),
            ("tokens not greater", &findings.tokens_not_greater),
            ("orphans", orphans),
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
