//! What the daemon's answers say.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::connection::Answer;

/// More of an answer that is none is not shown.
const SHOWN: usize = 200;

/// A lock was given.
#[derive(Deserialize)]
pub(super) struct Granted {
    /// The fencing token, in decimal digits: a number of JSON may lose some.
    pub(super) token: String,
    #[serde(flatten)]
    pub(super) renewed: Renewed,
}

/// A lease begins anew.
#[derive(Deserialize)]
pub(super) struct Renewed {
    #[serde(default)]
    lease_ms: Option<u64>,
}

impl Renewed {
    /// How long it lasts: as the daemon says, else as it was asked for.
    pub(super) fn lease(&self, asked: Option<Duration>) -> Option<Duration> {
        self.lease_ms.map(Duration::from_millis).or(asked)
    }
}

/// An answer whose contents do not matter.
#[derive(Deserialize)]
pub(super) struct Done {}

/// The daemon did not do what it was asked for.
pub(super) struct Refusal {
    pub(super) status: u16,
    /// For programs; `None` if this is no answer of a daemon.
    pub(super) code: Option<String>,
    pub(super) message: String,
    pub(super) holder: Option<String>,
}

#[derive(Deserialize)]
struct Problem {
    error: String,
    #[serde(default)]
    message: String,
    holder: Option<Value>,
}

pub(super) fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, Refusal> {
    if !answer.status.is_success() {
        return Err(Refusal::read(answer));
    }
    serde_json::from_slice(&answer.body).map_err(|_| Refusal::read(answer))
}

/// Whether the same request may fare better soon: statuses of proxies and of what
/// is not ready. From 520 on are those of networks that stand before a proxy.
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 502..=504 | 520..=530)
}

/// Whether this says what became of a request for a lock, however often it was made.
pub(super) fn decides(answer: &Answer) -> bool {
    match read::<Granted>(answer) {
        Ok(_) => true,
        Err(refusal) => refusal.is_busy() || refusal.is_over(),
    }
}

impl Refusal {
    fn read(answer: &Answer) -> Self {
        let status = answer.status.as_u16();
        let Ok(problem) = serde_json::from_slice::<Problem>(&answer.body) else {
            let text = String::from_utf8_lossy(&answer.body);
            let text: String = text.trim().chars().take(SHOWN).collect();
            let message = format!("{}: {text:?}", answer.status);
            return Self { status, code: None, message, holder: None };
        };
        let holder = problem.holder.as_ref();
        let client = holder.and_then(|holder| holder.get("client").unwrap_or(holder).as_str());
        Self {
            status,
            holder: client.map(str::to_owned),
            code: Some(problem.error),
            message: problem.message,
        }
    }

    fn is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// Somebody else has the lock.
    pub(super) fn is_busy(&self) -> bool {
        self.is(&["locked", "timeout"])
    }

    /// The grant of this request id has ended.
    pub(super) fn is_over(&self) -> bool {
        self.is(&["request_over"])
    }

    /// The hold that was named is none.
    pub(super) fn is_not_held(&self) -> bool {
        self.is(&["not_held", "not_locked", "not_yours", "wrong_token"])
    }

    /// The daemon is stopping or has no room, or what stands before it does not
    /// reach it or lost its patience; it may be well soon.
    pub(super) fn is_passing(&self) -> bool {
        is_passing(self.status)
    }

    /// So nothing is known of what the daemon did.
    pub(super) fn is_of_a_proxy(&self) -> bool {
        self.code.is_none()
    }

    pub(super) fn is_forbidden(&self) -> bool {
        self.status == 401 || self.status == 403
    }
}
