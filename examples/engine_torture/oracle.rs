//! What clients wrote, and whether that can be. Nothing here knows of locks but this.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the boot; the clock runs while a process is stopped, and while the machine
/// is suspended.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let since = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.try_into().expect("less"));
    u64::try_from(since.as_nanos()).expect("some centuries at most")
}

/// What a client writes, one line at a time and each by one call, so that a kill loses none.
pub(crate) struct Record(File);

impl Record {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        File::options().create(true).append(true).open(path).map(Self)
    }

    /// Told at this moment that it holds.
    pub(crate) fn told(&self, lock: &str, token: u64, at: u64) {
        self.line(&format!("G {lock} {token} {at}\n"));
    }

    /// At this moment it still held.
    pub(crate) fn held(&self, lock: &str, token: u64, at: u64) {
        self.line(&format!("H {lock} {token} {at}\n"));
    }

    /// The hold has ended: `released`, `dropped`, `lost` or `unreachable`.
    pub(crate) fn ended(&self, lock: &str, token: u64, how: &str) {
        self.line(&format!("E {lock} {token} {how}\n"));
    }

    /// A wait that ended without the lock, and why.
    pub(crate) fn not_had(&self, why: &str) {
        self.line(&format!("N {why}\n"));
    }

    /// What no client may be told.
    pub(crate) fn fault(&self, text: &str) {
        self.line(&format!("X {}\n", text.replace('\n', " ")));
    }

    fn line(&self, line: &str) {
        (&self.0).write_all(line.as_bytes()).expect("a record");
    }
}

/// Whether this client is in a hold, by the end of what it wrote.
pub(crate) fn ends_in_a_hold(record: &Path) -> bool {
    let read = || -> io::Result<Vec<u8>> {
        let (mut file, mut end) = (File::open(record)?, Vec::new());
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_AT)))?;
        file.read_to_end(&mut end)?;
        Ok(end)
    };
    let end = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let mut open = HashSet::new();
    for line in end.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        match parts[..] {
            ["G" | "H", lock, token, _] => _ = open.insert((lock, token)),
            ["E", lock, token, _] => _ = open.remove(&(lock, token)),
            _ => {}
        }
    }
    !open.is_empty()
}

/// Some twenty lines. If less, holds of a busy client are not seen.
const LOOKED_AT: u64 = 600;

/// An interval in which a guard said that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hold {
    told: u64,
    held: u64,
    token: u64,
}

#[derive(Default)]
pub(crate) struct Findings {
    holds: BTreeMap<String, Vec<Hold>>,
    /// Those whose end no client wrote: it was killed.
    pub(crate) cut_off: usize,
    /// How holds ended, and waits without one.
    pub(crate) ends: BTreeMap<String, usize>,
    pub(crate) waits: BTreeMap<String, usize>,
    pub(crate) overlaps: Vec<String>,
    /// How many were no longer than may be, and the longest.
    pub(crate) overlaps_in_a_lease: (usize, Duration),
    pub(crate) tokens_not_greater: Vec<String>,
    pub(crate) faults: Vec<String>,
    /// The longest time in which a lock was held by none, and when it began.
    pub(crate) longest_gap: (Duration, u64),
}

impl Findings {
    /// Of all records in this directory. Overlaps of up to `longest` may be.
    pub(crate) fn read(directory: &Path, longest: Duration) -> io::Result<Self> {
        let mut findings = Self::default();
        for entry in fs::read_dir(directory)? {
            findings.take(&fs::read_to_string(entry?.path())?);
        }
        findings.judge(longest);
        Ok(findings)
    }

    pub(crate) fn count(&self) -> usize {
        self.holds.values().map(Vec::len).sum()
    }

    /// Locks of which no hold began after this moment.
    pub(crate) fn not_held_after(&self, moment: u64, locks: u64) -> u64 {
        let is_held = |holds: &&Vec<Hold>| holds.iter().any(|hold| hold.told > moment);
        locks - self.holds.values().filter(is_held).count() as u64
    }

    /// The record of one process.
    fn take(&mut self, text: &str) {
        let mut open: HashMap<(&str, u64), Hold> = HashMap::new();
        // A line that a kill has cut says nothing.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let parts: Vec<&str> = line.splitn(4, ' ').collect();
            match parts[..] {
                ["G", lock, token, at] => {
                    let (token, at) = (number(token), number(at));
                    let hold = Hold { told: at, held: at, token };
                    if open.insert((lock, token), hold).is_some() {
                        self.tokens_not_greater.push(format!("{lock}: {token} twice"));
                    }
                }
                ["H", lock, token, at] => {
                    let hold = open.get_mut(&(lock, number(token))).expect("it was told before");
                    hold.held = hold.held.max(number(at));
                }
                ["E", lock, token, how] => {
                    *self.ends.entry(how.to_owned()).or_default() += 1;
                    let hold = open.remove(&(lock, number(token))).expect("it was told before");
                    self.holds.entry(lock.to_owned()).or_default().push(hold);
                }
                ["N", why, ..] => *self.waits.entry(why.to_owned()).or_default() += 1,
                _ => self.faults.push(line.trim_start_matches("X ").to_owned()),
            }
        }
        self.cut_off += open.len();
        for ((lock, _), hold) in open {
            self.holds.entry(lock.to_owned()).or_default().push(hold);
        }
    }

    fn judge(&mut self, longest: Duration) {
        for (lock, holds) in &mut self.holds {
            holds.sort_by_key(|hold| (hold.told, hold.held));
            // What was held for the longest so far, and the greatest token.
            let mut held: Option<Hold> = None;
            let mut greatest = 0;
            for hold in &*holds {
                if hold.token <= greatest {
                    let text = format!("{lock}: {} after {greatest}", hold.token);
                    self.tokens_not_greater.push(text);
                }
                greatest = greatest.max(hold.token);
                if let Some(before) = held {
                    if hold.told <= before.held {
                        let overlap = Duration::from_nanos(before.held - hold.told);
                        if overlap < longest {
                            let (count, most) = self.overlaps_in_a_lease;
                            self.overlaps_in_a_lease = (count + 1, most.max(overlap));
                        } else {
                            let text = format!(
                                "{lock}: {} was told {overlap:?} before {} last held",
                                hold.token, before.token
                            );
                            self.overlaps.push(text);
                        }
                    } else {
                        let gap = Duration::from_nanos(hold.told - before.held);
                        self.longest_gap = self.longest_gap.max((gap, before.held));
                    }
                }
                held = held.filter(|before| before.held >= hold.held).or(Some(*hold));
            }
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(records: &[&str]) -> Findings {
        judged_with(Duration::ZERO, records)
    }

    fn judged_with(longest: Duration, records: &[&str]) -> Findings {
        let mut findings = Findings::default();
        records.iter().for_each(|record| findings.take(record));
        findings.judge(longest);
        findings
    }

    fn faults(records: &[&str]) -> (usize, usize) {
        let findings = judged(records);
        (findings.overlaps.len(), findings.tokens_not_greater.len())
    }

    #[test]
    fn holds_one_after_the_other_are_right() {
        let one = "G a 1 10\nH a 1 20\nE a 1 released\nG a 3 50\nH a 3 60\nE a 3 dropped\n";
        let other = "N timeout\nG a 2 30\nH a 2 40\nE a 2 lost\nG b 2 30\nH b 2 70\nE b 2 lost\n";
        let findings = judged(&[one, other]);
        assert!(findings.overlaps.is_empty() && findings.tokens_not_greater.is_empty());
        assert_eq!((findings.count(), findings.cut_off, findings.ends["lost"]), (4, 0, 2));
        assert_eq!(findings.longest_gap, (Duration::from_nanos(10), 40));
        assert_eq!(findings.not_held_after(45, 2), 1);
    }

    #[test]
    fn two_inside_are_found() {
        assert_eq!(faults(&["G a 1 10\nH a 1 30\nE a 1 released\n", "G a 2 20\n"]), (1, 0));
        // Of a killed process as well, and not only of the one just before.
        assert_eq!(faults(&["G a 1 10\nH a 1 90\n", "G a 2 20\n", "G a 3 80\n"]), (2, 0));
    }

    #[test]
    fn overlaps_that_may_be_are_counted_apart() {
        let records = ["G a 1 10\nH a 1 40\n", "G a 2 20\n", "G a 3 15\n"];
        let findings = judged_with(Duration::from_nanos(22), &records);
        assert_eq!((findings.overlaps.len(), findings.overlaps_in_a_lease.0), (1, 1));
        assert_eq!(findings.overlaps_in_a_lease.1, Duration::from_nanos(20));
    }

    #[test]
    fn tokens_that_do_not_grow_are_found() {
        assert_eq!(faults(&["G a 5 10\n", "G a 5 20\n"]), (0, 1));
        assert_eq!(faults(&["G a 5 10\n", "G a 7 20\n", "G a 6 30\n"]), (0, 1));
    }

    #[test]
    fn a_line_that_was_cut_says_nothing() {
        let findings = judged(&["G a 1 10\nH a 1 2"]);
        assert_eq!(findings.holds["a"], [Hold { told: 10, held: 10, token: 1 }]);
    }
}
