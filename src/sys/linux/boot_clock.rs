//! Time that goes on while the machine is suspended and never jumps: `CLOCK_BOOTTIME`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A point on `CLOCK_BOOTTIME`, as the time since the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootTime(Duration);

impl BootTime {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // Neither is negative, and the second fits: clock_gettime(2).
        Self(Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32))
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

/// Rings at a point of `CLOCK_BOOTTIME`, at once after a suspend that lasted longer.
pub(crate) struct Alarm(AsyncFd<OwnedFd>);

/// A zero would stop the timer, timerfd_settime(2).
const SOONEST: Duration = Duration::from_nanos(1);

/// A century keeps the kernel's numbers in range.
const LATEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        #[allow(deprecated, reason = "sound for an owned descriptor, and what follows it is new")]
        let readable = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self(readable))
    }

    /// Wait until then; without a point, for ever.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn ring_at(&self, point: Option<BootTime>) -> io::Result<()> {
        let Some(BootTime(point)) = point else {
            return std::future::pending().await;
        };
        let point = point.clamp(SOONEST, LATEST);
        let it_value = Timespec {
            tv_sec: i64::try_from(point.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: point.subsec_nanos().into(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = self.0.get_ref();
        let setting = Itimerspec { it_interval, it_value };
        timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &setting)?;
        // Setting it again makes an old ring unreadable, so none is taken for this one.
        let read = |timer: &OwnedFd| Ok(rustix::io::read(timer, &mut [0_u8; 8])?);
        self.0.async_io(Interest::READABLE, read).await.map(drop)
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
        alarm.ring_at(Some(BootTime(Duration::ZERO))).await.unwrap();
        let late = BootTime::now().after(Duration::MAX);
        let never = alarm.ring_at(Some(late));
        assert!(tokio::time::timeout(Duration::from_millis(50), never).await.is_err());
    }
}
