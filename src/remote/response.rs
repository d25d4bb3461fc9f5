//! What the daemon's responses say.

use std::time::{Duration, UNIX_EPOCH};

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::de::DeserializeOwned;

use crate::lock::holder::{Evidence, Holder};
use crate::lock::wait::Busy;
use crate::wire::{self, AnyCode, Code, Granted, Refused};

/// So many characters of a response that is not the daemon's are shown. If larger, a page
/// of a proxy fills the error.
const SHOWN: usize = 200;

/// A response, whole.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// How long a lease lasts: as the daemon says, else as it was asked for.
pub(super) fn lease(granted_ms: Option<u64>, asked: Option<Duration>) -> Option<Duration> {
    granted_ms.map(Duration::from_millis).or(asked)
}

/// The daemon did not do what it was asked for.
pub(super) struct Refusal {
    pub(super) status: u16,
    /// For programs; `None` if this is no response of a daemon.
    pub(super) code: Option<AnyCode>,
    pub(super) message: String,
    pub(super) holder: Option<wire::Holder>,
}

pub(super) fn read<T: DeserializeOwned>(response: &Response) -> Result<T, Refusal> {
    if !response.status.is_success() {
        return Err(Refusal::read(response));
    }
    serde_json::from_slice(&response.body).map_err(|_| Refusal::read(response))
}

/// Whether the same request may succeed soon: statuses of proxies, and of a daemon that
/// is not ready. From 520 on are those of networks that stand before a proxy.
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 502..=504 | 520..=530)
}

/// Whether this says what became of a request for a lock, however often it was sent.
pub(super) fn decides(response: &Response) -> bool {
    match read::<Granted<'_>>(response) {
        Ok(_) => true,
        Err(refusal) => refusal.is_busy() || refusal.is_over(),
    }
}

impl Refusal {
    pub(super) fn read(response: &Response) -> Self {
        let status = response.status.as_u16();
        match serde_json::from_slice::<Refused<AnyCode>>(&response.body) {
            Ok(Refused { error, holder, message }) => {
                Self { status, code: Some(error), message, holder }
            }
            Err(_) => {
                let text = String::from_utf8_lossy(&response.body);
                let text: String = text.trim().chars().take(SHOWN).collect();
                let message = format!("{}: {text:?}", response.status);
                Self { status, code: None, message, holder: None }
            }
        }
    }

    fn is(&self, codes: &[Code]) -> bool {
        matches!(&self.code, Some(AnyCode::Known(code)) if codes.contains(code))
    }

    /// The holder, where the daemon names one.
    pub(super) fn busy(self) -> Busy {
        let holder = self.holder.map(|wire::Holder { client, hold }| {
            let since = hold.map(|hold| UNIX_EPOCH + Duration::from_millis(hold.since_ms));
            Box::new(Holder { name: Some(client), since, ..Holder::nobody(Evidence::Server) })
        });
        Busy::new(holder)
    }

    /// Another client has the lock.
    pub(super) fn is_busy(&self) -> bool {
        self.is(&[Code::Locked, Code::Timeout])
    }

    /// No client has the lock.
    pub(super) fn is_free(&self) -> bool {
        self.is(&[Code::NotLocked])
    }

    /// The grant of this request id has ended.
    pub(super) fn is_over(&self) -> bool {
        self.is(&[Code::RequestOver])
    }

    /// The hold that was named is none.
    pub(super) fn is_not_held(&self) -> bool {
        self.is(&[Code::NotHeld, Code::NotLocked, Code::NotYours, Code::WrongToken])
    }

    /// The daemon is stopping or has no room, or a proxy before it does not reach it or
    /// gave up.
    pub(super) fn is_passing(&self) -> bool {
        is_passing(self.status)
    }

    /// So the daemon may have carried the request out.
    pub(super) fn is_of_a_proxy(&self) -> bool {
        self.code.is_none()
    }

    pub(super) fn is_forbidden(&self) -> bool {
        self.status == 401 || self.status == 403
    }
}
