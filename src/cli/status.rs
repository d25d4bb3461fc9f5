//! `lockkeeper status`: who has a lock, and how we know.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::exit::{self, Failure, message_of};
use super::text::{print, printable, tell};
use super::{Show, runtime};
use crate::{AsyncFileLock, AsyncKernelLock, Error, Holder, Status};

pub(super) fn status(arguments: &Show) -> Result<u8, Failure> {
    let runtime = runtime()?;
    let look = |path: &PathBuf| match arguments.kernel {
        None => {
            let lock = AsyncFileLock::new(path);
            let (path, answer) = (lock.path().to_owned(), runtime.block_on(lock.status()));
            Report { path, answer, is_lock_file: true }
        }
        Some(kind) => {
            let lock = AsyncKernelLock::with_options(path, kind.options());
            let lock = lock.expect("BUG: impossible options");
            let (path, answer) = (lock.path().to_owned(), runtime.block_on(lock.status()));
            Report { path, answer, is_lock_file: false }
        }
    };
    let reports: Vec<Report> = arguments.locks.iter().map(look).collect();
    if arguments.json {
        let objects = reports.iter().map(Report::json).collect();
        print(Value::Array(objects));
    } else {
        reports.iter().for_each(Report::print);
    }
    Ok(worst(&reports))
}

/// An answer that could not be had outweighs every answer that was.
fn worst(reports: &[Report]) -> u8 {
    const FROM_WORST: [u8; 4] = [exit::SYSTEM, exit::USAGE, exit::NOT_A_LOCK_FILE, exit::HELD];
    let is_there = |code: &u8| reports.iter().any(|report| report.code() == *code);
    FROM_WORST.into_iter().find(is_there).unwrap_or(0)
}

struct Report {
    /// Absolute where that could be made.
    path: PathBuf,
    answer: Result<Status, Error>,
    /// And not a file with a lock of the kernel's, which says nothing itself.
    is_lock_file: bool,
}

impl Report {
    fn code(&self) -> u8 {
        match &self.answer {
            Ok(Status::Held(_)) => exit::HELD,
            Ok(Status::Free | Status::Stale(_)) => 0,
            Err(Error::BadPath { .. }) => exit::USAGE,
            Err(Error::NotALockFile { .. }) => exit::NOT_A_LOCK_FILE,
            Err(_) => exit::SYSTEM,
        }
    }

    fn print(&self) {
        let path = self.path.display();
        let line = match &self.answer {
            Ok(Status::Free) => format!("{path}: free"),
            Ok(Status::Held(holder)) => format!("{path}: held by {}", self.known(holder)),
            Ok(Status::Stale(holder)) => format!("{path}: stale, left by {}", self.known(holder)),
            Err(Error::NotALockFile { found, .. }) => format!("{path}: not a lock file: {found}"),
            Err(error) => return tell(message_of(error)),
        };
        print(printable(line));
    }

    fn json(&self) -> Value {
        let holder = match &self.answer {
            Ok(Status::Held(holder) | Status::Stale(holder)) => Some(holder),
            _ => None,
        };
        let since = holder.and_then(|holder| holder.since);
        json!({
            "path": self.path.to_string_lossy(),
            "state": self.state(),
            "foreign": holder.filter(|_| self.is_lock_file).map(Holder::is_foreign),
            "pid": holder.and_then(|holder| holder.pid),
            "name": holder.and_then(|holder| holder.name.as_deref()),
            "host": holder.and_then(|holder| holder.host.as_deref()),
            "since": since.map(|since| humantime::format_rfc3339_seconds(since).to_string()),
            "note": holder.and_then(|holder| holder.note.as_deref()),
            "token": holder.and_then(|holder| holder.token.as_deref()),
            "evidence": holder.map(|holder| holder.evidence.to_string()),
            "error": self.answer.as_ref().err().map(message_of),
        })
    }

    fn state(&self) -> &'static str {
        match &self.answer {
            Ok(Status::Free) => "free",
            Ok(Status::Held(_)) => "held",
            Ok(Status::Stale(_)) => "stale",
            Err(Error::NotALockFile { .. }) => "not-a-lock-file",
            Err(_) => "error",
        }
    }

    fn known(&self, holder: &Holder) -> String {
        let is_foreign = self.is_lock_file && holder.is_foreign();
        let origin = if is_foreign { "foreign file; " } else { "" };
        format!("{holder} ({origin}{})", holder.evidence)
    }
}
