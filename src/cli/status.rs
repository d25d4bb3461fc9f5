//! `lockkeeper status`: the holder of a lock, and how that is known.

use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use futures_core::Stream;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::exit::{self, Failure, message_of};
use super::named::{self, Shown};
use super::text::{Colour, has_colours, painted, print, printable, tell};
use super::{Show, runtime};
use crate::lock::name::LockName;
use crate::sys::signals::Signals;
use crate::sys::standard_output::end_of_reader;
use crate::{AsyncFileLock, Error, Holder, Lock, Status};

/// So many locks are asked at a time. If larger, a long list opens more connections.
const AT_A_TIME: usize = 32;

pub(super) fn status(arguments: &Show) -> Result<u8, Failure> {
    if arguments.watch {
        return watch(arguments);
    }
    let reports = runtime()?.block_on(ask_all(named::of_status(arguments)?));
    if arguments.json {
        let objects = reports.iter().map(Report::json).collect();
        print(Value::Array(objects));
    } else {
        let names = reports.iter().map(|report| report.label().chars().count());
        let look = Look { width: names.max().unwrap_or(0), has_colours: has_colours() };
        reports.iter().for_each(|report| report.print(look));
    }
    Ok(worst(&reports))
}

/// How a line is laid out.
#[derive(Clone, Copy)]
struct Look {
    /// Of the longest name, so that states stand below one another.
    width: usize,
    has_colours: bool,
}

/// Together: a server that does not answer is waited for once, and not once for each.
async fn ask_all(locks: Vec<Shown>) -> Vec<Report> {
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    let asked: Vec<_> = locks
        .into_iter()
        .map(|lock| {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move {
                let _turn = turns.acquire().await.expect("BUG: the semaphore was closed");
                Report::of(lock).await
            })
        })
        .collect();
    let mut reports = Vec::with_capacity(asked.len());
    for report in asked {
        reports.push(report.await.expect("BUG: a look at a lock panicked"));
    }
    reports
}

/// An answer that could not be had outweighs every answer that was.
fn worst(reports: &[Report]) -> u8 {
    const FROM_WORST: [u8; 4] = [exit::SYSTEM, exit::USAGE, exit::NOT_A_LOCK_FILE, exit::HELD];
    let is_there = |code: &u8| reports.iter().any(|report| report.code() == *code);
    FROM_WORST.into_iter().find(is_there).unwrap_or(0)
}

/// Until a signal comes or the reader is gone.
fn watch(arguments: &Show) -> Result<u8, Failure> {
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let signals = Signals::watch();
    let mut signals = signals.map_err(|error| Failure::system("watching for signals", &error))?;
    let locks = arguments.locks.iter().map(|name| named::lock_file(name));
    let (locks, is_json) = (locks.collect::<Result<Vec<_>, _>>()?, arguments.json);
    let (ended, end) = oneshot::channel();
    // A write lasts as long as its reader takes. Then a signal has to be heard all the same.
    let printing = move || ended.send(print_changes(locks, is_json));
    let thread = thread::Builder::new().spawn(printing);
    thread.map_err(|error| Failure::system("starting a thread", &error))?;
    runtime.block_on(async {
        tokio::select! {
            biased;
            _ = signals.next() => Ok(0),
            () = end_of_reader() => Ok(0),
            ended = end => ended.expect("BUG: the thread that prints is gone"),
        }
    })
}

/// Until no lock is left that can be watched, or the reader is gone.
fn print_changes(locks: Vec<AsyncFileLock>, is_json: bool) -> Result<u8, Failure> {
    runtime()?.block_on(async {
        let mut watching = JoinSet::new();
        for lock in locks {
            watching.spawn(print_changes_of(lock, is_json));
        }
        while let Some(ended) = watching.join_next().await {
            if ended.expect("BUG: a watcher panicked").is_err() {
                return Ok(0);
            }
        }
        Ok(exit::USAGE)
    })
}

/// Until its path turns out to be none of a lock. An error is one of writing.
async fn print_changes_of(lock: AsyncFileLock, is_json: bool) -> io::Result<()> {
    let mut changes = lock.watch();
    let look = Look { width: 0, has_colours: has_colours() };
    while let Some(answer) = poll_fn(|context| Pin::new(&mut changes).poll_next(context)).await {
        let report = Report::new(lock.path().into(), answer, true);
        let line = if is_json { Ok(report.json().to_string()) } else { report.line(look) };
        match line {
            Ok(line) => writeln!(io::stdout(), "{line}")?,
            Err(message) => tell(message),
        }
    }
    Ok(())
}

struct Report {
    /// A path is absolute where that could be made.
    name: LockName,
    answer: Result<Status, Error>,
    /// And not a file with a lock of the kernel's, which says nothing itself.
    is_lock_file: bool,
    /// The holder's, where etcd keeps the lock.
    lease: Option<i64>,
    /// The server's process of the holder's session, where PostgreSQL keeps the lock.
    session: Option<i32>,
    /// In their order, where they are known.
    waiters: Option<Vec<Holder>>,
}

impl Report {
    fn new(name: LockName, answer: Result<Status, Error>, is_lock_file: bool) -> Self {
        Self { name, answer, is_lock_file, lease: None, session: None, waiters: None }
    }

    async fn of(lock: Shown) -> Self {
        match lock {
            Shown::LockFile(lock) => Self::new(lock.name(), lock.status().await, true),
            Shown::Other(lock) => Self::new(lock.name(), lock.status().await, false),
            #[cfg(feature = "etcd")]
            Shown::Etcd(lock) => match lock.queue().await {
                Ok(queue) => Self {
                    lease: queue.lease,
                    waiters: Some(queue.waiters),
                    ..Self::new(lock.name(), Ok(queue.status), false)
                },
                Err(error) => Self::new(lock.name(), Err(error), false),
            },
            #[cfg(feature = "postgres")]
            Shown::Postgres(lock) => match lock.queue().await {
                Ok(mut queue) => Self {
                    session: queue.pids.first().copied(),
                    waiters: Some(std::mem::take(&mut queue.waiters)),
                    ..Self::new(lock.name(), Ok(queue.status()), false)
                },
                Err(error) => Self::new(lock.name(), Err(error), false),
            },
        }
    }

    fn code(&self) -> u8 {
        match &self.answer {
            Ok(Status::Held(_)) => exit::HELD,
            Ok(Status::Free | Status::Stale(_)) => 0,
            Err(Error::BadPath { .. }) => exit::USAGE,
            Err(Error::NotALockFile { .. }) => exit::NOT_A_LOCK_FILE,
            Err(_) => exit::SYSTEM,
        }
    }

    fn label(&self) -> String {
        printable(format!("{}:", self.name))
    }

    fn print(&self, look: Look) {
        match self.line(look) {
            Ok(line) => print(line),
            Err(message) => tell(message),
        }
        for waiter in self.waiters.iter().flatten() {
            print(printable(format!("  then {waiter}")));
        }
    }

    /// An error is for standard error.
    fn line(&self, look: Look) -> Result<String, String> {
        let (state, colour, rest) = match &self.answer {
            Ok(Status::Free) => ("free", Colour::Green, String::new()),
            Ok(Status::Held(holder)) => {
                ("held", Colour::Yellow, format!(" by {}", self.known(holder)))
            }
            Ok(Status::Stale(holder)) => {
                ("stale", Colour::Red, format!(", left by {}", self.known(holder)))
            }
            Err(Error::NotALockFile { found, .. }) => {
                ("not a lock file", Colour::Red, format!(": {found}"))
            }
            Err(error) => return Err(message_of(error)),
        };
        let (label, width) = (self.label(), look.width);
        let state = painted(state, look.has_colours.then_some(colour));
        Ok(format!("{label:width$} {state}{}", printable(rest)))
    }

    fn json(&self) -> Value {
        let holder = match &self.answer {
            Ok(Status::Held(holder) | Status::Stale(holder)) => Some(holder),
            _ => None,
        };
        let mut shown = described(holder);
        let of_lock = json!({
            "path": self.name.path().map(|path| path.to_string_lossy()),
            "server": self.name.server(),
            "resource": self.name.name(),
            "state": self.state(),
            "foreign": holder.filter(|_| self.is_lock_file).map(Holder::is_foreign),
            "evidence": holder.map(|holder| holder.evidence.to_string()),
            "lease": self.lease.map(|lease| format!("{lease:x}")),
            "session": self.session,
            "waiters": self.waiters.as_ref().map(|waiters| {
                waiters.iter().map(|waiter| Value::Object(described(Some(waiter)))).collect::<Vec<_>>()
            }),
            "error": self.answer.as_ref().err().map(message_of),
        });
        if let Value::Object(mut of_lock) = of_lock {
            shown.append(&mut of_lock);
        }
        Value::Object(shown)
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
        let lease = self.lease.map_or(String::new(), |lease| format!("; lease {lease:x}"));
        let session = self.session.map_or(String::new(), |pid| format!("; session {pid}"));
        format!("{holder} ({origin}{}{lease}{session})", holder.evidence)
    }
}

/// A holder or a waiter for programs.
fn described(holder: Option<&Holder>) -> Map<String, Value> {
    let values = [
        ("pid", json!(holder.and_then(|holder| holder.pid))),
        ("name", json!(holder.and_then(|holder| holder.name.as_deref()))),
        ("host", json!(holder.and_then(|holder| holder.host.as_deref()))),
        ("since", json!(holder.and_then(Holder::shown_since))),
        ("note", json!(holder.and_then(|holder| holder.note.as_deref()))),
        ("hold_id", json!(holder.and_then(|holder| holder.hold_id.as_deref()))),
    ];
    values.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}
