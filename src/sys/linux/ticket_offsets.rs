//! Where the locks on a directory are that tell of the waiters in it.
//!
//! From the lowest bit, a ticket's offset is the number of its contender in
//! [`ARRIVAL_BITS`] and the name of the lock in [`NAME_BITS`]. With the highest bit
//! set it is room for a start and a length of [`PART_BITS`] each, which are two parts
//! of what says which pipe to watch, and the lowest [`SLOT_BITS`] of the number.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::wait_pipe::PublishedFd;
use crate::sys::path::LockPath;

/// Bits of an offset that are the number of a contender. Numbers are compared within
/// half of their circle, so no contender may stand in a line while 2^37 others come to it:
/// four years at a thousand a second. More bits would leave fewer for names.
pub(crate) const ARRIVAL_BITS: u32 = 38;

/// Bits that are the name's. With the number they stay within half of the offsets.
const NAME_BITS: u32 = 24;

/// From the offsets of a lock's writers to those of its readers.
pub(crate) const READERS: i64 = 1 << ARRIVAL_BITS;

/// The offsets that tell of pipes begin here.
pub(crate) const PIPES: i64 = 1 << (ARRIVAL_BITS + NAME_BITS);

/// Bits of the number that say where its pipe is told of: two contenders whose
/// numbers differ by a multiple of 2^30 are not told apart.
const SLOT_BITS: u32 = 30;

/// Bits of each of the two parts that tell of a pipe.
pub(crate) const PART_BITS: u32 = ARRIVAL_BITS + NAME_BITS - SLOT_BITS - 1;

/// What the two parts are made of: more bits than process ids and usual
/// descriptors have, and the lowest of the inode's number for the rest.
const PROCESS_BITS: u32 = 22;
const DESCRIPTOR_BITS: u32 = 18;
const INODE_BITS: u32 = 2 * PART_BITS - PROCESS_BITS - DESCRIPTOR_BITS - CHECK_BITS;

/// More bits of the name's hash than the offsets have room for.
const CHECK_BITS: u32 = 10;

/// The place of a contender in the order of arrival: a newcomer takes the number after
/// the last one's. Numbers form a circle, on which one is before another if the way
/// there is shorter than half of it. So the order holds however often a line that is
/// never empty has gone round, and no clock is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) i64);

impl Number {
    pub(crate) const COUNT: i64 = 1 << ARRIVAL_BITS;
    pub(crate) const HALF: i64 = Self::COUNT / 2;

    /// Of the first in an empty line. From here, half of the circle before a number is
    /// in one piece, as long as a line is not older than half of it.
    pub(crate) const FIRST: Self = Self(Self::HALF);

    /// Negative steps go back.
    pub(crate) fn plus(self, steps: i64) -> Self {
        Self((self.0 + steps) & (Self::COUNT - 1))
    }

    /// How many steps lead from `start` here.
    pub(crate) fn steps_from(self, start: Self) -> i64 {
        self.plus(-start.0).0
    }

    pub(crate) fn is_before(self, other: Self) -> bool {
        let steps = other.steps_from(self);
        0 < steps && steps < Self::HALF
    }

    /// The later of the two.
    pub(crate) fn max(self, other: Self) -> Self {
        if self.is_before(other) { other } else { self }
    }

    /// As many numbers from this on, in one piece or two: the start and the length.
    pub(crate) fn pieces(self, length: i64) -> [(i64, i64); 2] {
        let first = length.min(Self::COUNT - self.0);
        [(self.0, first), (0, length - first)]
    }
}

/// Where the contenders for one name are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// First offset of the tickets.
    pub(crate) base: i64,
    /// The hash of the name, beyond what the offset has of it.
    check: i64,
}

impl Name {
    pub(crate) fn of(path: &LockPath) -> Self {
        // The same in every process: the hasher has no key.
        let hash = BuildHasherDefault::<DefaultHasher>::new().hash_one(path.name());
        let base = ((hash >> (64 - NAME_BITS)) << ARRIVAL_BITS) as i64;
        Self { base, check: low(hash as i64, CHECK_BITS) }
    }

    /// Of a lock that can be shared, for contenders that want it exclusively: of two
    /// names, the first. Its readers have the other.
    pub(crate) fn of_writers(path: &LockPath) -> Self {
        let name = Self::of(path);
        Self { base: name.base & !READERS, ..name }
    }

    /// Where the pipe of a number is told of: the first part is added to it, the second
    /// is the length. Contenders for two names that have one number are told of at two
    /// places.
    pub(crate) fn slot(self, number: Number) -> i64 {
        let name = self.base >> (ARRIVAL_BITS + NAME_BITS - SLOT_BITS);
        PIPES + (low(number.0 ^ name, SLOT_BITS) << (PART_BITS + 1))
    }

    /// Start and length of the lock that tells of a pipe at this slot; `None` if there is
    /// no room for all of it.
    pub(crate) fn encode(self, published: PublishedFd, slot: i64) -> Option<(i64, i64)> {
        let PublishedFd { process, descriptor, inode } = published;
        let fits = process >> PROCESS_BITS == 0 && descriptor >> DESCRIPTOR_BITS == 0;
        let all = self.check << INODE_BITS | low(inode as i64, INODE_BITS);
        let all = all << DESCRIPTOR_BITS | i64::from(descriptor);
        let all = all << PROCESS_BITS | i64::from(process);
        fits.then_some((slot + low(all, PART_BITS), (all >> PART_BITS) + 1))
    }

    /// The same read; `None` if it tells of a waiter for another name.
    pub(crate) fn read(self, (start, length): (i64, i64), slot: i64) -> Option<PublishedFd> {
        let all = low(length - 1, PART_BITS) << PART_BITS | low(start - slot, PART_BITS);
        let (process, rest) = (low(all, PROCESS_BITS), all >> PROCESS_BITS);
        let (descriptor, rest) = (low(rest, DESCRIPTOR_BITS), rest >> DESCRIPTOR_BITS);
        let (inode, check) = (low(rest, INODE_BITS) as u64, rest >> INODE_BITS);
        let published =
            PublishedFd { process: process as u32, descriptor: descriptor as u32, inode };
        (check == self.check).then_some(published)
    }
}

impl PublishedFd {
    /// Whether what is told of a pipe with this number would be this.
    pub(crate) fn is_inode(self, inode: u64) -> bool {
        low(self.inode as i64, INODE_BITS) == low(inode as i64, INODE_BITS)
    }
}

fn low(number: i64, bits: u32) -> i64 {
    number & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_order_wherever_on_the_circle_they_are() {
        let starts =
            [0, 1, 2, Number::HALF - 1, Number::HALF, Number::COUNT - 2, Number::COUNT - 1];
        let steps = [1, 2, 63, 1 << 20, Number::HALF - 2, Number::HALF - 1];
        for (start, steps) in starts.into_iter().flat_map(|start| steps.map(|step| (start, step))) {
            let (first, second) = (Number(start), Number(start).plus(steps));
            assert!((0..Number::COUNT).contains(&second.0));
            assert!(first.is_before(second) && !second.is_before(first), "{first:?} {second:?}");
            assert_eq!((first.max(second), second.max(first)), (second, second));
            assert_eq!((second.steps_from(first), second.plus(-steps)), (steps, first));
            assert!(!first.is_before(first));
        }
        // As far as can be there is no order.
        let opposite = Number(5).plus(Number::HALF);
        assert!(!Number(5).is_before(opposite) && !opposite.is_before(Number(5)));
    }

    #[test]
    fn a_range_of_numbers_is_in_one_piece_or_in_two() {
        assert_eq!(Number(3).pieces(5), [(3, 5), (0, 0)]);
        assert_eq!(Number(Number::COUNT - 2).pieces(2), [(Number::COUNT - 2, 2), (0, 0)]);
        assert_eq!(Number(Number::COUNT - 2).pieces(5), [(Number::COUNT - 2, 2), (0, 3)]);
        assert_eq!(Number(0).pieces(Number::COUNT), [(0, Number::COUNT), (0, 0)]);
    }

    #[test]
    fn what_is_shown_of_a_pipe_is_read_as_it_was() {
        let (process, descriptor) = ((1 << PROCESS_BITS) - 1, (1 << DESCRIPTOR_BITS) - 1);
        let name = Name { base: 7 << ARRIVAL_BITS, check: (1 << CHECK_BITS) - 2 };
        let other = Name { check: name.check + 1, ..name };
        let slot = name.slot(Number(77));
        for inode in [0, 1, (1 << INODE_BITS) - 1, u64::MAX] {
            for (process, descriptor) in [(0, 0), (1, 3), (process, descriptor)] {
                let published = PublishedFd { process, descriptor, inode };
                let shown = name.encode(published, slot).unwrap();
                assert!(slot <= shown.0 && shown.0 + shown.1 < slot + (2 << PART_BITS));
                let read = name.read(shown, slot).unwrap();
                assert_eq!((read.process, read.descriptor), (process, descriptor));
                assert!(read.is_inode(inode) && !read.is_inode(inode ^ 1));
                assert_eq!(other.read(shown, slot), None, "it is for another name");
            }
        }
        assert_eq!(
            name.encode(PublishedFd { process: process + 1, descriptor, inode: 0 }, slot),
            None
        );
        assert_eq!(
            name.encode(PublishedFd { process, descriptor: descriptor + 1, inode: 0 }, slot),
            None
        );
        // The last slot ends with the offsets.
        let last = Name { base: 0, check: 0 }.slot(Number(Number::COUNT - 1));
        assert_eq!(last + ((2 << PART_BITS) - 1), i64::MAX);
    }
}
