//! The holder of a lock, and how that is known.

use std::fmt;
use std::panic::Location;
use std::time::SystemTime;

/// What is at a lock's path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The lock is free, and no file is there.
    Free,
    /// The lock is held, or that cannot be ruled out.
    Held(Holder),
    /// The lock is free; the file is what a dead or departed holder left.
    Stale(Holder),
}

/// The holder of a lock, or its last one.
///
/// Every field but the last two is what the lock file says;
/// a foreign file says little.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Process id, in the holder's own pid namespace.
    pub pid: Option<u32>,
    /// Name of the program: the file stem of its `argv[0]`. `lockkeeper run` gives the
    /// name of its command, and its own process id.
    pub name: Option<String>,
    /// Host name.
    pub host: Option<String>,
    /// When it acquired, by its own clock, in whole seconds.
    pub since: Option<SystemTime>,
    /// The line it wanted to be shown, see [`FileOptions::note`](crate::FileOptions::note).
    pub note: Option<String>,
    /// 32 hexadecimal digits that no other hold has. `None` for a foreign file.
    pub hold_id: Option<String>,
    /// Where this very process asked for the lock that it holds. `None` for
    /// every other holder.
    pub acquired_at: Option<&'static Location<'static>>,
    /// How we know that it is alive, or dead, or that we do not.
    pub evidence: Evidence,
}

/// How we know whether a holder is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// The kernel says that the file is kept locked: alive.
    KernelLock,
    /// The file is locked, but the process that it names is gone. Alive.
    ///
    /// A child that inherited the lock keeps it.
    Inherited,
    /// The recorded process runs: alive.
    ProcessRuns,
    /// A file of another program that changed less than two seconds ago.
    ///
    /// It counts as alive while it is watched.
    Young,
    /// It cannot be known from here, for the reason given; it counts as alive.
    Unknown(String),
    /// The kernel lock is free: dead.
    KernelLockFree,
    /// The recorded process does not run any more, for the reason given: dead.
    ProcessGone(String),
    /// The holder gave the lock up but could not remove the file.
    Released,
    /// The file names no holder, and no process keeps it locked.
    NobodyNamed,
    /// The server has ended the holder's lease: dead, or out of reach.
    ///
    /// The holder died, or could not reach the server for as long as the lease lasted.
    LeaseOver,
    /// The server that keeps the lock says that it is held: alive, as far as its lease goes.
    Server,
}

impl Evidence {
    /// Whether the lock counts as held: the holder is known to be alive, or not known to
    /// be gone.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match self {
            Evidence::KernelLock
            | Evidence::Inherited
            | Evidence::ProcessRuns
            | Evidence::Young
            | Evidence::Unknown(_)
            | Evidence::Server => true,
            Evidence::KernelLockFree
            | Evidence::ProcessGone(_)
            | Evidence::Released
            | Evidence::LeaseOver
            | Evidence::NobodyNamed => false,
        }
    }
}

impl Holder {
    /// Whether the file was written by another program than this crate.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.hold_id.is_none()
    }

    /// The time as people read it. `None` also for one that no calendar shows: it may
    /// come from a server.
    pub(crate) fn shown_since(&self) -> Option<String> {
        /// The last second of the year 9999.
        const LAST: u64 = 253_402_300_799;
        let since = self.since?;
        let seconds = since.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        (seconds <= LAST).then(|| humantime::format_rfc3339_seconds(since).to_string())
    }

    pub(crate) fn nobody(evidence: Evidence) -> Self {
        let (pid, name, host, since, note, hold_id) = (None, None, None, None, None, None);
        Self { pid, name, host, since, note, hold_id, acquired_at: None, evidence }
    }
}

/// As in `worker (pid 4242 on db-1) since 2026-11-21T04:30:00Z: nightly import`.
impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().filter(|name| !name.is_empty());
        match (name, self.pid) {
            (name, Some(pid)) => {
                write!(out, "{} (pid {pid}", name.unwrap_or("a process"))?;
                if let Some(host) = &self.host {
                    write!(out, " on {host}")?;
                }
                out.write_str(")")?;
            }
            (Some(name), None) => out.write_str(name)?,
            (None, None) => return out.write_str("an unnamed holder"),
        }
        if let Some(since) = self.shown_since() {
            write!(out, " since {since}")?;
        }
        if let Some(note) = &self.note {
            write!(out, ": {note}")?;
        }
        if let Some(place) = self.acquired_at {
            write!(out, ", asked for at {place}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Evidence::KernelLock => "it keeps the file locked",
            Evidence::Inherited => "its process is gone, but a child keeps the file locked",
            Evidence::ProcessRuns => "its process runs",
            Evidence::Young => "the file changed a moment ago",
            Evidence::Unknown(why) => return write!(out, "cannot be known from here: {why}"),
            Evidence::KernelLockFree => "no process keeps the file locked",
            Evidence::ProcessGone(why) => return write!(out, "its process is gone: {why}"),
            Evidence::Released => "it was released, but the file could not be removed",
            Evidence::NobodyNamed => "the file names no holder, and no process keeps it locked",
            Evidence::LeaseOver => "its lease has ended",
            Evidence::Server => "its server says so",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_that_no_calendar_shows_is_left_out() {
        let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        for (since, is_shown) in [(at(0), true), (at(253_402_300_800), false), (None, false)] {
            let holder = Holder { pid: Some(7), since, ..Holder::nobody(Evidence::Server) };
            assert_eq!(holder.to_string().contains("since"), is_shown, "{holder}");
        }
    }
}
