//! What every request is about: a daemon, a resource, and who asks.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::HeaderValue;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::answer::Refusal;
use super::connection::Answer;
use super::error::{RemoteError, RemoteLost, RemoteLostReason};
use super::options::RemoteOptions;
use super::server::{Failure, Server};
use super::socket::Line;
use crate::real_time::Standing;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Between the first two tries to reach a daemon; doubled after each.
const PAUSE: Duration = Duration::from_millis(20);

/// Between two tries at most: a daemon that is back is found soon.
const PAUSE_MAX: Duration = Duration::from_millis(500);

pub(super) struct Claim {
    pub(super) server: Server,
    pub(super) resource: String,
    pub(super) client: String,
    pub(super) options: RemoteOptions,
    /// What goes on after its caller has gone.
    pub(super) background: TaskTracker,
    pub(super) hand_over: HandOver,
}

impl Claim {
    pub(super) fn new(
        server: Server,
        resource: String,
        client: String,
        options: RemoteOptions,
    ) -> Self {
        let background = TaskTracker::new();
        // It can be waited for; tasks are taken all the same.
        background.close();
        let hand_over = HandOver::default();
        Self { server, resource, client, options, background, hand_over }
    }

    /// `verb` is what is asked for, as the daemon calls it.
    pub(super) async fn ask(
        &self,
        verb: &str,
        body: &Value,
        line: &Line,
    ) -> Result<Answer, Failure> {
        let path = format!("/v1/locks/{}/{verb}", escaped(&self.resource));
        self.server.call(&path, JSON, body.to_string(), line).await
    }

    /// The same where nobody makes the daemon wait: it answers within `limit`, by its
    /// clock and by a paused one of ours.
    pub(super) async fn ask_now(
        &self,
        verb: &str,
        body: &Value,
        line: &Line,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let _standing = Standing::at_most(limit);
        let asked = timeout(limit, self.ask(verb, body, line)).await;
        asked.unwrap_or_else(|_| Err(Failure::silence()))
    }

    pub(super) fn patience(&self) -> Patience {
        Patience { limit: self.options.reconnect, since: None, pause: PAUSE }
    }

    /// The lock, for people.
    pub(super) fn name(&self) -> String {
        format!("{} at {}", self.resource, self.server.url())
    }

    fn names(&self) -> (String, String) {
        (self.server.url().to_owned(), self.resource.clone())
    }

    pub(super) fn lost(&self, reason: RemoteLostReason) -> RemoteLost {
        let (server, resource) = self.names();
        RemoteLost { server, resource, reason }
    }

    pub(super) fn timed_out(&self, waited: Duration, holder: Option<String>) -> RemoteError {
        let (server, resource) = self.names();
        RemoteError::Timeout { server, resource, waited, holder }
    }

    pub(super) fn cancelled(&self) -> RemoteError {
        let (server, resource) = self.names();
        RemoteError::Cancelled { server, resource }
    }

    pub(super) fn unreachable(
        &self,
        doing: &'static str,
        tried: Duration,
        source: io::Error,
    ) -> RemoteError {
        let (server, resource) = self.names();
        let tried = Duration::from_millis(u64::try_from(tried.as_millis()).unwrap_or(u64::MAX));
        RemoteError::Unreachable { server, resource, doing, tried, source }
    }

    pub(super) fn untrusted(&self, doing: &'static str, source: io::Error) -> RemoteError {
        let (server, resource) = self.names();
        RemoteError::Untrusted { server, resource, doing, source }
    }

    pub(super) fn strange(&self, doing: &'static str, found: String) -> RemoteError {
        let (server, resource) = self.names();
        RemoteError::NotADaemon { server, resource, doing, found }
    }

    pub(super) fn refused(&self, doing: &'static str, refusal: Refusal) -> RemoteError {
        let (server, resource) = self.names();
        let is_forbidden = refusal.is_forbidden();
        let Refusal { code, message, .. } = refusal;
        match code {
            _ if is_forbidden => RemoteError::Forbidden { server, resource, doing, message },
            Some(code) => RemoteError::Refused { server, resource, doing, code, message },
            None => RemoteError::NotADaemon { server, resource, doing, found: message },
        }
    }
}

/// Under a paused clock, whether this process has given a hold back for which it waits
/// as well. The clock stands until the daemon has answered a waiter.
#[derive(Default)]
pub(super) struct HandOver(Mutex<(usize, Option<Standing>)>);

/// How long it stands at most: many times what a daemon takes. If longer, a test in
/// which another client is the next is held up so long.
const HAND_OVER: Duration = Duration::from_secs(5);

impl HandOver {
    /// A petition waits, until what this gives is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.state().0 += 1;
        Waiting(self)
    }

    pub(super) fn begin(&self) {
        let mut state = self.state();
        if state.0 > 0 {
            state.1 = Standing::at_most(HAND_OVER);
        }
    }

    fn state(&self) -> MutexGuard<'_, (usize, Option<Standing>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A petition that waits under a paused clock.
pub(super) struct Waiting<'a>(&'a HandOver);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.0, state.1) = (state.0 - 1, None);
    }
}

/// How much longer a daemon that does not answer is asked again.
pub(super) struct Patience {
    limit: Duration,
    since: Option<Instant>,
    pause: Duration,
}

/// Patience is at an end.
pub(super) struct Exhausted {
    pub(super) tried: Duration,
    pub(super) error: io::Error,
}

impl Patience {
    /// The daemon was there.
    pub(super) fn renew(&mut self) {
        (self.since, self.pause) = (None, PAUSE);
    }

    /// Wait before the next try.
    pub(super) async fn pause(&mut self, error: io::Error) -> Result<(), Exhausted> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let tried = now - since;
        if tried >= self.limit {
            return Err(Exhausted { tried, error });
        }
        sleep(self.pause.min(self.limit - tried)).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    pub(super) fn is_first(&self) -> bool {
        self.since.is_none()
    }
}

/// As a part of a path.
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
