//! Requests that are not answered.

use std::io;

use crate::lease::Outlook;

/// Why there was no response.
pub(crate) struct NoResponse {
    pub(crate) error: io::Error,
    /// The daemon may have read the request.
    pub(crate) may_have_come: bool,
    pub(crate) outlook: Outlook,
    /// The connection was an idle one, so this says nothing of the daemon.
    pub(crate) was_reused: bool,
}

impl NoResponse {
    /// Another try would fail as well.
    pub(crate) fn is_final(&self) -> bool {
        self.outlook != Outlook::Open
    }

    /// No response came in time.
    pub(crate) fn silence() -> Self {
        let error = io::Error::new(io::ErrorKind::TimedOut, "no answer came");
        Self { error, may_have_come: true, outlook: Outlook::Open, was_reused: false }
    }
}
