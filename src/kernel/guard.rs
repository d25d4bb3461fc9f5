//! What a user has while holding a kernel lock.

use std::fmt;
use std::fs::File;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::hold::Hold;
use super::loss_watch::{LossWatch, look, loss};
use super::shared::LockInner;
use super::syscalls::Sharing;
use crate::local::executor::Executor;
use crate::lock::error::{Error, Lost};
use crate::sys::files;

/// A kernel lock that is held, with its open file. Dropping the guard releases the lock.
///
/// That is done on a
/// local file system on the spot, elsewhere by a thread of this crate
/// ([`flush`](crate::flush) waits for that). If it had to be waited for, the
/// thread that ends the hold gives way once, as for a [`FileGuard`](crate::FileGuard).
///
/// It is a type of its own beside [`FileGuard`](crate::FileGuard) because a
/// kernel lock has a file that is the user's, can be shared and downgraded, and
/// has no record: the next holder does not hear of a dead one, no token names the
/// acquisition, and the lock cannot be asked for.
///
/// The file is open for reading and writing where that is allowed, and its
/// position is the start. Its descriptor can be given to a child, which then has
/// the lock as well until the guard is released or dropped. Do not unlock it.
///
/// A guard that is dropped by a panic releases the lock like any other, and says
/// nothing of it: see [`FileGuard`](crate::FileGuard#panics-of-the-holder). A kernel lock has
/// no record, so its next holder hears of no death either. Where it must know, write
/// into the file that work has begun, and remove that before the release.
///
/// A guard cannot be released twice, nor used afterwards:
///
/// ```compile_fail
/// # async fn twice(guard: lockkeeper::KernelGuard) {
/// guard.release().await;
/// guard.release().await;
/// # }
/// ```
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct KernelGuard {
    /// On the heap: it goes through many hands, and from task to task.
    hold: Option<Box<Hold>>,
}

impl KernelGuard {
    fn hold(&self) -> &Hold {
        self.hold.as_deref().expect("BUG: a guard was used after its end")
    }

    /// Release the lock and report how that went.
    ///
    /// The hold ends whatever the answer is, and it ends even if the future is
    /// dropped after its first poll. Without
    /// [`delete_on_release`](crate::KernelOptions::delete_on_release) the path
    /// is not looked at: [`lost`](Self::lost) does that.
    ///
    /// # Cancel safety
    /// The hold ends also if the future is dropped after its first poll. One that is never
    /// polled releases the lock as a dropped guard does.
    ///
    /// # Errors
    /// With `delete_on_release`, [`Error::Lost`] if the file was gone or
    /// replaced and [`Error::NotRemoved`] if it could not be removed.
    /// [`Error::Forked`] in a forked child.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// use std::io::Write;
    ///
    /// let guard = lock.acquire().await?;
    /// guard.file().write_all(b"42").unwrap();
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "unlock")]
    pub async fn release(mut self) -> Result<(), Error> {
        let hold = self.end_watch().expect("BUG: a guard was released twice");
        match hold.executor() {
            Executor::Inline { .. } => hold.end(),
            executor => executor.start(move || hold.end()).finished().await,
        }
    }

    /// Make an exclusive lock shared, with no holder in between.
    ///
    /// It is one call of the kernel, which lets in those that wait to share the lock. A
    /// guard that is shared already stays as it is.
    ///
    /// For [`Primitive::Ofd`](crate::Primitive::Ofd) the kernel promises that
    /// this is one step. For [`Primitive::Flock`](crate::Primitive::Flock) flock(2) does not, though
    /// Linux does it in one step. If another holder gets in between all the same,
    /// or over a network file system, this fails and the lock is gone.
    ///
    /// There is no way up: two holders that both wait to become exclusive wait
    /// for each other, and a kernel that cannot grant it drops the lock that
    /// was there. Release, and acquire again.
    ///
    /// # Cancel safety
    /// Once it was polled, dropping the future releases the lock.
    ///
    /// # Errors
    /// [`Error::Io`]: the lock is released then.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// let writer = lock.acquire().await?;
    /// let reader = writer.downgrade().await?; // no writer gets in between
    /// assert!(lock.try_acquire_shared().await?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn downgrade(mut self) -> Result<Self, Error> {
        let mut hold = self.end_watch().expect("BUG: a released guard was used");
        let executor = hold.executor();
        let downgrade = move || hold.downgrade().map(|()| Self::of(hold));
        match executor {
            Executor::Inline { .. } => downgrade(),
            executor => executor.start(downgrade).finished().await,
        }
    }

    fn end_watch(&mut self) -> Option<Box<Hold>> {
        let mut hold = self.hold.take()?;
        hold.watch.get_mut().take();
        Some(hold)
    }

    pub(super) fn of(hold: Box<Hold>) -> Self {
        Self { hold: Some(hold) }
    }

    /// Resolves when the path does not name the locked file any more.
    ///
    /// It was removed or replaced then, and another holder may be inside. Else it never
    /// resolves. It looks at once, at each event, and each
    /// [`retry_period`](crate::KernelOptions::retry_period).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example(lock: lockkeeper::AsyncKernelLock) -> Result<(), lockkeeper::Error> {
    /// # async fn work() {}
    /// let guard = lock.acquire().await?;
    /// tokio::select! {
    ///     () = work() => {}
    ///     lost = guard.lost() => return Err(lost.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lost(&self) -> Lost {
        self.loss().await
    }

    /// Whether the lock is lost, by a look at the path on the caller's thread: one system
    /// call. Where the file system may not answer, as over a network, there is no look:
    /// what [`lost_token`](Self::lost_token) knows counts, and without such a token nothing
    /// is known.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let hold = self.hold();
        if hold.state.executor.has_events() {
            let identity = hold.file().identity;
            return matches!(look(&hold.lock.system_path, identity), Ok(Some(_)));
        }
        hold.watch.lock().as_ref().is_some_and(|watch| watch.lost.is_cancelled())
    }

    /// A token that is cancelled when [`lost`](Self::lost) would resolve, as
    /// [`FileGuard::lost_token`](crate::FileGuard::lost_token).
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        let mut watch = self.hold().watch.lock();
        match &*watch {
            Some(watch) if !watch.is_dead() => {}
            _ => *watch = Some(LossWatch::begin(self.loss())),
        }
        watch.as_ref().expect("BUG: nobody watches").lost.child_token()
    }

    pub(super) fn lock_inner(&self) -> &Arc<LockInner> {
        &self.hold().lock
    }

    /// The end of the locked file at its path.
    fn loss(&self) -> impl Future<Output = Lost> + Send + use<> {
        let hold = self.hold();
        loss(Arc::clone(&hold.lock), Arc::clone(&hold.state), hold.file().identity)
    }

    /// The locked file. Its content is the user's; this crate does not touch it.
    #[must_use]
    pub fn file(&self) -> &File {
        let hold = self.hold();
        hold.was_used.store(true, Ordering::Relaxed);
        hold.file()
    }

    /// The locked file's path, absolute where that could be made.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.hold().lock.path.path()
    }

    /// Whether others may share the lock.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.hold().spec.sharing == Sharing::Shared
    }
}

// What it shares is whole at each moment in which a caller's code can panic.
impl UnwindSafe for KernelGuard {}
impl RefUnwindSafe for KernelGuard {}

files::lends_its_file!(KernelGuard);

impl fmt::Debug for KernelGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("KernelGuard")
            .field("path", &self.path())
            .field("spec", &self.hold().spec)
            .finish_non_exhaustive()
    }
}

impl Drop for KernelGuard {
    fn drop(&mut self) {
        let Some(hold) = self.end_watch() else {
            return;
        };
        let executor = hold.executor();
        let end = move || Hold::tell(hold.end());
        match (executor, Handle::try_current()) {
            (executor @ Executor::Thread { .. }, Ok(_)) => drop(executor.start(end)),
            // There is no later; and this may be the thread where calls are made.
            _ => end(),
        }
    }
}

#[cfg(all(test, target_os = "linux", not(lockkeeper_generic_unix)))]
mod tests {
    use std::time::Duration;

    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::sys::path::LockPath;
    use crate::sys::tickets::Waiters;
    use crate::{AsyncKernelLock, KernelOptions};

    #[tokio::test]
    async fn a_holder_that_had_to_wait_gives_way_and_no_other() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = LockPath::new(&directory.path().join("lock")).unwrap();
        let lock = AsyncKernelLock::new(path.path());
        let guard = lock.acquire().await.unwrap();
        assert!(!guard.hold().is_contended);
        guard.release().await.unwrap();
        let other = File::create(path.path()).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let mut waits = Box::pin(lock.acquire());
        let named = LockInner::new(path, KernelOptions::default());
        let waiters = Waiters::of(&named.label).unwrap();
        while !waiters.are_any() {
            assert!(futures::poll!(&mut waits).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(other);
        let guard = waits.await.unwrap();
        // Now, as nothing else may run here until it is released.
        assert!(!waiters.are_any(), "it stands in line");
        assert!(guard.hold().is_contended);
    }
}
