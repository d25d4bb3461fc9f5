//! Histograms of times, as Prometheus counts them.

use std::time::Duration;

/// Counts of what took no longer than each of some bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Histogram<const BOUNDS: usize> {
    /// How many times there were.
    pub(crate) count: u64,
    /// Their sum.
    pub(crate) time: Duration,
    /// How many were no longer than each of the bounds.
    pub(crate) within: [u64; BOUNDS],
}

impl<const BOUNDS: usize> Default for Histogram<BOUNDS> {
    fn default() -> Self {
        Self { count: 0, time: Duration::ZERO, within: [0; BOUNDS] }
    }
}

impl<const BOUNDS: usize> Histogram<BOUNDS> {
    pub(crate) fn count(&mut self, took: Duration, bounds: &[Duration; BOUNDS]) {
        self.count += 1;
        self.time = self.time.saturating_add(took);
        for (within, bound) in self.within.iter_mut().zip(bounds) {
            *within += u64::from(took <= *bound);
        }
    }
}
