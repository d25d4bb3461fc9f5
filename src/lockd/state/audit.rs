//! One line for each lock that is given, ended or refused, for the target
//! `lockkeeper::audit`. The fields are described in `src/docs/daemon.md`; their names stay.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tracing::field::display;

use crate::lockd::store::Grant;

/// The longest text of a caller in a line, in bytes. Names are far shorter. A request may be
/// 1 MiB, and so is the queue of the log: longer lines would push out others.
const TEXT_BYTES: usize = 512;

/// A text of a caller, or the beginning of a longer one and its length.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_BYTES {
        return text.into();
    }
    let end = (0..=TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}… of {} bytes", &text[..end], text.len()).into()
}

/// What happened to a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Granted,
    Released,
    Expired,
    Forced,
    /// Granted, but the client was gone before the answer.
    Undone,
    /// Its file was removed by another program.
    Removed,
    /// Found in the directory.
    Adopted,
}

impl Event {
    fn word(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Forced => "forced",
            Self::Undone => "undone",
            Self::Removed => "removed",
            Self::Adopted => "adopted",
        }
    }
}

/// Where a request came from, and by which right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requester {
    /// The other end of its connection.
    pub(crate) peer: SocketAddr,
    /// The client of a trusted proxy.
    pub(crate) forwarded_for: Option<IpAddr>,
    pub(crate) credential: Credential,
}

/// By which right something was asked for. Never a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A token of this name.
    Token(Arc<str>),
    /// There are no tokens, and the request came from this machine.
    ThisMachine,
    /// There are no tokens, or none was sent.
    None,
    /// What was sent is not known.
    Unknown,
}

impl fmt::Display for Credential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(name) => write!(out, "token:{name}"),
            Self::ThisMachine => out.write_str("this machine"),
            Self::None => out.write_str("none"),
            Self::Unknown => out.write_str("unknown"),
        }
    }
}

/// Write the line. `by` asked for this event, or for the hold that it ended.
pub(super) fn audit(event: Event, grant: &Grant, by: &Option<Arc<Requester>>) {
    // Texts are made below, at each grant.
    if !tracing::enabled!(target: "lockkeeper::audit", tracing::Level::INFO) {
        return;
    }
    let event = event.word();
    let (resource, client) = (&*grant.terms.resource, &*shortened(&grant.terms.client));
    let token = display(grant.token);
    let (peer, forwarded_for, credential) = fields(by.as_deref());
    tracing::info!(
        target: "lockkeeper::audit",
        event, resource, client, token, peer, forwarded_for, credential = credential.as_deref(),
    );
}

/// Write the line of a file that named no holder and was removed by force.
pub(super) fn audit_discarded(resource: &str, file: &str, by: &Option<Arc<Requester>>) {
    let (peer, forwarded_for, credential) = fields(by.as_deref());
    tracing::info!(
        target: "lockkeeper::audit",
        event = "discarded", resource, file, peer, forwarded_for,
        credential = credential.as_deref(),
    );
}

/// A request that was refused.
#[derive(Default)]
pub(crate) struct RefusedRequest<'a> {
    /// The verb, as far as the daemon looked.
    pub(crate) verb: Option<&'a str>,
    pub(crate) resource: Option<&'a str>,
    pub(crate) client: Option<&'a str>,
    /// The code of its answer.
    pub(crate) error: &'a str,
    /// The text of its answer.
    pub(crate) reason: &'a str,
}

impl RefusedRequest<'_> {
    /// Write the line.
    pub(crate) fn audit(&self, by: &Requester) {
        let Self { verb, error, .. } = self;
        let [resource, client] = [self.resource, self.client].map(|it| it.map(shortened));
        let (resource, client) = (resource.as_deref(), client.as_deref());
        let reason = &*shortened(self.reason);
        let (peer, forwarded_for, credential) = fields(Some(by));
        tracing::info!(
            target: "lockkeeper::audit",
            event = "refused", verb, resource, client, peer, forwarded_for,
            credential = credential.as_deref(), error, reason,
        );
    }

    /// The same as a warning, for what may be an attack.
    pub(crate) fn warn(&self, by: &Requester) {
        let (error, reason) = (self.error, &*shortened(self.reason));
        let (peer, forwarded_for, credential) = fields(Some(by));
        tracing::warn!(
            target: "lockkeeper::audit",
            event = "refused", peer, forwarded_for, credential = credential.as_deref(),
            error, reason,
        );
    }
}

type Shown<T> = Option<tracing::field::DisplayValue<T>>;

fn fields(by: Option<&Requester>) -> (Shown<SocketAddr>, Shown<IpAddr>, Option<String>) {
    let peer = by.map(|by| display(by.peer));
    let forwarded_for = by.and_then(|by| by.forwarded_for).map(display);
    // Text, so that a name with line ends in it is escaped.
    (peer, forwarded_for, by.map(|by| by.credential.to_string()))
}
