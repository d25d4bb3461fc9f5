//! Starts the workers, kills and stops them, and watches.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::dice::Dice;
use crate::left_overs;
use crate::oracle::Oracle;
use crate::settings::{End, Job, Settings};
use crate::summary::Summary;
use crate::system;
use crate::tally::Tally;
use crate::worker;

/// Nobody acquires for so long although nobody is stopped: stuck.
const STUCK_IN_THE_STORM: Duration = Duration::from_secs(10);

/// A task that cannot acquire for so long after the storm, or a worker that
/// does not end: stuck.
const STUCK_IN_THE_CALM: Duration = Duration::from_secs(30);

/// Stops last from 1 ms to 300 ms.
const STOP_US: (u64, u64) = (1_000, 300_000);

const TICK: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(50);

pub fn run(settings: &Settings, place: &Path) -> Summary {
    for directory in ["lock", "tallies"] {
        fs::create_dir(place.join(directory)).expect("a directory");
    }
    fs::write(worker::reports_path(place), "").expect("a file of reports");
    Oracle::create(place).expect("the oracle's files");
    eprintln!("seed {}, in {}", settings.seed, place.display());
    let mut conductor = Conductor {
        settings,
        place,
        oracle: Oracle::open(place).expect("the oracle's files"),
        dice: Dice::new(settings.seed),
        workers: Vec::new(),
        started: 0,
        began: Instant::now(),
        summary: Summary::default(),
        reported: 0,
    };
    for _ in 0..settings.processes {
        conductor.start();
    }
    let began = Instant::now();
    conductor.storm();
    conductor.summary.storm = began.elapsed();
    conductor.calm();
    conductor.end();
    conductor.look_at_reports();
    conductor.summary
}

struct Worker {
    child: Child,
    number: u64,
    stopped_until: Option<Instant>,
    /// What it had acquired when the calm began.
    before: Tally,
}

impl Worker {
    fn go_on(&mut self) {
        if self.stopped_until.take().is_some() {
            system::go_on(&self.child);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Conductor<'a> {
    settings: &'a Settings,
    place: &'a Path,
    oracle: Oracle,
    dice: Dice,
    workers: Vec<Worker>,
    started: u64,
    began: Instant,
    summary: Summary,
    /// Length of the reports that were shown.
    reported: usize,
}

/// When something comes next.
struct Due {
    mean: Option<Duration>,
    at: Instant,
}

impl Due {
    fn new(mean: Option<Duration>) -> Self {
        Self { mean, at: Instant::now() }
    }

    fn is_now(&mut self, dice: &mut Dice) -> bool {
        let Some(mean) = self.mean else { return false };
        let is_now = Instant::now() >= self.at;
        if is_now {
            self.at = Instant::now() + dice.micros_up_to(2 * mean.as_micros() as u64);
        }
        is_now
    }
}

impl Conductor<'_> {
    fn start(&mut self) {
        let settings = self.settings;
        let job = Job {
            place: self.place.to_owned(),
            number: self.started,
            seed: self.dice.roll(),
            tasks: settings.tasks,
            pin: settings.pin,
            hold_us: settings.hold_us,
            period_us: settings.period_us,
        };
        let mut command = match &settings.peer {
            Some(peer) => peer.command(&job),
            None => {
                let mut command = Command::new(std::env::current_exe().expect("this program"));
                command.args(job.to_arguments());
                command
            }
        };
        let child = command.stdin(Stdio::piped()).spawn().expect("a worker");
        let (number, before) = (self.started, Tally::default());
        self.workers.push(Worker { child, number, stopped_until: None, before });
        self.started += 1;
    }

    /// Kill and stop at random.
    fn storm(&mut self) {
        let end = Instant::now() + self.settings.duration;
        let mut kills = Due::new(self.settings.kill_every);
        let mut stops = Due::new(self.settings.stop_every);
        let mut stillness = Stillness::new();
        let mut display = Display::new(self.settings.duration);
        let mut looked = Instant::now();
        while Instant::now() < end {
            self.wake_up(false);
            if kills.is_now(&mut self.dice) {
                if let Some(victim) = self.victim() {
                    self.kill(victim);
                    self.start();
                }
            }
            if stops.is_now(&mut self.dice) {
                self.stop();
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                let has_ended = self.look_at_reports() && self.settings.until_violation;
                let is_excused = self.workers.iter().any(|worker| worker.stopped_until.is_some())
                    || !(0..self.workers.len()).any(|worker| self.has_begun(worker));
                let acquired = self.sum().acquired();
                if has_ended
                    || self.has_died()
                    || self.is_still(&mut stillness, acquired, is_excused)
                {
                    break;
                }
            }
            if display.is_due() {
                display.show(&self.progress());
            }
            thread::sleep(TICK);
        }
    }

    /// Half of the time whoever is inside, else anybody who has begun.
    fn victim(&mut self) -> Option<usize> {
        let inside = self.oracle.who().filter(|_| self.dice.once_in(2));
        let holder = inside.and_then(|ticket| {
            self.workers.iter().position(|worker| worker.child.id() == ticket.process.pid)
        });
        holder.or_else(|| {
            let any = self.dice.below(self.workers.len() as u64) as usize;
            self.has_begun(any).then_some(any)
        })
    }

    /// Another language takes its time to start.
    fn has_begun(&self, worker: usize) -> bool {
        let number = self.workers[worker].number;
        Tally::read(&worker::tally_path(self.place, number)) != Tally::default()
    }

    fn kill(&mut self, victim: usize) {
        let mut worker = self.workers.swap_remove(victim);
        worker.child.kill().expect("a worker can be killed");
        worker.child.wait().expect("a killed worker ends");
        let tally = Tally::read(&worker::tally_path(self.place, worker.number));
        self.summary.kills += 1;
        if tally.holding > 0 {
            self.summary.kills_of_holders += 1;
        } else if tally.waiting > 0 {
            self.summary.kills_of_waiters += 1;
        }
        self.bury(&worker, tally);
    }

    fn bury(&mut self, worker: &Worker, tally: Tally) {
        self.summary.tally.add(&Tally { waiting: 0, holding: 0, ..tally });
        let _ = fs::remove_file(worker::tally_path(self.place, worker.number));
    }

    fn stop(&mut self) {
        let Some(victim) = self.victim() else { return };
        let time = self.dice.micros_between(STOP_US.0, STOP_US.1);
        let worker = &mut self.workers[victim];
        system::stop(&worker.child);
        worker.stopped_until = Some(Instant::now() + time);
        self.summary.stops += 1;
    }

    fn wake_up(&mut self, all: bool) {
        let now = Instant::now();
        for worker in &mut self.workers {
            if all || worker.stopped_until.is_some_and(|until| until <= now) {
                worker.go_on();
            }
        }
    }

    /// Workers run until they are told otherwise.
    fn has_died(&mut self) -> bool {
        for worker in &mut self.workers {
            let Ok(Some(status)) = worker.child.try_wait() else { continue };
            if !self.summary.has_died {
                let line = format!("ERROR process {} ended: {status}", worker.child.id());
                eprintln!("{line}");
                self.summary.reports.push(line);
                self.summary.has_died = true;
            }
        }
        self.summary.has_died
    }

    fn is_still(&mut self, stillness: &mut Stillness, acquired: u64, is_excused: bool) -> bool {
        let is_still = stillness.lasts(acquired, is_excused) >= STUCK_IN_THE_STORM;
        if is_still {
            self.stuck(format!("nobody acquired for {STUCK_IN_THE_STORM:?} in the storm"));
        }
        is_still
    }

    fn stuck(&mut self, what: String) {
        let lock = fs::read_to_string(worker::lock_path(self.place));
        let what = format!("{what}; inside: {:?}; the lock file: {lock:?}", self.oracle.who());
        eprintln!("STUCK {what}");
        self.summary.stuck.push(what);
    }

    /// Everybody runs: each task must acquire.
    fn calm(&mut self) {
        self.wake_up(true);
        if !self.summary.stuck.is_empty() || self.settings.until_violation && self.look_at_reports()
        {
            return;
        }
        for worker in &mut self.workers {
            worker.before = Tally::read(&worker::tally_path(self.place, worker.number));
        }
        let deadline = Instant::now() + STUCK_IN_THE_CALM;
        loop {
            let late = self.late();
            if late.is_empty() || self.has_died() {
                return;
            }
            if Instant::now() > deadline {
                self.stuck(format!("after the storm these did not acquire: {}", late.join(", ")));
                return;
            }
            thread::sleep(LOOK);
        }
    }

    /// The tasks that have not acquired since the storm.
    fn late(&self) -> Vec<String> {
        let mut late = Vec::new();
        for worker in &self.workers {
            let now = Tally::read(&worker::tally_path(self.place, worker.number));
            for task in 0..self.settings.tasks {
                if now.by_task[task] <= worker.before.by_task[task] {
                    late.push(format!("task {task} of process {}", worker.child.id()));
                }
            }
        }
        late
    }

    fn end(&mut self) {
        if self.settings.end == End::Kill {
            // First all are stopped, so that none takes over from another.
            self.workers.iter().for_each(|worker| system::stop(&worker.child));
            while !self.workers.is_empty() {
                self.kill(0);
            }
            return;
        }
        for worker in &mut self.workers {
            drop(worker.child.stdin.take());
        }
        let deadline = Instant::now() + STUCK_IN_THE_CALM;
        while let Some(mut worker) = self.workers.pop() {
            while worker.child.try_wait().expect("a worker's status").is_none() {
                if Instant::now() > deadline {
                    self.stuck(format!("process {} did not end", worker.child.id()));
                    self.workers.push(worker);
                    let victim = self.workers.len() - 1;
                    self.kill(victim);
                    return self.end();
                }
                thread::sleep(TICK);
            }
            let tally = Tally::read(&worker::tally_path(self.place, worker.number));
            self.bury(&worker, tally);
        }
    }

    /// Show what workers reported since; whether there was a violation, ever.
    fn look_at_reports(&mut self) -> bool {
        let reports = fs::read_to_string(worker::reports_path(self.place)).unwrap_or_default();
        let complete = reports.rfind('\n').map_or(0, |end| end + 1);
        for line in reports[self.reported..complete].lines() {
            if self.summary.reports.len() < Summary::REPORTS_MAX {
                eprintln!("{line}");
                self.summary.reports.push(line.to_owned());
            }
        }
        self.reported = complete;
        reports.contains("VIOLATION ")
    }

    fn sum(&self) -> Tally {
        let mut sum = self.summary.tally;
        for worker in &self.workers {
            sum.add(&Tally::read(&worker::tally_path(self.place, worker.number)));
        }
        sum
    }

    fn progress(&self) -> String {
        let sum = self.sum();
        let Summary { kills, stops, .. } = self.summary;
        let per_second = sum.acquired() as f64 / self.began.elapsed().as_secs_f64();
        format!(
            "{} acquisitions, {per_second:.0}/s, {kills} kills, {stops} stops, {} violations, \
             longest wait {:.3} s, {} files beside the lock",
            sum.acquired(),
            sum.violations,
            Duration::from_micros(sum.longest_wait_us).as_secs_f64(),
            left_overs::beside(self.place),
        )
    }
}

/// A bar, or a line each second where nobody watches.
struct Display {
    bar: ProgressBar,
    began: Instant,
    shown: Instant,
}

impl Display {
    fn new(duration: Duration) -> Self {
        let style = ProgressStyle::with_template("{bar:20} {elapsed_precise}/{len} s  {wide_msg}");
        let bar = ProgressBar::new(duration.as_secs());
        bar.set_style(style.expect("BUG: a template that is none"));
        Self { bar, began: Instant::now(), shown: Instant::now() }
    }

    fn is_due(&self) -> bool {
        self.shown.elapsed() >= Duration::from_secs(1)
    }

    fn show(&mut self, progress: &str) {
        self.shown = Instant::now();
        let passed = self.began.elapsed().as_secs();
        if io::stderr().is_terminal() {
            self.bar.set_position(passed);
            self.bar.set_message(progress.to_owned());
        } else {
            eprintln!("{passed:>5} s: {progress}");
        }
    }
}

/// For how long nobody acquired, not counting the time that somebody was
/// stopped or that all were starting.
struct Stillness {
    acquired: u64,
    looked: Instant,
    lasts: Duration,
}

impl Stillness {
    fn new() -> Self {
        Self { acquired: 0, looked: Instant::now(), lasts: Duration::ZERO }
    }

    fn lasts(&mut self, acquired: u64, is_excused: bool) -> Duration {
        let passed = self.looked.elapsed();
        self.looked = Instant::now();
        if acquired != self.acquired {
            self.acquired = acquired;
            self.lasts = Duration::ZERO;
        } else if !is_excused {
            self.lasts += passed;
        }
        self.lasts
    }
}
