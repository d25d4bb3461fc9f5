//! The counter of fencing tokens, which never goes back.
//!
//! T1. No token is given that is not below the bound on the disk. The bound is
//!     synced before, always: also by a daemon that syncs nothing else.
//! T2. Counting goes on at the bound, so no token below it is given again. Only behind a
//!     journal that was closed, counting goes on where that ends: nothing can be missing.
//! T3. The file appears whole, with the [`FIRST`] bound, before there is a
//!     journal. A greater bound is written only once the journal is complete. So
//!     a directory with that bound and without a journal has lost its journal.
//! T4. Both slots are written when the file is opened. After that a bound is at
//!     most one [`BLOCK`] above the other, so that one slot is enough.

use std::fs::File;
use std::sync::Arc;

use super::directory::{LockDirectory, read, write_all};
use crate::sys::directory;
use crate::sys::files::Errno;

/// The counter, and the file with its bound.
#[derive(Debug)]
pub(crate) struct TokenCounter {
    file: File,
    inode: u64,
    next: u64,
    bound: u64,
    /// Where the next bound goes, so that the last one stays whole.
    slot: usize,
}

/// The contents of the counter's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// There is no file.
    Missing,
    /// Neither slot can be read.
    Damaged,
    Known {
        /// No token was given that is not below it.
        bound: u64,
        /// Whether the file is not the one that the daemon wrote.
        is_copied: bool,
    },
}

pub(crate) const TOKENS: &str = ".lockkeeper-tokens";

/// The bound of a directory in which no token was given.
pub(crate) const FIRST: u64 = 1;

/// The greatest number that `--tokens-above` takes: half of all there are, and the
/// greatest that fits into a signed number of 64 bits, as databases have it. Above
/// it the tokens could run out.
pub(crate) const TOKENS_ABOVE_MAX: u64 = u64::MAX / 2;

/// Tokens for one sync. A killed daemon skips so many: with more, the numbers of a daemon
/// that is killed often grow faster.
const BLOCK: u64 = 1 << 20;

/// Of a file that was only created.
const NO_INODE: u64 = 0;

/// Two sectors, so that a torn write spoils one.
const SLOT_BYTES: usize = 512;

impl Bound {
    pub(crate) fn read(directory: &LockDirectory) -> Result<Self, Errno> {
        let file = match directory.open_to_read(TOKENS) {
            Err(Errno::NOENT) => return Ok(Self::Missing),
            file => file?,
        };
        let bytes = match read(&file, 2 * SLOT_BYTES) {
            Err(Errno::IO) => return Ok(Self::Damaged),
            bytes => bytes?,
        };
        let slots = slots_in(&bytes);
        let bound = match slots.map(|slot| slot.map(|slot| slot.bound)) {
            [None, None] => return Ok(Self::Damaged),
            [Some(one), Some(other)] => one.max(other),
            // The other may have been the greater one. (T4)
            [Some(one), None] | [None, Some(one)] => one.saturating_add(BLOCK),
        };
        let inode = directory::inspect(&file)?.inode;
        let is_copied = slots.iter().flatten().any(|slot| ![NO_INODE, inode].contains(&slot.inode));
        Ok(Self::Known { bound, is_copied })
    }
}

impl TokenCounter {
    /// Make the file. (T3)
    pub(crate) fn create(directory: &Arc<LockDirectory>) -> Result<(), Errno> {
        let slot = BoundSlot { bound: FIRST, inode: NO_INODE }.encode();
        let file = directory.prepare(&[slot, slot].concat())?;
        file.sync()?;
        file.publish(TOKENS)?;
        directory.sync()
    }

    /// Go on with this token, and with a file that may be there.
    pub(crate) fn open(directory: &LockDirectory, next: u64) -> Result<Self, Errno> {
        let file = directory.open_own(TOKENS)?;
        let inode = directory::inspect(&file)?.inode;
        let slots = slots_in(&read(&file, 2 * SLOT_BYTES)?);
        let bounds = slots.map(|slot| slot.map(|slot| slot.bound));
        let bound = bounds.into_iter().flatten().max().unwrap_or(FIRST);
        let slot = usize::from(bounds[0] == Some(bound));
        let mut tokens = Self { file, inode, next, bound, slot };
        // T4.
        tokens.reserve()?;
        tokens.reserve()?;
        Ok(tokens)
    }

    /// The next token. (T1)
    pub(crate) fn next(&mut self) -> Result<u64, Errno> {
        if self.next >= self.bound {
            self.reserve()?;
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// The smallest token that was not given.
    pub(crate) fn peek(&self) -> u64 {
        self.next
    }

    /// Skip all tokens below the bound.
    #[cfg(test)]
    pub(crate) fn skip_to_the_bound(&mut self) {
        self.next = self.bound;
    }

    fn reserve(&mut self) -> Result<(), Errno> {
        let bound = self.next.checked_add(BLOCK).ok_or(Errno::OVERFLOW)?.max(self.bound);
        let slot = BoundSlot { bound, inode: self.inode };
        write_all(&self.file, &slot.encode(), (self.slot * SLOT_BYTES) as u64)?;
        directory::sync_data(&self.file)?;
        (self.bound, self.slot) = (bound, 1 - self.slot);
        Ok(())
    }
}

/// One of the two halves of the file.
#[derive(Clone, Copy, Debug)]
struct BoundSlot {
    bound: u64,
    /// The file that it was written to: a copy has another.
    inode: u64,
}

impl BoundSlot {
    fn encode(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&self.bound.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..16]);
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number =
            |place: usize| bytes.get(place..place + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (bound, inode) = (number(0)?, number(8)?);
        let is_whole = crc32fast::hash(&bytes[..16]).to_le_bytes() == *bytes.get(16..20)?;
        (is_whole && bound > 0).then_some(Self { bound, inode })
    }
}

fn slots_in(bytes: &[u8]) -> [Option<BoundSlot>; 2] {
    [0, SLOT_BYTES].map(|place| bytes.get(place..).and_then(BoundSlot::decode))
}
