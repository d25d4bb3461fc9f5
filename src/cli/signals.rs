//! The signals of this process, and who sent them.
//!
//! They are caught by handlers and not by a mask, because a mask would be
//! passed on to the command. A signal that was ignored when this process
//! started (`nohup`, a background job) stays ignored, here and in the command.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as StdStream;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Origin;
use signal_hook::low_level::siginfo::Cause;
use tokio::net::UnixStream;

const WATCHED: [i32; 6] = [SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2];

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) number: i32,
    /// The kernel sent it to the whole foreground group of the terminal.
    pub(super) is_for_all: bool,
}

impl Arrived {
    /// `None` for a child's change of state, which the runtime looks at.
    fn new(origin: &Origin) -> Option<Self> {
        let number = origin.signal;
        // A hangup of the terminal is sent to the leader of the session alone.
        let is_for_group = number != SIGHUP || !leads_session();
        let is_for_all = origin.cause == Cause::Kernel && is_for_group;
        (number != SIGCHLD).then_some(Self { number, is_for_all })
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
}

impl Signals {
    pub(super) fn watch() -> io::Result<Self> {
        let (read, write) = StdStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let read = UnixStream::from_std(read)?;
        let ignored = ignored_signals();
        let watched = WATCHED.into_iter().filter(|number| ignored >> (number - 1) & 1 == 0);
        // Were SIGCHLD ignored, the kernel would throw the command's status away.
        let watched = watched.chain([SIGCHLD]);
        let delivery = SignalDelivery::with_pipe(read, write, WithOrigin::default(), watched)?;
        Ok(Self { delivery, arrived: VecDeque::new() })
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

    /// A signal whose handler has already run.
    pub(super) fn already(&mut self) -> Option<Arrived> {
        let pending = self.delivery.pending();
        self.arrived.extend(pending.filter_map(|origin| Arrived::new(&origin)));
        self.arrived.pop_front()
    }
}

/// Signal n is bit n-1.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
