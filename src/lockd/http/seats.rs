//! How many requests may stay at a time, of one peer and of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::listen::PeerGroup;

/// Places for requests that stay. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Seats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    in_all: usize,
    per_peer: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by_peer: HashMap<PeerGroup, usize>,
}

/// A place, free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    shared: Arc<Shared>,
    group: PeerGroup,
}

impl Seats {
    /// This machine's own requests count for the limit of all only.
    pub(crate) fn new(in_all: usize, per_peer: usize) -> Self {
        Self(Arc::new(Shared { in_all, per_peer, taken: Mutex::default() }))
    }

    /// A place, if there is one.
    pub(crate) fn take(&self, group: PeerGroup) -> Option<Seat> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = taken.by_peer.get(&group).copied().unwrap_or(0);
        let is_full = group != PeerGroup::Here && of_peer >= self.0.per_peer;
        if is_full || taken.in_all >= self.0.in_all {
            return None;
        }
        taken.in_all += 1;
        taken.by_peer.insert(group, of_peer + 1);
        drop(taken);
        Some(Seat { shared: Arc::clone(&self.0), group })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= 1;
        if let Some(count) = taken.by_peer.get_mut(&self.group) {
            *count -= 1;
            if *count == 0 {
                taken.by_peer.remove(&self.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_does_not_take_all() {
        let seats = Seats::new(3, 1);
        let (one, two) = (PeerGroup::V4([192, 0, 2, 1]), PeerGroup::V4([192, 0, 2, 2]));
        let first = seats.take(one).unwrap();
        assert!(seats.take(one).is_none());
        let _second = seats.take(two).unwrap();
        let _here = seats.take(PeerGroup::Here).unwrap();
        assert!(seats.take(PeerGroup::Here).is_none());
        drop(first);
        let _again = seats.take(one).unwrap();
        assert!(seats.take(PeerGroup::Here).is_none());
    }
}
