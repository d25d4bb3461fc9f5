//! There are no tickets: what a contender takes elsewhere to be known as one that came
//! earlier. Within a process locks go round in order; between processes to whichever
//! looks first.

use super::wait_pipe::Presence;
use crate::sys::path::LockPath;
use crate::sys::sharing::Sharing;

/// A place in the order of arrival, which no contender has.
#[derive(Debug)]
pub(crate) enum Ticket {}

/// The contenders that came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(dead_code, reason = "there is no ticket to ask")]
pub(crate) enum Ahead {
    Nobody,
    One,
    /// Two or more. These are the last two.
    More([Predecessor; 2]),
}

/// A contender that came just before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Predecessor {}

/// A directory that is open to ask for the waiters of a lock, which cannot be seen.
#[derive(Debug)]
pub(crate) enum Waiters {}

impl Ticket {
    pub(crate) fn take(_: &LockPath) -> Option<Self> {
        None
    }

    /// For a lock that can be shared.
    pub(crate) fn take_as(_: &LockPath, _: Sharing) -> Option<Self> {
        None
    }

    /// Stand at the end of the line of the directory that the path leads to now; whether
    /// that is another than before.
    pub(crate) fn follow(&mut self, _: &LockPath) -> bool {
        match *self {}
    }

    /// Let later contenders know of it.
    pub(crate) fn publish(&mut self) {
        match *self {}
    }

    /// Stand in line no longer.
    pub(crate) fn give_up(&mut self) {
        match *self {}
    }

    /// What others hear of once it ends.
    pub(crate) fn presence(&self) -> Option<Presence> {
        match *self {}
    }

    /// The contenders that came earlier.
    pub(crate) fn ahead(&self) -> Ahead {
        match *self {}
    }

    /// Whether these came first of all.
    pub(crate) fn are_first(&self, _: [Predecessor; 2]) -> bool {
        match *self {}
    }

    /// Whether an earlier contender still waits.
    pub(crate) fn is_preceded(&self) -> bool {
        match *self {}
    }
}

impl Predecessor {
    pub(crate) fn is_same(&self, _: &Self) -> bool {
        match *self {}
    }

    /// Whether its process is stopped, as far as can be told.
    pub(crate) fn is_stopped(&self) -> bool {
        match *self {}
    }
}

impl Waiters {
    /// `None`: they cannot be seen.
    pub(crate) fn of(_: &LockPath) -> Option<Self> {
        None
    }

    pub(crate) fn are_any(&self) -> bool {
        match *self {}
    }

    /// Whether any lock in the directory has a waiter.
    pub(crate) fn are_any_by_any_name(&self) -> bool {
        match *self {}
    }

    /// Whether there is a waiter that a newcomer would get in the way of.
    pub(crate) fn precede(&self, _: Sharing) -> bool {
        match *self {}
    }
}

/// Whether any process waits for this lock. That cannot be seen, so it may be: a process
/// hands a lock from task to task no longer than its limit.
pub(crate) fn has_foreign_waiters(_: &LockPath) -> bool {
    true
}
