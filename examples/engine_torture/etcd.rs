//! A cluster of etcd on this machine, or anywhere.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::Process;

/// Members that do not answer by then never will.
const START_MAX: Duration = Duration::from_secs(60);

/// A member that is stopped does not say whether it leads.
const ANSWER_MAX: Duration = Duration::from_millis(200);

/// Three members, which can be killed and stopped.
pub(crate) struct Cluster {
    members: Vec<Member>,
}

struct Member {
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    data: PathBuf,
    child: Option<Process>,
}

impl Cluster {
    pub(crate) fn start(directory: &Path) -> Self {
        let mut addresses = free_addresses(6).into_iter();
        let mut next = || addresses.next().expect("six of them");
        let members = (0..3)
            .map(|number| {
                let name = format!("member-{number}");
                let data = directory.join(&name);
                Member { client: next(), peer: next(), name, data, child: None }
            })
            .collect();
        let mut cluster = Self { members };
        (0..3).for_each(|member| cluster.start_again(member));
        let endpoints = cluster.endpoints().map(|it| it.to_string()).join(",");
        let begun = Instant::now();
        while keys(&endpoints, "nothing").is_none() {
            assert!(begun.elapsed() < START_MAX, "the members do not start");
        }
        cluster
    }

    pub(crate) fn endpoints(&self) -> [SocketAddr; 3] {
        [0, 1, 2].map(|member| self.members[member].client)
    }

    pub(crate) fn version() -> String {
        let output = Command::new("etcd").arg("--version").output().expect("etcd is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().unwrap_or_default().replace("etcd Version: ", "etcd ")
    }

    pub(crate) fn start_again(&mut self, member: usize) {
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

    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].child = None;
    }

    pub(crate) fn stop(&self, member: usize) {
        self.signal(member, Signal::STOP);
    }

    pub(crate) fn resume(&self, member: usize) {
        self.signal(member, Signal::CONT);
    }

    fn signal(&self, member: usize, signal: Signal) {
        self.members[member].child.as_ref().expect("it runs").signal(signal);
    }

    pub(crate) fn leads(&self, member: usize) -> bool {
        let metrics = get(self.members[member].client, "/metrics").unwrap_or_default();
        metrics.lines().any(|line| line == "etcd_server_is_leader 1")
    }
}

/// The keys that begin with this; `None` if the cluster does not answer.
pub(crate) fn keys(endpoints: &str, prefix: &str) -> Option<Vec<String>> {
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

fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners: Vec<_> = (0..count).map(bind).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("its address")).collect()
}
