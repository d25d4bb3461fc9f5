//! Requests that were not carried out, or of which that is not known.

use tonic::{Code, Status};

use crate::lease::{Outlook, shown};

/// Why there is no answer that helps.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// E5: the request may have been carried out, or may be later.
    pub(super) is_unclear: bool,
    /// For people, with no secret in it.
    pub(super) message: String,
}

/// What a failure says of another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Another try, or another endpoint, may fare better.
    Passing,
    /// There is no such lease.
    NoLease,
    /// This client may not do that, or is not who it says.
    Forbidden,
    /// The database is full.
    NoSpace,
    /// The auth token is over: log in again.
    Stale,
    /// The cluster refused for another reason.
    Refused,
    /// The server's certificate is not trusted.
    Untrusted,
    /// What answers is no etcd that can be used.
    Foreign,
    /// The data is that of an older time, or of another cluster. (M9)
    Restored,
}

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, is_unclear: false, message: message.into() }
    }

    /// Nothing was sent.
    pub(super) fn unsent(outlook: Outlook, message: String) -> Self {
        let kind = match outlook {
            Outlook::Open => Kind::Passing,
            Outlook::Untrusted => Kind::Untrusted,
            Outlook::Foreign => Kind::Foreign,
        };
        Self::new(kind, message)
    }

    /// No answer came in time.
    pub(super) fn silence() -> Self {
        let message = "no answer came in time".to_owned();
        Self { kind: Kind::Passing, is_unclear: true, message }
    }

    pub(super) fn read(status: &Status) -> Self {
        let message = status.message();
        let says = |part: &str| message.contains(part);
        let (kind, is_unclear) = match status.code() {
            Code::NotFound => (Kind::NoLease, false),
            Code::PermissionDenied => (Kind::Forbidden, false),
            Code::Unauthenticated => (Kind::Stale, true),
            Code::InvalidArgument if says("auth store is old") => (Kind::Stale, false),
            Code::InvalidArgument
                if says("authentication failed") || says("user name is empty") =>
            {
                (Kind::Forbidden, false)
            }
            Code::InvalidArgument => (Kind::Refused, false),
            Code::ResourceExhausted if says("space exceeded") => (Kind::NoSpace, false),
            Code::ResourceExhausted if says("too many requests") => (Kind::Passing, false),
            Code::ResourceExhausted | Code::FailedPrecondition => (Kind::Refused, false),
            Code::Unimplemented => (Kind::Foreign, false),
            _ => (Kind::Passing, true),
        };
        Self { kind, is_unclear, message: with_source(message, source(status)) }
    }

    /// Whether another endpoint may fare better.
    pub(super) fn is_of_the_endpoint(&self) -> bool {
        matches!(self.kind, Kind::Passing | Kind::Untrusted | Kind::Foreign)
    }
}

fn with_source(message: &str, source: Option<String>) -> String {
    match source {
        Some(source) if !message.contains(&source) => shown(&format!("{message}: {source}")),
        _ => shown(message),
    }
}

/// The innermost cause.
fn source(status: &Status) -> Option<String> {
    let mut cause = std::error::Error::source(status)?;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Some(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_refused_before_it_was_carried_out_is_clear() {
        for (code, is_unclear) in [
            (Code::NotFound, false),
            (Code::InvalidArgument, false),
            (Code::PermissionDenied, false),
            (Code::ResourceExhausted, false),
            (Code::FailedPrecondition, false),
            (Code::Unavailable, true),
            (Code::DeadlineExceeded, true),
            (Code::Unknown, true),
            (Code::Internal, true),
            (Code::Cancelled, true),
            (Code::Aborted, true),
            (Code::Unauthenticated, true),
            (Code::OutOfRange, true),
        ] {
            assert_eq!(Failure::read(&Status::new(code, "x")).is_unclear, is_unclear, "{code:?}");
        }
    }
}
