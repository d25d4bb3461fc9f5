//! Every knob, its default and its check. No I/O.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use crate::lock::error::Error;

/// Longest note, in bytes: with every other field at its longest the record
/// still fits its fixed size.
pub(crate) const NOTE_MAX_BYTES: usize = 128;

/// Longest period an option may have: thirty years keep every deadline
/// computable. Wait for ever by setting no timeout.
const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// How a holder's life is proved. See [`FileOptions::proof`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Proof {
    /// A kernel lock where the file system has `flock`, its process elsewhere. The
    /// default.
    #[default]
    Auto,
    /// A kernel lock, or [`Error::KernelLockUnavailable`].
    KernelLock,
    /// Its process, as the lock file names it: no kernel lock is taken. For file systems
    /// or policies that forbid them; every contender of a path should choose the same.
    Process,
}

/// What happens to held lock files when the process exits. See [`FileOptions::at_exit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AtExit {
    /// The file stays; the kernel frees the lock once *all* threads are gone,
    /// and the next contender takes over with
    /// [`recovered_from`](crate::FileGuard::recovered_from). The default.
    #[default]
    Leave,
    /// An exit handler removes the file, as openlock does. Other threads of
    /// the exiting process may still be running then: a successor can be
    /// inside while they are. Choose it only where they do not matter.
    Remove,
}

/// What a write slower than two thirds of [`FileOptions::race_delay`] leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlowSystem {
    /// A `tracing` warning; the acquisition goes on. The default.
    #[default]
    Warn,
    /// [`Error::SlowSystem`]; the lock is given back.
    Error,
}

/// Where the system calls of an attempt run. See [`FileOptions::offload`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Offload {
    /// On the calling thread for local file systems (microseconds), on a
    /// thread of this crate's own for network and unknown ones. The default.
    ///
    /// Beside a process that writes and syncs as hard as it can on the same ext4,
    /// an acquisition with its release kept the calling thread for a median of
    /// 0.10 ms, 4.4 ms in 99.9 % and 41 ms at the longest; by a thread of its own
    /// it took 0.18, 29 and 46 ms, and on tmpfs inline 0.07, 2.5 and 8.6 ms
    /// (`cargo bench --bench waiting -- stall --seconds 12`, two slow cores).
    #[default]
    Auto,
    /// Always on the calling thread. A hung network server then hangs it.
    Never,
    /// Always on a thread of this crate's own (one for each file system,
    /// ended when idle), never on Tokio's blocking pool. Who waits then hears of
    /// nothing and looks each [`retry_period`](FileOptions::retry_period), and others do
    /// not see it in the line.
    Always,
}

/// Settings of an [`AsyncFileLock`](crate::AsyncFileLock).
///
/// Setters chain; [`AsyncFileLock::with_options`](crate::AsyncFileLock::with_options)
/// checks them once. Names and defaults are openlock's where it has them.
///
/// ```
/// use std::time::Duration;
/// use lockkeeper::{AsyncFileLock, FileOptions};
///
/// let options = FileOptions::default()
///     .timeout(Duration::from_secs(30))
///     .note("nightly import");
/// let lock = AsyncFileLock::with_options("import.lock", options)?;
/// # Ok::<(), lockkeeper::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry_period: Duration,
    pub(crate) fallback_period: Option<Duration>,
    pub(crate) race_delay: Duration,
    pub(crate) tries: u32,
    pub(crate) slow_system: SlowSystem,
    pub(crate) mode: u32,
    pub(crate) proof: Proof,
    pub(crate) openlock_compat: bool,
    pub(crate) at_exit: AtExit,
    pub(crate) offload: Offload,
    pub(crate) local_handoff: Duration,
    pub(crate) note: Option<String>,
    /// What a record says instead of this program's name: `lockkeeper run` names its
    /// command.
    pub(crate) name: Option<Arc<str>>,
}

impl FileOptions {
    /// The share is the longest that costs others hardly more: beside 64 tasks that
    /// have it without a pause (`cargo bench --bench waiting -- share`, tmpfs, two
    /// cores), another process that takes it for 1 ms at a time does so 735 times a
    /// second by shares of 0, 525 by 0.3 ms, 480 by 1 ms, 270 by 3 ms and 85 by
    /// 10 ms; the tasks have it 1, 100, 130, 240 and 350 thousand times. From 0.3
    /// to 1 ms the other pays a tenth for the third that they gain.
    const BUILT_IN: FileOptions = FileOptions {
        timeout: None,
        retry_period: Duration::from_millis(300),
        fallback_period: None,
        race_delay: Duration::from_millis(200),
        tries: 2,
        slow_system: SlowSystem::Warn,
        mode: 0o644,
        proof: Proof::Auto,
        openlock_compat: false,
        at_exit: AtExit::Leave,
        offload: Offload::Auto,
        local_handoff: Duration::from_millis(1),
        note: None,
        name: None,
    };

    /// Longest wait of [`acquire`](crate::AsyncFileLock::acquire). Default: none, it waits for ever.
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// Time between two looks at a busy lock where there are no events (network
    /// file systems, no inotify to be had), varied by a quarter either way so
    /// that contenders do not march in step. With events a release or a death
    /// is seen at once. It is also the time between two looks of
    /// [`lost`](crate::FileGuard::lost). Default: 0.3 s.
    #[must_use]
    pub fn retry_period(mut self, period: Duration) -> Self {
        self.retry_period = period;
        self
    }

    /// Time between two looks at a busy lock all the same: the safety net for
    /// what gives no event, such as a renamed ancestor directory or a holder of
    /// another program that lives in another container. Default: thirty times
    /// [`retry_period`](Self::retry_period) with events, once without.
    #[must_use]
    pub fn fallback_period(mut self, period: impl Into<Option<Duration>>) -> Self {
        self.fallback_period = period.into();
        self
    }

    /// How long a lock file is watched before it counts as ours, where a
    /// process that does not know our protocol may be replacing it: after
    /// taking over a foreign file, and always with
    /// [`openlock_compat`](Self::openlock_compat). Default: 0.2 s.
    #[must_use]
    pub fn race_delay(mut self, delay: Duration) -> Self {
        self.race_delay = delay;
        self
    }

    /// How often an acquisition that must be watched for
    /// [`race_delay`](Self::race_delay) may end with no valid file at the path
    /// before it fails with [`Error::InvalidLockFile`]. Default: 2.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// What a system too slow for [`race_delay`](Self::race_delay) leads to. Default: a warning.
    #[must_use]
    pub fn slow_system(mut self, reaction: SlowSystem) -> Self {
        self.slow_system = reaction;
        self
    }

    /// Permission bits of a lock file that is made, subject to the umask. Default: `0o644`.
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Self {
        self.mode = bits;
        self
    }

    /// How a holder's life is proved. Default: [`Proof::Auto`].
    #[must_use]
    pub fn proof(mut self, proof: Proof) -> Self {
        self.proof = proof;
        self
    }

    /// Share the path with **one** Python openlock process at a time. Default: off.
    ///
    /// Every acquisition then lasts at least [`race_delay`](Self::race_delay),
    /// `try_acquire` included, and a stale file is rewritten, never removed.
    /// openlock counts a holder as alive only if its `ps` line contains
    /// "python" and the recorded name; a process that it could not see is
    /// refused with [`Error::InvisibleToOpenlock`]. Two openlock processes on
    /// one path can both hold, with us or without: openlock 1.2.1 takes a file
    /// that vanished for a stale one and renames over a fresh lock.
    #[must_use]
    pub fn openlock_compat(mut self, on: bool) -> Self {
        self.openlock_compat = on;
        self
    }

    /// What happens to the held file when the process exits. Default: [`AtExit::Leave`].
    #[must_use]
    pub fn at_exit(mut self, action: AtExit) -> Self {
        self.at_exit = action;
        self
    }

    /// Where the system calls run. Default: [`Offload::Auto`].
    #[must_use]
    pub fn offload(mut self, place: Offload) -> Self {
        self.offload = place;
        self
    }

    /// For how long the tasks of this process may have the lock one after the
    /// other while other processes wait for it. Meanwhile the held file itself
    /// passes from task to task, which saves most of a release and an
    /// acquisition; its record is written anew once a second. Before each pass it
    /// is seen whether the file was removed or replaced, and each millisecond
    /// whether it, or a directory above it, was moved. Zero: the file is
    /// removed after each hold. If it is not taken when it may be, as nothing polls
    /// the task whose turn it is, it is removed after the share, and at least 10 ms.
    /// It passes only between locks with equal options
    /// and paths, pinned, on local file systems, without
    /// [`openlock_compat`](Self::openlock_compat), and if the last holder's
    /// [`lock_fd`](crate::FileGuard::lock_fd) was not asked for. Default: 1 ms.
    #[must_use]
    pub fn local_handoff(mut self, share: Duration) -> Self {
        self.local_handoff = share;
        self
    }

    /// One line that [`holder`](crate::AsyncFileLock::holder) shows to those
    /// who wait; at most 128 bytes, no control characters. Default: none.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Change what [`FileOptions::default`] gives from now on in this process.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for impossible values; nothing changes then.
    pub fn set_defaults(options: FileOptions) -> Result<(), Error> {
        options.check()?;
        *DEFAULTS.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = options;
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |option, why: &str| Err(Error::InvalidOption { option, why: why.to_owned() });
        if self.retry_period.is_zero() {
            return refuse("retry_period", "must be longer than zero, or waiting would spin");
        }
        if self.tries == 0 {
            return refuse("tries", "must be at least 1");
        }
        if self.mode & !0o777 != 0 || self.mode & 0o600 != 0o600 {
            return refuse(
                "mode",
                "must be permission bits that let the owner read and write, such as 0o644",
            );
        }
        if self.openlock_compat && self.proof == Proof::Process {
            return refuse(
                "openlock_compat",
                "needs a kernel lock: it does not go with Proof::Process",
            );
        }
        if self.openlock_compat && self.race_delay.is_zero() {
            return refuse("race_delay", "must be longer than zero with openlock_compat");
        }
        if self.fallback_period.is_some_and(|period| period.is_zero()) {
            return refuse("fallback_period", "must be longer than zero, or waiting would spin");
        }
        let fallback_period = self.fallback_period.unwrap_or(self.retry_period);
        for (option, period) in [
            ("retry_period", self.retry_period),
            ("race_delay", self.race_delay),
            ("local_handoff", self.local_handoff),
            ("fallback_period", fallback_period),
        ] {
            if period > LONGEST {
                return refuse(option, "must be at most thirty years");
            }
        }
        match &self.note {
            Some(note) if note.len() > NOTE_MAX_BYTES => {
                refuse("note", "must be at most 128 bytes")
            }
            Some(note) if note.chars().any(char::is_control) => {
                refuse("note", "must be one line without control characters")
            }
            _ => Ok(()),
        }
    }
}

static DEFAULTS: RwLock<FileOptions> = RwLock::new(FileOptions::BUILT_IN);

/// The built-in values, or what [`FileOptions::set_defaults`] put in their place.
impl Default for FileOptions {
    fn default() -> Self {
        DEFAULTS.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}
