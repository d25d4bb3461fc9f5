//! The order of arrival among processes: tickets that the kernel keeps.
//!
//! A contender that has to wait takes a read lock of one byte on the lock
//! file's *directory* (an open file description lock, fcntl(2)). The byte's
//! offset is made of the name of the lock and a [number](Number), one more than the last
//! in the line has, so that one question to the kernel tells whether another came
//! earlier. A ticket outlives every lock file, vanishes with its process and leaves
//! nothing behind. Where each part of an offset goes is said in
//! [`offsets`](super::ticket_offsets).
//!
//! One more lock, on an offset that is of no name, says which pipe the contender's
//! process has open: later contenders can watch that, and hear when the contender
//! gets the lock, gives up or dies.
//!
//! Readers, where a lock can be shared, have the offsets of another name. They
//! stand in the line of the writers, as they do not mind each other.
//!
//! Tickets are a courtesy, exclusion does not rest on them. Two that come in the same
//! instant may have one number, and two names one hash: that costs a little fairness;
//! no contender sleeps behind one for another name, as more of its hash is told with the
//! pipe. Where a directory cannot be opened for reading there are no tickets, and the
//! first to look gets the lock.

use std::sync::Arc;

use super::process;
use super::ticket_directory::Directory;
use super::ticket_offsets::{Name, Number, PART_BITS, PIPES, READERS};
use super::wait_pipe::{Presence, PublishedFd};
use crate::sys::path::LockPath;
use crate::sys::sharing::Sharing;

/// How far before a number the one before it is looked for first: it is as a rule the
/// last, or next to it. More numbers at once would only find some of them.
const FIRST_LOOK: i64 = 1;

/// A place in the order of arrival; given up when dropped. Its [`Presence`] ends later.
#[derive(Debug)]
pub(crate) struct Ticket {
    directory: Arc<Directory>,
    /// In whose line it stands.
    name: Name,
    kind: TicketKind,
    number: Number,
    /// The lock that publishes its pipe, start and length.
    published_at: Option<(i64, i64)>,
    is_given_up: bool,
    /// After all else.
    presence: Option<Presence>,
}

/// Of which tickets it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TicketKind {
    /// Of a lock that cannot be shared.
    Sole,
    Of(Sharing),
}

impl TicketKind {
    /// From the first offset of its name to the first of its own.
    fn offset(self) -> i64 {
        if self == Self::Of(Sharing::Shared) { READERS } else { 0 }
    }

    /// The first offsets of those that have one order.
    fn lines(self, name: Name) -> impl Iterator<Item = i64> {
        let readers = (self != Self::Sole).then_some(name.base + READERS);
        std::iter::once(name.base).chain(readers)
    }

    /// Of those that go first if they came earlier: readers do not mind each other.
    fn before(self, name: Name) -> impl Iterator<Item = i64> {
        let is_reader = self == Self::Of(Sharing::Shared);
        self.lines(name).take(if is_reader { 1 } else { 2 })
    }
}

/// A directory that is open to ask for the waiters of a lock.
#[derive(Debug)]
pub(crate) struct Waiters {
    directory: Arc<Directory>,
    base: i64,
}

impl Waiters {
    /// `None` where the directory may not be read.
    pub(crate) fn of(path: &LockPath) -> Option<Self> {
        let directory = Directory::of(path.directory())?;
        Some(Self { directory, base: Name::of_writers(path).base })
    }

    pub(crate) fn are_any(&self) -> bool {
        self.directory.ticket_in(self.base, READERS + Number::COUNT).is_some()
    }

    /// Whether any lock in the directory has a waiter.
    pub(crate) fn are_any_by_any_name(&self) -> bool {
        self.directory.ticket_in(0, PIPES).is_some()
    }

    /// Whether there is a waiter that a newcomer would get in the way of: readers
    /// do not mind each other.
    pub(crate) fn precede(&self, newcomer: Sharing) -> bool {
        match newcomer {
            Sharing::Exclusive => self.are_any(),
            Sharing::Shared => self.directory.ticket_in(self.base, Number::COUNT).is_some(),
        }
    }
}

/// The contenders that came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    Nobody,
    One,
    /// Two or more. These are the last two, and their pipes if they have shown them.
    More([Predecessor; 2]),
}

/// A contender that came just before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Predecessor {
    number: Number,
    /// `None` if its pipe cannot be told.
    pub(crate) published: Option<PublishedFd>,
}

impl Ticket {
    pub(crate) fn take(path: &LockPath) -> Option<Self> {
        Self::new(path, Name::of(path), TicketKind::Sole)
    }

    /// For a lock that can be shared.
    pub(crate) fn take_as(path: &LockPath, sharing: Sharing) -> Option<Self> {
        Self::new(path, Name::of_writers(path), TicketKind::Of(sharing))
    }

    fn new(path: &LockPath, name: Name, kind: TicketKind) -> Option<Self> {
        let directory = Directory::of(path.directory())?;
        let number = loop {
            let number = next_number(&directory, kind.lines(name));
            // Else another of this process came at this moment.
            if directory.begin(name.base + kind.offset() + number.0) {
                break number;
            }
        };
        let (published_at, is_given_up, presence) = (None, false, None);
        // From here on it is given up when dropped.
        let mut ticket =
            Self { directory, name, kind, number, published_at, is_given_up, presence };
        ticket.directory.lock(ticket.offset(), 1)?;
        ticket.publish();
        Some(ticket)
    }

    fn offset(&self) -> i64 {
        self.name.base + self.kind.offset() + self.number.0
    }

    /// Stand at the end of the line of the directory that the path leads to now; whether
    /// that is another than before.
    pub(crate) fn follow(&mut self, path: &LockPath) -> bool {
        if !self.directory.is_ours() || self.directory.is_at(path.directory()) {
            return false;
        }
        let there = Self::new(path, self.name, self.kind);
        // The one that is dropped is heard by the contenders that sleep behind it.
        there.map(|there| *self = there).is_some()
    }

    /// Let later contenders know the pipe. What the offsets have no room
    /// for is not said; and where there was no room for a pipe it is tried again.
    pub(crate) fn publish(&mut self) {
        if self.presence.is_some() {
            return;
        }
        self.presence = Presence::begin();
        let published = self.presence.as_ref().and_then(Presence::published);
        let slot = self.name.slot(self.number);
        let published_at = published.and_then(|published| self.name.encode(published, slot));
        self.published_at =
            published_at.filter(|(start, length)| self.directory.lock(*start, *length).is_some());
    }

    /// Stand in line no longer. What is shown, what others hear of and the close of a file
    /// can wait: that ends nothing as long as a forked child has a copy, and such a child
    /// must not end anything.
    pub(crate) fn give_up(&mut self) {
        if !std::mem::replace(&mut self.is_given_up, true) && self.directory.is_ours() {
            self.directory.end(self.offset());
        }
    }

    /// What others hear of once it ends, at the latest with the ticket.
    pub(crate) fn presence(&self) -> Option<Presence> {
        self.presence.clone()
    }

    /// The contenders that came earlier.
    pub(crate) fn ahead(&self) -> Ahead {
        let line = self.line();
        let Some(last) = line.last_before(self.number) else {
            return Ahead::Nobody;
        };
        let Some(second) = line.last_before(last) else {
            return Ahead::One;
        };
        let predecessor = |number| Predecessor { number, published: self.published_by(number) };
        Ahead::More([last, second].map(predecessor))
    }

    /// Whether these came first of all.
    pub(crate) fn are_first(&self, [_, second]: [Predecessor; 2]) -> bool {
        !self.line().any_before(second.number)
    }

    /// Whether an earlier contender still waits.
    pub(crate) fn is_preceded(&self) -> bool {
        let is_before = |base| Line { base, ..self.line() }.any_before(self.number);
        self.kind.before(self.name).any(is_before)
    }

    fn line(&self) -> Line<'_> {
        Line { directory: &self.directory, base: self.name.base }
    }

    fn published_by(&self, number: Number) -> Option<PublishedFd> {
        let slot = self.name.slot(number);
        self.name.read(self.directory.locked_in(slot, 1 << PART_BITS)?, slot)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.give_up();
        let published_at = self.published_at.take().filter(|_| self.directory.is_ours());
        if let Some((start, length)) = published_at {
            self.directory.unlock(start, length);
        }
    }
}

impl Predecessor {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.number == other.number
    }

    /// Whether its process is stopped, as far as can be told.
    pub(crate) fn is_stopped(&self) -> bool {
        self.published.is_some_and(|published| process::is_stopped(published.process))
    }
}

/// The number after the last in these lines.
fn next_number(directory: &Directory, bases: impl Iterator<Item = i64>) -> Number {
    let last = bases.filter_map(|base| Line { directory, base }.last()).reduce(Number::max);
    last.map_or(Number::FIRST, |last| last.plus(1))
}

/// Whether any process waits for this lock.
pub(crate) fn has_foreign_waiters(path: &LockPath) -> bool {
    let are_any = |directory: Arc<Directory>| {
        directory.ticket_in(Name::of(path).base, Number::COUNT).is_some()
    };
    Directory::to_ask(path.directory()).is_some_and(are_any)
}

/// The tickets that begin at one offset.
struct Line<'a> {
    directory: &'a Directory,
    base: i64,
}

impl Line<'_> {
    /// Some number of the so many that begin with this.
    fn any(&self, start: Number, length: i64) -> Option<Number> {
        start.pieces(length).into_iter().find_map(|(start, length)| {
            let found = self.directory.ticket_in(self.base + start, length)?;
            Some(Number(found - self.base))
        })
    }

    fn any_before(&self, end: Number) -> bool {
        self.any(end.plus(-Number::HALF), Number::HALF).is_some()
    }

    /// The last number before this one.
    fn last_before(&self, end: Number) -> Option<Number> {
        self.last_in(end.plus(-Number::HALF), Number::HALF)
    }

    /// The last number of all, which are less than half of the circle apart.
    fn last(&self) -> Option<Number> {
        let some = self.any(Number(0), Number::COUNT)?;
        // None is so far behind it.
        let mut length = 1;
        while length < Number::HALF && self.any(some.plus(length), Number::HALF - length).is_some()
        {
            length = (length * 8).min(Number::HALF);
        }
        if length == 1 { Some(some) } else { self.last_in(some, length).or(Some(some)) }
    }

    /// The last of the so many numbers that begin with this. The kernel tells of any
    /// ticket in a range, as a rule of the process that was there first. First the end
    /// is asked about, then more and more; then what is left as a whole and by halves in
    /// turn. That takes two questions in a line that none has left, and some five for
    /// any number of tickets.
    fn last_in(&self, start: Number, length: i64) -> Option<Number> {
        let any = |first: i64, end: i64| {
            let found = self.any(start.plus(first), end - first)?;
            Some(found.steps_from(start))
        };
        let mut last = any(0, length)?;
        let (mut end, mut look) = (length, FIRST_LOOK);
        last = loop {
            let first = (end - look).max(last + 1);
            match any(first, end) {
                Some(later) => break later,
                None if first == last + 1 => return Some(start.plus(last)),
                None => (end, look) = (first, look * 8),
            }
        };
        while let Some(later) = any(last + 1, end) {
            last = later;
            let middle = last + (end - last) / 2;
            match any(middle, end) {
                Some(later) => last = last.max(later),
                None => end = middle,
            }
        }
        Some(start.plus(last))
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Processes are what tickets tell apart: each of these descriptions is as one's.
    fn as_another(path: &LockPath) -> Directory {
        Directory::apart(path.directory()).unwrap()
    }

    fn in_directory() -> (TempDir, LockPath) {
        let directory = TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        (directory, path)
    }

    /// The place of another process.
    struct Place {
        directory: Directory,
        locks: [(i64, i64); 2],
    }

    impl Drop for Place {
        /// The child of another test may have a copy of what is open.
        fn drop(&mut self) {
            for (start, length) in self.locks {
                self.directory.unlock(start, length);
            }
        }
    }

    /// With this number and a pipe that has it for its inode.
    fn stand(path: &LockPath, number: Number) -> Place {
        let (directory, name) = (as_another(path), Name::of(path));
        let shown = name.encode(pipe_of(number), name.slot(number)).unwrap();
        let locks = [(name.base + number.0, 1), shown];
        locks.iter().for_each(|(start, length)| directory.lock(*start, *length).unwrap());
        Place { directory, locks }
    }

    fn pipe_of(number: Number) -> PublishedFd {
        PublishedFd { process: 7, descriptor: 9, inode: number.0 as u64 }
    }

    /// Whether these are the last two before this ticket.
    fn is_behind(ticket: &Ticket, expected: &[Number]) -> bool {
        match (expected, ticket.ahead()) {
            ([], Ahead::Nobody) | ([_], Ahead::One) => true,
            ([.., second, last], Ahead::More(found)) => {
                found.iter().zip([last, second]).all(|(found, expected)| {
                    let published = found.published.expect("it is shown");
                    found.number == *expected && published.is_inode(pipe_of(*expected).inode)
                })
            }
            _ => false,
        }
    }

    #[test]
    fn who_comes_takes_the_number_after_the_last_and_sees_the_last_two() {
        let gaps = [1, 1, 1, 4000, 3, 60_000, 1 << 30, 1, 1 << 33];
        // The line goes round its circle in some of these.
        for first in [0, Number::HALF, Number::COUNT - 2, Number::COUNT - 70_000] {
            let (_directory, path) = in_directory();
            let other = LockPath::new(&path.directory().join("other")).unwrap();
            let _of_another = stand(&other, Number(first));
            let (mut line, mut numbers) = (Vec::new(), Vec::new());
            let mut number = Number(first);
            for gap in gaps {
                line.push(stand(&path, number));
                numbers.push(number);
                let ticket = Ticket::take(&path).unwrap();
                assert_eq!(ticket.number, number.plus(1));
                assert!(ticket.is_preceded() && is_behind(&ticket, &numbers), "{ticket:?}");
                number = number.plus(gap);
            }
            let ticket = Ticket::take(&path).unwrap();
            // Some go, then all.
            line.drain(2..5);
            numbers.drain(2..5);
            assert!(is_behind(&ticket, &numbers));
            line.truncate(2);
            assert!(is_behind(&ticket, &numbers[..2]));
            let Ahead::More(two) = ticket.ahead() else { panic!("two came earlier") };
            assert!(ticket.are_first(two));
            drop(line);
            assert!(!ticket.is_preceded() && is_behind(&ticket, &[]));
        }
    }

    #[test]
    fn an_empty_line_begins_anew() {
        let (_directory, path) = in_directory();
        for _ in 0..2 {
            let ticket = Ticket::take(&path).unwrap();
            assert_eq!((ticket.number, ticket.is_preceded()), (Number::FIRST, false));
        }
    }

    #[test]
    fn two_of_one_process_have_two_places_and_share_what_is_open() {
        let (_directory, path) = in_directory();
        let first = Ticket::take(&path).unwrap();
        let mut second = Ticket::take(&path).unwrap();
        let third = Ticket::take(&path).unwrap();
        assert!(Arc::ptr_eq(&first.directory, &third.directory));
        assert!(!first.is_preceded() && second.is_preceded());
        // To another process neighbours are one.
        let (elsewhere, base) = (as_another(&path), Name::of(&path).base);
        let line = Line { directory: &elsewhere, base };
        assert_eq!(elsewhere.locked_in(base, Number::COUNT).unwrap().1, 3);
        assert_eq!(line.last(), Some(third.number));
        assert_eq!(line.last_before(third.number), Some(second.number));
        second.give_up();
        assert_eq!(line.last_before(third.number), Some(first.number));
        drop(third);
        assert_eq!(line.last(), Some(first.number));
        drop(first);
        assert_eq!(line.last(), None);
        let open = Directory::of(path.directory()).unwrap();
        assert!(Arc::ptr_eq(&second.directory, &open), "it is open while one has it");
    }

    #[test]
    fn nobody_is_told_the_pipe_of_who_waits_for_another_name() {
        let directory = TempDir::new().unwrap();
        let path = |number: u32| {
            LockPath::new(&directory.path().join(format!("user-{number}.lock"))).unwrap()
        };
        let mut seen = std::collections::HashMap::new();
        let [one, other] = (0..)
            .map(path)
            .find_map(|path| {
                let same = seen.insert(Name::of(&path).base, path.clone())?;
                Some([same, path])
            })
            .unwrap();
        assert_ne!(Name::of(&one), Name::of(&other));
        for (path, is_told) in [(&one, false), (&other, true)] {
            let _first = stand(path, Number(5));
            let ticket = Ticket::take(&other).unwrap();
            assert_eq!(ticket.published_by(Number(5)).is_some(), is_told);
        }
    }

    #[test]
    fn a_ticket_is_of_the_process_that_took_it() {
        use nix::sys::signal::{Signal, kill};
        use nix::sys::wait::{WaitStatus, waitpid};
        use nix::unistd::{ForkResult, fork};

        let (_directory, path) = in_directory();
        let ticket = Ticket::take(&path).unwrap();
        let pipe = ticket.presence().and_then(|presence| presence.published()).unwrap();
        let own = [ticket.directory.descriptor(), pipe.descriptor as i32];
        // SAFETY: the children only make system calls, and end.
        #[allow(unsafe_code)]
        let forked = |copy: &mut Option<Ticket>| match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let is_to_stay = copy.is_none();
                // What other tests of this process have open.
                for other in (3..1024).filter(|descriptor| !own.contains(descriptor)) {
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
        let elsewhere = as_another(&path);
        let is_there = || elsewhere.ticket_in(0, PIPES).is_some();
        let mut ticket = Some(ticket);
        let child = forked(&mut ticket);
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        assert!(is_there(), "the child gave up its parent's");
        let child = forked(&mut None);
        drop(ticket);
        let is_kept = is_there();
        kill(child, Signal::SIGKILL).unwrap();
        waitpid(child, None).unwrap();
        assert!(!is_kept, "the child kept it");
    }

    #[test]
    fn a_ticket_follows_the_path_to_another_directory() {
        let directory = TempDir::new().unwrap();
        let [current, old] = ["current", "old"].map(|name| directory.path().join(name));
        std::fs::create_dir(&current).unwrap();
        let path = LockPath::new(&current.join("lock")).unwrap();
        let first = Ticket::take_as(&path, Sharing::Exclusive).unwrap();
        let mut ticket = Ticket::take_as(&path, Sharing::Shared).unwrap();
        assert!(ticket.published_at.is_some());
        assert!(!ticket.follow(&path));
        let there = Waiters::of(&path).unwrap();
        std::fs::rename(&current, &old).unwrap();
        assert!(!ticket.follow(&path), "there is none");
        std::fs::create_dir(&current).unwrap();
        assert!(ticket.follow(&path) && !ticket.follow(&path));
        let here = Waiters::of(&path).unwrap();
        assert!(here.are_any() && !here.precede(Sharing::Shared), "as a reader's");
        assert!(ticket.published_at.is_some());
        drop(first);
        assert!(!there.are_any());
        drop(ticket);
        assert!(!here.are_any());
    }

    #[tokio::test]
    async fn who_has_a_lock_file_stands_in_line_no_longer() {
        let (_directory, path) = in_directory();
        // Another program's, which lives.
        std::fs::write(path.path(), format!("{}\n", std::os::unix::process::parent_id())).unwrap();
        let lock = crate::AsyncFileLock::new(path.path());
        let mut waits = Box::pin(lock.acquire());
        while !has_foreign_waiters(&path) {
            assert!(futures::poll!(&mut waits).is_pending());
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        std::fs::remove_file(path.path()).unwrap();
        let guard = waits.await.unwrap();
        // Now, as nothing else may run here until it is released.
        assert!(!has_foreign_waiters(&path));
        drop(guard);
    }

    #[test]
    fn readers_stand_in_the_line_of_the_writers() {
        let (_directory, path) = in_directory();
        let waiters = Waiters::of(&path).unwrap();
        let take = |sharing| Ticket::take_as(&path, sharing).unwrap();
        assert!(!waiters.are_any());
        let first = take(Sharing::Shared);
        assert!(waiters.are_any() && !waiters.precede(Sharing::Shared));
        assert!(waiters.precede(Sharing::Exclusive));
        let second = take(Sharing::Shared);
        assert!(!second.is_preceded());
        let writer = take(Sharing::Exclusive);
        assert!(waiters.precede(Sharing::Shared) && writer.is_preceded());
        // A contender does not sleep behind readers.
        assert_eq!(writer.ahead(), Ahead::Nobody);
        drop((first, second));
        assert!(!writer.is_preceded());
        let reader = take(Sharing::Shared);
        assert!(reader.is_preceded());
        assert_eq!(reader.ahead(), Ahead::One);
        let _another = take(Sharing::Exclusive);
        assert!(matches!(take(Sharing::Shared).ahead(), Ahead::More(_)));
        assert!(matches!(take(Sharing::Exclusive).ahead(), Ahead::More(_)));
    }
}
