//! A grant, as the journal and the directory have it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::lockd::name::{self, SUFFIX};

/// The terms of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GrantTerms {
    pub(crate) resource: Arc<str>,
    /// As the client gave it, and as the file contains it.
    pub(crate) client: Arc<str>,
    pub(crate) lease: Option<Duration>,
    pub(crate) request_id: Option<Arc<str>>,
    /// Whether the file is called as the resource is, though the name is not plainly safe.
    /// Such a file was there before.
    pub(crate) is_literal: bool,
}

/// A lock that was granted. A grant never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) terms: GrantTerms,
    /// The fencing token. No other grant has the same.
    pub(crate) token: u64,
    /// Milliseconds since 1970, by the machine's clock.
    pub(crate) since: u64,
}

impl GrantTerms {
    /// The name of the lock's file. The resource was checked with the request.
    pub(crate) fn file_name(&self) -> Cow<'_, str> {
        if self.is_literal {
            return Cow::Owned(format!("{}{SUFFIX}", self.resource));
        }
        Cow::Owned(name::file_name(&self.resource).expect("BUG: a name was not checked"))
    }
}

impl Grant {
    pub(crate) fn since(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.since)
    }
}

/// Milliseconds since 1970, by the machine's clock.
pub(crate) fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
