//! What every request is about: a daemon, a resource and a client.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Serialize;

use super::endpoint::Endpoint;
use super::event_stream::EventStream;
use super::hang_up::HangUp;
use super::no_response::NoResponse;
use super::options::RemoteOptions;
use super::response::{Refusal, Response};
use crate::lease::{Background, Outlook, Patience, io};
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::events;
use crate::lock::name::LockName;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) resource: String,
    pub(super) client: String,
    pub(super) options: RemoteOptions,
    pub(super) background: Background,
}

impl Target {
    pub(super) fn new(
        endpoint: Endpoint,
        resource: String,
        client: String,
        options: RemoteOptions,
    ) -> Self {
        Self { endpoint, resource, client, options, background: Background::default() }
    }

    /// Log what the user should know, though no call fails.
    pub(super) fn tell(self: &Arc<Self>, error: io::Error, what: &'static str) {
        let target = Arc::clone(self);
        log(move || {
            let (server, resource) = (target.endpoint.url(), &target.resource);
            tracing::warn!(server, resource, %error, "{what}");
        });
    }

    /// The event of a release in the background, if a subscriber wants it.
    pub(super) fn tell_release(self: &Arc<Self>) {
        if events::are_wanted() {
            let target = Arc::clone(self);
            log(move || events::released(&target.name()));
        }
    }

    /// Send a request about the lock; `verb` is the last part of its path.
    pub(super) async fn ask(
        &self,
        verb: &str,
        body: &impl Serialize,
        hang_up: &HangUp,
    ) -> Result<Response, NoResponse> {
        let path = format!("/v1/locks/{}/{verb}", escaped(&self.resource));
        let body = serde_json::to_string(body).expect("BUG: a request that is no JSON");
        self.endpoint.call(&path, JSON, body, hang_up).await
    }

    /// Ask for what is locked by this name.
    pub(super) async fn look(&self) -> Result<Response, NoResponse> {
        let path = format!("/v1/locks/{}", escaped(&self.resource));
        self.endpoint.get(&path, &HangUp::default()).await
    }

    /// Ask for the events of this lock.
    pub(super) async fn events(&self) -> Result<Result<EventStream, Response>, NoResponse> {
        let path = format!("/v1/events?resource={}", escaped(&self.resource));
        self.endpoint.events(&path).await
    }

    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.options.reconnect)
    }

    pub(super) fn name(&self) -> LockName {
        LockName::at(&self.resource, self.endpoint.url())
    }

    pub(super) fn lost(&self, reason: LostReason) -> Lost {
        Lost { lock: self.name(), reason }
    }

    pub(super) fn cancelled(&self) -> Error {
        Error::Cancelled { lock: self.name() }
    }

    pub(super) fn unreachable(
        &self,
        doing: &'static str,
        tried: Duration,
        source: io::Error,
    ) -> Error {
        let tried = Duration::from_millis(u64::try_from(tried.as_millis()).unwrap_or(u64::MAX));
        Error::Unreachable { lock: self.name(), doing, tried, source }
    }

    /// Every other try would fail as well.
    pub(super) fn hopeless(&self, doing: &'static str, failure: NoResponse) -> Error {
        let NoResponse { error: source, outlook, .. } = failure;
        match outlook {
            Outlook::Foreign => self.strange(doing, source.to_string()),
            _ => Error::Untrusted { lock: self.name(), doing, source },
        }
    }

    pub(super) fn strange(&self, doing: &'static str, found: String) -> Error {
        Error::NotAServer { lock: self.name(), doing, found }
    }

    pub(super) fn refused(&self, doing: &'static str, refusal: Refusal) -> Error {
        let lock = self.name();
        let is_forbidden = refusal.is_forbidden();
        let Refusal { code, message, .. } = refusal;
        match code {
            _ if is_forbidden => Error::Forbidden { lock, doing, message },
            Some(code) => Error::Refused { lock, doing, code: code.to_string(), message },
            None => Error::NotAServer { lock, doing, found: message },
        }
    }
}

fn log(tell: impl FnOnce() + Send + 'static) {
    if let Ok(io) = io() {
        io.log(tell);
    }
}

/// The same URL, resource, client and options, whatever work goes on.
impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        let one = (self.endpoint.url(), &self.resource, &self.client, &self.options);
        one == (other.endpoint.url(), &other.resource, &other.client, &other.options)
    }
}

/// The name as one part of a path.
fn escaped(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            part.push(char::from(byte));
        } else {
            part.push_str(&format!("%{byte:02X}"));
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_a_path() {
        assert_eq!(escaped("a/b c%ü.1"), "a%2Fb%20c%25%C3%BC.1");
    }
}
