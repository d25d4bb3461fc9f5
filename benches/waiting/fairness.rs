//! Processes that all want one lock all the time: who gets it how often, and
//! how long the others wait. Beside it a ring of as many processes that pass
//! on a token through pipes: perfectly fair, and as fast as the scheduler is.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;

use crate::contender::{Kind, Lock};
use crate::figures::{Sample, judge, judge_gain, judge_time, median, now, short};
use crate::processes::{Process, as_text};
use crate::{DIRECTORY, Plan};

const HOLD: Duration = Duration::from_millis(1);

/// For one process to start.
const START: Duration = Duration::from_millis(10);

/// What n processes saw.
struct Outcome {
    /// The share of the mean that the least served had.
    least: f64,
    holds: u64,
    waits: Sample,
}

/// Who takes turns.
#[derive(Clone, Copy)]
enum Turns {
    Lock(Kind),
    Ring,
}

pub(crate) fn measure(plan: &Plan) {
    for n in [2, 8, 32] {
        let mut ours = Vec::new();
        let mut ring = Sample::default();
        for _ in 0..plan.runs {
            ours.push(run_and_print(Turns::Lock(Kind::Ours), n, plan.time));
            ring.extend(run_and_print(Turns::Ring, n, plan.time).waits);
        }
        for peer in [Kind::Filelock, Kind::Flock] {
            run_and_print(Turns::Lock(peer), n, plan.time);
        }
        judge_all(n, &ours, &ring);
    }
}

fn judge_all(n: usize, ours: &[Outcome], ring: &Sample) {
    let of = |what: fn(&Outcome) -> f64| median(ours.iter().map(what).collect());
    let bar = HOLD * (5 * n as u32);
    judge_gain(format!("{n} processes, least served / mean"), of(|run| run.least), 0.5);
    let rare = Duration::from_secs_f64(of(|run| run.waits.at(0.999).as_secs_f64()));
    judge_time(format!("{n} processes, p99.9 wait"), rare, bar);
    let longest = ours.iter().map(|run| run.waits.longest()).max().unwrap_or_default();
    let limit = ring.longest() + bar;
    let bar = format!("≤ {} of the ring + {}", short(ring.longest()), short(bar));
    judge(longest <= limit, format!("{n} processes, longest wait"), short(longest), bar);
}

fn run_and_print(turns: Turns, n: usize, time: Duration) -> Outcome {
    let outcome = run(turns, n, time);
    let name = match turns {
        Turns::Lock(kind) => kind.name(),
        Turns::Ring => "token ring",
    };
    println!(
        "{n:>2} processes, {name:<20} {:>6} holds, least/mean {:.2}, wait p50 {:>9} p99.9 {:>9} longest {:>9}",
        outcome.holds,
        outcome.least,
        short(outcome.waits.median()),
        short(outcome.waits.at(0.999)),
        short(outcome.waits.longest())
    );
    outcome
}

fn run(turns: Turns, n: usize, time: Duration) -> Outcome {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let start = now() + (START * n as u32 + Duration::from_millis(200)).as_nanos() as u64;
    let end = start + time.as_nanos() as u64;
    let waits = |who: usize| directory.path().join(format!("{who}.waits"));
    let spawn = |role: &str, who: usize, first: &str, stdin: Stdio, stdout: Stdio| {
        let (waits, start, end) = (waits(who), start.to_string(), end.to_string());
        let path = directory.path().join("fair.lock");
        Process::spawn(role, [first, as_text(&path), as_text(&waits), &start, &end], stdin, stdout)
    };
    let processes: Vec<_> = match turns {
        Turns::Lock(kind) => (0..n)
            .map(|who| spawn("server", who, kind.name(), Stdio::null(), Stdio::null()))
            .collect(),
        Turns::Ring => {
            let (mut starts, mut ends) = pipes(n);
            let pass_on = |who: usize| {
                let (from, to) = (starts.remove(0), ends.remove(0));
                let first = if who == 0 { "first" } else { "other" };
                spawn("ring", who, first, from.into(), to.into())
            };
            (0..n).map(pass_on).collect()
        }
    };
    processes.into_iter().for_each(Process::wait);
    let seen = |who| Sample::parse(&std::fs::read(waits(who)).expect("it wrote its waits"));
    outcome((0..n).map(seen).collect())
}

fn outcome(waits: Vec<Sample>) -> Outcome {
    let holds: usize = waits.iter().map(Sample::len).sum();
    let least = waits.iter().map(Sample::len).min().unwrap_or(0);
    let n = waits.len() as f64;
    let mut all = Sample::default();
    waits.into_iter().for_each(|waits| all.extend(waits));
    Outcome { least: least as f64 * n / holds as f64, holds: holds as u64, waits: all }
}

/// One pipe from each process to the next.
fn pipes(n: usize) -> (Vec<File>, Vec<File>) {
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let (start, end) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        starts.push(start.into());
        ends.push(end.into());
    }
    ends.rotate_left(1);
    (starts, ends)
}

/// From when to when, and where what was seen goes.
struct Job {
    first: String,
    path: PathBuf,
    waits: PathBuf,
    end: u64,
}

impl Job {
    /// Read, and wait for the start.
    fn begin(words: &[String]) -> Self {
        let [first, path, waits, start, end] = words else { panic!("five words") };
        let number = |word: &String| word.parse::<u64>().expect("a number");
        sleep(Duration::from_nanos(number(start).saturating_sub(now())));
        let (path, waits) = (PathBuf::from(path), PathBuf::from(waits));
        Job { first: first.clone(), path, waits, end: number(end) }
    }

    fn finish(&self, waits: &Sample) {
        write(&self.waits, waits);
    }
}

fn write(path: &Path, waits: &Sample) {
    std::fs::write(path, waits.bytes()).expect("the waits can be written");
}

/// The role: take a lock again and again. A wait that outlasts the end counts.
pub(crate) fn serve(words: &[String]) {
    let kind = Kind::of(&words[0]);
    let runtime = kind.runtime();
    let job = Job::begin(words);
    let mut lock = Lock::new(kind, &job.path);
    let serving = async move {
        let mut waits = Sample::default();
        while now() < job.end {
            let asked = now();
            let hold = lock.acquire().await;
            waits.add(now() - asked);
            // A thread's sleep is exact, a task's a millisecond too long.
            sleep(HOLD);
            lock.release(hold).await;
        }
        job.finish(&waits);
    };
    let serving = runtime.spawn(serving);
    runtime.block_on(serving).expect("no panic");
}

/// The role: pass on a token.
pub(crate) fn pass_on(words: &[String]) {
    let job = Job::begin(words);
    let mut waits = Sample::default();
    let mut token = [0];
    let mut has_token = job.first == "first";
    while now() < job.end {
        let asked = now();
        if !has_token && std::io::stdin().read(&mut token).unwrap_or(0) == 0 {
            break;
        }
        has_token = false;
        waits.add(now() - asked);
        sleep(HOLD);
        // Whoever would be next may have come to its end.
        if std::io::stdout().write_all(&token).is_err() || std::io::stdout().flush().is_err() {
            break;
        }
    }
    job.finish(&waits);
}
