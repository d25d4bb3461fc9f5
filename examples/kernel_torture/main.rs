//! Eight processes that take one kernel lock over and over, exclusively and
//! shared, and are killed and stopped at random. Whether two were inside is
//! found out by symbolic links and file contents, without this crate.
//!
//! `cargo run --release --example kernel_torture -- [--seconds N]
//! [--primitive flock|ofd] [--delete] [--keep-open] [--seed N]`
//!
//! A process that only reads looks whether a writer is inside.

#![allow(unreachable_pub, dead_code)]

#[path = "../torture/dice.rs"]
mod dice;
#[path = "../torture/oracle.rs"]
mod oracle;
#[path = "../torture/process.rs"]
mod process;
#[path = "../torture/system.rs"]
mod system;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lockkeeper::{AsyncKernelLock, Error, KernelGuard, KernelOptions, Primitive};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use dice::Dice;
use oracle::{Oracle, Ticket};
use process::Identity;

const PROCESSES: usize = 8;
const TASKS: usize = 3;

/// Longest hold, and longest pause between two of them, in microseconds.
const HOLD_US: u64 = 400;
const PAUSE_US: u64 = 300;

/// Longest time a process stays stopped, in microseconds.
const STOP_US: u64 = 100_000;

#[derive(Clone)]
struct Settings {
    seconds: u64,
    primitive: String,
    deletes: bool,
    keeps_open: bool,
    seed: u64,
    /// The directory, for a worker.
    place: Option<PathBuf>,
}

impl Settings {
    fn read() -> Self {
        let mut settings = Settings {
            seconds: 60,
            primitive: "flock".to_owned(),
            deletes: false,
            keeps_open: false,
            seed: 1,
            place: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs more"));
            match argument.as_str() {
                "--seconds" => settings.seconds = value().parse().expect("a number"),
                "--primitive" => settings.primitive = value(),
                "--delete" => settings.deletes = true,
                "--keep-open" => settings.keeps_open = true,
                "--seed" => settings.seed = value().parse().expect("a number"),
                "--worker" => settings.place = Some(value().into()),
                other => panic!("what is {other}?"),
            }
        }
        settings
    }

    fn lock(&self, place: &Path) -> AsyncKernelLock {
        let primitive = match self.primitive.as_str() {
            "flock" => Primitive::Flock,
            "ofd" => Primitive::Ofd,
            other => panic!("no primitive {other}"),
        };
        let options = KernelOptions::default()
            .primitive(primitive)
            .delete_on_release(self.deletes)
            .keep_open(self.keeps_open);
        AsyncKernelLock::with_options(place.join("torture.lock"), options)
            .expect("possible options")
    }
}

fn main() -> ExitCode {
    let settings = Settings::read();
    match settings.place.clone() {
        Some(place) => work(&settings, &place),
        None => conduct(&settings),
    }
}

/// Start workers, kill and stop them, start others in their place; count what they report.
fn conduct(settings: &Settings) -> ExitCode {
    let directory = tempfile::TempDir::new().expect("a directory");
    let place = directory.path();
    Oracle::create(place).expect("the oracle's files");
    File::create(place.join("reports")).expect("a file of reports");
    let mut dice = Dice::new(settings.seed);
    let mut workers: Vec<Child> =
        (0..PROCESSES).map(|_| start(settings, place, dice.roll())).collect();
    let end = Instant::now() + Duration::from_secs(settings.seconds);
    let (mut kills, mut stops) = (0, 0);
    while Instant::now() < end {
        std::thread::sleep(dice.micros_up_to(20_000));
        let victim = usize::try_from(dice.below(PROCESSES as u64)).expect("a small number");
        if dice.once_in(2) {
            workers[victim].kill().expect("it can be killed");
            workers[victim].wait().expect("it is a child");
            workers[victim] = start(settings, place, dice.roll());
            kills += 1;
        } else {
            let pid = Pid::from_raw(i32::try_from(workers[victim].id()).expect("a process id"));
            let _ = kill(pid, Signal::SIGSTOP);
            std::thread::sleep(dice.micros_up_to(STOP_US));
            let _ = kill(pid, Signal::SIGCONT);
            stops += 1;
        }
    }
    for worker in &mut workers {
        let _ = worker.kill();
        let _ = worker.wait();
    }
    let reports = std::fs::read_to_string(place.join("reports")).expect("the reports");
    let count = |word: &str| reports.lines().filter(|line| line.starts_with(word)).count();
    let sum = |word: &str| -> u64 {
        let counts = reports.lines().filter_map(|line| line.strip_prefix(word));
        counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
    };
    let (violations, errors) = (count("VIOLATION"), count("ERROR"));
    println!(
        "{} s, {}, delete {}, keep open {}: {} writes, {} reads, {kills} kills, {stops} stops: {violations} violations, {errors} errors",
        settings.seconds,
        settings.primitive,
        settings.deletes,
        settings.keeps_open,
        sum("WRITES"),
        sum("READS"),
    );
    for line in reports
        .lines()
        .filter(|line| !line.starts_with("WRITES") && !line.starts_with("READS"))
        .take(10)
    {
        println!("{line}");
    }
    let worked = sum("WRITES") > 0 && sum("READS") > 0;
    ExitCode::from(u8::from(violations + errors > 0 || !worked))
}

fn start(settings: &Settings, place: &Path, seed: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("--worker").arg(place).args(["--primitive", &settings.primitive]);
    command.args(["--seed", &seed.to_string()]);
    command.args(settings.deletes.then_some("--delete"));
    command.args(settings.keeps_open.then_some("--keep-open"));
    command.stdin(Stdio::null()).spawn().expect("a worker")
}

struct Worker {
    lock: AsyncKernelLock,
    oracle: Oracle,
    reports: File,
    process: Identity,
    visits: std::sync::atomic::AtomicU64,
}

fn work(settings: &Settings, place: &Path) -> ExitCode {
    set_pdeathsig(Signal::SIGKILL).expect("a worker ends with its conductor");
    let reports = File::options().append(true).open(place.join("reports"));
    let worker = std::sync::Arc::new(Worker {
        lock: settings.lock(place),
        oracle: Oracle::open(place).expect("the oracle's files"),
        reports: reports.expect("the file of reports"),
        process: Identity::mine(),
        visits: std::sync::atomic::AtomicU64::new(0),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for task in 0..TASKS as u64 {
        let worker = std::sync::Arc::clone(&worker);
        runtime.spawn(worker.task(Dice::new(settings.seed ^ task)));
    }
    loop {
        std::thread::park();
    }
}

impl Worker {
    async fn task(self: std::sync::Arc<Self>, mut dice: Dice) {
        loop {
            let is_shared = dice.once_in(3);
            match self.acquire(is_shared, &mut dice).await {
                Ok(Some(guard)) => self.hold(guard, &mut dice).await,
                Ok(None) | Err(Error::Timeout { .. }) => {}
                Err(error) => self.report(&format!("ERROR {error}: {error:?}")),
            }
            if dice.once_in(2) {
                tokio::time::sleep(dice.micros_up_to(PAUSE_US)).await;
            }
        }
    }

    async fn acquire(
        &self,
        is_shared: bool,
        dice: &mut Dice,
    ) -> Result<Option<KernelGuard>, Error> {
        let limit = dice.micros_between(1, 10_000);
        match (dice.below(4), is_shared) {
            (0 | 1, false) => self.lock.acquire().await.map(Some),
            (0 | 1, true) => self.lock.acquire_shared().await.map(Some),
            (2, false) => self.lock.acquire_timeout(limit).await.map(Some),
            (2, true) => self.lock.acquire_shared_timeout(limit).await.map(Some),
            // Dropped in the middle, or a single try.
            (_, false) => match tokio::time::timeout(limit, self.lock.acquire()).await {
                Ok(guard) => guard.map(Some),
                Err(_) => self.lock.try_acquire().await,
            },
            (_, true) => match tokio::time::timeout(limit, self.lock.acquire_shared()).await {
                Ok(guard) => guard.map(Some),
                Err(_) => self.lock.try_acquire_shared().await,
            },
        }
    }

    async fn hold(&self, guard: KernelGuard, dice: &mut Dice) {
        match guard.is_shared() {
            true => self.read(dice).await,
            false => self.write(dice).await,
        }
        let is_downgraded = !guard.is_shared() && dice.once_in(4);
        let guard = match is_downgraded {
            false => guard,
            true => match guard.downgrade().await {
                Ok(guard) => {
                    self.read(dice).await;
                    guard
                }
                Err(error) => return self.report(&format!("ERROR {error}: {error:?}")),
            },
        };
        match dice.once_in(2) {
            true => drop(guard),
            false => {
                if let Err(error) = guard.release().await {
                    self.report(&format!("ERROR {error}: {error:?}"));
                }
            }
        }
    }

    async fn write(&self, dice: &mut Dice) {
        let visit = self.visits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let ticket = Ticket { process: self.process, visit };
        let pause = dice.micros_up_to(30);
        let entered = self.oracle.enter(ticket, || std::thread::sleep(pause));
        let outcome = match entered {
            Ok(visit) => {
                self.stay(dice).await;
                visit.leave()
            }
            Err(why) => Err(why),
        };
        match outcome {
            Ok(()) => self.report("WRITES 1"),
            Err(why) => self.report(&format!("VIOLATION {why}")),
        }
    }

    /// Whoever is inside while this is read, alive, is a violation.
    async fn read(&self, dice: &mut Dice) {
        let look = || self.oracle.who().filter(|who| !who.process.is_gone());
        let before = look();
        self.stay(dice).await;
        let after = look();
        let seen = before.or(after).filter(|who| {
            // A killed process lets go of its locks before it counts as dead.
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(5) {
                if who.process.is_gone() {
                    return false;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            true
        });
        match seen {
            None => self.report("READS 1"),
            Some(who) => self.report(&format!("VIOLATION {who} is inside while it is read")),
        }
    }

    async fn stay(&self, dice: &mut Dice) {
        let stay = dice.micros_up_to(HOLD_US);
        match dice.once_in(4) {
            true => tokio::time::sleep(stay).await,
            false => std::thread::sleep(stay),
        }
    }

    fn report(&self, line: &str) {
        let line = format!("{}\n", line.replace('\n', " "));
        (&self.reports).write_all(line.as_bytes()).expect("a report can be written");
    }
}
