//! What a worker has done, in a file, so that it can be read after a SIGKILL.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use crate::system;

/// So many tasks of one worker have their own count.
pub const TASKS_MAX: usize = 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Acquisitions of each task.
    pub by_task: [u64; TASKS_MAX],
    /// Acquisitions that told of a dead holder.
    pub recovered: u64,
    /// Visits that found the link of a dead process.
    pub repaired: u64,
    pub timed_out: u64,
    pub busy: u64,
    pub cancelled: u64,
    pub errors: u64,
    pub violations: u64,
    pub longest_wait_us: u64,
    /// Tasks that wait, at this moment or when it was killed.
    pub waiting: u64,
    /// Tasks that hold, the same.
    pub holding: u64,
}

const FIELDS: usize = TASKS_MAX + 10;

impl Tally {
    pub fn acquired(&self) -> u64 {
        self.by_task.iter().sum()
    }

    /// Add another worker's.
    pub fn add(&mut self, other: &Tally) {
        let mut sum = [0; FIELDS];
        let both = self.fields().into_iter().zip(other.fields());
        sum.iter_mut().zip(both).for_each(|(sum, (left, right))| *sum = left + right);
        let longest_wait_us = self.longest_wait_us.max(other.longest_wait_us);
        *self = Self { longest_wait_us, ..Self::of(sum) };
    }

    /// All zero where a worker has not written yet.
    pub fn read(path: &Path) -> Tally {
        let Ok(bytes) = std::fs::read(path) else {
            return Tally::default();
        };
        let mut fields = [0; FIELDS];
        for (field, word) in fields.iter_mut().zip(bytes.chunks_exact(size_of::<u64>())) {
            *field = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        }
        Self::of(fields)
    }

    fn fields(&self) -> [u64; FIELDS] {
        let mut fields = [0; FIELDS];
        fields[..TASKS_MAX].copy_from_slice(&self.by_task);
        fields[TASKS_MAX..].copy_from_slice(&[
            self.recovered,
            self.repaired,
            self.timed_out,
            self.busy,
            self.cancelled,
            self.errors,
            self.violations,
            self.longest_wait_us,
            self.waiting,
            self.holding,
        ]);
        fields
    }

    fn of(fields: [u64; FIELDS]) -> Tally {
        let (by_task, rest) = fields.split_first_chunk().expect("BUG: too few fields");
        let &[
            recovered,
            repaired,
            timed_out,
            busy,
            cancelled,
            errors,
            violations,
            longest_wait_us,
            waiting,
            holding,
        ] = rest
        else {
            unreachable!("ten fields follow the tasks'");
        };
        Tally {
            by_task: *by_task,
            recovered,
            repaired,
            timed_out,
            busy,
            cancelled,
            errors,
            violations,
            longest_wait_us,
            waiting,
            holding,
        }
    }
}

/// A worker's tally and its file.
pub struct Counter {
    file: File,
    tally: Mutex<Tally>,
}

impl Counter {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(path)?, tally: Mutex::default() })
    }

    pub fn count(&self, change: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.lock().expect("no task panics here");
        change(&mut tally);
        let bytes = tally.fields().map(u64::to_ne_bytes).concat();
        system::write_all_at(&self.file, &bytes, 0).expect("the tally can be written");
    }
}
