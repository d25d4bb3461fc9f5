//! Sessions and statements that failed, and what that says of another try.

use std::error::Error as _;
use std::fmt;
use std::io;

use tokio::time::Instant;
use tokio_postgres::error::DbError;

use crate::lease::{self, Exhausted, Outlook, Patience, Remedies, TlsError, explained, shown};

/// What a user of PostgreSQL can do about TLS.
pub(super) const REMEDIES: Remedies =
    Remedies { plain: "without TLS it is sslmode=disable", ca: "sslrootcert" };

/// Why there is no session, or no answer that helps.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// SQLSTATE, if the server said something.
    pub(super) state: Option<String>,
    /// For people, with no secret in it.
    pub(super) message: String,
}

/// What a failure says of another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It may fare better: there, or at another host.
    Passing,
    /// The server is in recovery, or read-only: another host may be the one that is not.
    ReadOnly,
    /// This user may not do that, or is not who it says.
    Forbidden,
    /// The server refused for another reason.
    Refused,
    /// The server's certificate is not trusted, or this side's is not there.
    Untrusted,
    /// TLS is asked for, and the server speaks none.
    NoTls,
    /// What answers is no PostgreSQL, or none with advisory locks.
    Foreign,
    /// It is older than what is needed.
    TooOld,
}

impl Kind {
    /// Whether another host may fare better, though this one will not.
    pub(super) fn is_of_the_host(self) -> bool {
        !matches!(self, Kind::Forbidden | Kind::Refused)
    }

    /// Whether the same host may fare better with TLS, or without: a server lets users in by
    /// that as well.
    pub(super) fn may_be_of_tls(self) -> bool {
        matches!(self, Kind::NoTls | Kind::Untrusted | Kind::Forbidden | Kind::Refused)
    }

    fn of_state(state: &str) -> Self {
        match state {
            "42501" => Kind::Forbidden,
            "25006" => Kind::ReadOnly,
            // Of a query that was cancelled, of a lock that was not to be had, and of a
            // prepared statement that is gone or would now have other columns.
            "57014" | "55P03" | "26000" | "0A000" => Kind::Passing,
            _ => match state.get(..2) {
                // The connection; a transaction; resources; the operator; the system.
                Some("08" | "40" | "53" | "57" | "58" | "XX") => Kind::Passing,
                Some("28") => Kind::Forbidden,
                _ => Kind::Refused,
            },
        }
    }
}

/// What came first is no message of a PostgreSQL server.
#[derive(Debug)]
pub(super) struct ForeignProtocol;

impl fmt::Display for ForeignProtocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("what answers there does not speak PostgreSQL's protocol")
    }
}

impl std::error::Error for ForeignProtocol {}

/// Log what the user should know, though no call fails.
fn told(error: String) {
    if let Ok(io) = lease::io() {
        io.log(move || tracing::warn!(%error, "no answer of PostgreSQL, it is asked again"));
    }
}

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, state: None, message: message.into() }
    }

    /// Whether the server said this SQLSTATE.
    pub(super) fn is(&self, state: &str) -> bool {
        self.state.as_deref() == Some(state)
    }

    /// Whether the server said that it ends the session: an administrator, a restart, a crash
    /// of another process of the server, or the session was idle for too long.
    pub(super) fn is_end_of_session(&self) -> bool {
        self.state.as_deref().is_some_and(|state| state.starts_with("57P"))
    }

    /// Of a connection, or a statement.
    pub(super) fn of(error: &tokio_postgres::Error) -> Self {
        if let Some(said) = error.as_db_error() {
            return Self::said(said);
        }
        let cause = error.source();
        if let Some(error) = cause.and_then(|cause| cause.downcast_ref::<io::Error>()) {
            return Self::of_io(error);
        }
        if error.is_closed() {
            return Self::new(Kind::Passing, "the server closed the connection");
        }
        let (what, cause) = (error.to_string(), cause.map(ToString::to_string));
        // tokio-postgres tells these apart in no other way.
        match (what.as_str(), cause.as_deref()) {
            (_, Some("password missing")) => Self::new(
                Kind::Forbidden,
                "the server asks for a password, and none is given: set PGPASSWORD, or write \
                 it into ~/.pgpass or a file named with passfile",
            ),
            ("authentication error", Some(cause)) => {
                Self::new(Kind::Forbidden, format!("{what}: {}", shown(cause)))
            }
            ("unexpected message from server", _) => {
                Self::new(Kind::Foreign, ForeignProtocol.to_string())
            }
            (_, Some(cause)) => Self::new(Kind::Refused, format!("{what}: {}", shown(cause))),
            (_, None) => Self::new(Kind::Refused, what),
        }
    }

    fn said(said: &DbError) -> Self {
        let state = shown(said.code().code());
        let message = format!("{} ({state})", shown(said.message()));
        Self { kind: Kind::of_state(&state), state: Some(state), message }
    }

    pub(super) fn of_io(error: &io::Error) -> Self {
        let inner = error.get_ref();
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<TlsError>()) {
            let (outlook, error) = explained(io::Error::new(error.kind(), tls.clone()), &REMEDIES);
            let kind = match outlook {
                Outlook::Open => Kind::Passing,
                Outlook::Untrusted => Kind::Untrusted,
                Outlook::Foreign => Kind::Foreign,
            };
            return Self::new(kind, shown(&error.to_string()));
        }
        let kind = match error.kind() {
            // Of a message that has no sense.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Kind::Foreign,
            _ => Kind::Passing,
        };
        Self::new(kind, shown(&error.to_string()))
    }

    /// What several tries came to, of which none gave a session: the first, with what the
    /// others said. One that may pass decides.
    pub(super) fn of_all(failures: Vec<Failure>) -> Self {
        let is_passing = |failure: &&Failure| failure.kind == Kind::Passing;
        let decisive = failures.iter().find(is_passing).or(failures.first());
        let Some(decisive) = decisive else {
            return Self::new(Kind::Refused, "there is no host");
        };
        let (kind, state) = (decisive.kind, decisive.state.clone());
        let mut messages: Vec<String> = Vec::new();
        for failure in failures {
            if !messages.contains(&failure.message) {
                messages.push(failure.message);
            }
        }
        Self { kind, state, message: messages.join("; ") }
    }
}

/// Why something is not tried again.
pub(super) enum GivenUp {
    Exhausted(Exhausted),
    Final(Failure),
}

/// Wait before the next try, if one may fare better.
pub(super) async fn pause(
    failure: Failure,
    begun: Instant,
    patience: &mut Patience,
) -> Result<(), GivenUp> {
    if !matches!(failure.kind, Kind::Passing | Kind::ReadOnly) {
        return Err(GivenUp::Final(failure));
    }
    if patience.is_trouble() {
        told(failure.message.clone());
    }
    let error = io::Error::other(failure.message);
    patience.pause(begun, error).await.map_err(GivenUp::Exhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_say_what_becomes_of_another_try() {
        for (state, kind) in [
            ("57P01", Kind::Passing),
            ("57P03", Kind::Passing),
            ("57014", Kind::Passing),
            ("53300", Kind::Passing),
            ("08006", Kind::Passing),
            ("40P01", Kind::Passing),
            ("55P03", Kind::Passing),
            ("25006", Kind::ReadOnly),
            ("28P01", Kind::Forbidden),
            ("28000", Kind::Forbidden),
            ("42501", Kind::Forbidden),
            ("3D000", Kind::Refused),
            ("42P01", Kind::Refused),
            ("", Kind::Refused),
            ("é", Kind::Refused),
        ] {
            assert_eq!(Kind::of_state(state), kind, "{state}");
        }
    }

    #[test]
    fn a_failure_that_may_pass_decides_for_all() {
        let failure = |kind, text: &str| Failure::new(kind, text);
        let all = Failure::of_all(vec![
            failure(Kind::Untrusted, "a"),
            failure(Kind::Passing, "b"),
            failure(Kind::Passing, "b"),
        ]);
        assert_eq!((all.kind, all.message.as_str()), (Kind::Passing, "a; b"));
        let all = Failure::of_all(vec![failure(Kind::ReadOnly, "a"), failure(Kind::Foreign, "b")]);
        assert_eq!((all.kind, all.message.as_str()), (Kind::ReadOnly, "a; b"));
    }
}
