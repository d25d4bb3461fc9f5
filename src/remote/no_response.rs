//! Requests that are not answered.

use std::io;

/// Why there was no answer.
pub(crate) struct NoResponse {
    pub(crate) error: io::Error,
    /// The daemon may have the request.
    pub(crate) may_have_come: bool,
    pub(crate) outlook: Outlook,
    /// The connection was an old one, so nothing is said of the daemon.
    pub(crate) was_reused: bool,
}

/// How another try would fare.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// Perhaps better.
    Open,
    /// As badly: the other side cannot be trusted.
    Untrusted,
    /// As badly: what is there speaks another language.
    Foreign,
}

impl NoResponse {
    /// Another try would fare as badly.
    pub(crate) fn is_final(&self) -> bool {
        self.outlook != Outlook::Open
    }

    /// No answer came in time.
    pub(crate) fn silence() -> Self {
        let error = io::Error::new(io::ErrorKind::TimedOut, "no answer came");
        Self { error, may_have_come: true, outlook: Outlook::Open, was_reused: false }
    }
}
