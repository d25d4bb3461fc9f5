//! After which silence a machine is taken for gone.

use std::time::Duration;

/// How a connection finds out that the machine at its other end is gone.
pub(crate) struct KeepAlive {
    /// A peer that is silent for so long is probed.
    pub(crate) idle: Duration,
    /// Between two probes.
    pub(crate) interval: Duration,
    /// As many probes go unanswered.
    pub(crate) probes: u32,
    /// So long what was sent may stay unacknowledged, where the system has such a limit.
    pub(crate) unacknowledged: Duration,
}
