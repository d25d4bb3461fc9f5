//! The counter of fencing tokens, which never goes back.
//!
//! T1. No token is given that is not below the bound on the disk. The bound is
//!     synced before, always: also by a daemon that syncs nothing else.
//! T2. Counting goes on at the bound: no token below it is given again, given
//!     before or not. Only behind a journal that was closed it goes on where the
//!     journal ends, for nothing can be missing from that.
//! T3. The file appears whole, with the [`FIRST`] bound, before there is a
//!     journal. A greater bound is written only once the journal is complete. So
//!     a directory with that bound and without a journal has lost its journal.
//! T4. Both slots are written when the file is opened. After that a bound is at
//!     most one [`BLOCK`] above the other, so that one slot is enough.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{OFlags, fdatasync};
use rustix::io::{Errno, retry_on_intr};

use super::directory::{Directory, read, write_all};

/// The counter, and the file with its bound.
#[derive(Debug)]
pub(crate) struct Tokens {
    file: OwnedFd,
    next: u64,
    bound: u64,
    /// Where the next bound goes, so that the last one stays whole.
    slot: usize,
}

/// What the file of the counter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// There is no file.
    Missing,
    /// Neither slot can be read.
    Damaged,
    /// No token was given that is not below it.
    Known(u64),
}

pub(crate) const TOKENS: &str = ".lockkeeper-tokens";

/// The bound of a directory in which no token was given.
pub(crate) const FIRST: u64 = 1;

/// The greatest number that `--tokens-above` takes: half of all there are, and the
/// greatest that fits into a signed number of 64 bits, as databases have it. Above
/// it the tokens could run out.
pub(crate) const TOKENS_ABOVE_MAX: u64 = u64::MAX / 2;

/// One sync for so many tokens; so many are skipped by a daemon that is killed.
const BLOCK: u64 = 1 << 20;

/// Two sectors, so that a torn write spoils one.
const SLOT_BYTES: usize = 512;

impl Bound {
    pub(crate) fn read(directory: &Directory) -> Result<Self, Errno> {
        let file = match directory.open_own(TOKENS, OFlags::RDONLY) {
            Err(Errno::NOENT) => return Ok(Self::Missing),
            file => file?,
        };
        let bytes = read(&file, 2 * SLOT_BYTES)?;
        Ok(match bounds_in(&bytes) {
            [None, None] => Self::Damaged,
            [Some(one), Some(other)] => Self::Known(one.max(other)),
            // The other may have been the greater one. (T4)
            [Some(one), None] | [None, Some(one)] => Self::Known(one.saturating_add(BLOCK)),
        })
    }
}

impl Tokens {
    /// Make the file. (T3)
    pub(crate) fn create(directory: &Arc<Directory>) -> Result<(), Errno> {
        let file = directory.prepare(&[slot(FIRST), slot(FIRST)].concat())?;
        file.sync()?;
        file.publish(TOKENS)?;
        directory.sync()
    }

    /// Go on with this token, and with a file that may be there.
    pub(crate) fn open(directory: &Directory, next: u64) -> Result<Self, Errno> {
        let file = directory.open_own(TOKENS, OFlags::RDWR | OFlags::CREATE)?;
        let bounds = bounds_in(&read(&file, 2 * SLOT_BYTES)?);
        let bound = bounds.into_iter().flatten().max().unwrap_or(FIRST);
        let slot = usize::from(bounds[0] == Some(bound));
        let mut tokens = Self { file, next, bound, slot };
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

    /// As if all tokens below the bound were given.
    #[cfg(test)]
    pub(crate) fn skip_to_the_bound(&mut self) {
        self.next = self.bound;
    }

    fn reserve(&mut self) -> Result<(), Errno> {
        let bound = self.next.checked_add(BLOCK).ok_or(Errno::OVERFLOW)?.max(self.bound);
        write_all(&self.file, &slot(bound), (self.slot * SLOT_BYTES) as u64)?;
        retry_on_intr(|| fdatasync(&self.file))?;
        (self.bound, self.slot) = (bound, 1 - self.slot);
        Ok(())
    }
}

fn slot(bound: u64) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(&bound.to_le_bytes());
    bytes[8..12].copy_from_slice(&crc32fast::hash(&bound.to_le_bytes()).to_le_bytes());
    bytes
}

fn bounds_in(bytes: &[u8]) -> [Option<u64>; 2] {
    [bound_in(bytes, 0), bound_in(bytes, SLOT_BYTES)]
}

fn bound_in(bytes: &[u8], place: usize) -> Option<u64> {
    let slot = bytes.get(place..place + 12)?;
    let bound = u64::from_le_bytes(slot[..8].try_into().ok()?);
    let is_whole = crc32fast::hash(&slot[..8]).to_le_bytes() == slot[8..];
    (is_whole && bound > 0).then_some(bound)
}
