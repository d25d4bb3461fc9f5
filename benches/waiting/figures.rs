//! Samples, and what is printed of them.

use std::fmt::Display;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds: the same for all processes.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What the host of a virtual machine kept of its processors, by proc_stat(5): a
/// thread that runs there stands still for milliseconds, and the machine does not
/// know why.
pub(crate) struct Stolen {
    before: Option<[u64; 2]>,
}

impl Stolen {
    pub(crate) fn begin() -> Self {
        Self { before: Self::look() }
    }

    /// Time that was wanted, and of it what was stolen.
    fn look() -> Option<[u64; 2]> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let times = stat.lines().next()?.split_ascii_whitespace().skip(1);
        let times: Vec<u64> = times.map_while(|time| time.parse().ok()).collect();
        let [user, nice, system, _idle, _waiting, irq, softirq, steal, ..] = times[..] else {
            return None;
        };
        Some([user + nice + system + irq + softirq + steal, steal])
    }

    pub(crate) fn print(&self) {
        if let (Some(before), Some(after)) = (self.before, Self::look()) {
            let [wanted, stolen] = [0, 1].map(|which| after[which] - before[which]);
            let share = 100.0 * stolen as f64 / wanted.max(1) as f64;
            println!("  the machine's host kept {share:.1} % of the processors' time meanwhile");
        }
    }
}

/// Durations in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(Vec<u64>);

impl Sample {
    pub(crate) fn add(&mut self, nanoseconds: u64) {
        self.0.push(nanoseconds);
    }

    pub(crate) fn extend(&mut self, other: Sample) {
        self.0.extend(other.0);
    }

    pub(crate) fn sorted(&self) -> Vec<u64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted
    }

    /// The smallest value that this share of the sample does not exceed.
    pub(crate) fn at(&self, share: f64) -> Duration {
        let sorted = self.sorted();
        let index = (sorted.len() as f64 * share).ceil() as usize;
        Duration::from_nanos(sorted[index.clamp(1, sorted.len()) - 1])
    }

    pub(crate) fn median(&self) -> Duration {
        self.at(0.5)
    }

    pub(crate) fn longest(&self) -> Duration {
        self.at(1.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let values = bytes.chunks_exact(size_of::<u64>());
        let values = values.map(|value| u64::from_le_bytes(value.try_into().expect("eight bytes")));
        Sample(values.collect())
    }

    pub(crate) fn print(&self, what: impl Display) {
        let (p50, p99, longest) = (self.median(), self.at(0.99), self.longest());
        let what = what.to_string();
        println!(
            "{what:<52} p50 {:>9}  p99 {:>9}  longest {:>9}  of {}",
            short(p50),
            short(p99),
            short(longest),
            self.len()
        );
    }
}

/// The middle one of some numbers.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Three digits are all that these measurements are worth.
pub(crate) fn short(duration: Duration) -> String {
    let microseconds = duration.as_secs_f64() * 1e6;
    match microseconds {
        ..1e3 => format!("{microseconds:.1} µs"),
        ..1e6 => format!("{:.2} ms", microseconds / 1e3),
        _ => format!("{:.2} s", microseconds / 1e6),
    }
}

/// Print a figure with its bar.
pub(crate) fn judge(is_met: bool, what: impl Display, figure: impl Display, bar: impl Display) {
    let verdict = if is_met { "met" } else { "NOT MET" };
    let (what, figure) = (what.to_string(), figure.to_string());
    println!("  {what:<50} {figure:>12}   bar {bar}: {verdict}");
}

pub(crate) fn judge_time(what: impl Display, figure: Duration, at_most: Duration) {
    judge(figure <= at_most, what, short(figure), format!("≤ {}", short(at_most)));
}

pub(crate) fn judge_ratio(what: impl Display, figure: f64, at_most: f64) {
    judge(figure <= at_most, what, format!("{figure:.2} ×"), format!("≤ {at_most} ×"));
}

pub(crate) fn judge_gain(what: impl Display, figure: f64, at_least: f64) {
    judge(figure >= at_least, what, format!("{figure:.2} ×"), format!("≥ {at_least} ×"));
}
