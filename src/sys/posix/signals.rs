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

use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Origin;
#[cfg(not(target_vendor = "apple"))]
use signal_hook::low_level::siginfo::Cause;
use tokio::net::UnixStream;
use tokio::process::Child;

#[cfg(target_vendor = "apple")]
use super::files;
use super::inherited::is_ignored;
use super::orphans;

/// For `run --help`.
pub(crate) const ABOUT: &str = "\
Signals:
  SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 that a process sends
  to lockkeeper are passed on to CMD; during the wait they end lockkeeper.
  CMD stays in the foreground of the terminal: Ctrl-C reaches it once. A signal
  to the whole process group reaches CMD twice. On macOS an interrupt that a
  process sends to lockkeeper in the foreground is taken for a Ctrl-C.
  Any other deadly signal ends lockkeeper and leaves the file to be taken over;
  CMD keeps the lock until it is gone too (but see --close and --pin never).
  What was ignored when lockkeeper started (nohup, trap '' PIPE) stays ignored,
  in lockkeeper and in CMD. As process 1 of a container lockkeeper waits for
  orphans, so that no zombies stay.";

const WATCHED: [i32; 6] = [SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2];

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) number: i32,
    /// The kernel sent it to the whole foreground group of the terminal.
    pub(crate) is_for_all: bool,
}

impl Arrived {
    fn new(origin: &Origin) -> Self {
        let number = origin.signal;
        // A hangup of the terminal is sent to the leader of the session alone.
        let is_for_group = number != SIGHUP || !leads_session();
        let is_for_all = is_from_kernel(origin) && is_for_group;
        Self { number, is_for_all }
    }

    /// Whether a daemon is to read its files again.
    #[cfg(feature = "lockd")]
    pub(crate) fn is_hangup(self) -> bool {
        self.number == SIGHUP
    }

    /// Whether a daemon is to end.
    #[cfg(feature = "lockd")]
    pub(crate) fn ends(self) -> bool {
        matches!(self.number, SIGTERM | SIGINT | SIGQUIT)
    }
}

#[cfg(not(target_vendor = "apple"))]
fn is_from_kernel(origin: &Origin) -> bool {
    origin.cause == Cause::Kernel
}

/// macOS names this process as the sender of every signal (xnu, `sendsig`). So an interrupt
/// of a process in the foreground of its terminal is taken for the terminal's.
#[cfg(target_vendor = "apple")]
fn is_from_kernel(origin: &Origin) -> bool {
    matches!(origin.signal, SIGINT | SIGQUIT) && is_in_foreground()
}

#[cfg(target_vendor = "apple")]
fn is_in_foreground() -> bool {
    let terminal = files::open(c"/dev/tty", files::OPEN_FLAGS, 0);
    let foreground = terminal.and_then(rustix::termios::tcgetpgrp);
    foreground == Ok(rustix::process::getpgrp())
}

/// The leader may be in another pid namespace, where its number is 0 from here.
fn leads_session() -> bool {
    nix::unistd::getsid(None) == Ok(nix::unistd::getpid())
}

/// Whether hangups are ignored, as under nohup.
#[cfg(feature = "lockd")]
pub(crate) fn hangups_are_ignored() -> bool {
    is_ignored(SIGHUP)
}

/// From its making on, a watched signal kills nothing; it is told here.
#[derive(Debug)]
pub(crate) struct Signals {
    delivery: SignalDelivery<UnixStream, WithOrigin>,
    arrived: VecDeque<Arrived>,
    /// The child that the runtime waits for.
    command: Option<Pid>,
}

impl Signals {
    pub(crate) fn watch() -> io::Result<Self> {
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
    pub(crate) fn spare(&mut self, command: &Child) {
        let pid = command.id().and_then(|pid| i32::try_from(pid).ok());
        self.command = pid.map(Pid::from_raw);
    }

    /// The next signal. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> Arrived {
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
    pub(crate) fn already(&mut self) -> Option<Arrived> {
        for origin in self.delivery.pending() {
            match origin.signal {
                SIGCHLD => orphans::reap(self.command),
                _ => self.arrived.push_back(Arrived::new(&origin)),
            }
        }
        self.arrived.pop_front()
    }
}
