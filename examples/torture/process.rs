//! Which process is which, and whether it still runs: by `/proc/<pid>/stat`.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::str::FromStr;

use nix::errno::Errno;

/// A process for ever: its id may be given to another, its start time not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

impl Identity {
    pub fn mine() -> Self {
        let pid = std::process::id();
        let stat = Stat::of(pid).expect("/proc tells of this process");
        Self { pid, started: stat.started }
    }

    /// Whether every thread of it is past its last instruction.
    pub fn is_gone(self) -> bool {
        let Some(stat) = Stat::of(self.pid) else {
            return true;
        };
        // A first thread can be a zombie while others still run.
        let is_dead = matches!(stat.state, b'Z' | b'X' | b'x') && stat.threads <= 1;
        stat.started != self.started || is_dead
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.pid, self.started)
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} names no process");
        let (pid, started) = text.split_once('.').ok_or_else(wrong)?;
        match (pid.parse(), started.parse()) {
            (Ok(pid), Ok(started)) => Ok(Self { pid, started }),
            _ => Err(wrong()),
        }
    }
}

struct Stat {
    state: u8,
    threads: u64,
    started: u64,
}

impl Stat {
    /// `None` if there is no such process.
    fn of(pid: u32) -> Option<Self> {
        let text = match fs::read(format!("/proc/{pid}/stat")) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return None,
            Err(error) => panic!("/proc/{pid}/stat: {error}"),
        };
        // The name, in parentheses, may contain anything; fields count from 3 after it.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            threads: number(20)?,
            started: number(22)?,
        })
    }
}
