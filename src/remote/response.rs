//! What the daemon's answers say.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::connection::Answer;
use crate::wire::{AnyCode, Code, Granted, Refused};

/// More of an answer that is none is not shown.
const SHOWN: usize = 200;

/// How long a lease lasts: as the daemon says, else as it was asked for.
pub(super) fn lease(granted_ms: Option<u64>, asked: Option<Duration>) -> Option<Duration> {
    granted_ms.map(Duration::from_millis).or(asked)
}

/// The daemon did not do what it was asked for.
pub(super) struct Refusal {
    pub(super) status: u16,
    /// For programs; `None` if this is no answer of a daemon.
    pub(super) code: Option<AnyCode>,
    pub(super) message: String,
    /// The client that has the lock.
    pub(super) holder: Option<String>,
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
    match read::<Granted<'_>>(answer) {
        Ok(_) => true,
        Err(refusal) => refusal.is_busy() || refusal.is_over(),
    }
}

impl Refusal {
    fn read(answer: &Answer) -> Self {
        let status = answer.status.as_u16();
        match serde_json::from_slice::<Refused<AnyCode>>(&answer.body) {
            Ok(Refused { error, holder, message }) => {
                let holder = holder.map(|holder| holder.client);
                Self { status, code: Some(error), message, holder }
            }
            Err(_) => {
                let text = String::from_utf8_lossy(&answer.body);
                let text: String = text.trim().chars().take(SHOWN).collect();
                let message = format!("{}: {text:?}", answer.status);
                Self { status, code: None, message, holder: None }
            }
        }
    }

    fn is(&self, codes: &[Code]) -> bool {
        matches!(&self.code, Some(AnyCode::Known(code)) if codes.contains(code))
    }

    /// Another client has the lock.
    pub(super) fn is_busy(&self) -> bool {
        self.is(&[Code::Locked, Code::Timeout])
    }

    /// The grant of this request id has ended.
    pub(super) fn is_over(&self) -> bool {
        self.is(&[Code::RequestOver])
    }

    /// The hold that was named is none.
    pub(super) fn is_not_held(&self) -> bool {
        self.is(&[Code::NotHeld, Code::NotLocked, Code::NotYours, Code::WrongToken])
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
