//! What a person can paste into a bug report.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::left_overs::LeftOvers;
use crate::settings::{End, Settings, pin_name};
use crate::system::has_unnamed_files;
use crate::tally::Tally;

#[derive(Default)]
pub struct Summary {
    pub storm: Duration,
    pub tally: Tally,
    pub kills: u64,
    pub kills_of_holders: u64,
    pub kills_of_waiters: u64,
    pub stops: u64,
    pub stuck: Vec<String>,
    /// A worker ended by itself too early.
    pub has_died: bool,
    /// What workers reported, the first of them.
    pub reports: Vec<String>,
    pub left_overs: LeftOvers,
}

impl Summary {
    pub const REPORTS_MAX: usize = 20;

    pub fn is_good(&self) -> bool {
        let is_quiet = self.reports.is_empty() && self.stuck.is_empty();
        let has_counted = self.tally.violations + self.tally.errors > 0;
        is_quiet && !has_counted && self.left_overs.wrong.is_empty()
    }

    pub fn text(&self, settings: &Settings, place: &Path) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(text, "{name:<14}{value}").expect("a string takes any text");
        };
        match &settings.peer {
            Some(peer) => line("peer", format!("{} {}", peer.name, peer.version)),
            None => line("lockkeeper", format!("{}{}", env!("CARGO_PKG_VERSION"), build())),
        }
        line("kernel", first_line("/proc/sys/kernel/version", "/proc/sys/kernel/osrelease"));
        line("file system", file_system(place));
        line("settings", settings_text(settings));
        let tally = &self.tally;
        let per_second = tally.acquired() as f64 / self.storm.as_secs_f64().max(0.001);
        line(
            "acquisitions",
            format!(
                "{} in {:.1} s ({per_second:.0} a second); {} after a dead holder; not had: {} timed out, {} busy, {} cancelled",
                tally.acquired(),
                self.storm.as_secs_f64(),
                tally.recovered,
                tally.timed_out,
                tally.busy,
                tally.cancelled,
            ),
        );
        line(
            "longest wait",
            format!(
                "{:.3} s, the time a process was stopped included",
                Duration::from_micros(tally.longest_wait_us).as_secs_f64(),
            ),
        );
        line(
            "kills",
            format!(
                "{}: {} of holders ({} of them found inside), {} of waiters, {} of others",
                self.kills,
                self.kills_of_holders,
                tally.repaired,
                self.kills_of_waiters,
                self.kills - self.kills_of_holders - self.kills_of_waiters,
            ),
        );
        line("stops", self.stops.to_string());
        line("left over", self.left_over_text(settings));
        line("violations", tally.violations.to_string());
        line("stuck", self.stuck.len().to_string());
        line("errors", tally.errors.to_string());
        for why in self.stuck.iter().chain(&self.reports).chain(&self.left_overs.wrong) {
            line("", why.clone());
        }
        line("verdict", if self.is_good() { "good" } else { "BAD" }.to_owned());
        text.truncate(text.trim_end().len());
        text
    }
}

impl Summary {
    fn left_over_text(&self, settings: &Settings) -> String {
        let LeftOvers { lock_files, candidates, claims, wrong } = &self.left_overs;
        if settings.peer.is_some() {
            return format!("{lock_files} lock files, {candidates} other files");
        }
        let rest = if wrong.is_empty() { "nothing" } else { "see below" };
        format!(
            "{lock_files} lock files, {candidates} candidates, {claims} claims; \
             after the next acquisition and a sweep: {rest}"
        )
    }
}

/// What the build leaves out, where it can.
fn build() -> String {
    if !cfg!(lockkeeper_proof) {
        return String::new();
    }
    let setting = |name| std::env::var(name).unwrap_or_else(|_| "none".to_owned());
    let (mutant, delay) = (setting("LOCKKEEPER_MUTANT"), setting("LOCKKEEPER_DELAY_US"));
    format!(", proof build: mutant {mutant}, delays up to {delay} µs")
}

fn settings_text(settings: &Settings) -> String {
    let every = |time: Option<Duration>| {
        time.map_or_else(|| "never".to_owned(), |time| format!("every {time:?}"))
    };
    let Settings { seed, processes, tasks, hold_us, period_us, .. } = settings;
    format!(
        "seed {seed}, {processes} processes of {tasks} tasks, pin {}, hold <= {hold_us} µs, \
         period <= {period_us} µs, kill {}, stop {}, ended by {}",
        pin_name(settings.pin),
        every(settings.kill_every),
        every(settings.stop_every),
        if settings.end == End::Ask { "asking" } else { "SIGKILL" },
    )
}

fn first_line(version: &str, release: &str) -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!("{} {}", read(release), read(version))
}

/// By the longest mount point that leads to `place`.
fn file_system(place: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            place.starts_with(point).then_some((point, kind))
        })
        .max_by_key(|(point, _)| point.len());
    let (point, kind) = mount.unwrap_or(("?", "unknown"));
    let unnamed = if has_unnamed_files(place) { "" } else { "out" };
    format!("{kind} (mounted on {point}), with{unnamed} O_TMPFILE")
}
