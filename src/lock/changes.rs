//! The status of a lock, each time that it changes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio_util::sync::ReusableBoxFuture;

use super::error::Error;
use super::holder::Status;

/// A stream of the status of a lock: now, and then each time that it changes.
///
/// It is made by [`AsyncFileLock::watch`](crate::AsyncFileLock::watch), or by `watch` of a
/// daemon's lock.
///
/// Dropping it leaves nothing behind.
#[must_use = "a stream does nothing unless it is polled"]
pub struct StatusChanges(Pin<Box<dyn Stream<Item = Change> + Send + Sync>>);

/// One item.
pub(crate) type Change = Result<Status, Error>;

/// What finds the changes of one lock, in whatever way its kind has.
pub(crate) trait Watcher: Sized + Send + 'static {
    /// The next change, and the watcher again unless that was the last.
    fn next(self) -> impl Future<Output = (Option<Self>, Change)> + Send + 'static;
}

/// Keeps the future of the next item, so that its reader can stop asking and ask again.
struct Changes<W> {
    /// `None` once the stream has ended.
    next: Option<ReusableBoxFuture<'static, (Option<W>, Change)>>,
}

impl StatusChanges {
    pub(crate) fn of(watcher: impl Watcher) -> Self {
        let next = Some(ReusableBoxFuture::new(watcher.next()));
        Self(Box::pin(Changes { next }))
    }
}

impl fmt::Debug for StatusChanges {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StatusChanges").finish_non_exhaustive()
    }
}

impl Stream for StatusChanges {
    type Item = Result<Status, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Change>> {
        self.0.as_mut().poll_next(context)
    }
}

impl<W: Watcher> Stream for Changes<W> {
    type Item = Change;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Change>> {
        let Some(next) = &mut self.next else {
            return Poll::Ready(None);
        };
        let (watcher, change) = ready!(next.poll(context));
        match watcher {
            Some(watcher) => next.set(watcher.next()),
            None => self.next = None,
        }
        Poll::Ready(Some(change))
    }
}
