//! `etcdctl lock`, which runs a command with the lock. The wait is cancelled by ^C.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::etcd_support::Cluster;
use super::{Contender, Peer, State, TTL};
use crate::support::{eventually, on_tmpfs};

pub struct EtcdCtl;

impl Peer for EtcdCtl {
    fn name(&self) -> &'static str {
        "etcdctl lock"
    }

    fn rounds(&self) -> u32 {
        60
    }

    fn waits_in(&self) -> &'static str {
        "Watch"
    }

    fn ask(&self, cluster: &Cluster, lock: &str) -> Box<dyn Contender> {
        let home = on_tmpfs();
        let [held, released] = ["held", "released"].map(|name| home.path().join(name));
        let script = "echo >\"$0\"; while [ -e \"$0\" ] && ! [ -e \"$1\" ]; do sleep 0.02; done";
        let ttl = format!("--ttl={TTL}");
        let mut command = cluster.etcdctl_command(&["lock", &ttl, lock, "--", "sh", "-c", script]);
        command.arg(held).arg(released).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::piped()).spawn().expect("etcdctl");
        Box::new(Running { child, home, failed: None })
    }
}

struct Running {
    child: Child,
    /// Has a file `held` once the command runs, and `released` when it is to end.
    home: TempDir,
    failed: Option<String>,
}

impl Running {
    fn error(&mut self) -> String {
        let mut error = String::new();
        let _ = self.child.stderr.take().expect("asked once").read_to_string(&mut error);
        error.trim().lines().last().unwrap_or("no word").to_owned()
    }
}

impl Contender for Running {
    fn state(&mut self) -> State {
        if self.home.path().join("held").exists() {
            return State::Holds;
        }
        if self.failed.is_none() && self.child.try_wait().expect("its status").is_some() {
            self.failed = Some(self.error());
        }
        self.failed.clone().map_or(State::Waits, State::Failed)
    }

    fn cancel(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        let _ = kill(pid, Signal::SIGINT);
        // It may have been too late: then the command runs.
        eventually("it ends, or holds", || self.state() != State::Waits);
    }

    fn release(&mut self) {
        File::create(self.home.path().join("released")).expect("a file");
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
