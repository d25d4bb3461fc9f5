//! What every lock of one machine lets its user choose about waiting.

use std::time::Duration;

use crate::lock::error::Error;

/// Longest period an option may have: thirty years keep every deadline
/// computable. Wait for ever by setting no timeout.
pub(crate) const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Where the system calls of an attempt run. See [`FileOptions::offload`](crate::FileOptions::offload).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Offload {
    /// On the calling thread for local file systems, else on a thread of this crate.
    ///
    /// The default. On a local file system a call takes microseconds.
    ///
    /// Beside a process that writes and syncs as hard as it can on the same ext4,
    /// an acquisition with its release kept the calling thread for a median of
    /// 0.10 ms, 4.4 ms in 99.9 % and 41 ms at the longest; by a thread of its own
    /// it took 0.18, 29 and 46 ms, and on tmpfs inline 0.07, 2.5 and 8.6 ms
    /// (`cargo bench --bench waiting -- stall --seconds 12`, two slow cores).
    #[default]
    Auto,
    /// Always on the calling thread. A hung network server then hangs it.
    Never,
    /// Always on a thread of this crate, never on Tokio's blocking pool.
    ///
    /// There is one for each file system, which ends when idle. A waiter then hears of
    /// nothing and looks each [`retry_period`](crate::FileOptions::retry_period), and others do
    /// not see it in the line.
    Always,
}

/// The options on waiting. Each kind documents its own setters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitOptions {
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry_period: Duration,
    pub(crate) fallback_period: Option<Duration>,
    pub(crate) offload: Offload,
    pub(crate) local_handoff: Duration,
}

impl WaitOptions {
    /// The share is the longest that costs others hardly more: beside 64 tasks that
    /// have it without a pause (`cargo bench --bench waiting -- share`, tmpfs, two
    /// cores), another process that takes it for 1 ms at a time does so 735 times a
    /// second by shares of 0, 525 by 0.3 ms, 480 by 1 ms, 270 by 3 ms and 85 by
    /// 10 ms; the tasks have it 1, 100, 130, 240 and 350 thousand times. From 0.3
    /// to 1 ms the other pays a tenth for the third that they gain.
    pub(crate) const BUILT_IN: Self = Self {
        timeout: None,
        retry_period: Duration::from_millis(300),
        fallback_period: None,
        offload: Offload::Auto,
        local_handoff: Duration::from_millis(1),
    };

    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |option, why: &str| Err(Error::InvalidOption { option, why: why.to_owned() });
        if self.retry_period.is_zero() {
            return refuse("retry_period", "must be longer than zero, or waiting would spin");
        }
        if self.fallback_period.is_some_and(|period| period.is_zero()) {
            return refuse("fallback_period", "must be longer than zero, or waiting would spin");
        }
        let fallback_period = self.fallback_period.unwrap_or(self.retry_period);
        for (option, period) in [
            ("retry_period", self.retry_period),
            ("local_handoff", self.local_handoff),
            ("fallback_period", fallback_period),
        ] {
            if period > LONGEST {
                return refuse(option, "must be at most thirty years");
            }
        }
        Ok(())
    }
}

impl Default for WaitOptions {
    fn default() -> Self {
        Self::BUILT_IN
    }
}

/// Permission bits of a file that is made.
pub(crate) fn check_mode(bits: u32) -> Result<(), Error> {
    if bits & !0o777 == 0 && bits & 0o600 == 0o600 {
        return Ok(());
    }
    let why = "must be permission bits that let the owner read and write, such as 0o644";
    Err(Error::InvalidOption { option: "mode", why: why.to_owned() })
}
