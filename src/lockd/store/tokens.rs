//! The counter of fencing tokens, which never goes back.
//!
//! T1. No token is given that is not below the bound on the disk. The bound is
//!     synced before, always: also by a daemon that syncs nothing else.
//! T2. After a boot, or where the journal is missing, counting goes on at the
//!     bound: no token below it is given again, given before or not.

use std::os::fd::OwnedFd;

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
    slot: u64,
}

pub(crate) const TOKENS: &str = ".lockkeeper-tokens";

/// One sync for so many tokens; so many are skipped by a power cut.
const BLOCK: u64 = 1 << 20;

/// Two sectors, so that a torn write spoils one.
const SLOT_BYTES: usize = 512;

impl Tokens {
    /// `from_journal` is the next token by a journal that lost nothing.
    pub(crate) fn open(
        directory: &Directory,
        from_journal: Option<u64>,
        at_least: u64,
    ) -> Result<Self, Errno> {
        let file = directory.open_own(TOKENS, OFlags::RDWR | OFlags::CREATE)?;
        let bytes = read(&file, 2 * SLOT_BYTES)?;
        let bounds = [bound_in(&bytes, 0), bound_in(&bytes, SLOT_BYTES)];
        if bounds == [None, None] && bytes.iter().any(|&byte| byte != 0) {
            return Err(Errno::BADMSG);
        }
        let bound = bounds.into_iter().flatten().max().unwrap_or(1);
        let slot = u64::from(bounds[0] == Some(bound));
        let next = from_journal.unwrap_or(bound).max(at_least).max(1);
        let mut tokens = Self { file, next, bound, slot };
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

    fn reserve(&mut self) -> Result<(), Errno> {
        let bound = self.next.checked_add(BLOCK).ok_or(Errno::OVERFLOW)?.max(self.bound);
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&bound.to_le_bytes());
        bytes[8..12].copy_from_slice(&crc32fast::hash(&bound.to_le_bytes()).to_le_bytes());
        write_all(&self.file, &bytes, self.slot * SLOT_BYTES as u64)?;
        retry_on_intr(|| fdatasync(&self.file))?;
        (self.bound, self.slot) = (bound, 1 - self.slot);
        Ok(())
    }
}

fn bound_in(bytes: &[u8], place: usize) -> Option<u64> {
    let slot = bytes.get(place..place + 12)?;
    let bound = u64::from_le_bytes(slot[..8].try_into().ok()?);
    let is_whole = crc32fast::hash(&slot[..8]).to_le_bytes() == slot[8..];
    (is_whole && bound > 0).then_some(bound)
}
