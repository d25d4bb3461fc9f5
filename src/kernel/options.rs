//! The knobs of a kernel lock. No I/O.

use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use crate::local::options::{Offload, WaitOptions, check_mode};
use crate::lock::error::Error;
use crate::sys::byte_ranges;

/// Which of the kernel's locks is taken.
///
/// Programs exclude each other only if
/// they use the same: on a local file system `flock` and the locks of `fcntl(2)`
/// do not see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Primitive {
    /// `flock(2)`: of the whole file, belongs to the open file. What flock(1),
    /// cargo, systemd, lockmgr and Python's `fcntl.flock` use. On Windows it is
    /// `LockFileEx` of all bytes, as Rust's `File::lock` has it. The default.
    #[default]
    Flock,
    /// `fcntl(2)` with `F_OFD_SETLK`: of a byte range, belongs to the open file.
    /// For a file that is shared with programs that use `F_SETLK`, such as apt, dpkg,
    /// SQLite and Python's `fcntl.lockf`: the two exclude each other. Linux has it; elsewhere
    /// it is an [`Error::InvalidOption`].
    Ofd,
}

/// Settings of an [`AsyncKernelLock`](crate::AsyncKernelLock).
///
/// ```
/// use lockkeeper::{AsyncKernelLock, KernelOptions, Primitive};
///
/// let options = KernelOptions::default().primitive(Primitive::Ofd).range(0..100);
/// let lock = AsyncKernelLock::with_options("table.db", options)?;
/// # Ok::<(), lockkeeper::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    pub(super) wait: WaitOptions,
    pub(super) mode: u32,
    pub(super) primitive: Primitive,
    pub(super) range: Range,
    pub(super) delete_on_release: bool,
    pub(super) keep_open: bool,
}

/// Bytes from the first up to `end`, without it; to the end of any file
/// without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: Option<u64>,
}

impl Range {
    fn is_whole(self) -> bool {
        self == Range::default()
    }
}

impl KernelOptions {
    /// Which of the kernel's locks. Default: [`Primitive::Flock`].
    #[must_use]
    pub fn primitive(mut self, primitive: Primitive) -> Self {
        self.primitive = primitive;
        self
    }

    /// The bytes that are locked, which need not exist: for
    /// [`Primitive::Ofd`]. Locks of ranges that do not overlap do not exclude each
    /// other. Default: `..`, all.
    #[must_use]
    pub fn range(mut self, range: impl RangeBounds<u64>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            // The last offset that the kernel has.
            Bound::Included(end) if *end == i64::MAX as u64 => None,
            Bound::Included(end) => Some(end.saturating_add(1)),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => None,
        };
        self.range = Range { start, end };
        self
    }

    /// Remove the file at release. Default: off.
    ///
    /// An exclusive holder
    /// removes it before it unlocks, and waiters look whether the file
    /// they locked is still the one at the path. So none gets in beside a
    /// holder. A shared holder removes it only if it is the last. Programs that
    /// do not look, such as flock(1), must not share such a lock.
    #[must_use]
    pub fn delete_on_release(mut self, on: bool) -> Self {
        self.delete_on_release = on;
        self
    }

    /// Keep the file open between acquisitions, for a path that is locked often.
    ///
    /// Each takes two system calls and a look at the path then, instead of five and a look.
    /// At release the file is closed all the same if a waiter of this crate
    /// is there, since the close is what wakes it. A directory that may not be read
    /// hides waiters, so nothing is kept open there, nor on FreeBSD. Copies of the guard's file
    /// share their position with that of later guards, and a child that has one
    /// shares their lock: make none. The file is closed when
    /// the last clone of the lock is dropped, and until then its directory is open as
    /// well, once for all such locks in it. Not with
    /// [`delete_on_release`](Self::delete_on_release).
    ///
    /// Without it a lock that is neither held nor waited for has nothing open, some two
    /// seconds after its last use. Default: off.
    #[must_use]
    pub fn keep_open(mut self, on: bool) -> Self {
        self.keep_open = on;
        self
    }

    /// As [`FileOptions::timeout`](crate::FileOptions::timeout).
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.wait.timeout = limit.into();
        self
    }

    /// As [`FileOptions::retry_period`](crate::FileOptions::retry_period).
    #[must_use]
    pub fn retry_period(mut self, period: Duration) -> Self {
        self.wait.retry_period = period;
        self
    }

    /// The longest time between two looks at a busy lock. Where there are
    /// events a close is seen at once, and so is a holder's end. A holder that
    /// lives on and unlocks without closing gives no event: it is noticed by
    /// looking, first after 10 ms and then each time after twice as long, up to
    /// this. So no wait is more than about twice as long as it had to be. Default:
    /// thirty times [`retry_period`](Self::retry_period) with events, once without.
    #[must_use]
    pub fn fallback_period(mut self, period: impl Into<Option<Duration>>) -> Self {
        self.wait.fallback_period = period.into();
        self
    }

    /// As [`FileOptions::mode`](crate::FileOptions::mode): permission bits of a file that is made. Default: `0o644`.
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Self {
        self.mode = bits;
        self
    }

    /// As [`FileOptions::offload`](crate::FileOptions::offload).
    #[must_use]
    pub fn offload(mut self, executor: Offload) -> Self {
        self.wait.offload = executor;
        self
    }

    /// For how long the locked file may pass from task to task of this process.
    ///
    /// That saves most of a release and an acquisition. Meanwhile no other process finds
    /// the lock free. It passes only to a task that wants the same of the same path,
    /// on local file systems, if the last holder did not use the file. If it is not taken when it may be, as nothing
    /// polls the task whose turn it is, it is unlocked after 10 ms. More than
    /// 1 ms counts as that, since the path is not looked at meanwhile. Zero: it is
    /// unlocked after each hold. Default: 1 ms.
    #[must_use]
    pub fn local_handoff(mut self, share: Duration) -> Self {
        self.wait.local_handoff = share;
        self
    }

    #[cfg(feature = "cli")]
    pub(crate) fn deletes_on_release(&self) -> bool {
        self.delete_on_release
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.wait.check()?;
        let refuse = |option, why: &str| Err(Error::InvalidOption { option, why: why.to_owned() });
        check_mode(self.mode)?;
        if self.primitive == Primitive::Ofd && !byte_ranges::ARE_THERE {
            let why = "this system has no locks of byte ranges that belong to an open file: \
                       choose Primitive::Flock";
            return refuse("primitive", why);
        }
        let Range { start, end } = self.range;
        if self.primitive == Primitive::Flock && !self.range.is_whole() {
            return refuse("range", "flock locks whole files: choose Primitive::Ofd");
        }
        if end.is_some_and(|end| end <= start) {
            return refuse("range", "must not be empty");
        }
        if start.max(end.unwrap_or(0)) > i64::MAX as u64 {
            return refuse("range", "must lie within the offsets of a file, 0 to 2^63 - 1");
        }
        if self.delete_on_release && !self.range.is_whole() {
            return refuse("delete_on_release", "would remove the file from under other ranges");
        }
        if self.keep_open && self.delete_on_release {
            return refuse("keep_open", "does not go with delete_on_release");
        }
        Ok(())
    }
}

/// The values that are named with each option.
impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            wait: WaitOptions::BUILT_IN,
            mode: 0o644,
            primitive: Primitive::Flock,
            range: Range::default(),
            delete_on_release: false,
            keep_open: false,
        }
    }
}
