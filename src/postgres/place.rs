//! What an acquisition has at the server, and how that is given back. (P9, P10, P11)

use std::future::Future;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::failure::Failure;
use super::key::Mode;
use super::lock_session::{LockSession, Seat};
use super::server::Live;
use super::statements::{Row, Statements};
use super::target::Target;
use crate::lease::io;
use crate::lock::error::{Error, LostReason};
use crate::sys::random;

/// How long a statement may take to end that was cancelled. If larger, the session of a wait
/// that was dropped is closed later.
const CANCELLED_LIMIT: Duration = Duration::from_secs(2);

/// How long after a cancel it is sent again: one that comes before its statement cancels
/// nothing. If larger, the session of a wait that was dropped is closed later.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// Between two tries to release. If larger, the next contender waits for longer.
const AGAIN: Duration = Duration::from_millis(200);

/// So often the server may cancel a release before its row is given up. If larger, a program
/// that keeps the row locked holds up the next contender for longer.
const CANCELLED_RELEASES: u32 = 3;

/// What a release came to.
pub(super) type Left = Result<(), Error>;

/// Dropping it gives back what there is. It is made before anything is asked.
pub(super) struct Place {
    /// Always there, but in [`Drop`] and after the release.
    parts: Option<Parts>,
}

pub(super) struct Parts {
    pub(super) target: Arc<Target>,
    pub(super) live: Arc<Live>,
    pub(super) seat: Seat,
    pub(super) mode: Mode,
    /// What no other hold is called.
    pub(super) owner: Arc<str>,
    /// The session is for this lock alone.
    pub(super) is_alone: bool,
    pub(super) claim: Claim,
    /// Goes when nothing is left of this at the server.
    pub(super) turn: Turn,
}

/// The turn among the tasks of this process, and room for one more lock.
pub(super) struct Turn {
    pub(super) _turn: OwnedSemaphorePermit,
    pub(super) _room: OwnedSemaphorePermit,
}

/// What the server may have of it.
pub(super) enum Claim {
    None,
    /// A statement is under way that may take it. It runs to its end, so that this is known.
    Asked(Asked),
    /// It is held, and this becomes of the row at a release.
    Held(Row),
}

pub(super) type Asked = JoinHandle<Result<Option<bool>, Failure>>;

impl Place {
    /// # Errors
    /// What the system refused.
    pub(super) fn new(
        target: Arc<Target>,
        live: Arc<Live>,
        seat: Seat,
        mode: Mode,
        is_alone: bool,
        turn: Turn,
    ) -> io::Result<Self> {
        let mut bits = [0_u8; 16];
        random::fill(&mut bits).map_err(io::Error::from)?;
        let owner = format!("{:032x}", u128::from_ne_bytes(bits)).into();
        let claim = Claim::None;
        let parts = Parts { target, live, seat, mode, owner, is_alone, claim, turn };
        Ok(Self { parts: Some(parts) })
    }

    pub(super) fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("BUG: a place ended twice")
    }

    fn parts_mut(&mut self) -> &mut Parts {
        self.parts.as_mut().expect("BUG: a place ended twice")
    }

    pub(super) fn session(&self) -> &Arc<LockSession> {
        self.parts().seat.session()
    }

    /// Ask for the lock, and do not wait for it if another has it.
    pub(super) async fn try_lock(&mut self) -> Result<bool, Failure> {
        let statements = self.parts().statements();
        self.ask(async move { statements.try_lock().await })?;
        self.asked().await
    }

    /// Stand in the server's queue; [`asked`](Self::asked) is the answer.
    pub(super) fn begin_to_wait(&mut self) -> Result<(), Failure> {
        let statements = self.parts().statements();
        self.session().rest();
        self.ask(async move { statements.lock().await })
    }

    fn ask(
        &mut self,
        asking: impl Future<Output = Result<Option<bool>, Failure>> + Send + 'static,
    ) -> Result<(), Failure> {
        let io = io().map_err(|error| Failure::of_io(&error))?;
        self.parts_mut().claim = Claim::Asked(io.spawn(asking));
        Ok(())
    }

    /// Whether it is held now.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn asked(&mut self) -> Result<bool, Failure> {
        let parts = self.parts_mut();
        let Claim::Asked(asked) = &mut parts.claim else { return Ok(false) };
        let answer = asked.await.expect("BUG: a statement was given up");
        let session = parts.seat.session();
        match answer {
            Ok(Some(true)) => {
                parts.claim = Claim::Held(Row::None);
                Ok(true)
            }
            Ok(Some(false)) => {
                parts.claim = Claim::None;
                Ok(false)
            }
            Ok(None) => {
                // Nothing was taken, as the session is another client's. (P7)
                parts.claim = Claim::None;
                session.state.end();
                Err(super::lock_session::pooled())
            }
            Err(failure) => {
                // It may hold the lock all the same. (P12)
                session.retire();
                parts.claim = Claim::Held(Row::None);
                Err(failure)
            }
        }
    }

    /// What becomes of the row at a release.
    pub(super) fn set_row(&mut self, row: Row) {
        self.parts_mut().claim = Claim::Held(row);
    }

    /// Nothing of it is at the server: only the turn is left.
    pub(super) fn forget(mut self) -> Turn {
        let parts = self.parts.take().expect("BUG: a place ended twice");
        assert!(matches!(parts.claim, Claim::None), "BUG: a lock was forgotten");
        parts.turn
    }

    /// Give it back.
    ///
    /// # Errors
    /// What the system refused.
    pub(super) fn release(mut self) -> io::Result<oneshot::Receiver<Left>> {
        let parts = self.parts.take().expect("BUG: a place ended twice");
        parts.begin_to_release()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        if !parts.seat.session().state.is_of_this_process() {
            // All of it is the parent's, down to its memory. (C2)
            return mem::forget(parts);
        }
        if matches!(parts.claim, Claim::None) {
            return parts.put_back();
        }
        let name = parts.target.name();
        if let Err(error) = parts.begin_to_release() {
            tracing::warn!(lock = %name, %error, "a lock is left to the end of its session");
        }
    }
}

impl Parts {
    pub(super) fn statements(&self) -> Statements {
        let (session, owner) = (Arc::clone(self.seat.session()), Arc::clone(&self.owner));
        Statements { session, key: self.target.key, mode: self.mode, owner }
    }

    /// The session holds nothing of it.
    fn put_back(self) {
        if self.is_alone {
            let session = Arc::clone(self.seat.session());
            drop(self.seat);
            self.live.put_back(session);
        }
    }

    fn begin_to_release(self) -> io::Result<oneshot::Receiver<Left>> {
        let (report, reported) = oneshot::channel();
        let target = Arc::clone(&self.target);
        let work = async move {
            // Nobody may wait for it.
            let _ = report.send(self.release().await);
        };
        drop(target.background.start(work)?);
        Ok(reported)
    }

    /// Until the server has nothing of it, or the session is over.
    async fn release(mut self) -> Left {
        let row = match mem::replace(&mut self.claim, Claim::None) {
            Claim::None => {
                self.put_back();
                return Ok(());
            }
            Claim::Held(row) => row,
            Claim::Asked(asked) if self.is_alone => {
                self.cancel(asked).await;
                return Ok(());
            }
            Claim::Asked(asked) => match asked.await {
                Ok(Ok(Some(false) | None)) => {
                    self.put_back();
                    return Ok(());
                }
                _ => Row::None,
            },
        };
        let released = self.unlock(row).await;
        self.put_back();
        released
    }

    /// (P11)
    async fn cancel(self, mut asked: Asked) {
        let session = self.seat.session();
        if session.raw.cancel().await.is_ok() {
            let undo = async {
                while timeout(CANCEL_AGAIN, &mut asked).await.is_err() {
                    let _ = session.raw.cancel().await;
                }
                // It may have been granted all the same. The end of the session would free it
                // too, but later than this is told.
                let _ = session.ask_rows("SELECT pg_catalog.pg_advisory_unlock_all()", &[]).await;
            };
            let _ = timeout(CANCELLED_LIMIT, undo).await;
        }
        session.raw.end();
        session.raw.ended().await;
    }

    /// (P10)
    async fn unlock(&self, row: Row) -> Left {
        let (session, target) = (self.seat.session(), &self.target);
        let (mut row, mut was_asked, mut left_to_cancel) = (row, false, CANCELLED_RELEASES);
        loop {
            if session.state.over().is_some() || session.raw.over().is_some() {
                // The server frees it with the session. If that was before it was asked, the
                // next one was inside only where it does not wait for the lease.
                return match was_asked && target.options().waits_for_the_lease() {
                    true => Ok(()),
                    false => Err(target.lost(LostReason::Ended).into()),
                };
            }
            let asking = async {
                session.take_back().await?;
                self.statements().unlock(row).await
            };
            match asking.await {
                Ok(is_unlocked) => {
                    return match is_unlocked {
                        Some(true) => Ok(()),
                        _ if was_asked => Ok(()),
                        _ => Err(target.lost(LostReason::Ended).into()),
                    };
                }
                // It was not carried out: the session ended before, and perhaps long before.
                Err(failure) if failure.is_end_of_session() && !was_asked => {
                    session.state.end();
                    return Err(target.lost(LostReason::Ended).into());
                }
                Err(failure) => {
                    tracing::debug!(error = failure.message, "a lock is not released yet");
                    was_asked = true;
                    session.retire();
                    // One that took too long was undone, its change of the row with it.
                    if failure.is("57014") && left_to_cancel > 0 {
                        left_to_cancel -= 1;
                    } else {
                        // Its row stays as that of a holder that vanished.
                        row = Row::None;
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }
}
