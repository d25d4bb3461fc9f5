//! A server, what can be done to it, and its standby.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::Config;

use super::home::{Home, give};
use super::programs::programs;
use super::session::{Rows, Session};
use super::template;
use crate::server_support::{Certificates, Claim, Proxy};
use crate::support::eventually;

/// An ordinary role that every server has, and its password.
pub const ROLE: &str = "app";
pub const PASSWORD: &str = "secret of app";

/// How clients reach a server over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Without TLS.
    Off,
    /// With TLS alone.
    Server,
    /// With TLS and a certificate of their own, besides the password.
    Mutual,
}

/// Whether commits of the primary wait for the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    Asynchronous,
    Synchronous,
}

/// PostgreSQL's own words for the ways to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are ended, and all is stored.
    Fast,
    /// Sessions are ended, and the next start recovers as after a crash.
    Immediate,
}

/// What a server is to be.
#[derive(Clone)]
pub struct Builder {
    tls: Tls,
    own_identifier: bool,
    is_on_disk: bool,
    settings: Vec<(String, String)>,
}

impl Builder {
    pub fn tls(self, tls: Tls) -> Self {
        Self { tls, ..self }
    }

    /// PostgreSQL keeps three of them for superusers.
    pub fn max_connections(self, connections: u16) -> Self {
        self.set("max_connections", &connections.to_string())
    }

    /// A line of `postgresql.conf`. `fsync` is on unless it is set here.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A system identifier that no other server has. It costs a second.
    pub fn own_identifier(self) -> Self {
        Self { own_identifier: true, ..self }
    }

    /// On the file system of the build directory, where a commit costs what it costs.
    pub fn on_disk(self) -> Self {
        Self { is_on_disk: true, ..self }
    }

    /// Starts it, and waits until it answers.
    #[track_caller]
    pub fn start(self) -> Server {
        Server::new(self)
    }
}

/// The address that a server shares with its standby and its proxies, so that one certificate
/// is for all of them.
struct Address {
    claim: Claim,
    taken: AtomicU16,
}

impl Address {
    fn next(&self) -> SocketAddr {
        self.claim.at(self.taken.fetch_add(1, Ordering::SeqCst))
    }
}

/// A server on an address of loopback that no other test has. It ends with this, or with the
/// process of the test, whatever it was made to do. A test that fails prints what the server
/// wrote last.
pub struct Server {
    postmaster: Option<Child>,
    address: SocketAddr,
    shared: Arc<Address>,
    certificates: Certificates,
    tls: Tls,
    home: Home,
}

impl Server {
    /// With the settings that PostgreSQL has by itself.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> Builder {
        Builder { tls: Tls::Off, own_identifier: false, is_on_disk: false, settings: Vec::new() }
    }

    #[track_caller]
    fn new(builder: Builder) -> Self {
        let home = if builder.is_on_disk { Home::on_disk() } else { Home::new() };
        if builder.own_identifier {
            template::make(&home)
        } else {
            template::copy(&home)
        }
        let file = home.path().join("data/postgresql.conf");
        let mut file = File::options().append(true).open(file).expect("its settings");
        for (name, value) in &builder.settings {
            writeln!(file, "{name} = '{value}'").expect("a setting");
        }
        let shared = Arc::new(Address { claim: Claim::new(), taken: AtomicU16::new(0) });
        let certificates = match builder.tls {
            Tls::Off => Certificates::paths(home.path()),
            Tls::Server | Tls::Mutual => {
                let address = shared.claim.address;
                let made = Certificates::make(home.path(), address, "postgres.test");
                // PostgreSQL takes no key that others may read.
                [&made.server, &made.server_key, &made.ca].into_iter().for_each(|file| give(file));
                made
            }
        };
        let address = shared.next();
        Self::run(home, address, shared, certificates, builder.tls)
    }

    /// Starts what is in the home's `data`.
    #[track_caller]
    fn run(
        home: Home,
        address: SocketAddr,
        shared: Arc<Address>,
        certificates: Certificates,
        tls: Tls,
    ) -> Self {
        home.write("data/pg_hba.conf", &access(tls));
        let mut server = Self { postmaster: None, address, shared, certificates, tls, home };
        server.start_again();
        server
    }

    fn postgres(&self) -> Command {
        let mut command = self.home.command("data", &programs().postgres("postgres"));
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        set("listen_addresses", &self.address.ip().to_string());
        set("port", &self.address.port().to_string());
        set("unix_socket_directories", self.sockets().to_str().expect("a path"));
        // Else files of a server that was killed stay in /dev/shm.
        set("dynamic_shared_memory_type", "mmap");
        // Its library is large, and not unpacked.
        set("jit", "off");
        if self.tls != Tls::Off {
            set("ssl", "on");
            set("ssl_cert_file", self.certificates.server.to_str().expect("a path"));
            set("ssl_key_file", self.certificates.server_key.to_str().expect("a path"));
            set("ssl_ca_file", self.certificates.ca.to_str().expect("a path"));
        }
        command.args(["-D", "."]);
        command
    }

    /// Starts a server that was killed or shut down, with what it stored, and waits until it
    /// answers.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.postmaster.is_none(), "the server runs");
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log");
        let mut command = self.postgres();
        command.stdout(log.try_clone().expect("a copy")).stderr(log);
        self.postmaster = Some(command.spawn().expect("postgres"));
        eventually("the server answers", || {
            let postmaster = self.postmaster.as_mut().expect("started");
            let ended = postmaster.try_wait().expect("its status");
            assert!(ended.is_none(), "the server ended: {ended:?}\n{}", self.log());
            self.try_sql("select 1").is_ok()
        });
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The directory of its Unix socket.
    pub fn sockets(&self) -> &Path {
        self.home.path()
    }

    /// The files for TLS. The server's name is `postgres.test`.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// How [`ROLE`] connects over TCP.
    pub fn config(&self) -> Config {
        self.config_of(ROLE, PASSWORD)
    }

    pub fn config_of(&self, role: &str, password: &str) -> Config {
        config(self.address, role, password)
    }

    /// How [`ROLE`] connects through a proxy.
    pub fn config_through(&self, proxy: &Proxy) -> Config {
        config(proxy.address(), ROLE, PASSWORD)
    }

    /// A session of [`ROLE`].
    #[track_caller]
    pub fn session(&self) -> Session {
        Session::open(&self.config()).unwrap_or_else(|error| panic!("a session: {error:?}"))
    }

    /// A way for clients to it. Its certificate is for that address too.
    pub fn proxy(&self) -> Proxy {
        Proxy::between(self.shared.next(), self.address, Box::new(|_| Some(0)))
    }

    /// What the superuser gets, in a new session over the Unix socket; it must succeed.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> Rows {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The one value that the superuser gets.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        self.superuser().expect("a session").value(sql)
    }

    pub fn try_sql(&self, sql: &str) -> Result<Rows, tokio_postgres::Error> {
        self.superuser()?.query(sql)
    }

    /// A session of the superuser over the Unix socket.
    pub fn superuser(&self) -> Result<Session, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host_path(self.sockets()).port(self.address.port());
        Session::open(config.user("postgres").dbname("postgres"))
    }

    /// Waits until the superuser gets this value.
    #[track_caller]
    pub fn wait_for(&self, sql: &str, value: &str) {
        let mut last = None;
        let session = self.superuser().expect("a session");
        eventually(&format!("{sql}: {value}"), || {
            last = Some(session.value(sql));
            last.as_deref() == Some(value)
        });
    }

    /// One more ordinary role, with a password.
    #[track_caller]
    pub fn create_role(&self, role: &str, password: &str) {
        self.sql(&format!("create role {role} login password '{password}'"));
    }

    /// The processes that serve sessions of this role.
    #[track_caller]
    pub fn backends_of(&self, role: &str) -> Vec<u32> {
        let sql = format!("select pid from pg_stat_activity where usename = '{role}' order by 1");
        self.sql(&sql).iter().map(|row| row[0].parse().expect("a process id")).collect()
    }

    /// The process of one kind that there is once, as soon as there is one: `walwriter`,
    /// `checkpointer`, `walsender`.
    #[track_caller]
    pub fn process(&self, kind: &str) -> u32 {
        let sql = format!("select pid from pg_stat_activity where backend_type = '{kind}'");
        let (session, mut found) = (self.superuser().expect("a session"), Vec::new());
        eventually(&format!("there is a {kind}"), || {
            found = session.query(&sql).expect("rows");
            found.len() == 1
        });
        found[0][0].parse().expect("a process id")
    }

    /// Sends a signal to one of its processes; waits until it has stopped, or is gone.
    #[track_caller]
    pub fn signal(&self, pid: u32, signal: Signal) {
        assert!(self.process_ids().contains(&pid), "{pid} is none of its processes");
        send(pid, signal);
        match signal {
            Signal::SIGSTOP => {
                eventually("it stops", || !matches!(state(pid), Some('R' | 'S' | 'D')))
            }
            Signal::SIGKILL => eventually("it is gone", || !self.process_ids().contains(&pid)),
            _ => {}
        }
    }

    /// The postmaster, and all that it started.
    pub fn process_ids(&self) -> Vec<u32> {
        let data = self.home.path().join("data");
        let is_here = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| directory == data)
        };
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_here).collect()
    }

    fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("the server was killed").id()
    }

    /// SIGSTOP of all its processes: it is as a machine that does not run.
    #[track_caller]
    pub fn stop(&self) {
        // The postmaster first, which starts others.
        self.signal(self.pid(), Signal::SIGSTOP);
        // One that ends meanwhile needs no signal.
        self.process_ids().into_iter().for_each(|pid| send(pid, Signal::SIGSTOP));
    }

    /// The end of [`Server::stop`].
    pub fn resume(&self) {
        self.process_ids().into_iter().for_each(|pid| send(pid, Signal::SIGCONT));
    }

    /// SIGKILL of all its processes; waits until they are gone. It is as a machine that lost
    /// its power, but for files that were written and not yet stored.
    pub fn kill(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else { return };
        // It must not see that the others die.
        send(postmaster.id(), Signal::SIGSTOP);
        eventually("its processes are gone", || {
            let left = self.process_ids();
            left.iter().for_each(|&pid| send(pid, Signal::SIGKILL));
            left.is_empty()
        });
        let _ = postmaster.wait();
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn shut_down(&mut self, how: Shutdown) {
        let signal = match how {
            Shutdown::Fast => Signal::SIGINT,
            Shutdown::Immediate => Signal::SIGQUIT,
        };
        let mut postmaster = self.postmaster.take().expect("the server was killed");
        send(postmaster.id(), signal);
        eventually("it shuts down", || postmaster.try_wait().expect("its status").is_some());
    }

    /// As an administrator does: a fast shutdown, and a start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.shut_down(Shutdown::Fast);
        self.start_again();
    }

    /// A standby that has connected: a hot one, which answers reads. Its settings are those of
    /// this server. There may be several, one of them synchronous.
    #[track_caller]
    pub fn standby(&self, replication: Replication) -> Server {
        let (home, address) = (Home::new(), self.shared.next());
        let name = format!("standby_{}", address.port());
        let (sockets, port) = (self.sockets().display(), self.address.port());
        let primary = format!("host={sockets} port={port} user=postgres application_name={name}");
        let how = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--pgdata=."];
        home.run("data", "pg_basebackup", &[&["--dbname", &primary][..], &how].concat());
        let (shared, files) = (Arc::clone(&self.shared), self.certificates.clone());
        let standby = Self::run(home, address, shared, files, self.tls);
        if replication == Replication::Synchronous {
            self.sql("alter system set synchronous_standby_names = '*'");
            self.sql("select pg_reload_conf()");
        }
        let state = match replication {
            Replication::Asynchronous => "streaming async",
            Replication::Synchronous => "streaming sync",
        };
        let of = format!("from pg_stat_replication where application_name = '{name}'");
        self.wait_for(&format!("select string_agg(state || ' ' || sync_state, ', ') {of}"), state);
        standby
    }

    /// Makes a standby a primary. The old one is not told.
    #[track_caller]
    pub fn promote(&self) {
        assert_eq!(self.value("select pg_promote()"), "t");
    }

    /// Waits until this standby has all that its primary has stored.
    #[track_caller]
    pub fn catch_up_with(&self, primary: &Server) {
        let stored = primary.value("select pg_current_wal_flush_lsn()");
        self.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{stored}'::pg_lsn"), "t");
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// All that it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("-- the server at {} wrote last:\n{last}", self.address);
        }
        self.kill();
    }
}

/// How a role connects over TCP without TLS.
pub(super) fn config(address: SocketAddr, role: &str, password: &str) -> Config {
    let mut config = Config::new();
    config.host(address.ip().to_string()).port(address.port());
    config.user(role).password(password).dbname("postgres");
    config
}

/// `pg_hba.conf`: the superuser comes by the Unix socket alone, where it needs no password.
fn access(tls: Tls) -> String {
    let (kind, more) = match tls {
        Tls::Off => ("host", ""),
        Tls::Server => ("hostssl", ""),
        Tls::Mutual => ("hostssl", " clientcert=verify-ca"),
    };
    format!(
        "local all postgres trust\nlocal replication postgres trust\nlocal all all scram-sha-256\n\
         {kind} all all 127.0.0.0/8 scram-sha-256{more}\n"
    )
}

/// One that is gone needs no signal.
fn send(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), signal);
}

/// As `/proc` has it; `None` if it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}
