//! Grants that are over: a bounded memory of them, for requests that come late.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// What tells a request from others: the resource, the client and the id it
/// gave the request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    pub(super) resource: Arc<str>,
    pub(super) client: Arc<str>,
    pub(super) id: Arc<str>,
}

/// So many are remembered.
const REMEMBERED: usize = 8192;

/// The last ones that are over.
#[derive(Debug, Default)]
pub(super) struct Finished {
    requests: HashSet<RequestKey>,
    request_order: VecDeque<RequestKey>,
    /// Those that their clients gave back.
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

    /// It is not over: the end failed.
    pub(super) fn forget_request(&mut self, key: &RequestKey) {
        if self.requests.remove(key) {
            self.request_order.retain(|other| other != key);
        }
    }

    pub(super) fn has_request(&self, key: &RequestKey) -> bool {
        self.requests.contains(key)
    }

    pub(super) fn remember_release(&mut self, token: u64, client: &Arc<str>) {
        self.released.insert(token, Arc::clone(client));
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
