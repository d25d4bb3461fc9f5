//! A hold, and what ends it.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::lock_session::LockSession;
use super::place::Place;
use super::target::Target;
use crate::lease::{Over, RESPONSE_LIMIT};
use crate::local::timer::Standing;
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::events;
use crate::lock::holder::Holder;

const DOING: &str = "unlocking";

/// Ends with the guard: dropping it releases the lock.
pub(super) struct Hold {
    /// Always there, but in [`Drop`] and after the release.
    place: Option<Place>,
    pub(super) state: Arc<HoldState>,
    /// Of this hold alone.
    pub(super) id: String,
    pub(super) token: u64,
    pub(super) recovered_from: Option<Holder>,
    /// The session is for this lock alone.
    pub(super) is_alone: bool,
}

/// Whether it is held.
pub(super) struct HoldState {
    pub(super) target: Arc<Target>,
    pub(super) session: Arc<LockSession>,
    /// Cancelled with the session's.
    pub(super) lost: CancellationToken,
}

impl HoldState {
    /// Why the lock is lost, if it is, by the clock of now.
    pub(super) fn look(&self) -> Option<LostReason> {
        self.session.state.over().map(|over| match over {
            Over::Forked => LostReason::Forked,
            Over::Expired => LostReason::Expired,
            Over::Ended => LostReason::Ended,
        })
    }

    /// Resolves when the lock is lost.
    pub(super) async fn lost(&self) -> Lost {
        loop {
            if let Some(reason) = self.look() {
                return self.target.lost(reason);
            }
            self.lost.cancelled().await;
        }
    }
}

impl Hold {
    pub(super) fn new(place: Place, token: u64, recovered_from: Option<Holder>) -> Self {
        let parts = place.parts();
        let (target, session) = (Arc::clone(&parts.target), Arc::clone(place.session()));
        let (id, is_alone) = (parts.owner.to_string(), parts.is_alone);
        let lost = session.state.lost_token();
        let state = Arc::new(HoldState { target, session, lost });
        Self { place: Some(place), state, id, token, recovered_from, is_alone }
    }

    pub(super) async fn release(mut self) -> Result<(), Error> {
        let state = Arc::clone(&self.state);
        if let Some(reason) = state.look() {
            return Err(state.target.lost(reason).into());
        }
        let target = &state.target;
        target.background.hand_over.begin();
        let _standing = Standing::at_most(RESPONSE_LIMIT);
        let place = self.place.take().expect("BUG: a hold ended twice");
        let failed = |error| target.unreachable(DOING, Duration::ZERO, error);
        let reported = place.release().map_err(failed)?;
        reported.await.expect("BUG: a lock was left")?;
        events::released(&target.name());
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.state.session.state.is_of_this_process() {
            // All of it is the parent's, down to its memory. (C2)
            return mem::forget((self.place.take(), Arc::clone(&self.state)));
        }
        if let Some(place) = self.place.take() {
            self.state.target.background.hand_over.begin();
            drop(place);
        }
    }
}
