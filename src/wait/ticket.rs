//! Who came first, among processes: tickets that the kernel keeps.
//!
//! A contender that has to wait takes a read lock of one byte on the lock
//! file's *directory* (an open file description lock, fcntl(2)). The byte's
//! offset is made of the name of the lock and the time of arrival, so that one
//! question to the kernel tells whether anybody came earlier. A ticket outlives
//! every lock file, vanishes with its process and leaves nothing behind.
//!
//! One more lock, on an offset that is of no name, says which file the contender
//! has ready: whoever comes later can watch that file, and is told when its
//! owner gets the lock, gives up or dies.
//!
//! Where each part goes, from the lowest bit: the time of arrival in
//! [`TIME_BITS`], the name in [`NAME_BITS`]. Or, with the highest bit set, room
//! for a start and a length of [`NUMBER_BITS`] each, which are two numbers that
//! say which file, and the lowest [`SLOT_BITS`] of the arrival.
//!
//! Readers, where a lock can be shared, have the offsets of another name. They
//! stand in the line of the writers, as they do not mind each other.
//!
//! Tickets are a courtesy, exclusion does not rest on them. A tie, or two names
//! with one hash, costs a little fairness; nobody sleeps behind who waits for another
//! name, as more of its hash is told with the file. Where a directory cannot be opened
//! for reading there are no tickets, and whoever looks first gets the lock.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::disk::{Inode, directory_identity};
use crate::fork::{ProcessKey, this_process};
use crate::liveness;
use crate::path::LockPath;
use crate::ranges::{self, Bytes, Kind, Owner};

/// Bits of an offset that are the time in microseconds: three days, then the
/// order is wrong once.
const TIME_BITS: u32 = 38;

/// Bits that are the name's. With the time they stay within half of the offsets.
const NAME_BITS: u32 = 24;

/// From the offsets of a lock's writers to those of its readers.
const READERS: i64 = 1 << TIME_BITS;

/// The offsets that tell of files begin here.
const FILES: i64 = 1 << (TIME_BITS + NAME_BITS);

/// Bits of the arrival that say where its file is told of: two contenders that
/// came a multiple of 18 minutes apart are not told apart.
const SLOT_BITS: u32 = 30;

/// Bits of each of the two numbers that tell of a file.
const NUMBER_BITS: u32 = TIME_BITS + NAME_BITS - SLOT_BITS - 1;

/// What the two numbers are made of: more bits than process ids and usual
/// descriptors have, and the lowest of the inode's number for the rest.
const PROCESS_BITS: u32 = 22;
const DESCRIPTOR_BITS: u32 = 18;
const INODE_BITS: u32 = 2 * NUMBER_BITS - PROCESS_BITS - DESCRIPTOR_BITS - CHECK_BITS;

/// More bits of the name's hash than the offsets have room for.
const CHECK_BITS: u32 = 10;

/// Microseconds before an arrival in which the one before is looked for first.
const FIRST_LOOK: Arrival = 2000;

/// The time of arrival; nearly always different for each contender.
type Arrival = i64;

/// A place in the order of arrival; given up when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// Whose it is, as a forked child has it open as well; `None` once given up.
    process: Option<ProcessKey>,
    directory: OwnedFd,
    /// First offset of the tickets in whose line it stands.
    base: i64,
    /// The name, beyond what the offset has of it.
    check: i64,
    /// Of others that go first if they came earlier.
    others: Option<i64>,
    /// First offset of its own kind's.
    own: i64,
    arrived: Arrival,
    shown: Option<Ready>,
}

/// Whether a lock is wanted for oneself alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Exclusive,
    Shared,
}

/// A directory that is kept open to ask who waits for a lock that can be shared.
#[derive(Debug)]
pub(crate) struct Waiters {
    directory: OwnedFd,
    base: i64,
}

impl Waiters {
    /// `None` where the directory may not be read.
    pub(crate) fn of(path: &LockPath) -> Option<Self> {
        Some(Self { directory: open(path)?, base: writers(path) })
    }

    pub(crate) fn are_any(&self) -> bool {
        ticket_in(&self.directory, self.base, READERS + (1 << TIME_BITS)).is_some()
    }

    /// Whether anybody waits for any lock in the directory.
    pub(crate) fn are_any_by_any_name(&self) -> bool {
        ticket_in(&self.directory, 0, FILES).is_some()
    }

    /// Whether anybody waits whom a newcomer would get in the way of: readers
    /// do not mind each other.
    pub(crate) fn precede(&self, newcomer: Sharing) -> bool {
        match newcomer {
            Sharing::Exclusive => self.are_any(),
            Sharing::Shared => ticket_in(&self.directory, self.base, 1 << TIME_BITS).is_some(),
        }
    }
}

/// What a contender has open as long as it waits: the file that it is going to
/// make the lock file, or a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) process: u32,
    pub(crate) descriptor: u32,
    pub(crate) inode: u64,
}

/// Who came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    Nobody,
    One,
    /// Two or more. These are the last two, and their files if they have shown them.
    More([Neighbour; 2]),
}

/// Somebody who came just before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    arrived: Arrival,
    pub(crate) ready: Option<Ready>,
}

impl Ticket {
    pub(crate) fn take(path: &LockPath) -> Option<Self> {
        let base = base(path);
        Self::new(path, base, None, base)
    }

    /// For a lock that can be shared.
    pub(crate) fn take_as(path: &LockPath, sharing: Sharing) -> Option<Self> {
        let writers = writers(path);
        let readers = writers + READERS;
        match sharing {
            Sharing::Exclusive => Self::new(path, writers, Some(readers), writers),
            Sharing::Shared => Self::new(path, writers, None, readers),
        }
    }

    fn new(path: &LockPath, base: i64, others: Option<i64>, own: i64) -> Option<Self> {
        let (directory, arrived) = (open(path)?, now());
        let process = Some(this_process());
        let check = check(path);
        let ticket = Self { process, directory, base, check, others, own, arrived, shown: None };
        ticket.lock(own + arrived, 1)?;
        Some(ticket)
    }

    /// Stand in the line of the directory that the path leads to now, as of the same
    /// arrival; whether that is another than before.
    pub(crate) fn follow(&mut self, path: &LockPath) -> bool {
        if self.process != Some(this_process()) {
            return false;
        }
        let own = rustix::fs::fstat(&self.directory).map(Inode::from);
        let is_same = own.is_ok_and(|own| directory_identity(path.directory()) == Ok(own.identity));
        let Some(directory) = Some(path).filter(|_| !is_same).and_then(open) else {
            return false;
        };
        self.unlock(0, 0);
        self.directory = directory;
        let shown = self.shown.take();
        let _ = self.lock(self.own + self.arrived, 1);
        shown.into_iter().for_each(|ready| self.show(ready));
        true
    }

    /// Let those who come later know this file. What the numbers have no room
    /// for is not said.
    pub(crate) fn show(&mut self, ready: Ready) {
        if self.shown == Some(ready) {
            return;
        }
        let slot = slot(self.base, self.arrived);
        if self.shown.take().is_some() {
            self.unlock(slot, 2 << NUMBER_BITS);
        }
        let Some((first, second)) = ready.numbers(self.check) else {
            return;
        };
        self.shown = self.lock(slot + first, second + 1).map(|()| ready);
    }

    /// All but the close of a file, which can wait: it ends nothing as long as a
    /// forked child has a copy, and that child must not end it.
    pub(crate) fn give_up(&mut self) {
        if self.process.take() == Some(this_process()) {
            self.unlock(0, 0);
        }
    }

    /// Who came earlier, given who that was before.
    pub(crate) fn ahead(&self, before: Option<[Neighbour; 2]>) -> Ahead {
        let last = before.map(|[last, _]| last.arrived).filter(|last| self.waits(*last));
        let Some(last) = last.or_else(|| self.last_before(self.arrived)) else {
            return Ahead::Nobody;
        };
        let Some(second) = self.last_before(last) else {
            return Ahead::One;
        };
        Ahead::More([last, second].map(|arrived| {
            Neighbour {
                arrived,
                ready: before
                    .into_iter()
                    .flatten()
                    .find(|known| known.arrived == arrived)
                    .and_then(|known| known.ready)
                    .or_else(|| self.ready_of(arrived)),
            }
        }))
    }

    /// Whether nobody came before these.
    pub(crate) fn are_first(&self, [_, second]: [Neighbour; 2]) -> bool {
        self.any_in(0, second.arrived).is_none()
    }

    /// Whether somebody waits who came before.
    pub(crate) fn is_preceded(&self) -> bool {
        let is_before = |base| self.any_at(base, 0, self.arrived).is_some();
        is_before(self.base) || self.others.is_some_and(is_before)
    }

    /// Whether that contender still waits.
    fn waits(&self, arrived: Arrival) -> bool {
        self.any_in(arrived, arrived + 1).is_some()
    }

    /// The last arrival before this one. The kernel tells of any ticket in a
    /// range, as a rule of the first that was taken. First the time just before
    /// is asked for, then more and more; then what is left as a whole and by
    /// halves in turn. That takes some five questions for any number of tickets.
    fn last_before(&self, end: Arrival) -> Option<Arrival> {
        let mut last = self.any_in(0, end)?;
        let mut length = FIRST_LOOK;
        last = loop {
            let start = end.saturating_sub(length).max(last + 1);
            match self.any_in(start, end) {
                Some(later) => break later,
                None if start == last + 1 => return Some(last),
                None => length *= 8,
            }
        };
        let mut end = end;
        while let Some(later) = self.any_in(last + 1, end) {
            last = later;
            let middle = last + (end - last) / 2;
            match self.any_in(middle, end) {
                Some(later) => last = last.max(later),
                None => end = middle,
            }
        }
        Some(last)
    }

    /// Some arrival in the range.
    fn any_in(&self, start: Arrival, end: Arrival) -> Option<Arrival> {
        self.any_at(self.base, start, end)
    }

    fn any_at(&self, base: i64, start: Arrival, end: Arrival) -> Option<Arrival> {
        // A length of zero would reach to the end.
        if start >= end {
            return None;
        }
        let (found, _) = ticket_in(&self.directory, base + start, end - start)?;
        // Another's is one byte in this range; anything else is not of this crate.
        Some((found - base).clamp(start, end - 1))
    }

    fn ready_of(&self, arrived: Arrival) -> Option<Ready> {
        let slot = slot(self.base, arrived);
        let (start, length) = ticket_in(&self.directory, slot, 1 << NUMBER_BITS)?;
        let (check, ready) = Ready::of_numbers(start - slot, length - 1);
        (check == self.check).then_some(ready)
    }

    fn lock(&self, start: i64, length: i64) -> Option<()> {
        let bytes = Bytes { start, length };
        ranges::try_lock(&self.directory, Owner::OpenFile, Kind::Read, bytes).ok()
    }

    /// A length of zero reaches to the end.
    fn unlock(&self, start: i64, length: i64) {
        let _ = ranges::unlock(&self.directory, Owner::OpenFile, Bytes { start, length });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Neighbour {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.arrived == other.arrived
    }

    /// Whether its process is stopped, as far as can be told.
    pub(crate) fn is_stopped(&self) -> bool {
        self.ready.is_some_and(|ready| liveness::is_stopped(ready.process))
    }
}

impl Ready {
    /// `None` if there is no room for them.
    fn numbers(self, check: i64) -> Option<(i64, i64)> {
        let Self { process, descriptor, inode } = self;
        let fits = process >> PROCESS_BITS == 0 && descriptor >> DESCRIPTOR_BITS == 0;
        let inode = low(inode as i64, INODE_BITS);
        let all = check << INODE_BITS | inode;
        let all = all << DESCRIPTOR_BITS | i64::from(descriptor);
        let all = all << PROCESS_BITS | i64::from(process);
        fits.then_some((low(all, NUMBER_BITS), all >> NUMBER_BITS))
    }

    fn of_numbers(first: i64, second: i64) -> (i64, Self) {
        let all = low(second, NUMBER_BITS) << NUMBER_BITS | low(first, NUMBER_BITS);
        let (process, rest) = (low(all, PROCESS_BITS), all >> PROCESS_BITS);
        let (descriptor, rest) = (low(rest, DESCRIPTOR_BITS), rest >> DESCRIPTOR_BITS);
        let (inode, check) = (low(rest, INODE_BITS) as u64, rest >> INODE_BITS);
        (check, Self { process: process as u32, descriptor: descriptor as u32, inode })
    }

    /// Whether what was shown of a file with this number would be this.
    pub(crate) fn is_inode(self, inode: u64) -> bool {
        low(self.inode as i64, INODE_BITS) == low(inode as i64, INODE_BITS)
    }
}

fn low(number: i64, bits: u32) -> i64 {
    number & ((1 << bits) - 1)
}

/// Where the file of an arrival is told of: the first number is added to it,
/// the second is the length. Contenders for two names that come at one time
/// are told of at two places.
fn slot(base: i64, arrived: Arrival) -> i64 {
    let name = base >> (TIME_BITS + NAME_BITS - SLOT_BITS);
    FILES + (low(arrived ^ name, SLOT_BITS) << (NUMBER_BITS + 1))
}

/// Whether any process waits for this lock.
pub(crate) fn is_awaited(path: &LockPath) -> bool {
    open(path).is_some_and(|directory| ticket_in(&directory, base(path), 1 << TIME_BITS).is_some())
}

fn open(path: &LockPath) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path.directory(), flags, Mode::empty()).ok()
}

/// Where a lock of another description is that has to do with this range, and
/// how long it is.
fn ticket_in(directory: &OwnedFd, start: i64, length: i64) -> Option<(i64, i64)> {
    let bytes = Bytes { start, length };
    let found = ranges::in_the_way(directory, Owner::OpenFile, Kind::Write, bytes).ok()??;
    Some((found.bytes.start, found.bytes.length))
}

fn base(path: &LockPath) -> i64 {
    ((hash(path) >> (64 - NAME_BITS)) << TIME_BITS) as i64
}

fn check(path: &LockPath) -> i64 {
    low(hash(path) as i64, CHECK_BITS)
}

/// The same in every process: the hasher has no key.
fn hash(path: &LockPath) -> u64 {
    BuildHasherDefault::<DefaultHasher>::new().hash_one(path.name())
}

/// Of those who want a lock for themselves alone: of two names, the first. Its
/// readers have the other.
fn writers(path: &LockPath) -> i64 {
    base(path) & !READERS
}

/// The clock that all processes of the machine share.
fn now() -> Arrival {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec * 1_000_000 + now.tv_nsec / 1000) & ((1 << TIME_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_file_is_read_as_it_was() {
        let (process, descriptor) = ((1 << PROCESS_BITS) - 1, (1 << DESCRIPTOR_BITS) - 1);
        for inode in [0, 1, (1 << INODE_BITS) - 1, u64::MAX] {
            for (process, descriptor) in [(0, 0), (1, 3), (process, descriptor)] {
                let ready = Ready { process, descriptor, inode };
                let (first, second) = ready.numbers(CHECK).unwrap();
                assert!((0..1 << NUMBER_BITS).contains(&first));
                assert!((0..1 << NUMBER_BITS).contains(&second));
                let (check, read) = Ready::of_numbers(first, second);
                assert_eq!(check, CHECK);
                assert_eq!((read.process, read.descriptor), (process, descriptor));
                assert!(read.is_inode(inode) && !read.is_inode(inode ^ 1));
            }
        }
        assert_eq!(Ready { process: process + 1, descriptor, inode: 0 }.numbers(CHECK), None);
        assert_eq!(Ready { process, descriptor: descriptor + 1, inode: 0 }.numbers(CHECK), None);
        // The last slot ends with the offsets.
        assert_eq!(slot(0, -1) + ((2 << NUMBER_BITS) - 1), i64::MAX);
    }

    const CHECK: i64 = (1 << CHECK_BITS) - 2;

    fn ticket(path: &LockPath, arrived: Arrival) -> Ticket {
        let ticket = Ticket {
            process: Some(this_process()),
            directory: open(path).unwrap(),
            base: base(path),
            check: check(path),
            others: None,
            own: base(path),
            arrived,
            shown: None,
        };
        ticket.lock(ticket.base + arrived, 1).unwrap();
        ticket
    }

    #[test]
    fn nobody_is_told_the_file_of_who_waits_for_another_name() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = |number: u32| {
            LockPath::new(&directory.path().join(format!("user-{number}.lock"))).unwrap()
        };
        let mut seen = std::collections::HashMap::new();
        let [one, other] = (0..)
            .map(path)
            .find_map(|path| {
                let same = seen.insert(base(&path), path.clone())?;
                Some([same, path])
            })
            .unwrap();
        assert_ne!(check(&one), check(&other));
        let ready = Ready { process: 7, descriptor: 9, inode: 1 };
        for (path, is_told) in [(&one, false), (&other, true)] {
            let mut first = ticket(path, 5);
            first.show(ready);
            assert_eq!(ticket(&other, 6).ready_of(5).is_some(), is_told);
        }
    }

    #[test]
    fn the_last_two_of_those_who_came_earlier_are_found() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        let other = LockPath::new(&directory.path().join("other")).unwrap();
        let _of_another = ticket(&other, 5);
        let arrivals = [3, 10, 11, 12, 5000, 5003, 70_000, 9_000_000, 9_000_001, 1 << 37];
        let mut tickets: Vec<Ticket> = Vec::new();
        for arrived in arrivals {
            let mut next = ticket(&path, arrived);
            let ahead = next.ahead(None);
            let last: Vec<_> = tickets.iter().rev().map(|ticket| ticket.arrived).take(2).collect();
            match (last.as_slice(), ahead) {
                ([], Ahead::Nobody) | ([_], Ahead::One) => {}
                ([last, second], Ahead::More(found)) => {
                    let found =
                        found.map(|neighbour| (neighbour.arrived, neighbour.ready.unwrap()));
                    let ready = |arrived| {
                        (arrived, Ready { process: 7, descriptor: 9, inode: arrived as u64 })
                    };
                    assert!(found.iter().zip([last, second]).all(|(found, arrived)| {
                        let (expected, ready) = ready(*arrived);
                        found.0 == expected && found.1.is_inode(ready.inode)
                    }));
                    assert!(!next.is_preceded() || !tickets.is_empty());
                }
                other => panic!("{other:?}"),
            }
            next.show(Ready { process: 7, descriptor: 9, inode: arrived as u64 });
            tickets.push(next);
        }
        let last = tickets.pop().unwrap();
        let Ahead::More(before) = last.ahead(None) else { panic!("many came earlier") };
        assert_eq!(last.ahead(Some(before)), Ahead::More(before));
        tickets.drain(2..);
        assert!(matches!(
            last.ahead(Some(before)),
            Ahead::More([Neighbour { arrived: 10, .. }, _])
        ));
        drop(tickets);
        assert_eq!(last.ahead(Some(before)), Ahead::Nobody);
        assert!(is_awaited(&path));
        drop(last);
        assert!(!is_awaited(&path) && is_awaited(&other));
    }

    #[test]
    fn a_ticket_is_of_the_process_that_took_it() {
        use std::os::fd::AsRawFd;

        use nix::sys::signal::{Signal, kill};
        use nix::sys::wait::waitpid;
        use nix::unistd::{ForkResult, fork};

        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        let ticket = Ticket::take(&path).unwrap();
        let own = ticket.directory.as_raw_fd();
        // SAFETY: the children only make system calls, and end.
        #[allow(unsafe_code)]
        let forked = |copy: &mut Option<Ticket>| match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let is_to_stay = copy.is_none();
                // What other tests of this process have open.
                for other in (3..1024).filter(|descriptor| *descriptor != own) {
                    // SAFETY: nothing of the child's uses it.
                    unsafe { nix::libc::close(other) };
                }
                drop(copy.take());
                if is_to_stay {
                    loop {
                        nix::unistd::pause();
                    }
                }
                // SAFETY: nothing of this process is needed any more.
                unsafe { nix::libc::_exit(0) }
            }
        };
        let mut ticket = Some(ticket);
        waitpid(forked(&mut ticket), None).unwrap();
        assert!(is_awaited(&path), "the child gave up its parent's");
        let child = forked(&mut None);
        drop(ticket);
        let is_kept = is_awaited(&path);
        kill(child, Signal::SIGKILL).unwrap();
        waitpid(child, None).unwrap();
        assert!(!is_kept, "the child kept it");
    }

    #[test]
    fn a_ticket_follows_the_path_to_another_directory() {
        let directory = tempfile::TempDir::new().unwrap();
        let [current, old] = ["current", "old"].map(|name| directory.path().join(name));
        std::fs::create_dir(&current).unwrap();
        let path = LockPath::new(&current.join("lock")).unwrap();
        let first = Ticket::take_as(&path, Sharing::Exclusive).unwrap();
        let mut ticket = Ticket::take_as(&path, Sharing::Shared).unwrap();
        let ready = Ready { process: 7, descriptor: 9, inode: 11 };
        ticket.show(ready);
        assert!(!ticket.follow(&path));
        let there = Waiters::of(&path).unwrap();
        std::fs::rename(&current, &old).unwrap();
        assert!(!ticket.follow(&path), "there is none");
        std::fs::create_dir(&current).unwrap();
        assert!(ticket.follow(&path) && !ticket.follow(&path));
        let here = Waiters::of(&path).unwrap();
        assert!(here.are_any() && !here.precede(Sharing::Shared), "as a reader's");
        assert_eq!(ticket.shown, Some(ready));
        drop(first);
        assert!(!there.are_any());
        drop(ticket);
        assert!(!here.are_any());
    }

    #[tokio::test]
    async fn who_has_a_lock_file_stands_in_line_no_longer() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        // Another program's, which lives.
        std::fs::write(path.path(), format!("{}\n", std::os::unix::process::parent_id())).unwrap();
        let lock = crate::AsyncFileLock::new(path.path());
        let mut waits = Box::pin(lock.acquire());
        while !is_awaited(&path) {
            assert!(futures::poll!(&mut waits).is_pending());
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        std::fs::remove_file(path.path()).unwrap();
        let guard = waits.await.unwrap();
        // Now, as nothing else may run here until it is released.
        assert!(!is_awaited(&path));
        drop(guard);
    }

    #[test]
    fn readers_stand_in_the_line_of_the_writers() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        let waiters = Waiters::of(&path).unwrap();
        let take = |sharing| {
            std::thread::sleep(std::time::Duration::from_micros(10));
            Ticket::take_as(&path, sharing).unwrap()
        };
        assert!(!waiters.are_any());
        let first = take(Sharing::Shared);
        assert!(waiters.are_any() && !waiters.precede(Sharing::Shared));
        assert!(waiters.precede(Sharing::Exclusive));
        let second = take(Sharing::Shared);
        assert!(!second.is_preceded());
        let writer = take(Sharing::Exclusive);
        assert!(waiters.precede(Sharing::Shared) && writer.is_preceded());
        // Readers are nobody to sleep behind.
        assert_eq!(writer.ahead(None), Ahead::Nobody);
        drop((first, second));
        assert!(!writer.is_preceded());
        let reader = take(Sharing::Shared);
        assert!(reader.is_preceded());
        assert_eq!(reader.ahead(None), Ahead::One);
        let _another = take(Sharing::Exclusive);
        assert!(matches!(take(Sharing::Shared).ahead(None), Ahead::More(_)));
        assert!(matches!(take(Sharing::Exclusive).ahead(None), Ahead::More(_)));
    }
}
