//! What was granted and ended, in order, in two files that take turns.
//!
//! J1. A record is written, and synced where that was asked for, before what
//!     it says is answered.
//! J2. Each generation begins with all that is held, and is complete, and
//!     synced, before a record is added to it. Until then the file of the
//!     generation before stays as it is, and counts.
//! J3. Before a generation forgets an end, the removal of the file is synced.
//! J4. Both files have their size from the start, and so much of it is free
//!     that every lock can be ended on a full disk.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fdatasync, ftruncate};
use rustix::io::{Errno, retry_on_intr};

use super::directory::{Directory, read, write_all};
use super::hold::Hold;
use super::record::{HEADER_BYTES, Header, Record};

/// The journal, open for writing.
#[derive(Debug)]
pub(crate) struct Journal {
    files: [OwnedFd; 2],
    /// Which of them is written.
    active: usize,
    header: Header,
    /// Where the next record goes.
    end: usize,
    /// How long both files are.
    capacity: usize,
    /// It is made longer than it must be when so much is needed: not at every
    /// grant on a disk that is full.
    next_growth: usize,
    sync: bool,
    pub(crate) syncs: Syncs,
}

/// What a journal says.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) header: Header,
    /// What was held at its end, by token: in the order in which it was given.
    pub(crate) held: BTreeMap<u64, Arc<Hold>>,
    /// What it says was ended.
    pub(crate) ended: Vec<Arc<Hold>>,
    /// Tokens of what was granted last: the files may not have been made.
    pub(crate) last: Vec<u64>,
    /// The smallest token that was not given.
    pub(crate) next_token: u64,
    /// Whether all files were synced at its end.
    pub(crate) is_closed: bool,
    active: usize,
}

pub(crate) const JOURNALS: [&str; 2] = [".lockkeeper-journal-a", ".lockkeeper-journal-b"];

/// Small enough for a small disk; some thousand records.
const CAPACITY_MIN: usize = 128 * 1024;

/// The place of a batch is a 32-bit number.
const CAPACITY_MAX: usize = 1 << 31;

/// Left for the ends of locks (J4).
const RESERVE: usize = 8 * 1024;

/// The files of a journal, before it is known what they say.
#[derive(Debug)]
pub(crate) struct Files {
    files: [OwnedFd; 2],
    bytes: [Vec<u8>; 2],
}

impl Files {
    pub(crate) fn open(directory: &Directory) -> Result<Self, Errno> {
        let open = |name| directory.open_own(name, OFlags::RDWR | OFlags::CREATE);
        let files = [open(JOURNALS[0])?, open(JOURNALS[1])?];
        let bytes = [read(&files[0], CAPACITY_MAX)?, read(&files[1], CAPACITY_MAX)?];
        Ok(Self { files, bytes })
    }

    /// What they say; `None` for new files, the error for damaged ones.
    pub(crate) fn past(&self) -> Result<Option<Past>, ()> {
        let pasts = [0, 1].map(|active| Past::read(&self.bytes[active], active));
        let newest = pasts.into_iter().flatten().max_by_key(|past| past.header.generation);
        let is_blank = self.bytes.iter().flatten().all(|&byte| byte == 0);
        match newest {
            None if !is_blank => Err(()),
            newest => Ok(newest),
        }
    }

    /// Begin a generation with what is held now.
    pub(crate) fn begin<'a>(
        self,
        directory: &Directory,
        past: Option<&Past>,
        boot: [u8; 36],
        next_token: u64,
        held: impl Iterator<Item = &'a Arc<Hold>> + Clone,
        sync: bool,
    ) -> Result<Journal, Errno> {
        let header =
            Header { generation: past.map_or(0, |past| past.header.generation), boot, next_token };
        let capacity = self.bytes.iter().map(Vec::len).min().unwrap_or(0);
        let active = past.map_or(0, |past| past.active);
        let (syncs, files) = (Syncs::default(), self.files);
        let (end, next_growth, sync_now) = (0, 0, true);
        let mut journal =
            Journal { files, active, header, end, capacity, next_growth, sync: sync_now, syncs };
        let live = held.clone().map(|hold| super::record::granted_bytes(&hold.wanted)).sum();
        if !journal.admits(live, 0) {
            return Err(Errno::NOSPC);
        }
        // Once at the start it is synced in any case, names and all.
        journal.begin_generation(directory, next_token, held)?;
        journal.sync = sync;
        Ok(journal)
    }
}

impl Past {
    fn read(bytes: &[u8], active: usize) -> Option<Self> {
        let header = Header::decode(bytes)?;
        let (next_token, is_closed) = (header.next_token, false);
        let (held, ended, last) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut past = Self { header, held, ended, last, next_token, is_closed, active };
        let mut place = HEADER_BYTES;
        let mut has_begun = false;
        let mut batch_of_last = 0;
        while let Some((record, length, batch)) =
            Record::decode(past.header.generation, &bytes[place..])
        {
            if has_begun && batch != batch_of_last {
                past.last.clear();
                batch_of_last = batch;
            }
            match record {
                Record::Begun => has_begun = true,
                Record::Closed => past.is_closed = true,
                record => past.replay(record, has_begun),
            }
            place += length;
        }
        // The body of a generation that was never finished counts for nothing. (J2)
        has_begun.then_some(past)
    }

    fn replay(&mut self, record: Record, has_begun: bool) {
        match record {
            Record::Granted(hold) => {
                self.next_token = self.next_token.max(hold.token.saturating_add(1));
                if has_begun {
                    self.last.push(hold.token);
                }
                self.held.insert(hold.token, hold);
            }
            Record::Ended(token) => self.ended.extend(self.held.remove(&token)),
            Record::Withdrawn(token) => drop(self.held.remove(&token)),
            Record::Begun | Record::Closed => {}
        }
    }
}

/// How long the journal's syncs took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Syncs {
    /// How many there were.
    pub(crate) count: u64,
    /// How long they took in all.
    pub(crate) time: Duration,
    /// How many took no longer than each of [`SYNC_BOUNDS`].
    pub(crate) within: [u64; SYNC_BOUNDS.len()],
}

/// From a device with a battery to a disk that is overloaded.
pub(crate) const SYNC_BOUNDS: [Duration; 10] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
];

impl Syncs {
    fn count(&mut self, took: Duration) {
        self.count += 1;
        self.time += took;
        for (within, bound) in self.within.iter_mut().zip(SYNC_BOUNDS) {
            *within += u64::from(took <= bound);
        }
    }
}

impl Journal {
    /// Whether so much more may be granted when so much is held: it must be
    /// possible to end it all. (J4)
    pub(crate) fn admits(&mut self, held: usize, granted: usize) -> bool {
        let needed = HEADER_BYTES + held + granted + RESERVE;
        if 2 * needed > self.capacity && needed >= self.next_growth {
            self.next_growth = needed + needed / 4;
            self.try_to_grow(4 * needed);
        }
        for times in [2, 1] {
            if needed > self.capacity {
                self.try_to_grow(times * needed);
            }
        }
        needed <= self.capacity
    }

    fn try_to_grow(&mut self, needed: usize) {
        let capacity = needed.next_multiple_of(CAPACITY_MIN).min(CAPACITY_MAX);
        if let Err(error) = self.grow(capacity) {
            tracing::debug!("the journal could not grow to {capacity} bytes: {error}");
        }
    }

    /// Zeros, so that the disk has the room and a later write changes no sizes.
    fn grow(&mut self, capacity: usize) -> Result<(), Errno> {
        if capacity <= self.capacity {
            return Ok(());
        }
        let zeros = vec![0; 1 << 16];
        for file in &self.files {
            let mut place = self.capacity;
            while place < capacity {
                let part = zeros.len().min(capacity - place);
                if let Err(error) = write_all(file, &zeros[..part], place as u64) {
                    self.shrink_back();
                    return Err(error);
                }
                place += part;
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    fn shrink_back(&self) {
        for file in &self.files {
            let _ = ftruncate(file, self.capacity as u64);
        }
    }

    /// Whether so many bytes of records fit into this generation.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        self.end + bytes <= self.capacity
    }

    /// Begin the next generation. (J2, J3)
    pub(crate) fn begin_generation<'a>(
        &mut self,
        directory: &Directory,
        next_token: u64,
        held: impl Iterator<Item = &'a Arc<Hold>>,
    ) -> Result<(), Errno> {
        let generation = self.header.generation + 1;
        let header = Header { generation, boot: self.header.boot, next_token };
        let mut bytes = header.encode().to_vec();
        for hold in held {
            Record::Granted(Arc::clone(hold)).encode(generation, 0, &mut bytes);
        }
        Record::Begun.encode(generation, 0, &mut bytes);
        if self.sync {
            directory.sync()?;
        }
        let next = 1 - self.active;
        write_all(&self.files[next], &bytes, 0)?;
        (self.active, self.header, self.end) = (next, header, bytes.len());
        self.sync()
    }

    /// Add records as one batch. (J1)
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<(), Errno> {
        let mut bytes = Vec::new();
        let batch = u32::try_from(self.end).expect("BUG: a journal is too long");
        for record in records {
            record.encode(self.header.generation, batch, &mut bytes);
        }
        write_all(&self.files[self.active], &bytes, self.end as u64)?;
        self.end += bytes.len();
        self.sync()
    }

    /// Say that all files were synced, for good.
    pub(crate) fn close(mut self) -> Result<(), Errno> {
        self.sync = true;
        self.append(&[Record::Closed])
    }

    fn sync(&mut self) -> Result<(), Errno> {
        if !self.sync {
            return Ok(());
        }
        let start = Instant::now();
        retry_on_intr(|| fdatasync(&self.files[self.active]))?;
        self.syncs.count(start.elapsed());
        Ok(())
    }
}
