//! Whether the path still names the locked file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::shared::{LockInner, LockState};
use super::syscalls::{self, SystemPath};
use crate::lock::error::{Lost, LostReason};
use crate::sys::events::Subscription;
use crate::sys::files::Errno;

/// A task that cancels a token when the lock is lost. It ends before the hold
/// does, so that the file is open as long as it is compared.
pub(super) struct LossWatch {
    pub(super) lost: CancellationToken,
    /// What is seen from now on may be our own release.
    is_over: Arc<AtomicBool>,
    task: AbortOnDropHandle<()>,
}

impl LossWatch {
    pub(super) fn begin(loss: impl Future<Output = Lost> + Send + 'static) -> Self {
        let (lost, is_over) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let (cancel, ended) = (lost.clone(), Arc::clone(&is_over));
        let task = tokio::spawn(async move {
            loss.await;
            if !ended.load(Ordering::Acquire) {
                cancel.cancel();
            }
        });
        Self { lost, is_over, task: AbortOnDropHandle::new(task) }
    }

    /// Whether it was ended by something else, as the end of its runtime.
    pub(super) fn is_dead(&self) -> bool {
        self.task.is_finished() && !self.lost.is_cancelled()
    }
}

impl Drop for LossWatch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
    }
}

/// Resolves when the path does not name the file of this identity any more.
pub(super) async fn loss(
    lock: Arc<LockInner>,
    state: Arc<LockState>,
    identity: (u64, u64),
) -> Lost {
    let mut subscription = None;
    loop {
        if state.executor.has_events() {
            subscription = Subscription::follow_directory(subscription.take(), &lock.path);
        }
        let look = move |lock: Arc<LockInner>| look(&lock.system_path, identity);
        if let Ok(Some(reason)) = state.executor.run(Arc::clone(&lock), look).await {
            return Lost { lock: lock.path.path().into(), reason };
        }
        let period = tokio::time::sleep(lock.options.wait.retry_period);
        match &subscription {
            None => period.await,
            Some(subscription) => tokio::select! {
                _ = subscription.event() => {}
                () = period => {}
            },
        }
    }
}

/// `None` if the path names the file of this identity.
pub(super) fn look(path: &SystemPath, identity: (u64, u64)) -> Result<Option<LostReason>, Errno> {
    Ok(match syscalls::identity_at(path)? {
        Some(found) if found == identity => None,
        Some(_) => Some(LostReason::Replaced),
        None => Some(LostReason::Removed),
    })
}
