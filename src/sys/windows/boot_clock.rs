//! Time that goes on while the machine is suspended and never jumps: the performance
//! counter, which counts sleep and hibernation. Rust's `Instant` reads it.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A point of the clock, as the time since it was first read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootTime(Duration);

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl BootTime {
    pub(crate) fn now() -> Self {
        Self(BEGUN.elapsed())
    }

    /// This much later; so late that it cannot be told is the end of time.
    pub(crate) fn after(self, length: Duration) -> Self {
        Self(self.0.saturating_add(length))
    }

    /// How long until then; nothing if it is past.
    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }

    pub(crate) fn is_past(self) -> bool {
        self <= Self::now()
    }
}

/// Rings at a point of the clock, at the latest a second after a suspend that lasted longer.
pub(crate) struct Alarm;

/// The longest sleep between two looks at the clock: timers stand still while the machine
/// is suspended. If longer, a lease that ran out meanwhile is noticed later.
const LOOK: Duration = Duration::from_secs(1);

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    /// Wait until then; without a point, for ever.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn ring_at(&self, point: Option<BootTime>) -> io::Result<()> {
        let Some(point) = point else {
            return std::future::pending().await;
        };
        while !point.is_past() {
            tokio::time::sleep(point.remaining().min(LOOK)).await;
        }
        Ok(())
    }
}
