//! There are no events: each contender looks each `retry_period`.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::process_key::ProcessKey;
use super::tickets::Predecessor;
pub(crate) use crate::sys::event::{Event, Following};
use crate::sys::path::LockPath;

/// Whether the end of a kernel lock is an event, as a rule.
pub(crate) const UNLOCKS_ARE_HEARD: bool = false;

/// Whether the close of a file is an event for waiters.
pub(crate) const CLOSES_ARE_HEARD: bool = false;

/// A listener, which there is none of.
pub(crate) enum Subscription {}

/// To be called before a lock file is opened.
pub(crate) fn prepare(_: ProcessKey) {}

impl Subscription {
    /// `None`: one has to look now and then.
    pub(crate) fn begin(_: &Arc<LockPath>) -> Option<Self> {
        None
    }

    pub(crate) fn follow_directory(this: Option<Self>, _: &Arc<LockPath>) -> Option<Self> {
        this
    }

    pub(crate) fn follow_changes(this: Option<Self>, _: &Arc<LockPath>) -> Option<Self> {
        this
    }

    pub(crate) fn follows_directory(&self) -> bool {
        match *self {}
    }

    pub(crate) fn follow_predecessors(&mut self, _: [Predecessor; 2]) -> bool {
        match *self {}
    }

    pub(crate) fn is_shaken(&self) -> bool {
        match *self {}
    }

    pub(crate) fn has_heard_a_write(&self) -> bool {
        match *self {}
    }

    pub(crate) fn await_closes<const N: usize>(&self, _: [PathBuf; N]) -> bool {
        match *self {}
    }

    pub(crate) fn follow_process(&mut self, _: Option<u32>) -> Following {
        match *self {}
    }

    pub(crate) fn follow_closes(&mut self, _: &File, _: (u64, u64)) -> bool {
        match *self {}
    }

    pub(crate) async fn event(&self) -> Event {
        match *self {}
    }
}
