//! Places in queues, kept for waiters that lost their connection.
//!
//! A proxy gives up a request that is not answered for a minute. The client repeats it
//! under the same request id. Until then the request is in no queue: it is neither shown
//! nor counted, and nothing is granted to it. A place is the turn number, which orders the
//! queue (I2).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::finished::RequestKey;
use super::resource::QueuePlace;
use crate::sys::boot_clock::BootTime;

/// How long a place is kept. A client comes back within a second, a proxy that restarts
/// within some. A place that is kept longer is only a number in memory.
const KEPT: Duration = Duration::from_secs(20);

/// Places that are kept, as many as may wait by default; the oldest goes first. Each is
/// some 100 bytes.
const KEPT_MAX: usize = 8192;

/// The places of waiters that are away.
#[derive(Debug, Default)]
pub(super) struct AbsentWaiters {
    places: HashMap<RequestKey, (BootTime, QueuePlace)>,
    /// In the order of their ends. A place that was taken back may still be here.
    order: VecDeque<(BootTime, RequestKey)>,
}

impl AbsentWaiters {
    pub(super) fn keep(&mut self, key: RequestKey, place: QueuePlace) {
        self.keep_until(BootTime::now().after(KEPT), key, place);
    }

    fn keep_until(&mut self, end: BootTime, key: RequestKey, place: QueuePlace) {
        while self.order.front().is_some_and(|(end, _)| end.is_past()) {
            self.forget_oldest();
        }
        if self.order.len() >= KEPT_MAX {
            self.forget_oldest();
        }
        self.order.push_back((end, key.clone()));
        self.places.insert(key, (end, place));
    }

    /// Take the place of a request that is repeated.
    pub(super) fn take(&mut self, key: &RequestKey) -> Option<QueuePlace> {
        let (end, place) = self.places.remove(key)?;
        (!end.is_past()).then_some(place)
    }

    fn forget_oldest(&mut self) {
        let Some((end, key)) = self.order.pop_front() else { return };
        if self.places.get(&key).is_some_and(|(kept_until, _)| *kept_until == end) {
            self.places.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::resource::{Moment, TurnNumber};
    use super::*;

    fn key(number: usize) -> RequestKey {
        let id = number.to_string().into();
        RequestKey { resource: "r".into(), client: "c".into(), id }
    }

    fn place(turn: TurnNumber) -> QueuePlace {
        QueuePlace { turn, since: Moment::now() }
    }

    #[test]
    fn a_place_is_kept_for_a_while() {
        let mut absent = AbsentWaiters::default();
        absent.keep(key(1), place(1));
        assert!(absent.take(&key(1)).is_some());
        absent.keep_until(BootTime::now(), key(1), place(1));
        assert!(absent.take(&key(1)).is_none());
        // What is over is not kept in memory either.
        let mut absent = AbsentWaiters::default();
        absent.keep_until(BootTime::now(), key(2), place(2));
        absent.keep(key(3), place(3));
        assert_eq!((absent.places.len(), absent.order.len()), (1, 1));
    }

    #[test]
    fn the_oldest_places_give_way() {
        let mut absent = AbsentWaiters::default();
        for number in 0..=KEPT_MAX {
            absent.keep(key(number), place(number as TurnNumber));
        }
        assert!(absent.take(&key(0)).is_none());
        assert_eq!(absent.take(&key(1)).map(|place| place.turn), Some(1));
        assert!(absent.take(&key(1)).is_none());
        assert!(absent.order.len() <= KEPT_MAX && absent.places.len() <= KEPT_MAX);
    }
}
