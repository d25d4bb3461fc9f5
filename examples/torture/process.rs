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

    /// Whether every thread of it is past its last instruction: the kernel lets
    /// go of its files from then on, and may take seconds for the rest.
    pub fn is_gone(self) -> bool {
        let Some(stat) = Stat::of(self.pid) else {
            return true;
        };
        stat.started != self.started || stat.is_over || self.threads_are_exiting()
    }

    /// What the kernel says of it, for a report.
    pub fn describe(self) -> String {
        let stat = |path: String| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid));
        let threads = threads.into_iter().flatten().flatten();
        let stats = threads.map(|thread| stat(format!("{}/stat", thread.path().display())));
        stats.collect::<Vec<_>>().join("; ")
    }

    fn threads_are_exiting(self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return false;
        };
        let mut is_any = false;
        for thread in threads {
            // One that ended meanwhile may have made another before.
            let Ok(thread) = thread else { return false };
            let thread = format!("{}/task/{}", self.pid, thread.file_name().to_string_lossy());
            match Stat::of(thread) {
                Some(stat) if stat.is_exiting => is_any = true,
                _ => return false,
            }
        }
        is_any
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
    /// The last thread is a zombie; a first one can be while others still run.
    is_over: bool,
    /// `PF_EXITING` of linux/sched.h.
    is_exiting: bool,
    started: u64,
}

impl Stat {
    /// Of a process, or of `pid/task/tid`. `None` if there is none.
    fn of(which: impl fmt::Display) -> Option<Self> {
        let text = match fs::read(format!("/proc/{which}/stat")) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return None,
            Err(error) => panic!("/proc/{which}/stat: {error}"),
        };
        // The name, in parentheses, may contain anything; fields count from 3 after it.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let state = *fields.first()?.as_bytes().first()?;
        Some(Self {
            is_over: matches!(state, b'Z' | b'X' | b'x') && number(20)? <= 1,
            is_exiting: number(9)? & 0x4 != 0,
            started: number(22)?,
        })
    }
}
