//! Who is inside, found out without this crate.
//!
//! Everything is done by who has the lock, so whatever is seen of anybody else
//! is either a killed process or a violation. It can be killed at any
//! instruction: the link of a dead process stays until a newcomer has repaired
//! the ledger, and only then is it replaced.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::Identity;
use crate::system;

/// A killed process counts as dead once all its threads are on their way out.
/// For libraries that take less for its death that may take this long.
const DYING_MAX: Duration = Duration::from_secs(5);

const LOOK_AGAIN: Duration = Duration::from_micros(100);

/// One visit to the critical section, unlike any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub process: Identity,
    pub visit: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.process, self.visit)
    }
}

impl FromStr for Ticket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no ticket");
        let (process, visit) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self { process: process.parse()?, visit: visit.parse().map_err(|_| wrong())? })
    }
}

/// Two inside, and how that showed.
pub type Violation = String;

pub struct Oracle {
    inside: PathBuf,
    ledger: File,
}

/// A visit that goes on.
pub struct Visit<'a> {
    oracle: &'a Oracle,
    ticket: Ticket,
    number: u64,
    /// The one before was killed inside.
    pub repaired: bool,
}

impl Oracle {
    pub fn create(directory: &Path) -> io::Result<()> {
        let ledger = Line { number: 0, ticket: "nobody".to_owned() };
        fs::write(directory.join("ledger"), [ledger.to_bytes(), ledger.to_bytes()].concat())
    }

    pub fn open(directory: &Path) -> io::Result<Self> {
        let ledger = File::options().read(true).write(true).open(directory.join("ledger"))?;
        Ok(Self { inside: directory.join("inside"), ledger })
    }

    /// Who is inside, or was killed there.
    pub fn who(&self) -> Option<Ticket> {
        self.read_link().ok().flatten()
    }

    /// Enter, having the lock. `pause` comes between two steps.
    pub fn enter(&self, ticket: Ticket, pause: impl FnOnce()) -> Result<Visit<'_>, Violation> {
        let mut repaired = false;
        while let Err(error) = system::make_sign(&self.inside, &ticket.to_string()) {
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "the oracle fails: {error}");
            self.wait_until_dead(ticket)?;
            self.repair();
            system::remove_sign(&self.inside)
                .map_err(|error| format!("{ticket} replaces a dead visitor's link: {error}"))?;
            repaired = true;
        }
        let [first, second] = self.read_ledger();
        if first != second {
            let found = format!("{ticket} found two different lines: {first:?}, {second:?}");
            return Err(self.give_up(ticket, found));
        }
        pause();
        let number = first.map_or(0, |line| line.number) + 1;
        self.write_line(0, &Line { number, ticket: ticket.to_string() });
        Ok(Visit { oracle: self, ticket, number, repaired })
    }

    /// The link is somebody else's. If that one was killed, it is dead soon and
    /// its link stays; if it goes, or is another's, its maker is alive inside.
    fn wait_until_dead(&self, ticket: Ticket) -> Result<(), Violation> {
        let mut seen: Option<Ticket> = None;
        let deadline = Instant::now() + DYING_MAX;
        loop {
            let now = self.read_link()?;
            let Some(other) = now else {
                let who = seen.map_or_else(|| "somebody".to_owned(), |seen| seen.to_string());
                return Err(format!("{ticket} came in while {who} was inside, who then left"));
            };
            if let Some(seen) = seen.filter(|seen| *seen != other) {
                return Err(format!("{ticket} came in after {seen}, and so did {other}"));
            }
            if other.process.is_gone() {
                return Ok(());
            }
            if other.process == ticket.process || Instant::now() > deadline {
                let state = other.process.describe();
                return Err(format!("{ticket} came in while {other} was inside, alive: {state}"));
            }
            seen = Some(other);
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn read_link(&self) -> Result<Option<Ticket>, Violation> {
        match system::read_sign(&self.inside) {
            Ok(ticket) => ticket.parse().map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => panic!("the oracle fails: {error}"),
        }
    }

    /// The link was made by `ticket`, which must not stay.
    fn give_up(&self, ticket: Ticket, why: Violation) -> Violation {
        if self.who() == Some(ticket) {
            let _ = system::remove_sign(&self.inside);
        }
        why
    }

    /// Both lines say the higher number; nobody alive is inside.
    fn repair(&self) {
        let [first, second] = self.read_ledger();
        let number = first.iter().chain(&second).map(|line| line.number).max().unwrap_or(0);
        let line = Line { number, ticket: "repaired".to_owned() };
        self.write_line(0, &line);
        self.write_line(1, &line);
    }

    fn write_line(&self, place: u64, line: &Line) {
        let offset = place * LINE_BYTES as u64;
        let written = system::write_all_at(&self.ledger, &line.to_bytes(), offset);
        written.expect("the ledger can be written");
    }

    fn read_ledger(&self) -> [Option<Line>; 2] {
        let mut bytes = [0; 2 * LINE_BYTES];
        system::read_exact_at(&self.ledger, &mut bytes, 0).expect("the ledger can be read");
        let (first, second) = bytes.split_at(LINE_BYTES);
        [Line::parse(first), Line::parse(second)]
    }
}

impl Visit<'_> {
    /// Leave, still having the lock.
    pub fn leave(self) -> Result<(), Violation> {
        let mine = Line { number: self.number, ticket: self.ticket.to_string() };
        let check = |what: &str, expected_second: Option<&Line>| {
            let [first, second] = self.oracle.read_ledger();
            let is_mine = first.as_ref() == Some(&mine);
            if is_mine && expected_second.is_none_or(|line| second.as_ref() == Some(line)) {
                return Ok(());
            }
            let ticket = self.ticket;
            Err(format!("{ticket} {what} {mine:?} and read {first:?}, {second:?}"))
        };
        let outcome = check("wrote", None).and_then(|()| {
            self.oracle.write_line(1, &mine);
            check("wrote twice", Some(&mine))
        });
        outcome.map_err(|why| self.oracle.give_up(self.ticket, why))?;
        match self.oracle.read_link()? {
            Some(ticket) if ticket == self.ticket => system::remove_sign(&self.oracle.inside)
                .map_err(|error| format!("{ticket} leaves, and its link: {error}")),
            Some(other) => Err(format!("{} leaves and finds {other} inside", self.ticket)),
            None => Err(format!("{} leaves, and its link is gone", self.ticket)),
        }
    }
}

const LINE_BYTES: usize = 96;

/// One half of the ledger.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    number: u64,
    ticket: String,
}

impl Line {
    fn to_bytes(&self) -> Vec<u8> {
        format!("{:>20} {:<width$}\n", self.number, self.ticket, width = LINE_BYTES - 22)
            .into_bytes()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (number, ticket) = std::str::from_utf8(bytes).ok()?.trim().split_once(' ')?;
        Some(Self { number: number.parse().ok()?, ticket: ticket.to_owned() })
    }
}
