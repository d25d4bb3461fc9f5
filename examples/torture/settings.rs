//! The command line, for the conductor and for its workers.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockkeeper::Proof;

use crate::peer::Peer;
use crate::system;
use crate::tally::TASKS_MAX;

pub const USAGE: &str = "\
usage: torture [options]
  --seconds N         how long processes are killed and stopped (60)
  --minutes N         the same in minutes
  --peer NAME         not this crate but openlock, filelock-py, filelock-py-3,
                      filelock-py-soft, filelock-py-3-soft, flufl-lock,
                      pidlock-py or lockmgr-like; one task each
  --processes N       workers (8)
  --tasks N           tasks of each worker that want the lock (2)
  --pin auto|required|never
                      pinned where possible, pinned, or portable (auto)
  --directory DIR     where the lock is; a fresh directory is made in it (/dev/shm;
                      on Windows that for temporary files)
  --overlay           mount an overlayfs there for it (root)
  --hold-us N         longest hold, microseconds (200)
  --period-us N       longest time between two looks at a busy lock (2000)
  --kill-ms N         mean time between two SIGKILLs (25)
  --stop-ms N         mean time between two SIGSTOPs (60)
  --no-kill --no-stop
  --end ask|kill      how the workers end (by the seed)
  --seed N            (from the clock)
  --until-violation   stop at the first violation
  -h, --help          print this";

/// What this process was started to be.
pub enum Part {
    Conductor(Settings),
    Worker(Job),
    Help,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every worker ends by itself after what it is doing.
    Ask,
    /// Every worker is killed.
    Kill,
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// `None`: this crate.
    pub peer: Option<Peer>,
    pub overlay: bool,
    pub duration: Duration,
    pub processes: usize,
    pub tasks: usize,
    pub pin: Proof,
    pub directory: PathBuf,
    pub hold_us: u64,
    pub period_us: u64,
    pub kill_every: Option<Duration>,
    pub stop_every: Option<Duration>,
    pub end: End,
    pub seed: u64,
    pub until_violation: bool,
}

/// What a worker is told.
pub struct Job {
    pub place: PathBuf,
    pub number: u64,
    pub seed: u64,
    pub tasks: usize,
    pub pin: Proof,
    pub hold_us: u64,
    pub period_us: u64,
}

const WORKER: &str = "as-worker";

impl Job {
    pub fn to_arguments(&self) -> Vec<String> {
        let Job { place, number, seed, tasks, pin, hold_us, period_us } = self;
        let place = place.to_str().expect("a directory with a printable name").to_owned();
        let numbers = [*number, *seed, *tasks as u64, *hold_us, *period_us];
        [WORKER.to_owned(), place, pin_name(*pin).to_owned()]
            .into_iter()
            .chain(numbers.map(|number| number.to_string()))
            .collect()
    }

    fn parse(mut rest: impl Iterator<Item = String>) -> Result<Self, String> {
        let place = PathBuf::from(value(WORKER, &mut rest)?);
        let pin = pin(&value(WORKER, &mut rest)?)?;
        let mut number = || number(WORKER, &mut rest);
        Ok(Self {
            place,
            pin,
            number: number()?,
            seed: number()?,
            tasks: number()? as usize,
            hold_us: number()?,
            period_us: number()?,
        })
    }
}

pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Part, String> {
    let mut arguments = arguments.peekable();
    if arguments.next_if(|first| first == WORKER).is_some() {
        return Job::parse(arguments).map(Part::Worker);
    }
    let mut settings = Settings::new();
    let mut end = None;
    while let Some(flag) = arguments.next() {
        if flag == "-h" || flag == "--help" {
            return Ok(Part::Help);
        }
        if flag == "--end" {
            end = Some(match value(&flag, &mut arguments)?.as_str() {
                "ask" => End::Ask,
                "kill" => End::Kill,
                other => return Err(format!("--end: {other:?} is neither ask nor kill")),
            });
        } else {
            settings.set(&flag, &mut arguments)?;
        }
    }
    settings.end = end.unwrap_or(if settings.seed % 2 == 0 { End::Ask } else { End::Kill });
    settings.check().map(Part::Conductor)
}

impl Settings {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            peer: None,
            overlay: false,
            duration: Duration::from_secs(60),
            processes: 8,
            tasks: 2,
            pin: Proof::Auto,
            directory: system::directory(),
            hold_us: 200,
            period_us: 2000,
            kill_every: Some(Duration::from_millis(25)),
            stop_every: system::HAS_STOPS.then_some(Duration::from_millis(60)),
            end: End::Ask,
            seed: u64::from(now.subsec_micros()),
            until_violation: false,
        }
    }

    fn set(&mut self, flag: &str, rest: &mut dyn Iterator<Item = String>) -> Result<(), String> {
        match flag {
            "--seconds" => self.duration = Duration::from_secs(number(flag, rest)?),
            "--minutes" => self.duration = Duration::from_secs(60 * number(flag, rest)?),
            "--peer" => self.peer = Some(Peer::named(&value(flag, rest)?)?),
            "--overlay" => self.overlay = true,
            "--processes" => self.processes = number(flag, rest)? as usize,
            "--tasks" => self.tasks = number(flag, rest)? as usize,
            "--pin" => self.pin = pin(&value(flag, rest)?)?,
            "--directory" => self.directory = PathBuf::from(value(flag, rest)?),
            "--hold-us" => self.hold_us = number(flag, rest)?,
            "--period-us" => self.period_us = number(flag, rest)?,
            "--kill-ms" => self.kill_every = Some(Duration::from_millis(number(flag, rest)?)),
            "--stop-ms" => self.stop_every = Some(Duration::from_millis(number(flag, rest)?)),
            "--no-kill" => self.kill_every = None,
            "--no-stop" => self.stop_every = None,
            "--seed" => self.seed = number(flag, rest)?,
            "--until-violation" => self.until_violation = true,
            other => return Err(format!("{other:?} is no option")),
        }
        Ok(())
    }

    fn check(mut self) -> Result<Self, String> {
        if self.processes == 0 || self.tasks == 0 || self.tasks > TASKS_MAX {
            return Err(format!("--processes from 1, --tasks from 1 to {TASKS_MAX}"));
        }
        if self.period_us == 0 || [self.kill_every, self.stop_every].contains(&Some(Duration::ZERO))
        {
            return Err("times between two things must be longer than 0".to_owned());
        }
        if self.stop_every.is_some() && !system::HAS_STOPS {
            return Err("--stop-ms: processes are not stopped here".to_owned());
        }
        if std::env::var_os("LOCKKEEPER_MUTANT").is_some() && !cfg!(lockkeeper_proof) {
            return Err("LOCKKEEPER_MUTANT needs a build with --cfg lockkeeper_proof".to_owned());
        }
        if self.peer.is_some() {
            self.tasks = 1;
        }
        self.directory = std::path::absolute(&self.directory).map_err(|why| why.to_string())?;
        Ok(self)
    }
}

pub fn pin_name(pin: Proof) -> &'static str {
    match pin {
        Proof::Process => "never",
        Proof::KernelLock => "required",
        _ => "auto",
    }
}

fn pin(name: &str) -> Result<Proof, String> {
    match name {
        "auto" => Ok(Proof::Auto),
        "required" => Ok(Proof::KernelLock),
        "never" => Ok(Proof::Process),
        other => Err(format!("--pin: {other:?} is not auto, required or never")),
    }
}

fn value(flag: &str, rest: &mut dyn Iterator<Item = String>) -> Result<String, String> {
    rest.next().ok_or_else(|| format!("{flag} needs a value"))
}

fn number(flag: &str, rest: &mut dyn Iterator<Item = String>) -> Result<u64, String> {
    let text = value(flag, rest)?;
    text.parse().map_err(|_| format!("{flag}: {text:?} is not a whole number"))
}
