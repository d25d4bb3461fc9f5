//! A member of a cluster: one process of etcd.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};

use rustix::process::{Pid, Signal, kill_process};

use super::command;
use crate::support::eventually;

pub struct Member {
    pub name: String,
    /// Where clients reach it.
    pub client: SocketAddr,
    /// Where it listens for its peers.
    pub peer: SocketAddr,
    /// Where its peers are told to reach it.
    pub advertised: SocketAddr,
    /// Where it tells its metrics, without TLS.
    pub metrics: SocketAddr,
    pub data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    is_stopped: bool,
}

impl Member {
    pub fn new(name: String, home: &Path, addresses: [SocketAddr; 4]) -> Self {
        let [client, peer, advertised, metrics] = addresses;
        let (data, log) = (home.join(&name), home.join(format!("{name}.log")));
        Self { name, client, peer, advertised, metrics, data, log, child: None, is_stopped: false }
    }

    /// Starts its process.
    pub fn start(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "{} runs", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a copy")).stderr(log);
        self.child = Some(start_with_us(command).expect("etcd"));
    }

    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Neither killed nor stopped.
    pub fn is_running(&self) -> bool {
        self.child.is_some() && !self.is_stopped
    }

    #[track_caller]
    pub fn expect_running(&mut self) {
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{} was killed", self.name));
        let status = child.try_wait().expect("its status");
        assert!(status.is_none(), "{} ended: {status:?}\n{}", self.name, self.log());
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.is_stopped = false;
    }

    /// SIGSTOP, and wait until it has stopped.
    pub fn stop(&mut self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.id().expect("it runs"));
        eventually("it stops", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        self.is_stopped = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
        self.is_stopped = false;
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} was killed", self.name));
        kill_process(Pid::from_child(child), signal).expect("it can be signalled");
    }

    /// The end of what it wrote.
    pub fn log(&self) -> String {
        let log =
            String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a command of [`killed_with_us`].
/// The kernel takes the *thread* that started the program for its parent, and a test's
/// thread ends before the process: one thread that stays starts all.
fn start_with_us(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (sender, started) = mpsc::channel();
    starter.lock().expect("no panic").send((command, sender)).expect("a thread");
    started.recv().expect("a thread")
}

/// The command that the kernel kills when this process ends, however that happens.
pub fn killed_with_us(program: &Path) -> Command {
    let mut command = command(Path::new("setpriv"));
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
