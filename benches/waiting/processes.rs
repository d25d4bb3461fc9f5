//! Other processes: this program run again.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::net::unix::pipe;

/// Longer than anything here takes: whoever is silent for so long is broken.
const SILENCE: Duration = Duration::from_secs(60);

/// Marks the command line of another process of this program.
const MARK: &str = "--role";

/// What a process is to do.
pub(crate) struct Role {
    pub(crate) name: String,
    pub(crate) words: Vec<String>,
}

/// The role of this process, if it has one.
pub(crate) fn role() -> Option<Role> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == MARK).then_some(())?;
    Some(Role { name: arguments.next()?, words: arguments.collect() })
}

/// A process that ends with its owner.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn<'a>(
        role: &str,
        words: impl IntoIterator<Item = &'a str>,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args([MARK, role]).args(words).stdin(stdin).stdout(stdout);
        Process(command.spawn().expect("another process"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// SIGKILL, not waited for.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it runs");
    }

    pub(crate) fn wait(mut self) {
        self.0.wait().expect("it is a child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process says: its number, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) who: usize,
    pub(crate) time: u64,
}

/// One pipe for the reports of many processes.
pub(crate) struct Reports {
    reports: Receiver<Report>,
    end: OwnedFd,
}

impl Reports {
    pub(crate) fn new() -> Self {
        let (start, end) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let start = File::from(start);
        let (sender, reports) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(start).lines() {
                let line = line.expect("a line");
                let mut words = line.split(' ');
                let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
                let report = number().zip(number());
                let (who, time) = report.unwrap_or_else(|| panic!("no report: {line}"));
                if sender.send(Report { who: who as usize, time }).is_err() {
                    return;
                }
            }
        });
        Reports { reports, end }
    }

    /// Where a process is to write its reports.
    pub(crate) fn end(&self) -> Stdio {
        self.end.try_clone().expect("another descriptor").into()
    }

    pub(crate) fn next(&self) -> Report {
        self.reports.recv_timeout(SILENCE).expect("a process reports")
    }
}

/// What this process is told by its standard input: by events of its runtime, as
/// a service hears that its work is done. While it waits it does not listen, so
/// it also ends when whoever gives the orders does.
pub(crate) fn orders() -> pipe::Receiver {
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor");
    pipe::Receiver::from_owned_fd(stdin).expect("a pipe")
}

pub(crate) fn as_text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}
