//! How many locks and waiting requests each client has.

use std::collections::HashMap;
use std::sync::Arc;

use crate::lockd::name;

/// By the client's name, without white space around; none that has nothing.
#[derive(Debug, Default)]
pub(super) struct Usage(pub(super) HashMap<Arc<str>, ClientUsage>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClientUsage {
    pub(super) locks: usize,
    pub(super) waiters: usize,
}

impl Usage {
    pub(super) fn change(&mut self, client: &Arc<str>, change: impl FnOnce(&mut ClientUsage)) {
        let client = name::shared_stripped(client);
        if let Some(count) = self.0.get_mut(&client) {
            change(count);
            if *count == ClientUsage::default() {
                self.0.remove(&client);
            }
            return;
        }
        let mut count = ClientUsage::default();
        change(&mut count);
        self.0.insert(client, count);
    }

    pub(super) fn of(&self, client: &str) -> ClientUsage {
        self.0.get(name::stripped(client)).copied().unwrap_or_default()
    }
}
