//! Failures of each peer or token, counted so that few of them are answered and logged one
//! by one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::permits::Share;
use crate::sys::mutex::Mutex;

/// How long failures count. With more, a peer that has stopped is refused longer.
const FAILURES_TIME: Duration = Duration::from_secs(60);

/// Peers and tokens with a count of their own; the others share one. Each takes some 100
/// bytes.
const SHARES_MAX: usize = 4096;

/// The failures of each peer or token within [`FAILURES_TIME`].
#[derive(Debug)]
pub(super) struct FailureCounts {
    /// Those that are no more than this are told one by one.
    limit: u32,
    pub(super) in_all: AtomicU64,
    shares: Mutex<HashMap<Option<Share>, (u32, Instant)>>,
}

/// How many they are of late.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frequency {
    Few,
    Last,
    TooMany,
}

impl FailureCounts {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, in_all: AtomicU64::new(0), shares: Mutex::default() }
    }

    pub(super) fn count(&self, share: Share) -> Frequency {
        self.in_all.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut shares = self.shares.lock();
        if shares.len() >= SHARES_MAX {
            shares.retain(|_, (_, since)| now - *since < FAILURES_TIME);
        }
        let share = Some(share);
        let is_known = shares.contains_key(&share) || shares.len() < SHARES_MAX;
        let share = share.filter(|_| is_known);
        let (count, since) = shares.entry(share).or_insert((0, now));
        if now - *since >= FAILURES_TIME {
            (*count, *since) = (0, now);
        }
        *count = count.saturating_add(1);
        match *count {
            count if count < self.limit => Frequency::Few,
            count if count == self.limit => Frequency::Last,
            _ => Frequency::TooMany,
        }
    }
}
