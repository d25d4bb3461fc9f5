//! A hold, and what ends it.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::client::ANSWER_LIMIT;
use super::cluster::Live;
use super::key::{EtcdKey, just_behind};
use super::key_watch::{Happened, Watched};
use super::place::Place;
use super::record::Record;
use super::session::Session;
use super::target::Target;
use super::wire::{RANGE, RangeRequest, RangeResponse};
use crate::lease::Over;
use crate::local::timer::Standing;
use crate::lock::error::{Error, Lost, LostReason};
use crate::lock::events;
use crate::lock::holder::Holder;

/// A shorter hold is over before its key is watched: the two requests cost more than it is
/// worth to be told of its loss so soon. If larger, holders are told later.
const UNWATCHED: Duration = Duration::from_millis(20);

/// Between two looks while no watch can be had. If larger, a holder is told later.
const BLIND: Duration = Duration::from_millis(500);

/// Ends with the guard: dropping it deletes the key.
pub(super) struct Hold {
    /// Always there, but in [`Drop`] and after the release.
    place: Option<Place>,
    pub(super) state: Arc<HoldState>,
    pub(super) key: EtcdKey,
    /// M11.
    pub(super) token: u64,
    pub(super) recovered_from: Option<Holder>,
    watching: Option<AbortHandle>,
}

/// Whether it is held.
pub(super) struct HoldState {
    pub(super) target: Arc<Target>,
    pub(super) session: Arc<Session>,
    /// What ended this hold alone.
    ended: AtomicU8,
    /// Cancelled with the session's.
    pub(super) lost: CancellationToken,
}

const HELD: u8 = 0;
const ENDED: u8 = 1;
const REVOKED: u8 = 2;

impl HoldState {
    fn end(&self, how: u8) {
        let _ = self.ended.compare_exchange(HELD, how, Ordering::Relaxed, Ordering::Relaxed);
        self.lost.cancel();
    }

    /// Why the lock is lost, if it is, by the clock of now.
    pub(super) fn look(&self) -> Option<LostReason> {
        let over = self.session.state.over();
        match (over, self.ended.load(Ordering::Relaxed)) {
            (Some(Over::Forked), _) => Some(LostReason::Forked),
            (_, ENDED) => Some(LostReason::Ended),
            (_, REVOKED) => Some(LostReason::Revoked),
            (Some(Over::Expired), _) => Some(LostReason::Expired),
            (Some(Over::Ended), _) => Some(LostReason::Ended),
            (None, _) => None,
        }
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
    /// To be made on the thread of `lease::io`. (M0)
    pub(super) fn new(
        place: Place,
        create_revision: i64,
        token: u64,
        recovered_from: Option<Holder>,
    ) -> Self {
        let parts = place.parts();
        let (target, session) = (Arc::clone(&parts.target), Arc::clone(&parts.session));
        let key = EtcdKey { name: parts.key.clone(), create_revision, lease: session.lease };
        let (ended, lost) = (AtomicU8::new(HELD), session.state.lost_token());
        let state = Arc::new(HoldState { target, session, ended, lost });
        let watching = watch(Arc::clone(&parts.live), Arc::clone(&state), key.clone());
        let watching = Some(tokio::spawn(watching).abort_handle());
        Self { place: Some(place), state, key, token, recovered_from, watching }
    }

    pub(super) async fn release(mut self) -> Result<(), Error> {
        let state = Arc::clone(&self.state);
        match state.look() {
            // It is still held, and this is what was asked for.
            None | Some(LostReason::Revoked) => {}
            // The drop deletes what the cluster may still have for this process.
            Some(reason) => return Err(state.target.lost(reason).into()),
        }
        self.stop_watching();
        let target = &state.target;
        target.background.hand_over.begin();
        let _standing = Standing::at_most(ANSWER_LIMIT);
        let place = self.place.take().expect("BUG: a hold ended twice");
        let failed = |error| target.unreachable("unlocking", Duration::ZERO, error);
        let reported = place.delete().map_err(failed)?;
        reported.await.expect("BUG: a key was left")?;
        events::released(&target.name());
        Ok(())
    }

    fn stop_watching(&mut self) {
        if let Some(watching) = self.watching.take() {
            watching.abort();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.state.session.state.is_of_this_process() {
            // All of it is the parent's, down to its memory. (C2)
            return mem::forget((self.place.take(), self.watching.take(), Arc::clone(&self.state)));
        }
        self.stop_watching();
        if let Some(place) = self.place.take() {
            self.state.target.background.hand_over.begin();
            drop(place);
        }
    }
}

/// Until the lock is lost. (M7)
async fn watch(live: Arc<Live>, state: Arc<HoldState>, key: EtcdKey) {
    sleep(UNWATCHED).await;
    let name = key.name.as_bytes();
    let begin = |from| {
        let (key, range_end) = (name.to_vec(), just_behind(name));
        live.watches.watch(Watched { key, range_end, from, with_puts: true })
    };
    let mut watch = begin(key.create_revision + 1);
    let mut looks_at = Instant::now() + state.session.ttl;
    loop {
        let is_broken = tokio::select! {
            happened = watch.next() => match happened {
                Happened::Deleted { .. } => return state.end(ENDED),
                Happened::Put(kv) if Record::is_revoked(&kv.value) => return state.end(REVOKED),
                Happened::Put(_) => continue,
                Happened::Broken => true,
            },
            () = sleep_until(looks_at) => false,
        };
        // A look now and then, in case that a push was missed. (E7)
        let found = look(&state, name).await;
        if found.kvs.is_empty() {
            return state.end(ENDED);
        }
        if found.kvs.iter().any(|kv| Record::is_revoked(&kv.value)) {
            return state.end(REVOKED);
        }
        if is_broken {
            sleep(BLIND).await;
            // Not from an older revision: what was before it may be compacted by now.
            watch = begin(found.header.map_or(0, |header| header.revision) + 1);
        }
        looks_at = Instant::now() + state.session.ttl;
    }
}

/// Until it is answered: a watch that begins well says nothing of an older state that was
/// restored meanwhile. (M9)
async fn look(state: &HoldState, name: &[u8]) -> RangeResponse {
    let request = RangeRequest { key: name.to_vec(), ..RangeRequest::default() };
    loop {
        match state.session.call(RANGE, &request, ANSWER_LIMIT, &mut false).await {
            Ok(found) => return found,
            Err(_) => sleep(BLIND).await,
        }
    }
}
