//! Many tasks of one process on one lock.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use tokio::sync::{Barrier, Mutex};

use crate::chart::{self, Chart, Line};
use crate::contender::{Kind, Lock};
use crate::figures::{Stolen, judge, judge_gain, median, now, short};
use crate::{DIRECTORY, Plan};

const TASKS: usize = 64;

/// How long one measurement lasts.
const MEASUREMENT: Duration = Duration::from_millis(700);

/// What 64 tasks do with the lock: nothing, or something that takes time.
const HOLD: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Ours,
    /// Opened for each acquisition, as a guard that owns its lock suggests.
    Filelock,
    /// Each task keeps its file open. It then never yields to the others.
    FilelockOpen,
    /// What a local hand-over cannot do without: `tokio::sync::Mutex`, a look
    /// whether the path still names the file, and a new record.
    Floor,
}

impl Subject {
    const ALL: [Subject; 4] =
        [Subject::Ours, Subject::Filelock, Subject::FilelockOpen, Subject::Floor];

    fn name(self) -> &'static str {
        match self {
            Subject::Ours => "lockkeeper",
            Subject::Filelock => "filelock 0.7 tokio",
            Subject::FilelockOpen => "filelock 0.7 tokio, kept open",
            Subject::Floor => "floor: Mutex, fstat, lstat, pwrite",
        }
    }
}

/// What a task has, and does.
enum Work {
    Lock(Lock),
    Open(std::path::PathBuf),
    Floor(Arc<Mutex<std::fs::File>>, std::path::PathBuf),
}

impl Work {
    fn new(subject: Subject, path: &Path, floor: &Arc<Mutex<std::fs::File>>) -> Self {
        match subject {
            Subject::Ours => Work::Lock(Lock::new(Kind::Ours, path)),
            Subject::Filelock => Work::Open(path.to_owned()),
            Subject::FilelockOpen => Work::Lock(Lock::new(Kind::Filelock, path)),
            Subject::Floor => Work::Floor(Arc::clone(floor), path.to_owned()),
        }
    }

    /// Once; when it was acquired, how often others had had it by then, and when it
    /// was given back.
    async fn once(&mut self, hold: Duration, served: &AtomicU64) -> (u64, u64, u64) {
        let seen = || (now(), served.load(Ordering::Relaxed));
        match self {
            Work::Lock(lock) => {
                let held = lock.acquire().await;
                let (acquired, by_then) = seen();
                pause(hold).await;
                lock.release(held).await;
                (acquired, by_then, now())
            }
            Work::Open(path) => {
                let mut lock = Lock::new(Kind::Filelock, path);
                let held = lock.acquire().await;
                let (acquired, by_then) = seen();
                pause(hold).await;
                lock.release(held).await;
                (acquired, by_then, now())
            }
            Work::Floor(mutex, path) => {
                let file = mutex.lock().await;
                let opened = rustix::fs::fstat(&*file).expect("it is open");
                let named = rustix::fs::lstat(&*path).expect("it is there");
                assert_eq!(opened.st_ino, named.st_ino);
                rustix::io::pwrite(&*file, &[b'\n'; 512], 0).expect("it can be written");
                let (acquired, by_then) = seen();
                pause(hold).await;
                drop(file);
                (acquired, by_then, now())
            }
        }
    }
}

async fn pause(hold: Duration) {
    if !hold.is_zero() {
        tokio::time::sleep(hold).await;
    }
}

/// What one measurement saw.
struct Seen {
    per_second: f64,
    longest_wait: Duration,
    /// How often others had the lock in one wait, at most.
    most_turns: u64,
    mean_hold: Duration,
    /// How often it went to another task, of all times.
    passed_on: f64,
    /// Tasks that never had the lock.
    unserved: usize,
}

fn run(subject: Subject, tasks: usize, hold: Duration) -> Seen {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let path = directory.path().join("tasks.lock");
    let flags = OFlags::CREATE | OFlags::RDWR;
    let other = directory.path().join("floor.lock");
    let file = rustix::fs::open(&other, flags, Mode::from(0o644)).expect("a file");
    let floor = Arc::new(Mutex::new(std::fs::File::from(file)));
    let path = if subject == Subject::Floor { other } else { path };
    let runtime = Kind::Ours.runtime();
    runtime.block_on(async {
        // The first look at a directory is no wait for the lock.
        Work::new(subject, &path, &floor).once(Duration::ZERO, &AtomicU64::new(0)).await;
        let (is_over, last) = (AtomicBool::new(false), AtomicUsize::new(tasks));
        let (served, barrier) = (AtomicU64::new(0), Barrier::new(tasks + 1));
        let shared = Arc::new(Shared { is_over, last, served, barrier });
        let work = |who| {
            let work = Work::new(subject, &path, &floor);
            tokio::spawn(repeat(work, hold, who, Arc::clone(&shared)))
        };
        let workers: Vec<_> = (0..tasks).map(work).collect();
        shared.barrier.wait().await;
        let started = now();
        tokio::time::sleep(MEASUREMENT).await;
        shared.is_over.store(true, Ordering::Relaxed);
        let elapsed = now() - started;
        // A starved task may never come to its end.
        let mut done = Vec::new();
        for worker in workers {
            match tokio::time::timeout(Duration::from_secs(2), worker).await {
                Ok(worker) => done.push(worker.expect("no panic")),
                Err(_) => done.push(Worker { longest_wait: now() - started, ..Worker::default() }),
            }
        }
        summary(&done, elapsed)
    })
}

fn summary(workers: &[Worker], elapsed: u64) -> Seen {
    let count: u64 = workers.iter().map(|worker| worker.count).sum();
    let held: u64 = workers.iter().map(|worker| worker.held).sum();
    let passed_on: u64 = workers.iter().map(|worker| worker.passed_on).sum();
    let longest = workers.iter().map(|worker| worker.longest_wait).max().unwrap_or(0);
    Seen {
        per_second: count as f64 / elapsed as f64 * 1e9,
        longest_wait: Duration::from_nanos(longest),
        most_turns: workers.iter().map(|worker| worker.most_turns).max().unwrap_or(0),
        mean_hold: Duration::from_nanos(held / count.max(1)),
        passed_on: passed_on as f64 / count.max(1) as f64,
        unserved: workers.iter().filter(|worker| worker.count == 0).count(),
    }
}

/// What one task saw; times in nanoseconds.
#[derive(Default)]
struct Worker {
    count: u64,
    held: u64,
    longest_wait: u64,
    most_turns: u64,
    passed_on: u64,
}

/// What the tasks have in common.
struct Shared {
    barrier: Barrier,
    is_over: AtomicBool,
    /// Who had the lock last.
    last: AtomicUsize,
    /// How often anybody had it.
    served: AtomicU64,
}

async fn repeat(mut work: Work, hold: Duration, who: usize, shared: Arc<Shared>) -> Worker {
    shared.barrier.wait().await;
    let mut seen = Worker::default();
    loop {
        let (before, asked) = (shared.served.load(Ordering::Relaxed), now());
        let (acquired, by_then, released) = work.once(hold, &shared.served).await;
        shared.served.fetch_add(1, Ordering::Relaxed);
        seen.longest_wait = seen.longest_wait.max(acquired - asked);
        seen.most_turns = seen.most_turns.max(by_then - before);
        if shared.is_over.load(Ordering::Relaxed) {
            return seen;
        }
        seen.count += 1;
        seen.passed_on += u64::from(shared.last.swap(who, Ordering::Relaxed) != who);
        seen.held += released - acquired;
    }
}

pub(crate) fn measure(plan: &Plan) {
    let rates = without_holding(plan.runs);
    let [ours, filelock, kept_open, floor] = rates;
    judge_gain("64 tasks, op/s, ours / floor", ours / floor, 0.7);
    judge_gain("64 tasks, op/s, ours / filelock 0.7", ours / filelock, 1.0);
    println!("  64 tasks, op/s, ours / filelock 0.7 kept open {:>16.2} ×", ours / kept_open);
    for subject in Subject::ALL {
        let seen = run(subject, TASKS, HOLD);
        print(subject, "1 ms", &seen);
        if subject == Subject::Ours {
            let (longest, hold) = (seen.longest_wait.as_secs_f64(), seen.mean_hold.as_secs_f64());
            judge_wait("64 tasks, 1 ms, longest wait", longest, hold);
            let (most, what) =
                (seen.most_turns, "64 tasks, 1 ms, most turns of others in one wait");
            judge(most <= TASKS as u64, what, most, "≤ 64");
        }
    }
    if plan.draws {
        draw();
    }
}

/// Operations a second, medians.
fn without_holding(runs: usize) -> [f64; 4] {
    let stolen = Stolen::begin();
    let mut all = Subject::ALL.map(|_| Vec::new());
    for _ in 0..runs {
        for (subject, all) in Subject::ALL.into_iter().zip(&mut all) {
            let seen = run(subject, TASKS, Duration::ZERO);
            print(subject, "0", &seen);
            all.push(seen);
        }
    }
    let medians = |figure: fn(&Seen) -> f64| {
        all.each_ref().map(|all| median(all.iter().map(figure).collect()))
    };
    let rates = medians(|seen| seen.per_second);
    let [ours, .., floor] = medians(|seen| seen.longest_wait.as_secs_f64());
    let [hold, ..] = medians(|seen| seen.mean_hold.as_secs_f64());
    // A hold of nothing is over at once, while its turn takes the whole acquisition.
    judge_wait("64 tasks, longest wait, by the mean turn", ours, 1.0 / rates[0]);
    judge_wait("64 tasks, longest wait, by the mean hold", ours, hold);
    println!("  64 tasks, longest wait, ours / floor {:>26.2} ×", ours / floor);
    let [turns, .., floors] = medians(|seen| seen.most_turns as f64);
    let what = format!("64 tasks, most turns of others in one wait, the floor's {floors}");
    judge(turns <= (5 * TASKS) as f64, what, turns, "≤ 5 × 64");
    stolen.print();
    rates
}

/// In seconds.
fn judge_wait(what: &str, longest: f64, unit: f64) {
    let [longest, unit] = [longest, unit].map(Duration::from_secs_f64);
    let bar = unit * (5 * TASKS as u32);
    judge(longest <= bar, what, short(longest), format!("≤ 5 × 64 × {}", short(unit)));
}

fn print(subject: Subject, hold: &str, seen: &Seen) {
    println!(
        "64 tasks, hold {hold:<4} {:<36} {:>8.0} op/s  longest wait {:>9}, {:>6} turns  to another task {:>3.0} %  unserved {}",
        subject.name(),
        seen.per_second,
        short(seen.longest_wait),
        seen.most_turns,
        seen.passed_on * 100.0,
        seen.unserved
    );
}

fn draw() {
    let counts = [1, 2, 4, 8, 16, 32, 64, 128, 256];
    let line = |subject: Subject| {
        let rate = |tasks| run(subject, tasks, Duration::ZERO).per_second;
        let points = counts.map(|tasks| (tasks as f64, rate(tasks))).to_vec();
        Line { name: subject.name().to_owned(), points }
    };
    let chart = Chart {
        title: "How often tasks of one process acquire a lock (higher is better)",
        across: "number of tasks",
        up: "acquisitions per second, all tasks together, tmpfs",
        is_up_logarithmic: true,
        lines: Subject::ALL.map(line).into(),
    };
    chart::write("tasks.svg", &chart);
}
