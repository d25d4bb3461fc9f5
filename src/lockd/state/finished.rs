//! A bounded memory of grants that are over, for requests that come late.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// The identity of a request: the resource, the client and the id that the client gave.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    pub(super) resource: Arc<str>,
    pub(super) client: Arc<str>,
    pub(super) id: Arc<str>,
}

/// Requests and releases that are remembered. A repetition that comes after more than this
/// is a new request. Each is some 200 bytes.
const REMEMBERED: usize = 8192;

/// The last grants that are over.
#[derive(Debug, Default)]
pub(super) struct Finished {
    requests: HashSet<RequestKey>,
    request_order: VecDeque<RequestKey>,
    /// Tokens that their clients released.
    released: HashMap<u64, Arc<str>>,
    release_order: VecDeque<u64>,
}

impl Finished {
    pub(super) fn remember_request(&mut self, key: RequestKey) {
        if self.requests.insert(key.clone()) {
            self.request_order.push_back(key);
        }
        if self.request_order.len() > REMEMBERED {
            if let Some(oldest) = self.request_order.pop_front() {
                self.requests.remove(&oldest);
            }
        }
    }

    /// The end failed: the grant is not over.
    pub(super) fn forget_request(&mut self, key: &RequestKey) {
        if self.requests.remove(key) {
            self.request_order.retain(|other| other != key);
        }
    }

    pub(super) fn has_request(&self, key: &RequestKey) -> bool {
        self.requests.contains(key)
    }

    pub(super) fn remember_release(&mut self, token: u64, client: Arc<str>) {
        self.released.insert(token, client);
        self.release_order.push_back(token);
        if self.release_order.len() > REMEMBERED {
            if let Some(oldest) = self.release_order.pop_front() {
                self.released.remove(&oldest);
            }
        }
    }

    pub(super) fn has_release(&self, token: u64, client: &str) -> bool {
        self.released.get(&token).is_some_and(|by| **by == *client)
    }
}
