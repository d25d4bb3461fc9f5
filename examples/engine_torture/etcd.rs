//! A cluster of etcd on this machine, or anywhere.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lockkeeper::{EtcdLocks, EtcdOptions};
use rustix::process::Signal;

use crate::client::{self, RECONNECT, lock_name};
use crate::dice::Dice;
use crate::due::Due;
use crate::engine::{Actions, Engine, Servers, Traces};
use crate::process::{Process, free_addresses};
use crate::settings::Job;

/// Members that do not answer by then never will.
const START_MAX: Duration = Duration::from_secs(60);

/// A member that is stopped does not say whether it leads.
const ANSWER_MAX: Duration = Duration::from_millis(200);

pub(crate) struct Etcd;

impl Engine for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn start(&self, directory: &Path) -> Box<dyn Servers> {
        Box::new(Cluster::start(directory))
    }

    fn address(&self, servers: &[SocketAddr]) -> String {
        servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn can_take_over_at_once(&self) -> bool {
        false
    }

    fn run_client(&self, job: &Job) {
        let options = EtcdOptions::default().prefix(&job.prefix).ttl(job.ttl).reconnect(RECONNECT);
        let locks = EtcdLocks::with_options(&job.at, options).expect("a cluster");
        client::run(job, |number| locks.lock(lock_name(number)).expect("a lock"));
    }

    /// The keys: of locks, and then of sessions.
    fn left(&self, traces: &Traces<'_>, has_ended: bool) -> Option<Vec<String>> {
        let below = if has_ended { "" } else { "lock-" };
        keys(traces.at, &format!("{}/{below}", traces.prefix))
    }

    /// A key that is left would be a fault.
    fn forget(&self, _: &Traces<'_>) {}
}

/// Three members, which can be killed and stopped.
struct Cluster {
    members: Vec<Member>,
    is_down: [bool; 3],
    undo: Due<Undo>,
    counts: Counts,
}

#[derive(Clone, Copy)]
enum Undo {
    Start(usize),
    Resume(usize),
}

#[derive(Default)]
struct Counts {
    kills: u64,
    stops: u64,
    /// Of those, of leaders.
    leader_kills: u64,
    leader_stops: u64,
    no_majority: u64,
}

struct Member {
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    data: PathBuf,
    child: Option<Process>,
}

impl Cluster {
    fn start(directory: &Path) -> Self {
        let mut addresses = free_addresses(6).into_iter();
        let mut next = || addresses.next().expect("six of them");
        let members = (0..3)
            .map(|number| {
                let name = format!("member-{number}");
                let data = directory.join(&name);
                Member { client: next(), peer: next(), name, data, child: None }
            })
            .collect();
        let (is_down, undo, counts) = ([false; 3], Due::new(), Counts::default());
        let mut cluster = Self { members, is_down, undo, counts };
        (0..3).for_each(|member| cluster.start_again(member));
        let endpoints = Etcd.address(&cluster.addresses());
        let begun = Instant::now();
        while keys(&endpoints, "nothing").is_none() {
            assert!(begun.elapsed() < START_MAX, "the members do not start");
        }
        cluster
    }

    fn start_again(&mut self, member: usize) {
        let url = |address: SocketAddr| format!("http://{address}");
        let named = |member: &Member| format!("{}={}", member.name, url(member.peer));
        let all: Vec<_> = self.members.iter().map(named).collect();
        let member = &mut self.members[member];
        let log = member.data.with_extension("log");
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let mut command = Command::new("etcd");
        command.args(["--name", &member.name, "--logger", "zap"]);
        command.arg("--data-dir").arg(&member.data);
        command.args(["--initial-cluster", &all.join(",")]);
        let (client, peer) = (url(member.client), url(member.peer));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        member.child = Some(Process(command.spawn().expect("etcd is installed")));
    }

    fn signal(&self, member: usize, signal: Signal) {
        self.members[member].child.as_ref().expect("it runs").signal(signal);
    }

    fn leads(&self, member: usize) -> bool {
        let metrics = get(self.members[member].client, "/metrics").unwrap_or_default();
        metrics.lines().any(|line| line == "etcd_server_is_leader 1")
    }

    /// In each third case the leader. More, and leases never end: each leader begins them anew.
    fn some_member(&self, dice: &mut Dice) -> usize {
        let any = usize::try_from(dice.below(3)).expect("less than 3");
        match dice.once_in(3) {
            true => (0..3).find(|member| self.leads(*member)).unwrap_or(any),
            false => any,
        }
    }

    /// For how many ms at most. Another one may be down as well, now and then and for a short
    /// time.
    fn may_go_down(&mut self, member: usize, dice: &mut Dice) -> Option<u64> {
        let others = self.is_down.iter().filter(|is_down| **is_down).count();
        let longest = match others {
            _ if self.is_down[member] => return None,
            0 => 5000,
            _ if dice.once_in(4) => 1500,
            _ => return None,
        };
        self.is_down[member] = true;
        self.counts.no_majority += u64::from(others > 0);
        Some(longest)
    }

    fn undo(&mut self, undo: Undo, actions: &Actions) {
        match undo {
            Undo::Start(member) => {
                actions.note(&format!("start member {member}"));
                self.start_again(member);
                self.is_down[member] = false;
            }
            Undo::Resume(member) => {
                actions.note(&format!("resume member {member}"));
                self.signal(member, Signal::CONT);
                self.is_down[member] = false;
            }
        }
    }
}

impl Servers for Cluster {
    fn name(&self) -> String {
        let output = Command::new("etcd").arg("--version").output().expect("etcd is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next().unwrap_or_default().replace("etcd Version: ", "etcd ");
        format!("three members of {version}")
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    fn harm(&mut self, dice: &mut Dice, actions: &Actions) {
        let (member, is_kill) = (self.some_member(dice), dice.once_in(3));
        let Some(longest) = self.may_go_down(member, dice) else { return };
        let leads = self.leads(member);
        let undo = if is_kill {
            self.members[member].child = None;
            self.counts.kills += 1;
            self.counts.leader_kills += u64::from(leads);
            actions.note(&format!("kill member {member}, leads: {leads}"));
            Undo::Start(member)
        } else {
            self.signal(member, Signal::STOP);
            self.counts.stops += 1;
            self.counts.leader_stops += u64::from(leads);
            actions.note(&format!("stop member {member}, leads: {leads}"));
            Undo::Resume(member)
        };
        self.undo.at(Instant::now() + dice.millis(50, longest), undo);
    }

    fn tick(&mut self, now: Instant, actions: &Actions) {
        while let Some(undo) = self.undo.next(now) {
            self.undo(undo, actions);
        }
    }

    fn heal(&mut self, actions: &Actions) {
        while let Some(undo) = self.undo.any() {
            self.undo(undo, actions);
        }
    }

    fn told(&self) -> String {
        let Counts { kills, stops, leader_kills, leader_stops, no_majority } = &self.counts;
        format!(
            "{kills} kills ({leader_kills} of leaders), {stops} stops ({leader_stops} of \
             leaders); {no_majority} times no majority"
        )
    }
}

/// The keys that begin with this; `None` if the cluster does not answer.
fn keys(endpoints: &str, prefix: &str) -> Option<Vec<String>> {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints]);
    command.args(["get", "--prefix", "--keys-only", prefix]);
    let output = command.output().expect("etcdctl is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let keys = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    output.status.success().then_some(keys)
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX).ok()?;
    stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
