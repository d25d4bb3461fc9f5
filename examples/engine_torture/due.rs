//! What has to be undone, and when.

use std::time::Instant;

pub(crate) struct Due<T>(Vec<(Instant, T)>);

impl<T> Due<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn at(&mut self, moment: Instant, undo: T) {
        self.0.push((moment, undo));
    }

    /// The next that is due.
    pub(crate) fn next(&mut self, now: Instant) -> Option<T> {
        let at = self.0.iter().position(|(due, _)| *due <= now)?;
        Some(self.0.swap_remove(at).1)
    }

    /// The next, due or not.
    pub(crate) fn any(&mut self) -> Option<T> {
        self.0.pop().map(|(_, undo)| undo)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
