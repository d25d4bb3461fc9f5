//! Time that goes on while the machine is suspended and never goes back. Where the system
//! has no such clock, it also goes forward when the time of day is set forward.

use std::io;
use std::time::Duration;

use crate::sys::suspended_time;

/// A point of the clock, as the time since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootTime(Duration);

impl BootTime {
    pub(crate) fn now() -> Self {
        Self(suspended_time::time())
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

/// The longest sleep between two looks at the clock: Tokio's may stand still while the
/// machine is suspended. If longer, a lease that ran out meanwhile is noticed later.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rings_when_the_point_is_past_and_not_before() {
        let alarm = Alarm::new().unwrap();
        let soon = BootTime::now().after(Duration::from_millis(30));
        alarm.ring_at(Some(soon)).await.unwrap();
        assert!(soon.is_past());
        assert_eq!(soon.remaining(), Duration::ZERO);
        alarm.ring_at(Some(soon)).await.unwrap();
        let late = BootTime::now().after(Duration::MAX);
        let never = alarm.ring_at(Some(late));
        assert!(tokio::time::timeout(Duration::from_millis(50), never).await.is_err());
    }
}
