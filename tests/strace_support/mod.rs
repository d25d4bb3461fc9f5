//! System calls that fail as strace has them fail.

#![allow(dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Whether strace can trace here; else that is said.
pub fn is_there() -> bool {
    let tried = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    let is_there = tried.is_ok_and(|output| output.status.success());
    if !is_there {
        eprintln!("SKIPPED: strace is not installed, or may not trace");
    }
    is_there
}

/// The same command with faults, each as in `linkat:error=EPERM`.
pub fn with_faults(faults: &[String], command: &Command) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null"]);
    for fault in faults {
        strace.arg("-e").arg(format!("inject={fault}"));
    }
    strace.arg("--").arg(command.get_program()).args(command.get_args());
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = command.get_current_dir() {
        strace.current_dir(directory);
    }
    strace
}

/// A running process whose calls fail from now on, until this is dropped.
pub struct Faults(Child);

impl Faults {
    /// Which calls strace saw goes to the file `trace`.
    pub fn of(process: u32, trace: &std::path::Path, calls: &str, fault: &str) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-p", &process.to_string(), "-o"]).arg(trace);
        Self::begin(strace, calls, fault)
    }

    /// The thread of this name alone.
    pub fn of_thread(process: u32, name: &str, calls: &str, fault: &str) -> Self {
        let is_it = |thread: &std::fs::DirEntry| {
            let found = std::fs::read_to_string(thread.path().join("comm"));
            found.is_ok_and(|found| found.trim() == name)
        };
        // A list of threads may miss some while one of them ends.
        let look = || {
            let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
            threads.flatten().find(is_it)
        };
        let thread = (0..100).find_map(|_| look()).expect("such a thread").file_name();
        let mut strace = Command::new("strace");
        strace.arg("-p").arg(thread).args(["-o", "/dev/null"]);
        Self::begin(strace, calls, fault)
    }

    fn begin(mut strace: Command, calls: &str, fault: &str) -> Self {
        strace.arg("-e").arg(format!("trace={calls}"));
        strace.arg("-e").arg(format!("inject={calls}:{fault}"));
        let mut child = strace.stderr(Stdio::piped()).spawn().expect("strace");
        let mut said = BufReader::new(child.stderr.take().expect("what it says"));
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        assert!(line.contains("attached"), "{line:?}");
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self(child)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        // It lets the process go when it ends so.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"));
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
