//! The signals of this process, and their senders.
//!
//! They are caught by handlers and not by a mask, because a mask would be
//! passed on to the command. A signal that was ignored when this process
//! started (`nohup`, a background job) stays ignored, here and in the command.
//!
//! SIGCHLD is watched as well. The children of this process other than CMD are
//! orphans: process 1 of a container gets all of that container, and a shell that
//! replaced itself by `exec` leaves its own. Their parent must wait for them, or
//! they stay as zombies.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as StdStream;

use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use rustix::process::{Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Origin;
use signal_hook::low_level::siginfo::Cause;
use tokio::net::UnixStream;
use tokio::process::Child;

use super::inherited::is_ignored;
use super::text::tell;

const WATCHED: [i32; 6] = [SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2];

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) number: i32,
    /// The kernel sent it to the whole foreground group of the terminal.
    pub(super) is_for_all: bool,
}

impl Arrived {
    fn new(origin: &Origin) -> Self {
        let number = origin.signal;
        // A hangup of the terminal is sent to the leader of the session alone.
        let is_for_group = number != SIGHUP || !leads_session();
        let is_for_all = origin.cause == Cause::Kernel && is_for_group;
        Self { number, is_for_all }
    }
}

/// The leader may be in another pid namespace, where its number is 0 from here.
fn leads_session() -> bool {
    nix::unistd::getsid(None) == Ok(nix::unistd::getpid())
}

/// From its making on, a watched signal kills nothing; it is told here.
#[derive(Debug)]
pub(super) struct Signals {
    delivery: SignalDelivery<UnixStream, WithOrigin>,
    arrived: VecDeque<Arrived>,
    /// The child that the runtime waits for.
    command: Option<Pid>,
}

impl Signals {
    pub(super) fn watch() -> io::Result<Self> {
        let (read, write) = StdStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let read = UnixStream::from_std(read)?;
        let watched = WATCHED.into_iter().filter(|number| !is_ignored(*number));
        // Were SIGCHLD ignored, the kernel would throw the command's status away.
        let watched = watched.chain([SIGCHLD]);
        let delivery = SignalDelivery::with_pipe(read, write, WithOrigin::default(), watched)?;
        Ok(Self { delivery, arrived: VecDeque::new(), command: None })
    }

    /// Leave this child's end to the runtime.
    pub(super) fn spare(&mut self, command: &Child) {
        let pid = command.id().and_then(|pid| i32::try_from(pid).ok());
        self.command = pid.map(Pid::from_raw);
    }

    /// The next signal. Dropping the future loses none.
    pub(super) async fn next(&mut self) -> Arrived {
        loop {
            if let Some(arrived) = self.already() {
                return arrived;
            }
            let _ = self.delivery.get_read().readable().await;
            // The runtime believes it readable until it says otherwise.
            let mut wakes = [0; 64];
            while self.delivery.get_read().try_read(&mut wakes).is_ok_and(|count| count > 0) {}
        }
    }

    /// A signal after its handler has run.
    pub(super) fn already(&mut self) -> Option<Arrived> {
        for origin in self.delivery.pending() {
            match origin.signal {
                SIGCHLD => reap_orphans(self.command),
                _ => self.arrived.push_back(Arrived::new(&origin)),
            }
        }
        self.arrived.pop_front()
    }
}

/// Wait for the children that have ended, but for CMD: its status stays for the
/// runtime. One look may show CMD before others that have ended too. They need no
/// further look, as this process ends with CMD.
fn reap_orphans(command: Option<Pid>) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(Some(ended)) = waitid(Id::All, look).map(|status| status.pid()) {
        if command == Some(ended) {
            return;
        }
        let _ = waitpid(ended, Some(WaitPidFlag::WNOHANG));
    }
}

/// The number of a command that is gone is not used: `id` knows that.
pub(super) fn send(command: &Child, number: i32) {
    let pid = command
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw);
    let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) else {
        return;
    };
    if let Err(error) = kill_process(pid, signal) {
        tell(format_args!("signal {number} could not be passed on to CMD: {error}"));
    }
}
