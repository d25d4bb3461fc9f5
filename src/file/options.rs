//! Every knob, its default and its check. No I/O.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::local::options::{LONGEST, Offload, WaitOptions, check_mode};
use crate::lock::error::Error;
use crate::sys::{files, process};

/// Longest note, in bytes: with every other field at its longest the record
/// still fits its fixed size.
pub(crate) const NOTE_MAX_BYTES: usize = 128;

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
    /// or policies that forbid them; every contender of a path should choose the same. Not
    /// on Windows, which is an [`Error::InvalidOption`].
    Process,
}

/// What happens to held lock files when the process exits. See [`FileOptions::at_exit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AtExit {
    /// The file stays, and the next contender takes it over. The default.
    ///
    /// The kernel frees the lock once *all* threads are gone. The next holder has
    /// [`recovered_from`](crate::FileGuard::recovered_from).
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
    /// [`Error::SlowSystem`]; the lock is released.
    Error,
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
    pub(crate) wait: WaitOptions,
    pub(crate) race_delay: Duration,
    pub(crate) tries: u32,
    pub(crate) slow_system: SlowSystem,
    pub(crate) mode: u32,
    pub(crate) proof: Proof,
    pub(crate) openlock_compat: bool,
    pub(crate) at_exit: AtExit,
    pub(crate) note: Option<String>,
    /// What a record says instead of this program's name: `lockkeeper run` names its
    /// command.
    pub(crate) name: Option<Arc<str>>,
}

impl FileOptions {
    const BUILT_IN: FileOptions = FileOptions {
        wait: WaitOptions::BUILT_IN,
        race_delay: Duration::from_millis(200),
        tries: 2,
        slow_system: SlowSystem::Warn,
        mode: 0o644,
        proof: Proof::Auto,
        openlock_compat: false,
        at_exit: AtExit::Leave,
        note: None,
        name: None,
    };

    /// Longest wait of [`acquire`](crate::AsyncFileLock::acquire). Default: none, it waits for ever.
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.wait.timeout = limit.into();
        self
    }

    /// Time between two looks at a busy lock where there are no events. Default: 0.3 s.
    ///
    /// That is on network file systems, and where no inotify can be made. The time varies
    /// by a quarter either way, so that contenders do not march in step. With events a
    /// release or a death is seen at once. It is also the time between two looks of
    /// [`lost`](crate::FileGuard::lost).
    #[must_use]
    pub fn retry_period(mut self, period: Duration) -> Self {
        self.wait.retry_period = period;
        self
    }

    /// Time between two looks at a busy lock where there are events too.
    ///
    /// It is the safety net for what gives no event, such as a renamed ancestor directory,
    /// or a holder of another program in another container. Default: thirty times
    /// [`retry_period`](Self::retry_period) with events, once without.
    #[must_use]
    pub fn fallback_period(mut self, period: impl Into<Option<Duration>>) -> Self {
        self.wait.fallback_period = period.into();
        self
    }

    /// How long a lock file that openlock may replace is watched. Default: 0.2 s.
    ///
    /// Only then does it count as acquired. That is so where a process that does not know
    /// our protocol may be replacing it: after a foreign file was taken over, and always
    /// with [`openlock_compat`](Self::openlock_compat).
    #[must_use]
    pub fn race_delay(mut self, delay: Duration) -> Self {
        self.race_delay = delay;
        self
    }

    /// How often an acquisition that is watched may find its file gone. Default: 2.
    ///
    /// That is one that must be watched for [`race_delay`](Self::race_delay). With no valid
    /// file at the path after so many tries it fails with [`Error::InvalidLockFile`].
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
    /// On Windows they are not used: the directory passes on who may do what.
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
    pub fn offload(mut self, executor: Offload) -> Self {
        self.wait.offload = executor;
        self
    }

    /// How long tasks of this process may take turns while other processes wait.
    ///
    /// Meanwhile the held file itself is handed off from task to task, which saves most of
    /// a release and an acquisition.
    ///
    /// Each hand-off is a new hold: one write gives the file the next task's hold id and
    /// time, and a request to release the last hold ends with it. Before each it is seen
    /// whether the file was removed or replaced, and each millisecond whether it, or a
    /// directory above it, was moved.
    ///
    /// The file is handed off only between locks with equal options and paths, pinned, on
    /// local file systems, without [`openlock_compat`](Self::openlock_compat), and if the
    /// last holder's [`lock_fd`](crate::FileGuard::lock_fd) was not asked for. If the next
    /// task is not polled, the file is removed after this time, and at least 10 ms.
    ///
    /// Zero: the file is removed after each hold. Default: 1 ms.
    #[must_use]
    pub fn local_handoff(mut self, limit: Duration) -> Self {
        self.wait.local_handoff = limit;
        self
    }

    /// One line that [`holder`](crate::AsyncFileLock::holder) shows to
    /// waiters; at most 128 bytes, no control characters. Default: none.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// What [`AsyncFileLock::new`](crate::AsyncFileLock::new) uses in this process.
    ///
    /// That is [`FileOptions::default`], or what
    /// [`set_process_default`](Self::set_process_default) put in its place.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::FileOptions;
    ///
    /// assert_eq!(FileOptions::process_default(), FileOptions::default());
    /// ```
    #[must_use]
    pub fn process_default() -> Self {
        PROCESS_DEFAULT.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Change what [`process_default`](Self::process_default) gives from now on.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for impossible values; nothing changes then.
    ///
    /// # Examples
    /// ```no_run
    /// use std::time::Duration;
    /// use lockkeeper::FileOptions;
    ///
    /// FileOptions::set_process_default(FileOptions::default().timeout(Duration::from_secs(60)))?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn set_process_default(options: FileOptions) -> Result<(), Error> {
        options.check()?;
        *PROCESS_DEFAULT.write().unwrap_or_else(PoisonError::into_inner) = options;
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |option, why: &str| Err(Error::InvalidOption { option, why: why.to_owned() });
        self.wait.check()?;
        if self.tries == 0 {
            return refuse("tries", "must be at least 1");
        }
        check_mode(self.mode)?;
        self.check_system()?;
        if self.openlock_compat && self.proof == Proof::Process {
            return refuse(
                "openlock_compat",
                "needs a kernel lock: it does not go with Proof::Process",
            );
        }
        if self.openlock_compat && self.race_delay.is_zero() {
            return refuse("race_delay", "must be longer than zero with openlock_compat");
        }
        if self.race_delay > LONGEST {
            return refuse("race_delay", "must be at most thirty years");
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

    /// What this system cannot do.
    fn check_system(&self) -> Result<(), Error> {
        let refuse = |option, why: &str| Err(Error::InvalidOption { option, why: why.to_owned() });
        if !files::MAY_BE_REPLACED && self.openlock_compat {
            return refuse(
                "openlock_compat",
                "this system replaces no file that a holder has open",
            );
        }
        if !files::MAY_BE_REPLACED && self.proof == Proof::Process {
            return refuse(
                "proof",
                "Proof::Process replaces files that are open, which this system does not: \
                 choose Proof::KernelLock",
            );
        }
        if !process::HAS_EXIT_HANDLERS && self.at_exit == AtExit::Remove {
            return refuse(
                "at_exit",
                "this system tells no program of its exit: release the guard before it",
            );
        }
        Ok(())
    }
}

static PROCESS_DEFAULT: RwLock<FileOptions> = RwLock::new(FileOptions::BUILT_IN);

/// The values that are named with each option.
impl Default for FileOptions {
    fn default() -> Self {
        Self::BUILT_IN
    }
}
