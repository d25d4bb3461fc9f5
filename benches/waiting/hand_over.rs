//! From the release in one process to the acquisition in another.

use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use crate::chart::{self, Chart, Line};
use crate::contender::{Contender, Kind, Order};
use crate::figures::{Sample, judge_gain, judge_ratio, judge_time};
use crate::processes::Reports;
use crate::{DIRECTORY, Plan};

/// For how long the lock is held, while the other waits.
struct Holds {
    name: &'static str,
    least: Duration,
    /// They differ by up to this, so that no period of a poll fits them.
    spread: Duration,
}

/// A lock that goes round quickly, and one that is held for so long that the
/// processors have gone to sleep and those who poll have slowed down.
const HOLDS: [Holds; 2] = [
    Holds { name: "1 ms", least: Duration::from_millis(1), spread: Duration::from_micros(500) },
    Holds { name: "40-90 ms", least: Duration::from_millis(40), spread: Duration::from_millis(50) },
];

/// Between two hand-overs, so that one does not disturb the next.
const GAP: Duration = Duration::from_micros(300);

/// Two processes that take a lock from each other.
struct Pair {
    reports: Reports,
    contenders: [Contender; 2],
    holder: usize,
    /// Of its own: each file's events would wake all who wait in a directory.
    _directory: TempDir,
}

impl Pair {
    fn new(kind: Kind) -> Self {
        let directory = TempDir::new_in(DIRECTORY).expect("a directory");
        let reports = Reports::new();
        let path = directory.path().join(format!("{kind:?}.lock"));
        let mut contenders = [0, 1].map(|who| Contender::spawn(kind, &path, who, &reports));
        contenders[0].has(Order::Acquire, &reports);
        Pair { reports, contenders, holder: 0, _directory: directory }
    }

    fn wait(&mut self) {
        self.contenders[1 - self.holder].tell(Order::Acquire);
    }

    fn hand_over(&mut self) -> u64 {
        self.contenders[self.holder].tell(Order::Release);
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
    let samples = HOLDS.map(|holds| measure_with(&holds, plan.samples));
    if plan.draws {
        let [_, long_holds] = &samples;
        draw(long_holds);
    }
}

fn measure_with(holds: &Holds, times: usize) -> [Sample; 5] {
    let mut pairs = Kind::ALL.map(Pair::new);
    let mut samples = Kind::ALL.map(|_| Sample::default());
    for round in 0..times {
        pairs.iter_mut().for_each(Pair::wait);
        sleep(holds.least + holds.spread.mul_f64(round as f64 * 0.618 % 1.0));
        for turn in 0..pairs.len() {
            let which = (turn + round) % pairs.len();
            samples[which].add(pairs[which].hand_over());
            sleep(GAP);
        }
    }
    print(holds, &samples);
    samples
}

fn print(holds: &Holds, samples: &[Sample; 5]) {
    let name = holds.name;
    for (kind, sample) in Kind::ALL.iter().zip(samples) {
        sample.print(format_args!("held {name}, {}", kind.name()));
    }
    let [ours, one_thread, filelock, flock, bare] = samples;
    let ratio = |of: &Sample, to: &Sample, share| of.at(share).div_duration_f64(to.at(share));
    judge_time(format!("held {name}, p50"), ours.median(), Duration::from_micros(100));
    judge_time(format!("held {name}, p99"), ours.at(0.99), Duration::from_millis(1));
    judge_gain(format!("held {name}, p50, filelock / ours"), ratio(filelock, ours, 0.5), 20.0);
    judge_ratio(format!("held {name}, p50, ours / flock"), ratio(ours, flock, 0.5), 2.0);
    println!("  held {name}, p99, ours / flock: {:.2} ×", ratio(ours, flock, 0.99));
    println!("  held {name}, p50, ours / the bare calls: {:.2} ×", ratio(ours, bare, 0.5));
    let of_one = ratio(one_thread, bare, 0.5);
    println!("  held {name}, p50, one thread / the bare calls: {of_one:.2} ×");
}

fn draw(samples: &[Sample; 5]) {
    let line = |(kind, sample): (&Kind, &Sample)| {
        let sorted = sample.sorted();
        let share = |index: usize| (index + 1) as f64 / sorted.len() as f64 * 100.0;
        let point = |(index, value): (usize, &u64)| (*value as f64 / 1e3, share(index));
        let points = sorted.iter().enumerate().map(point).collect();
        Line { name: kind.name().to_owned(), points }
    };
    let lines = Kind::ALL.iter().zip(samples).map(line).collect();
    let chart = Chart {
        title: "How soon the next process holds the lock (further left is sooner)",
        across: "time from the release to the next acquisition, µs; waits of 40 to 90 ms, tmpfs",
        up: "% of hand-overs that took at most that long",
        is_up_logarithmic: false,
        lines,
    };
    chart::write("hand_over.svg", &chart);
}
