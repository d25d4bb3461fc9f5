//! A hold together with what has to end with it, in the right order and at the
//! right place: the file first, then the turn of the next local task.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::disk::OsDisk;
use crate::error::Error;
use crate::held::Held;
use crate::place::{Place, Started};
use crate::wait::Turn;

/// A held lock file, its turn, and where its system calls run.
pub(crate) struct Tenure {
    inner: Option<Inner>,
    place: Place,
}

/// Dropped in this order.
struct Inner {
    held: Arc<Held<OsDisk>>,
    turn: Turn,
}

impl Tenure {
    pub(crate) fn new(held: Held<OsDisk>, turn: Turn, place: Place) -> Self {
        Self { inner: Some(Inner { held: Arc::new(held), turn }), place }
    }

    pub(crate) fn held(&self) -> &Arc<Held<OsDisk>> {
        &self.inner.as_ref().expect("BUG: a tenure was used after its end").held
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    fn take(&mut self) -> Option<(Inner, Place)> {
        let inner = self.inner.take()?;
        let place = match &self.place {
            // In a forked child there are no threads that would do it elsewhere.
            Place::Lane(_) if !inner.held.is_ours() => Place::Here { is_local: false },
            place => place.clone(),
        };
        Some((inner, place))
    }

    /// Give the file back and keep the turn, to try again.
    pub(crate) async fn give_back(mut self) -> Turn {
        let (Inner { held, turn }, place) = self.take().expect("BUG: a tenure ended twice");
        let give_back = move || {
            let _ = held.release();
            drop(held);
            turn
        };
        place.start(give_back).finished().await
    }

    /// End the hold. Once this was called it ends, even if the future is dropped.
    pub(crate) async fn end(mut self) -> Result<(), Error> {
        let (inner, place) = self.take().expect("BUG: a tenure ended twice");
        let mut ending = Ending(Some(place.start(move || inner.end())));
        ending.done().await
    }
}

impl Inner {
    fn end(self) -> Result<(), Error> {
        let outcome = self.held.release();
        if matches!(outcome, Err(Error::Forked { .. })) {
            // The queue was copied by a fork, perhaps in the middle of a change.
            std::mem::forget(self.turn);
        }
        outcome
    }
}

/// Schedules the deletion, or does it on the spot where nobody would do it later.
impl Drop for Tenure {
    fn drop(&mut self) {
        let Some((inner, place)) = self.take() else {
            return;
        };
        let end = move || match inner.end() {
            Ok(()) | Err(Error::Forked { .. }) => {}
            Err(error) => tracing::warn!("{error}"),
        };
        match Handle::try_current() {
            Ok(_) => drop(Ending(Some(place.start(end)))),
            // Nobody would do it later; and this may be the thread of the place.
            Err(_) => end(),
        }
    }
}

/// The end of a hold, on its way. Dropped before it is there, it is left to
/// the runtime.
struct Ending<T: Send + 'static>(Option<Started<T>>);

impl<T: Send + 'static> Ending<T> {
    async fn done(&mut self) -> T {
        let result = match self.0.as_mut().expect("BUG: an end that was over") {
            Started::Done(_) => None,
            Started::Running(result) => Some(result.await.expect("BUG: a job was lost")),
        };
        match (result, self.0.take()) {
            (Some(result), _) | (None, Some(Started::Done(result))) => result,
            _ => unreachable!("BUG: a result was lost"),
        }
    }
}

impl<T: Send + 'static> Drop for Ending<T> {
    fn drop(&mut self) {
        let Some(started @ Started::Running(_)) = self.0.take() else {
            return;
        };
        let left = Left(Some(started));
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn(left.done()));
        }
    }
}

/// The same, kept by a runtime. If that goes down first, or there is none, it
/// waits, so that the file does not outlive both.
struct Left<T: Send + 'static>(Option<Started<T>>);

impl<T: Send + 'static> Left<T> {
    async fn done(mut self) {
        if let Some(Started::Running(result)) = &mut self.0 {
            let _ = result.await;
        }
        self.0 = None;
    }
}

impl<T: Send + 'static> Drop for Left<T> {
    fn drop(&mut self) {
        if let Some(started) = self.0.take()
            && !started.wait()
        {
            tracing::warn!("a lock file is not deleted yet: its file system does not answer");
        }
    }
}
