//! A cluster of members, and what can be done to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::member::{Member, killed_with_us};
use super::{Version, command, directory};
use crate::server_support::{Certificates, Claim, Guarded, Proxy, Source};
use crate::support::{VERY_LONG, eventually, on_tmpfs};

/// How clients speak to a cluster. Its members speak to each other without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    Off,
    /// The members have a certificate.
    Server,
    /// Clients need one as well.
    Mutual,
}

/// What a cluster is to be.
#[derive(Clone)]
pub struct Builder {
    members: usize,
    version: Version,
    tls: Tls,
    between: bool,
    flags: Vec<String>,
}

impl Builder {
    /// 3.4 where nothing else is said.
    pub fn version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    pub fn tls(self, tls: Tls) -> Self {
        Self { tls, ..self }
    }

    /// How large the database may be, for NOSPACE.
    pub fn quota(self, bytes: u64) -> Self {
        self.flag(&format!("--quota-backend-bytes={bytes}"))
    }

    /// A leader that is gone is replaced within about half a second in place of two. On a busy
    /// machine leaders change without a reason then: not for tests that count on one.
    pub fn fast_elections(self) -> Self {
        self.flag("--heartbeat-interval=50").flag("--election-timeout=300")
    }

    /// The members reach each other through proxies: [`Cluster::partition`].
    pub fn partitions(self) -> Self {
        Self { between: true, ..self }
    }

    /// One more argument of each member.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Starts the members, and waits until each answers a linearizable read.
    #[track_caller]
    pub fn start(self) -> Cluster {
        Cluster::new(self)
    }
}

/// A member as it sees itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub member: u64,
    pub leader: u64,
    pub term: u64,
    pub revision: i64,
}

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: String,
    /// Zero: none.
    pub lease: i64,
    pub create_revision: i64,
    pub mod_revision: i64,
}

/// How long `etcdctl` tries what may fail. Longer, and a test of a cluster that does not
/// answer lasts longer; a good deal shorter, and a busy machine fails it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many ports a member needs: clients, peers, the proxy before it, metrics.
const PORTS_OF_ONE: u16 = 5;

/// A member that is being killed may still write to it.
const REMOVAL: &str = r#"until rm -rf "$1"; do sleep 0.01; done"#;

/// Members of etcd in processes of their own, on one address of loopback that no other test
/// has. They are killed when it is dropped, and when this process ends in any way. A test that
/// fails prints what they wrote last.
pub struct Cluster {
    members: Vec<Member>,
    /// Before each member, for its peers; empty where they are reached directly.
    between: Vec<Proxy>,
    pids: Pids,
    certificates: Certificates,
    /// `user:password` for `etcdctl`, once there is authentication.
    root: Option<String>,
    token: String,
    programs: PathBuf,
    builder: Builder,
    home: Guarded,
    claim: Claim,
}

/// The process of each member, by which a connection between two is told from others.
type Pids = Arc<Mutex<Vec<Option<u32>>>>;

impl Cluster {
    /// Members of etcd 3.4 with its own settings.
    #[track_caller]
    pub fn start(members: usize) -> Self {
        Self::builder(members).start()
    }

    pub fn builder(members: usize) -> Builder {
        let (version, tls) = (Version::V3_4, Tls::Off);
        Builder { members, version, tls, between: false, flags: Vec::new() }
    }

    #[track_caller]
    fn new(builder: Builder) -> Self {
        let programs = directory(builder.version).expect("etcd: run tests/setup.sh");
        let (home, claim) = (Guarded::new(on_tmpfs(), REMOVAL), Claim::new());
        let certificates = match builder.tls {
            Tls::Off => Certificates::paths(home.path()),
            Tls::Server | Tls::Mutual => {
                Certificates::make(home.path(), claim.address, "etcd.test")
            }
        };
        let mut cluster = Self {
            members: Vec::new(),
            between: Vec::new(),
            pids: Arc::default(),
            certificates,
            root: None,
            token: claim.at(0).to_string(),
            programs,
            builder,
            home,
            claim,
        };
        (0..cluster.builder.members).for_each(|_| cluster.add());
        (0..cluster.len()).for_each(|member| cluster.run(member, "new"));
        (0..cluster.len()).for_each(|member| cluster.expect_serves(member));
        cluster
    }

    /// One more member, not yet started.
    fn add(&mut self) {
        let number = self.members.len();
        let first = u16::try_from(number).expect("few members") * PORTS_OF_ONE;
        let [client, peer, proxy, metrics] = [0, 1, 2, 3].map(|port| self.claim.at(first + port));
        let advertised = if self.builder.between { proxy } else { peer };
        let addresses = [client, peer, advertised, metrics];
        self.members.push(Member::new(format!("m{number}"), self.home.path(), addresses));
        self.pids.lock().expect("no panic").push(None);
        if self.builder.between {
            self.between.push(Proxy::between(proxy, peer, source(&self.pids)));
        }
    }

    fn run(&mut self, member: usize, state: &str) {
        let command = self.etcd(member, state);
        self.members[member].start(command);
        self.note_pids();
    }

    fn note_pids(&self) {
        *self.pids.lock().expect("no panic") = self.members.iter().map(Member::id).collect();
    }

    fn etcd(&self, number: usize, state: &str) -> Command {
        let member = &self.members[number];
        let client = format!("{}://{}", self.scheme(), member.client);
        let mut command = killed_with_us(&self.programs.join("etcd"));
        let mut set = |name: &str, value: &str| {
            command.arg(format!("--{name}={value}"));
        };
        set("name", &member.name);
        set("data-dir", member.data.to_str().expect("a path"));
        set("listen-client-urls", &client);
        set("advertise-client-urls", &client);
        set("listen-peer-urls", &format!("http://{}", member.peer));
        set("initial-advertise-peer-urls", &format!("http://{}", member.advertised));
        set("listen-metrics-urls", &format!("http://{}", member.metrics));
        set("initial-cluster", &self.initial_cluster());
        set("initial-cluster-token", &self.token);
        set("initial-cluster-state", state);
        let files = &self.certificates;
        if self.builder.tls != Tls::Off {
            set("cert-file", files.server.to_str().expect("a path"));
            set("key-file", files.server_key.to_str().expect("a path"));
        }
        if self.builder.tls == Tls::Mutual {
            set("trusted-ca-file", files.ca.to_str().expect("a path"));
            set("client-cert-auth", "true");
        }
        command.args(&self.builder.flags);
        command
    }

    fn initial_cluster(&self) -> String {
        let one = |member: &Member| format!("{}=http://{}", member.name, member.advertised);
        self.members.iter().map(one).collect::<Vec<_>>().join(",")
    }

    fn scheme(&self) -> &'static str {
        if self.builder.tls == Tls::Off { "http" } else { "https" }
    }

    #[track_caller]
    fn expect_serves(&mut self, member: usize) {
        eventually("the member answers a linearizable read", || {
            self.members[member].expect_running();
            self.reads(member).is_ok()
        });
    }

    /// A linearizable read through this member alone.
    pub fn reads(&self, member: usize) -> Result<String, String> {
        let endpoint = self.endpoint(member);
        self.try_etcdctl(&["--endpoints", &endpoint, "get", "--consistency=l", "anything"])
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn address(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// `host:port` of a member.
    pub fn endpoint(&self, member: usize) -> String {
        self.address(member).to_string()
    }

    /// Those of all members, with commas between them.
    pub fn endpoints(&self) -> String {
        let all = self.members.iter().map(|member| member.client.to_string());
        all.collect::<Vec<_>>().join(",")
    }

    /// Where it stores all it has. A process that is killed leaves it there.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The files for TLS.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// A way for clients to this member. The certificate of the cluster is for its address too.
    pub fn proxy(&self, member: usize) -> Proxy {
        let port = u16::try_from(member).expect("few members") * PORTS_OF_ONE + 4;
        Proxy::between(self.claim.at(port), self.address(member), Box::new(|_| Some(0)))
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
        self.note_pids();
    }

    /// SIGSTOP, and wait until it has stopped.
    pub fn stop(&mut self, member: usize) {
        self.members[member].stop();
    }

    /// The end of [`Cluster::stop`].
    pub fn resume(&mut self, member: usize) {
        self.members[member].resume();
    }

    /// Starts a member that was killed where it was, with what it stored.
    pub fn start_again(&mut self, member: usize) {
        self.run(member, "existing");
    }

    /// SIGKILL if it runs, [`Cluster::start_again`], and wait until it serves.
    #[track_caller]
    pub fn restart(&mut self, member: usize) {
        self.kill(member);
        self.start_again(member);
        self.expect_serves(member);
    }

    /// What a member that runs says of itself; `None` if it does not answer.
    pub fn status(&self, member: usize) -> Option<Status> {
        let endpoint = self.endpoint(member);
        let said = self.try_etcdctl(&["--endpoints", &endpoint, "endpoint", "status", "-w=json"]);
        let said: Value = serde_json::from_str(&said.ok()?).ok()?;
        let status = &said[0]["Status"];
        let (header, number) = (&status["header"], |value: &Value| value.as_u64().unwrap_or(0));
        Some(Status {
            member: number(&header["member_id"]),
            leader: number(&status["leader"]),
            term: number(&header["raft_term"]),
            revision: header["revision"].as_i64().unwrap_or(0),
        })
    }

    /// Which of the members that run leads; waits until one does. One that was replaced and
    /// does not know it has an older term.
    #[track_caller]
    pub fn leader(&self) -> usize {
        let mut leader = None;
        eventually("a member leads", || {
            let running = (0..self.len()).filter(|&member| self.members[member].is_running());
            let all = running.filter_map(|member| Some((member, self.status(member)?)));
            let all: Vec<(usize, Status)> = all.collect();
            let newest = all.iter().map(|(_, status)| status.term).max();
            leader = all.into_iter().find(|(_, status)| {
                status.leader != 0 && status.leader == status.member && Some(status.term) == newest
            });
            leader.is_some()
        });
        leader.expect("found").0
    }

    /// Waits until another member than this one leads. One that is cut off leads on for a
    /// while, in its own eyes.
    #[track_caller]
    pub fn next_leader(&self, after: usize) -> usize {
        let mut leader = after;
        eventually("another member leads", || {
            leader = self.leader();
            leader != after
        });
        leader
    }

    /// Cuts this member off from its peers: nothing arrives between them, and none is told.
    /// Clients reach it. A second one is cut off besides.
    pub fn partition(&self, member: usize) {
        assert!(!self.between.is_empty(), "this cluster was built without `partitions`");
        for (number, proxy) in self.between.iter().enumerate() {
            if number == member {
                proxy.cut((0..self.len()).collect());
            } else {
                proxy.cut_more(member);
            }
        }
    }

    /// The end of all partitions.
    pub fn heal(&self) {
        self.between.iter().for_each(|proxy| proxy.cut(Default::default()));
    }

    /// One more member, which has no vote; its number. It need not have caught up yet.
    #[track_caller]
    pub fn add_learner(&mut self) -> usize {
        let learner = self.len();
        self.add();
        let (name, advertised) = (&self.members[learner].name, self.members[learner].advertised);
        let url = format!("--peer-urls=http://{advertised}");
        let endpoint = self.endpoint(0);
        self.etcdctl(&["--endpoints", &endpoint, "member", "add", name, "--learner", &url]);
        self.run(learner, "existing");
        eventually("the learner answers", || {
            self.members[learner].expect_running();
            self.status(learner).is_some_and(|status| status.leader != 0)
        });
        learner
    }

    /// What `etcdctl` of this version prints; it must succeed. It asks the members that run,
    /// or those of an `--endpoints` of its own. A get or a put that an election ends is
    /// repeated, so a put may be carried out more than once.
    #[track_caller]
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let may_be_repeated = arguments.iter().any(|argument| ["get", "put"].contains(argument));
        let mut said = Err(String::new());
        eventually("no election ends it", || {
            said = self.run_etcdctl(arguments, VERY_LONG);
            let is_ended = said.as_ref().is_err_and(|error| is_of_an_election(error));
            !(is_ended && may_be_repeated)
        });
        said.unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    /// What it prints, or why it failed. It gives up after a few seconds.
    pub fn try_etcdctl(&self, arguments: &[&str]) -> Result<String, String> {
        self.run_etcdctl(arguments, PATIENCE)
    }

    fn run_etcdctl(&self, arguments: &[&str], patience: Duration) -> Result<String, String> {
        let limit = patience.as_secs();
        let mut command = self.etcdctl_command(arguments);
        command.arg(format!("--dial-timeout={limit}s")).arg(format!("--command-timeout={limit}s"));
        let output = command.stdin(Stdio::null()).output().expect("etcdctl: run tests/setup.sh");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// The command itself, for one that runs on.
    pub fn etcdctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = killed_with_us(&self.programs.join("etcdctl"));
        let running = self.members.iter().filter(|member| member.is_running());
        let running: Vec<String> = running.map(|member| member.client.to_string()).collect();
        if !arguments.iter().any(|argument| argument.starts_with("--endpoints")) {
            command.arg(format!("--endpoints={}", running.join(",")));
        }
        let files = &self.certificates;
        if self.builder.tls != Tls::Off {
            command.arg("--cacert").arg(&files.ca);
        }
        if self.builder.tls == Tls::Mutual {
            command.arg("--cert").arg(&files.client).arg("--key").arg(&files.client_key);
        }
        if let Some(root) = &self.root {
            command.arg("--user").arg(root);
        }
        command.args(arguments);
        command
    }

    /// The keys that begin so, in the order of their creation.
    #[track_caller]
    pub fn keys(&self, prefix: &str) -> Vec<Entry> {
        let order = ["--sort-by=create", "--order=ascend", "-w=json"];
        let said = self.etcdctl(&[&["get", "--prefix", prefix][..], &order].concat());
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let number = |value: &Value| value.as_i64().unwrap_or(0);
        let entry = |stored: &Value| Entry {
            key: from_base64(&stored["key"]),
            value: from_base64(&stored["value"]),
            lease: number(&stored["lease"]),
            create_revision: number(&stored["create_revision"]),
            mod_revision: number(&stored["mod_revision"]),
        };
        said["kvs"].as_array().map_or_else(Vec::new, |all| all.iter().map(entry).collect())
    }

    /// The metrics of a member, as Prometheus reads them.
    pub fn metrics(&self, member: usize) -> String {
        let url = format!("http://{}/metrics", self.members[member].metrics);
        let output = Command::new("curl").args(["-sS", "--fail", &url]).output();
        let output = output.expect("curl: run tests/setup.sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The sum of a metric of a member over all its labels that contain this text.
    pub fn metric(&self, member: usize, name: &str, labels: &str) -> f64 {
        let metrics = self.metrics(member);
        let lines = metrics.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']) && rest.contains(labels))
        });
        let values = lines.filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    /// From now on clients log in: `root` with the password `root`, and this user, who has a
    /// role called `locks` for all below this prefix. `etcdctl` goes on as root.
    #[track_caller]
    pub fn enable_auth(&mut self, prefix: &str, user: &str, password: &str) {
        self.etcdctl(&["user", "add", "root:root"]);
        self.etcdctl(&["role", "add", "root"]);
        self.etcdctl(&["user", "grant-role", "root", "root"]);
        self.etcdctl(&["role", "add", "locks"]);
        self.etcdctl(&["role", "grant-permission", "locks", "--prefix=true", "readwrite", prefix]);
        self.etcdctl(&["user", "add", &format!("{user}:{password}")]);
        self.etcdctl(&["user", "grant-role", user, "locks"]);
        self.etcdctl(&["auth", "enable"]);
        self.root = Some("root:root".to_owned());
    }

    /// Stores what there is in a file.
    #[track_caller]
    pub fn snapshot(&self, name: &str) -> PathBuf {
        // The others may have stored more until then.
        eventually("the member has all that was stored", || self.reads(0).is_ok());
        let file = self.home.path().join(name);
        let (endpoint, path) = (self.endpoint(0), file.to_str().expect("a path"));
        self.etcdctl(&["--endpoints", &endpoint, "snapshot", "save", path]);
        file
    }

    /// Kills all members and starts them with what a snapshot has. The id of the cluster is
    /// that of before, unless it gets a new token.
    #[track_caller]
    pub fn restore(&mut self, snapshot: &Path, new_token: Option<&str>) {
        (0..self.len()).for_each(|member| self.kill(member));
        if let Some(token) = new_token {
            token.clone_into(&mut self.token);
        }
        (0..self.len()).for_each(|member| self.restore_data(member, snapshot));
        (0..self.len()).for_each(|member| self.run(member, "existing"));
        (0..self.len()).for_each(|member| self.expect_serves(member));
    }

    fn restore_data(&self, member: usize, snapshot: &Path) {
        let member = &self.members[member];
        std::fs::remove_dir_all(&member.data).expect("its data");
        let mut command = command(&self.programs.join("etcdctl"));
        command.args(["snapshot", "restore"]).arg(snapshot).args(["--name", &member.name]);
        command.args(["--initial-cluster", &self.initial_cluster()]);
        command.args(["--initial-cluster-token", &self.token, "--initial-advertise-peer-urls"]);
        command.arg(format!("http://{}", member.advertised)).arg("--data-dir").arg(&member.data);
        let output = command.output().expect("etcdctl: run tests/setup.sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in &self.members {
                eprintln!("-- {} wrote last:\n{}", member.name, member.log());
            }
        }
    }
}

/// Whether this is what members say to a request while they elect a leader.
fn is_of_an_election(error: &str) -> bool {
    ["leader changed", "no leader", "request timed out"].iter().any(|text| error.contains(text))
}

/// Which member has the other end of a connection.
fn source(pids: &Pids) -> Source {
    let pids = Arc::clone(pids);
    Box::new(move |address| {
        let pids = pids.lock().expect("no panic").clone();
        let inode = inode_of(address)?;
        pids.iter().position(|pid| pid.is_some_and(|pid| has_socket(pid, &inode)))
    })
}

/// The socket with this local address, as `/proc/net/tcp` has it.
fn inode_of(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let host = u32::from_ne_bytes(address.ip().octets());
    let local = format!("{host:08X}:{:04X}", address.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut sockets = sockets.lines().map(words);
    sockets.find(|words| words.get(1) == Some(&local)).and_then(|words| words.get(9).cloned())
}

fn has_socket(pid: u32, inode: &str) -> bool {
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|it| it == socket))
}

/// Text that JSON has in base64.
fn from_base64(value: &Value) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    let (mut bits, mut length, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes() {
        let value = DIGITS.iter().position(|&it| it == digit).expect("base64");
        bits = (bits << 6) | u32::try_from(value).expect("six bits");
        length += 6;
        if length >= 8 {
            length -= 8;
            bytes.push((bits >> length & 0xff) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
