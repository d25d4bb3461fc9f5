//! The journal: grants and ends in order, in two files that take turns.
//!
//! J1. A record is written, and synced where syncs are on, before its change is answered.
//! J2. Each generation begins with all that is held, and is complete, and
//!     synced, before a record is added to it. Until then the file of the
//!     generation before stays as it is, and counts.
//! J3. Before a generation forgets an end, the removal of the file is synced.
//! J4. Both files have their size from the start, and so much of it is free
//!     that every lock can be ended on a full disk.
//! J5. A batch is written only once the one before is whole, and synced where syncs are
//!     on. Each record says where its batch began. So a bad record with whole ones of a
//!     later batch behind it is damage. So is one before the mark, which moves on with the
//!     batches. A bad record with nothing behind it is what a crash in a write leaves.
//!     Unsynced records may be missing in any order after a power cut.
//! J6. Both files are as long as their generations say, and have a header from
//!     the start. A sector is written whole or not at all, so a bad header is
//!     damage.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::directory::{LockDirectory, write_all};
use super::grant::Grant;
use super::past::Past;
use super::record::{CAPACITY_MAX, HEADER_BYTES, Header, JOURNALS, JournalRecord, MARK_PLACE};
use crate::lockd::histogram::Histogram;
use crate::sys::directory;
use crate::sys::files::Errno;

/// The journal, open for writing.
#[derive(Debug)]
pub(crate) struct Journal {
    files: [File; 2],
    /// The index of the file that is written.
    active: usize,
    header: Header,
    /// The place of the next record.
    end: usize,
    /// The mark of the generation (J5), and when it was moved on.
    marked: usize,
    marked_at: Option<Instant>,
    /// How long both files are.
    capacity: usize,
    /// Below this need the files do not grow ahead of it: on a full disk not every grant
    /// tries.
    next_growth: usize,
    sync: bool,
    /// The part of each file that may be on the disk or not: its write or sync failed.
    unsure: [Range<usize>; 2],
    pub(crate) syncs: Syncs,
}

/// The least length of a file, some thousand records. A larger one takes more of a small
/// disk; a smaller one begins generations more often.
const CAPACITY_MIN: usize = 128 * 1024;

/// Bytes that are left for the ends of locks (J4). With more, a full disk refuses grants
/// earlier.
const RESERVE: usize = 8 * 1024;

/// The mark is moved on after so many bytes, a block of a file system, and this time: each
/// mark is one more block to sync. With more, more records behind the mark could be blanked
/// unseen.
pub(super) const MARK_BYTES_APART: usize = 4096;
const MARK_TIME_APART: Duration = Duration::from_millis(50);

const NOTHING: Range<usize> = 0..0;

impl Journal {
    /// Write two empty generations into files that may be there, and sync them with their
    /// names. (J6)
    pub(crate) fn create(
        directory: &LockDirectory,
        files: [File; 2],
        boot: [u8; 36],
        next_token: u64,
    ) -> Result<(), Errno> {
        let mut journal = Self::over(files, None, boot, next_token, true);
        journal.grow(CAPACITY_MIN)?;
        journal.begin_generation(directory, next_token, [].into_iter())?;
        journal.begin_generation(directory, next_token, [].into_iter())?;
        directory.sync()
    }

    /// Begin a generation with what is held now.
    pub(crate) fn begin<'a>(
        directory: &LockDirectory,
        files: [File; 2],
        past: Option<&Past>,
        boot: [u8; 36],
        next_token: u64,
        held: impl Iterator<Item = &'a Arc<Grant>> + Clone,
        sync: bool,
    ) -> Result<Self, Errno> {
        let mut journal = Self::over(files, past, boot, next_token, sync);
        let live = held.clone().map(|grant| super::record::granted_bytes(&grant.terms)).sum();
        if !journal.admits(live, 0) {
            return Err(Errno::NOSPC);
        }
        // The first generation is synced in any case, names and all.
        journal.sync = true;
        journal.begin_generation(directory, next_token, held)?;
        journal.sync = sync;
        Ok(journal)
    }

    fn over(
        files: [File; 2],
        past: Option<&Past>,
        boot: [u8; 36],
        next_token: u64,
        sync: bool,
    ) -> Self {
        let (generation, salt, is_synced) =
            (past.map_or(0, |past| past.header.generation), 0, sync);
        let capacity = files.iter().map(length).min().unwrap_or(0);
        let header = Header { generation, salt, capacity: 0, is_synced, boot, next_token };
        let active = past.map_or(0, |past| past.active);
        Self {
            files,
            active,
            header,
            end: 0,
            marked: 0,
            marked_at: None,
            capacity,
            next_growth: 0,
            sync,
            unsure: [NOTHING, NOTHING],
            syncs: Syncs::default(),
        }
    }

    /// Whether so many bytes more may be granted when so many are held: there must be room
    /// to end them all. (J4)
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

    /// Lengthen both files with zeros. So the disk has the room, and later writes change no
    /// sizes.
    fn grow(&mut self, capacity: usize) -> Result<(), Errno> {
        if capacity <= self.capacity {
            return Ok(());
        }
        let lengths = [length(&self.files[0]), length(&self.files[1])];
        let zeros = vec![0; 1 << 16];
        for (file, length) in self.files.iter().zip(lengths) {
            let mut place = length;
            while place < capacity {
                let part = zeros.len().min(capacity - place);
                if let Err(error) = write_all(file, &zeros[..part], place as u64) {
                    self.shrink_back(lengths);
                    return Err(error);
                }
                place += part;
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    fn shrink_back(&self, lengths: [usize; 2]) {
        for (file, length) in self.files.iter().zip(lengths) {
            let _ = directory::truncate(file, length as u64);
        }
    }

    /// The name of the file that is written.
    pub(crate) fn name(&self) -> &'static str {
        JOURNALS[self.active]
    }

    /// Whether so many bytes of records fit into this generation. (J6)
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        self.end + bytes <= self.header.capacity as usize
            && self.header.capacity == self.capacity as u64
    }

    /// Begin the next generation. (J2, J3)
    pub(crate) fn begin_generation<'a>(
        &mut self,
        directory: &LockDirectory,
        next_token: u64,
        held: impl Iterator<Item = &'a Arc<Grant>>,
    ) -> Result<(), Errno> {
        let mut salt = [0; 8];
        crate::sys::random::fill(&mut salt)?;
        let (generation, salt) = (self.header.generation + 1, u64::from_le_bytes(salt));
        let (capacity, boot, is_synced) =
            (self.capacity as u64, self.header.boot, self.header.is_synced);
        let header = Header { generation, salt, capacity, is_synced, boot, next_token };
        let mut bytes = header.encode().to_vec();
        for grant in held {
            JournalRecord::Granted(Arc::clone(grant)).encode(salt, 0, &mut bytes);
        }
        let complete = bytes.len();
        JournalRecord::Begun.encode(salt, 0, &mut bytes);
        if self.sync {
            directory.sync()?;
        }
        let next = 1 - self.active;
        self.unsure[next] = complete..bytes.len();
        write_all(&self.files[next], &bytes, 0)?;
        self.sync(next)?;
        self.unsure = [NOTHING, NOTHING];
        (self.active, self.header, self.end) = (next, header, bytes.len());
        (self.marked, self.marked_at) = (0, None);
        Ok(())
    }

    /// Add records as one batch. (J1, J5)
    pub(crate) fn append(&mut self, records: &[JournalRecord]) -> Result<(), Errno> {
        let bytes = self.batch(records);
        let end = self.end + bytes.len();
        self.unsure[self.active] = self.end..end;
        self.move_mark()?;
        write_all(&self.files[self.active], &bytes, self.end as u64)?;
        self.sync(self.active)?;
        (self.unsure[self.active], self.end) = (NOTHING, end);
        Ok(())
    }

    fn batch(&self, records: &[JournalRecord]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let batch = u32::try_from(self.end).expect("BUG: a journal is too long");
        for record in records {
            record.encode(self.header.salt, batch, &mut bytes);
        }
        bytes
    }

    fn move_mark(&mut self) -> Result<(), Errno> {
        if self.end - self.marked.min(self.end) < MARK_BYTES_APART {
            return Ok(());
        }
        let now = Instant::now();
        if self.marked_at.is_some_and(|then| now - then < MARK_TIME_APART) {
            return Ok(());
        }
        let mark = self.header.encode_mark(self.end);
        write_all(&self.files[self.active], &mark, MARK_PLACE as u64)?;
        (self.marked, self.marked_at) = (self.end, Some(now));
        Ok(())
    }

    /// Write over all that may be on the disk of a failed change: with these records, or
    /// with zeros. A generation that may have begun has not. Nothing is added afterwards.
    pub(crate) fn take_back(&mut self, records: &[JournalRecord]) -> Result<(), Errno> {
        let [one, other] = self.unsure.clone();
        let (unsure, of_next) = if self.active == 0 { (one, other) } else { (other, one) };
        let mut bytes = self.batch(records);
        let fits = self.end + bytes.len() <= self.capacity;
        if !fits {
            bytes.clear();
        }
        bytes.resize(bytes.len().max(unsure.len()), 0);
        let zeros = vec![0; of_next.len()];
        // Both, though the first may fail.
        let next = self.write_over(1 - self.active, of_next.start, &zeros);
        let active = self.write_over(self.active, self.end, &bytes);
        next.and(active).and(if fits { Ok(()) } else { Err(Errno::NOSPC) })
    }

    fn write_over(&mut self, file: usize, place: usize, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        write_all(&self.files[file], bytes, place as u64)?;
        self.sync(file)
    }

    /// Record that all files were synced.
    pub(crate) fn close(mut self) -> Result<(), Errno> {
        self.sync = true;
        self.append(&[JournalRecord::Closed])
    }

    fn sync(&mut self, file: usize) -> Result<(), Errno> {
        if !self.sync {
            return Ok(());
        }
        let start = Instant::now();
        directory::sync_data(&self.files[file])?;
        self.syncs.count(start.elapsed(), &SYNC_BOUNDS);
        Ok(())
    }
}

/// The length of a file; 0 if the kernel does not say.
fn length(file: &File) -> usize {
    directory::inspect(file).ok().and_then(|it| usize::try_from(it.length).ok()).unwrap_or(0)
}

/// How long the journal's syncs took.
pub(crate) type Syncs = Histogram<{ SYNC_BOUNDS.len() }>;

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
