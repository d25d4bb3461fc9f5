//! The command line, for the conductor and for its clients.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::engine::{Engine, engines};

pub(crate) const USAGE: &str = "\
usage: engine_torture etcd|postgres [options]
  --minutes N      how long processes are killed and stopped (1)
  --seconds N      the same in seconds
  --at SERVERS     running ones, as in h1:2379,h2:2379 of etcd or postgres://app@db/app with
                   its password in ~/.pgpass: only clients are killed
  --clients N      client processes (6)
  --tasks N        tasks of each (4)
  --locks N        locks that they contend for (8)
  --ttl N          the lease of a client, seconds (3); each third one has one of 2 s
  --takeover at_once
                   the next holder does not wait for the lease of one that vanished (postgres)
  --directory DIR  where servers and records are; a new directory is made in it (/dev/shm)
  --seed N         (from the clock)
  --break blind    clients do not ask whether the lock is lost: two must be found inside
  -h, --help       print this";

/// What this process was started to be.
pub(crate) enum Part {
    Conductor(Settings),
    Client(Job),
    Help,
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) engine: &'static dyn Engine,
    pub(crate) time: Duration,
    pub(crate) at: Option<String>,
    pub(crate) clients: u64,
    pub(crate) tasks: u64,
    pub(crate) locks: u64,
    pub(crate) ttl: Duration,
    pub(crate) directory: PathBuf,
    pub(crate) seed: u64,
    pub(crate) is_blind: bool,
    pub(crate) is_at_once: bool,
}

/// What a client is told.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) engine: &'static dyn Engine,
    pub(crate) at: String,
    pub(crate) prefix: String,
    pub(crate) record: PathBuf,
    pub(crate) ttl: Duration,
    pub(crate) tasks: u64,
    pub(crate) locks: u64,
    /// Among the clients: so each lock is wanted, whichever of them are killed.
    pub(crate) place: u64,
    pub(crate) seed: u64,
    pub(crate) is_blind: bool,
    pub(crate) is_at_once: bool,
}

const CLIENT: &str = "as-client";

impl Job {
    pub(crate) fn to_arguments(&self) -> Vec<String> {
        let record = self.record.to_str().expect("a path in UTF-8").to_owned();
        let is = [self.is_blind, self.is_at_once].map(u64::from);
        let ttl = self.ttl.as_secs();
        let numbers = [ttl, self.tasks, self.locks, self.place, self.seed, is[0], is[1]];
        let engine = self.engine.name().to_owned();
        [CLIENT.to_owned(), engine, self.at.clone(), self.prefix.clone(), record]
            .into_iter()
            .chain(numbers.map(|number| number.to_string()))
            .collect()
    }

    fn parse(mut rest: impl Iterator<Item = String>) -> Result<Self, String> {
        let engine = engine(&value(CLIENT, &mut rest)?)?;
        let (at, prefix) = (value(CLIENT, &mut rest)?, value(CLIENT, &mut rest)?);
        let record = value(CLIENT, &mut rest)?.into();
        let mut next = || number(CLIENT, &mut rest);
        let ttl = Duration::from_secs(next()?);
        let (tasks, locks, place, seed) = (next()?, next()?, next()?, next()?);
        let (is_blind, is_at_once) = (next()? == 1, next()? == 1);
        Ok(Self {
            engine,
            at,
            prefix,
            record,
            ttl,
            tasks,
            locks,
            place,
            seed,
            is_blind,
            is_at_once,
        })
    }
}

pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Part, String> {
    let engine = match arguments.next().as_deref() {
        Some(CLIENT) => return Job::parse(arguments).map(Part::Client),
        Some("-h" | "--help") => return Ok(Part::Help),
        Some(name) => engine(name)?,
        None => return Err("which engine?".to_owned()),
    };
    let mut settings = Settings::new(engine);
    while let Some(flag) = arguments.next() {
        if flag == "-h" || flag == "--help" {
            return Ok(Part::Help);
        }
        settings.set(&flag, &mut arguments)?;
    }
    settings.check()
}

fn engine(name: &str) -> Result<&'static dyn Engine, String> {
    let known = engines();
    known.iter().copied().find(|it| it.name() == name).ok_or_else(|| {
        let known: Vec<_> = known.iter().map(|it| it.name()).collect();
        format!("{name:?} is no engine of this build ({}): see --features", known.join(", "))
    })
}

impl Settings {
    fn new(engine: &'static dyn Engine) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            engine,
            time: Duration::from_secs(60),
            at: None,
            clients: 6,
            tasks: 4,
            locks: 8,
            ttl: Duration::from_secs(3),
            directory: Path::new("/dev/shm").to_owned(),
            seed: u64::from(now.subsec_micros()),
            is_blind: false,
            is_at_once: false,
        }
    }

    fn set(&mut self, flag: &str, rest: &mut dyn Iterator<Item = String>) -> Result<(), String> {
        match flag {
            "--minutes" => self.time = Duration::from_secs(60 * number(flag, rest)?),
            "--seconds" => self.time = Duration::from_secs(number(flag, rest)?),
            "--at" => self.at = Some(value(flag, rest)?),
            "--clients" => self.clients = number(flag, rest)?,
            "--tasks" => self.tasks = number(flag, rest)?,
            "--locks" => self.locks = number(flag, rest)?,
            "--ttl" => self.ttl = Duration::from_secs(number(flag, rest)?),
            "--directory" => self.directory = value(flag, rest)?.into(),
            "--seed" => self.seed = number(flag, rest)?,
            "--takeover" => match value(flag, rest)?.as_str() {
                "at_once" => self.is_at_once = true,
                "after_lease" => self.is_at_once = false,
                other => return Err(format!("--takeover: {other:?} is not at_once")),
            },
            "--break" => match value(flag, rest)?.as_str() {
                "blind" => self.is_blind = true,
                other => return Err(format!("--break: {other:?} is not blind")),
            },
            other => return Err(format!("{other:?} is no option")),
        }
        Ok(())
    }

    fn check(self) -> Result<Part, String> {
        if self.clients == 0 || self.tasks == 0 || self.locks == 0 {
            return Err("--clients, --tasks and --locks are at least 1".to_owned());
        }
        if self.locks > self.clients * self.tasks {
            return Err("there are more --locks than tasks of all --clients".to_owned());
        }
        if self.ttl < Duration::from_secs(2) {
            return Err("--ttl is at least 2".to_owned());
        }
        if self.is_at_once && !self.engine.can_take_over_at_once() {
            return Err(format!("{} has no --takeover at_once", self.engine.name()));
        }
        Ok(Part::Conductor(self))
    }
}

fn value(flag: &str, rest: &mut dyn Iterator<Item = String>) -> Result<String, String> {
    rest.next().ok_or_else(|| format!("{flag} needs a value"))
}

fn number(flag: &str, rest: &mut dyn Iterator<Item = String>) -> Result<u64, String> {
    let text = value(flag, rest)?;
    text.parse().map_err(|_| format!("{flag}: {text:?} is not a whole number"))
}
