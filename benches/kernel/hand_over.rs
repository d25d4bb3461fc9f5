//! From the release, or the death, of one process to the acquisition in another.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::figures::{Sample, judge_gain, judge_ratio, judge_time, now};
use crate::processes::{Process, Reports, as_text, orders};
use crate::subject::{Kind, Lock, runtime};
use crate::{DIRECTORY, Plan};

/// How long the lock is held while the other waits, differing by up to half of
/// it, so that no period of a poll fits.
const HOLDS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(40)];

/// Between two hand-overs, so that one does not disturb the next.
const GAP: Duration = Duration::from_micros(300);

struct Contender(Process);

impl Contender {
    fn spawn(kind: Kind, path: &Path, number: usize, reports: &Reports) -> Self {
        let number = number.to_string();
        let words = [kind.name(), as_text(path), &number];
        Self(Process::spawn("contender", words, Stdio::piped(), reports.end()))
    }

    fn tell(&mut self, order: u8) {
        let stdin = self.0.child().stdin.as_mut().expect("it is piped");
        stdin.write_all(&[order]).expect("it listens");
    }
}

/// Two processes that take a lock from each other.
struct Pair {
    reports: Reports,
    contenders: [Contender; 2],
    holder: usize,
}

impl Pair {
    fn new(kind: Kind, directory: &TempDir) -> Self {
        let reports = Reports::new();
        let path = directory.path().join(format!("{kind:?}.lock"));
        let mut contenders = [0, 1].map(|who| Contender::spawn(kind, &path, who, &reports));
        contenders[0].tell(b'a');
        reports.next();
        Pair { reports, contenders, holder: 0 }
    }

    fn hand_over(&mut self) -> u64 {
        self.contenders[self.holder].tell(b'r');
        let mut times = [0; 2];
        for _ in 0..2 {
            let report = self.reports.next();
            times[report.who] = report.time;
        }
        let released = times[self.holder];
        self.holder = 1 - self.holder;
        times[self.holder].saturating_sub(released)
    }
}

pub(crate) fn measure(plan: &Plan) {
    for hold in HOLDS {
        let directory = TempDir::new_in(DIRECTORY).expect("a directory");
        let mut pairs = Kind::ALL.map(|kind| Pair::new(kind, &directory));
        let mut samples = Kind::ALL.map(|_| Sample::default());
        for round in 0..plan.samples {
            for pair in &mut pairs {
                pair.contenders[1 - pair.holder].tell(b'a');
            }
            sleep(hold + hold.mul_f64(round as f64 * 0.618 % 1.0 / 2.0));
            for turn in 0..pairs.len() {
                let which = (turn + round) % pairs.len();
                samples[which].add(pairs[which].hand_over());
                sleep(GAP);
            }
        }
        print(hold, &samples);
    }
}

fn print(hold: Duration, samples: &[Sample; 6]) {
    for (kind, sample) in Kind::ALL.iter().zip(samples) {
        sample.print(format_args!("held {hold:?}, {}", kind.name()));
    }
    let [ours, kept, _, _, filelock, flock] = samples;
    let ratio = |of: &Sample, to: &Sample| of.median().div_duration_f64(to.median());
    for (name, ours) in [("", ours), (", kept open", kept)] {
        let what = format!("held {hold:?}{name}");
        judge_time(format!("{what}, p50"), ours.median(), Duration::from_micros(100));
        judge_time(format!("{what}, p99"), ours.at(0.99), Duration::from_millis(1));
        judge_gain(format!("{what}, p50, filelock / ours"), ratio(filelock, ours), 20.0);
        judge_ratio(format!("{what}, p50, ours / thread in flock"), ratio(ours, flock), 2.0);
    }
}

/// SIGKILL of the holder to the acquisition by who waits.
pub(crate) fn measure_death(plan: &Plan) {
    for kind in [Kind::Ours, Kind::OursKept, Kind::Flock] {
        let mut sample = Sample::default();
        for _ in 0..(plan.samples / 4).max(5) {
            let directory = TempDir::new_in(DIRECTORY).expect("a directory");
            let path = directory.path().join("death.lock");
            let reports = Reports::new();
            let mut holder = Contender::spawn(kind, &path, 0, &reports);
            let mut waiter = Contender::spawn(kind, &path, 1, &reports);
            holder.tell(b'a');
            reports.next();
            waiter.tell(b'a');
            sleep(Duration::from_millis(20));
            let killed = now();
            holder.0.kill();
            sample.add(reports.next().time.saturating_sub(killed));
        }
        sample.print(format_args!("SIGKILL to acquired, {}", kind.name()));
        if kind != Kind::Flock {
            let what = format!("{}, p50", kind.name());
            judge_time(what, sample.median(), Duration::from_millis(1));
        }
    }
}

/// The role: kind, path, number.
pub(crate) fn play(words: &[String]) {
    let [kind, path, number] = words else { panic!("kind, path, number") };
    let lock = Lock::new(Kind::of(kind), Path::new(path));
    let number: usize = number.parse().expect("a number");
    let report = move |time: u64| {
        let line = format!("{number} {time}\n");
        std::io::stdout().write_all(line.as_bytes()).expect("somebody listens");
    };
    let threads = if Kind::of(kind) == Kind::Flock { 1 } else { 2 };
    let carry_out = async move {
        let mut orders = orders();
        let mut hold = None;
        while let Ok(order) = orders.read_u8().await {
            if order == b'a' {
                hold = Some(lock.acquire().await);
                report(now());
            } else {
                let time = now();
                lock.release(hold.take().expect("it is held")).await;
                report(time);
            }
        }
    };
    let runtime = runtime(threads);
    let carried_out = runtime.spawn(carry_out);
    runtime.block_on(carried_out).expect("no panic");
}
