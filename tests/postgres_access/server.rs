//! A real server on a free port, with its data in a directory of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

/// Which sessions are let in, and how.
const HBA: &str = "\
    local   all all                 trust\n\
    hostssl all client 127.0.0.1/32 cert\n\
    hostssl all secret 127.0.0.1/32 trust\n\
    hostnossl all plain 127.0.0.1/32 trust\n\
    host    all word   127.0.0.1/32 scram-sha-256\n\
    host    all old    127.0.0.1/32 md5\n\
    host    all postgres 127.0.0.1/32 trust\n";

pub(super) struct Server {
    pub(super) port: u16,
    directory: tempfile::TempDir,
    child: Child,
}

/// A server of another user than root, which does not run one. `None` where there is
/// none, which is printed.
pub(super) struct Builder {
    programs: PathBuf,
    directory: tempfile::TempDir,
    settings: Vec<String>,
}

fn programs() -> Option<PathBuf> {
    let all = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = all.map(|version| version.path().join("bin")).collect();
    all.retain(|programs| programs.join("initdb").exists());
    all.sort();
    if all.is_empty() {
        println!("skipped: PostgreSQL is not there: run tests/setup.sh");
    }
    all.pop()
}

/// As another user where this one is root, and ended with the thread that starts it.
fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]);
    if geteuid().is_root() {
        command.args(["--reuid", "nobody", "--clear-groups"]);
    }
    command.arg(program).stdin(Stdio::null()).current_dir("/");
    command
}

fn give(path: &Path) {
    if geteuid().is_root() {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        chown(path, Some(nobody.uid.as_raw()), None).unwrap();
    }
}

impl Builder {
    pub(super) fn new() -> Option<Self> {
        let programs = programs()?;
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give(directory.path());
        let data = directory.path().join("data");
        let mut initdb = command(&programs.join("initdb"));
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "--no-sync"]);
        let made = initdb.args(["-E", "UTF8", "--locale", "C"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let builder = Self { programs, directory, settings: Vec::new() };
        builder.write("data/pg_hba.conf", HBA.as_bytes());
        Some(builder)
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// A file that only the server can read.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.directory().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        give(&path);
    }

    /// With TLS, by this certificate.
    pub(super) fn with_tls(self, pair: &(PathBuf, PathBuf), ca: &Path) -> Self {
        let files = [("server.crt", pair.0.as_path()), ("server.key", &pair.1), ("ca.crt", ca)];
        for (name, from) in files {
            self.write(&format!("data/{name}"), &fs::read(from).unwrap());
        }
        self.set("ssl=on").set("ssl_ca_file=ca.crt")
    }

    pub(super) fn start(self) -> Server {
        // Until it listens another program may take its port.
        loop {
            let (port, deadline) = (free_port(), Instant::now() + Duration::from_secs(60));
            let mut child = self.spawn(port);
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "{}", log(self.directory()));
                match try_sql(self.directory(), port, "SELECT 1") {
                    Ok(_) => return Server { port, directory: self.directory, child },
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            }
            let said = log(self.directory());
            assert!(said.contains("Address already in use"), "{said}");
        }
    }

    fn spawn(&self, port: u16) -> Child {
        let mut postgres = command(&self.programs.join("postgres"));
        postgres.arg("-D").arg(self.directory().join("data"));
        postgres.arg("-k").arg(self.directory()).args(["-p", &port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=1MB"] {
            postgres.args(["-c", setting]);
        }
        postgres.args(self.settings.iter().flat_map(|setting| ["-c", setting]));
        let log = fs::File::create(self.directory().join("log")).unwrap();
        postgres.stderr(log.try_clone().unwrap()).stdout(log);
        postgres.spawn().unwrap()
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// By its socket, where each user is let in.
fn socket(directory: &Path, port: u16) -> String {
    format!("host={} port={port} sslmode=disable", directory.display())
}

fn log(directory: &Path) -> String {
    String::from_utf8_lossy(&fs::read(directory.join("log")).unwrap()).into_owned()
}

/// With psql, so that what is tested does not make its own conditions.
fn try_sql(directory: &Path, port: u16, statement: &str) -> Result<String, String> {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]);
    psql.arg(format!("{} user=postgres dbname=postgres", socket(directory, port)));
    let output = psql.stdin(Stdio::null()).output().expect("psql: run tests/setup.sh");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

impl Server {
    pub(super) fn start() -> Option<Self> {
        Some(Builder::new()?.start())
    }

    pub(super) fn socket(&self) -> String {
        socket(self.directory.path(), self.port)
    }

    pub(super) fn tcp(&self) -> String {
        format!("host=127.0.0.1 port={}", self.port)
    }

    pub(super) fn log(&self) -> String {
        log(self.directory.path())
    }

    pub(super) fn sql(&self, statement: &str) -> String {
        let done = try_sql(self.directory.path(), self.port, statement);
        done.unwrap_or_else(|said| panic!("{said}: {}", self.log()))
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // At once, with all its sessions.
        self.signal(Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}
