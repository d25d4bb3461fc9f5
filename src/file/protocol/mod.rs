//! ONE try to get a lock: the protocol, step by step, over [`Disk`].
//!
//! An attempt never sleeps and never waits. Given what the disk, the liveness
//! of processes, the clock and the random bits answer, it is deterministic.
//! Where time has to pass, its [`Outcome`] says how much, and the caller waits.
//!
//! # The pinned protocol
//!
//! *A holder's kernel lock on the lock file's inode is the proof of its life;
//! the path is the lock.* No timing is assumed and no process id is judged.
//!
//! 1. Open the path, read-only, never creating. It is not there: make a
//!    candidate without a name, write the whole record, `flock` it, link it to
//!    the path. Linked: **acquired**. Another was faster: from the top. Where
//!    there are no hard links, [`naming`] has what serves for them.
//! 2. `flock` what was opened, without waiting. Refused: a live holder,
//!    **busy**. Granted: the path must still name this inode, else from the top.
//! 3. Read the record. A free `flock` proves a holder dead that had the file on a
//!    local file system, as its record says, if it is local here too. For any
//!    other, an NFS client of this machine for one, its process is asked. It
//!    must not be locked by `fcntl` either. Dead: unlock and close; open again for writing, `flock`
//!    again (refused: busy), compare the inode again (else from the top).
//! 4. Read the record again through this description, under its `flock`: only
//!    this reading decides.
//! 5. Take over in place: one write. **Acquired**. Where writing is not
//!    allowed: rename a locked candidate over the stale file, under its
//!    `flock` and after the comparison. **Acquired**.
//! 6. Release: the path names our inode: unlink it. Then unlock. Then close. If
//!    it has more names, as a backup makes them, the record says first that it
//!    was released.
//!
//! # The portable protocol
//!
//! Without kernel locks ([`portable`]): a stale file is replaced only by the
//! owner of the hard-linked claim on its hold id, and the claim of a dead claimant is
//! claimed by the same rule.
//!
//! # Invariants
//!
//! 1. An inode is locked before the path can name it. Else a contender finds
//!    it free and takes it over from a live holder.
//! 2. Only the owner of the `flock` on the inode that the path was seen to name
//!    changes what the path names or what the inode holds.
//! 3. The path is unlinked before the `flock` goes. Else the next holder's
//!    file is the one that is unlinked.
//! 4. Inode numbers are compared only while the file is open: file systems
//!    give a freed number to the next file at once.
//! 5. A holder has one open description of its inode. A second one, closed
//!    later, would keep the lock beyond the end that a watcher hears of.
//! 6. The maker of a file owns its removal from the same instruction on: the
//!    closure that makes it returns the value that removes it. A dropped
//!    future, a runtime that goes down and a panic all clean up.
//! 7. A [`LockFile`] acts only in the process that made it. A forked child shares
//!    the description, and its `LOCK_UN` would free the parent's lock.
//!
//! # Which rules are followed
//!
//! A takeover follows the record, whatever mode the contender runs in. The two
//! protocols side by side on one path are not proved, so a stale record of the
//! other protocol counts as busy, with that reason. A foreign file (openlock's,
//! a bare process id, an empty one) is dead if its process is gone and it was
//! not changed for [`YOUTH`] under this contender's eyes; it is taken over, and
//! then watched for `race_delay`, since an openlock process may be replacing it
//! at that very moment.

pub(crate) mod disk;
pub(crate) mod environment;
pub(crate) mod lock_file;
pub(crate) mod mutants;
mod naming;
mod pinned;
mod portable;
mod probe;
mod sweep;

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::options::{FileOptions, Proof, SlowSystem};
use super::record::{Contents, RECORD_BYTES, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder};
use crate::sys::files::{self, Errno};
use crate::sys::inode::{FileKind, Inode};
use crate::sys::path::LockPath;
use crate::sys::process_key::ProcessKey;
use crate::sys::verdict::Verdict;
use disk::{Access, Disk};
use lock_file::{AtPath, LockFile};
use mutants::Mutant;

pub(crate) use probe::Found;

/// How long a foreign file must stay unchanged before its dead process counts:
/// ten times what openlock gives itself between judging and replacing.
pub(crate) const YOUTH: Duration = Duration::from_secs(2);

/// How often one attempt starts from the top. Each start means that another
/// contender made progress; so many mean that the path does not keep still.
const ROUNDS: u32 = 64;

/// When to look again after another contender's probe may have been in the way:
/// it holds the lock for microseconds.
pub(crate) const PROBE_PASSES: Duration = Duration::from_millis(1);

/// What an attempt needs to know besides the disk.
pub(crate) trait Environment {
    /// Whether the process that wrote `contents` lives. See [`super::liveness::judge`].
    fn judge(&self, contents: &Contents, local: bool) -> Verdict;
    /// What tells this process from its forked children.
    fn process(&self) -> ProcessKey;
    /// 128 random bits.
    fn hold_id(&self) -> Result<HoldId, Errno>;
    /// What this process writes about itself when it acquires now, but for what
    /// depends on the file ([`Record::is_local`]).
    fn record(&self, hold_id: HoldId, proof: RecordedProof, options: &FileOptions) -> Record;
    /// The monotonic clock.
    fn now(&self) -> Instant;
}

/// How an attempt ended.
pub(crate) enum Outcome<D: Disk> {
    Acquired(Acquired<D>),
    /// Acquired if it was not replaced by the end of the delay, see [`survived`].
    Probation(Acquired<D>, Duration),
    Busy(Busy),
}

/// A lock that was acquired, and the dead holder that left it.
pub(crate) struct Acquired<D: Disk> {
    pub(crate) lock_file: LockFile<D>,
    pub(crate) recovered_from: Option<Box<Holder>>,
}

/// Another contender holds it, or that cannot be ruled out.
#[derive(Debug)]
pub(crate) struct Busy {
    pub(crate) holder: Option<Box<Holder>>,
    /// Even a single try should look again after this long: what was in the
    /// way may only be passing.
    pub(crate) look_again: Option<Duration>,
    /// Number of the inode that was in the way, by which the close of an
    /// unnamed file is recognized.
    pub(crate) inode: Option<u64>,
}

impl Busy {
    fn by(contents: &Contents, evidence: Evidence) -> Self {
        Self {
            holder: Some(Box::new(Holder::new(contents, evidence))),
            look_again: None,
            inode: None,
        }
    }
}

/// How an acquisition on probation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survival {
    Held,
    /// Another's valid file is there.
    Replaced,
    /// No valid file is there.
    Destroyed,
}

/// What a contender has seen of foreign files, over several attempts.
#[derive(Debug, Default)]
pub(crate) struct Sightings(
    /// On the heap: hardly any contender sees one, and each carries its memory along.
    Option<Box<Sighting>>,
);

#[derive(Debug)]
struct Sighting {
    identity: (u64, u64),
    contents: Contents,
    since: Instant,
}

impl Sightings {
    /// How long this very content has been there under our eyes.
    fn age(&mut self, identity: (u64, u64), contents: &Contents, now: Instant) -> Duration {
        match &self.0 {
            Some(last) if last.identity == identity && last.contents == *contents => {
                now.saturating_duration_since(last.since)
            }
            _ => {
                let contents = contents.clone();
                self.0 = Some(Box::new(Sighting { identity, contents, since: now }));
                Duration::ZERO
            }
        }
    }
}

/// One try.
pub(crate) struct Attempt<'a, D: Disk, S: Environment> {
    disk: &'a D,
    environment: &'a S,
    path: &'a Arc<LockPath>,
    options: &'a FileOptions,
    sightings: &'a mut Sightings,
    candidate: Option<Candidate<D>>,
    looks_first: bool,
    tells: bool,
    /// What the path named when it was last opened.
    last_inode: Cell<Option<u64>>,
}

/// A file that is complete and locked and has no name yet: all that is left to
/// do is to link it. Dropped, it is closed and no more: to unlock what a forked
/// child inherited of it would unlock what its parent holds by now (7).
pub(crate) struct Candidate<D: Disk> {
    opened: Opened<D::File>,
    record: Box<Record>,
}

/// A regular file that was opened.
struct Opened<F> {
    file: F,
    inode: Inode,
}

/// A file whose `flock` is ours. Dropping it unlocks before it closes: a child
/// that was forked meanwhile has the description too.
struct Locked<D: Disk> {
    disk: D,
    opened: Option<Opened<D::File>>,
}

impl<D: Disk> Locked<D> {
    fn keep(mut self) -> Opened<D::File> {
        self.opened.take().expect("BUG: kept twice")
    }
}

impl<D: Disk> std::ops::Deref for Locked<D> {
    type Target = Opened<D::File>;

    fn deref(&self) -> &Opened<D::File> {
        self.opened.as_ref().expect("BUG: used after it was kept")
    }
}

impl<D: Disk> Drop for Locked<D> {
    fn drop(&mut self) {
        if let Some(opened) = &self.opened {
            let _ = self.disk.unlock(&opened.file);
        }
    }
}

/// The owner of a file is dead, and how that shows.
struct Stale {
    contents: Contents,
    evidence: Evidence,
}

/// Why one round from the top ended without the lock.
enum Stop {
    /// The path does not name any more what was looked at.
    FromTheTop,
    /// The same, for a file that is gone from its server. If that does not pass, it
    /// is an error.
    GoneFromServer(Error),
    Busy(Busy),
    /// The file system has no `flock`; what the kernel said.
    NoFlock(Errno),
    /// Exclusive locks need a writable descriptor here (NFS), flock(2).
    NeedsWriting,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

impl From<Busy> for Stop {
    fn from(busy: Busy) -> Self {
        Stop::Busy(busy)
    }
}

impl<'a, D: Disk, S: Environment> Attempt<'a, D, S> {
    pub(crate) fn new(
        disk: &'a D,
        environment: &'a S,
        path: &'a Arc<LockPath>,
        options: &'a FileOptions,
        sightings: &'a mut Sightings,
    ) -> Self {
        Self {
            disk,
            environment,
            path,
            options,
            sightings,
            candidate: None,
            looks_first: false,
            tells: true,
            last_inode: Cell::new(None),
        }
    }

    /// With a candidate that was made while there was time.
    pub(crate) fn with_candidate(self, candidate: Option<Candidate<D>>) -> Self {
        Self { candidate, ..self }
    }

    /// For a contender without a reason to think that the lock is free: what is there is looked
    /// at before the candidate is linked. To link is to write, also where it is refused.
    pub(crate) fn looking_first(self) -> Self {
        Self { looks_first: true, ..self }
    }

    /// The candidate, if it was not used.
    pub(crate) fn into_candidate(self) -> Option<Candidate<D>> {
        self.candidate
    }

    /// For a caller that does not ask for the holder: a pinned holder's process
    /// is not judged, which takes longer than all the rest of a look.
    pub(crate) fn without_telling(self) -> Self {
        Self { tells: false, ..self }
    }

    /// Try once.
    pub(crate) fn run(&mut self) -> Result<Outcome<D>, Error> {
        let is_pinned = self.options.proof != Proof::Process;
        match if is_pinned { self.pinned() } else { self.portable() } {
            // Next to openlock only the pinned form is safe.
            Err(Stop::NoFlock(_))
                if self.options.proof == Proof::Auto
                    && !self.options.openlock_compat
                    && files::MAY_BE_REPLACED =>
            {
                self.portable().or_else(|stop| self.stopped(stop))
            }
            Err(stop) => self.stopped(stop),
            Ok(outcome) => Ok(outcome),
        }
    }

    fn stopped(&self, stop: Stop) -> Result<Outcome<D>, Error> {
        let path = || self.path.path().to_owned();
        match stop {
            Stop::Failed(error) | Stop::GoneFromServer(error) => Err(error),
            Stop::Busy(busy) => Ok(Outcome::Busy(Busy { inode: self.last_inode.get(), ..busy })),
            Stop::FromTheTop => Ok(Outcome::Busy(Self::never_still())),
            Stop::NoFlock(why) => {
                Err(Error::KernelLockUnavailable { lock: path().into(), source: why.into() })
            }
            Stop::NeedsWriting => Err(Error::io("locking", self.path.path(), Errno::BADF)),
        }
    }

    /// Start from the top as often as another contender was faster.
    fn rounds(mut round: impl FnMut() -> Result<Outcome<D>, Stop>) -> Result<Outcome<D>, Stop> {
        for _ in 1..ROUNDS {
            match round() {
                Err(Stop::FromTheTop | Stop::GoneFromServer(_)) => {}
                other => return other,
            }
        }
        round()
    }

    /// Another program has the file open in a way that keeps others out: on Linux by a
    /// lease, fcntl(2); on Windows without sharing, as a contender does that takes it over.
    fn in_use(&self) -> Stop {
        let why = "another program has it open in a way that keeps others out".to_owned();
        let holder = Some(Box::new(Holder::nobody(Evidence::Unknown(why))));
        Busy { holder, look_again: Some(PROBE_PASSES), inode: None }.into()
    }

    /// Open a regular file; `None` if nothing is there.
    fn open(&self, path: &Path, access: Access) -> Result<Option<Opened<D::File>>, Errno> {
        let file = match self.disk.open(path, access) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let inode = self.disk.inspect(&file)?;
        Ok(Some(Opened { file, inode }))
    }

    /// Open what is at the path to look at it.
    fn open_path(&self) -> Result<Option<Opened<D::File>>, Stop> {
        let opened = match self.open(self.path.path(), Access::Read) {
            Err(Errno::ACCESS) => return Err(self.may_not_read(self.path.path())),
            Err(Errno::AGAIN) => return Err(self.in_use()),
            opened => opened.map_err(|error| self.cannot_open(error))?,
        };
        if let Some(opened) = &opened {
            self.refuse_irregular(opened.inode)?;
            self.refuse_mounted(opened.inode.is_mount == Some(true))?;
            self.last_inode.set(Some(opened.inode.identity.1));
        }
        Ok(opened)
    }

    /// The file of a holder that lets no other user read it, by its umask as a rule: busy, as
    /// neither its lock nor its record can be seen.
    fn may_not_read(&self, path: &Path) -> Stop {
        let inode = match self.disk.look(path) {
            Ok(inode) => inode,
            Err(Errno::NOENT) => return Stop::FromTheTop,
            // It is the directory that may not be entered.
            Err(error) => return self.cannot_open(error),
        };
        if let Err(refused) = self.refuse_irregular(inode) {
            return refused;
        }
        let Inode { owner, mode, .. } = inode;
        let path = path.display();
        let why = format!(
            "{path} may not be read by this process (owned by user id {owner}, mode {mode:04o})"
        );
        let holder = Some(Box::new(Holder::nobody(Evidence::Unknown(why))));
        Busy { holder, look_again: None, inode: None }.into()
    }

    fn refuse_irregular(&self, inode: Inode) -> Result<(), Stop> {
        let found = match inode.kind {
            FileKind::Regular => return Ok(()),
            FileKind::Directory => "it is a directory",
            FileKind::Fifo => "it is a fifo",
            FileKind::Socket => "it is a socket",
            FileKind::Device => "it is a device",
            FileKind::SymbolicLink | FileKind::Other => "it is not a regular file",
        };
        Err(self.not_a_lock_file(found.to_owned()).into())
    }

    /// A lock file that is itself mounted in a container cannot be removed there.
    /// Removed elsewhere, it goes on in the container, beside its successor.
    fn refuse_mounted(&self, is_mounted: bool) -> Result<(), Stop> {
        if !is_mounted {
            return Ok(());
        }
        let why = "it is itself a mount point, so that its removal is seen on one side only: \
                   mount its directory instead";
        Err(self.bad_path(why).into())
    }

    /// A reader without the flock can see a record that is just being written,
    /// half old and half new: only what stays the same is no lock file.
    fn read(&self, file: &D::File) -> Result<Contents, Stop> {
        let mut last = self.read_once(file)?;
        for _ in 0..ROUNDS {
            let (bytes, length) = last;
            let found = match Contents::parse(&bytes[..length]) {
                Ok(contents) => return Ok(contents),
                Err(found) => found,
            };
            last = self.read_once(file)?;
            if last == (bytes, length) {
                return Err(self.not_a_lock_file(found).into());
            }
        }
        Err(self.not_a_lock_file("it changes all the time".to_owned()).into())
    }

    fn read_once(&self, file: &D::File) -> Result<([u8; RECORD_BYTES + 1], usize), Stop> {
        let mut bytes = [0; RECORD_BYTES + 1];
        let length = self.disk.read(file, &mut bytes).map_err(|error| match error {
            // On Windows a range that is locked can be read by the lock's owner alone.
            Errno::AGAIN => self.in_use(),
            error => self.failed("reading", error),
        })?;
        Ok((bytes, length))
    }

    /// (4) holds: `opened` is open.
    fn is_at_path(&self, opened: &Opened<D::File>) -> Result<bool, Stop> {
        match self.disk.look(self.path.path()) {
            Ok(inode) if inode.identity == opened.inode.identity => {
                let is_told = opened.inode.is_mount.is_some();
                if is_told || inode.links > 0 {
                    return Ok(true);
                }
                self.refuse_mounted(self.is_named_without_links(inode))?;
                Ok(false)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("looking at", error)),
        }
    }

    /// How a mount shows where the kernel does not tell of it: a file that was removed elsewhere
    /// still has a name here. So has one whose removal is under way, but not once the directory
    /// could be listed: both take the lock of the directory.
    fn is_named_without_links(&self, inode: Inode) -> bool {
        let _ = self.disk.list(self.path.directory(), self.path.name());
        self.is_named(self.path.path(), inode)
    }

    /// A network file system may have made a name and lost the answer: asked
    /// again it says that the name exists, or that the old one does not, or
    /// gives up with some other error.
    fn is_done(&self, error: Errno, path: &Path, inode: Inode) -> bool {
        // These say that nothing was done.
        !matches!(error, Errno::NOENT | Errno::ACCESS | Errno::PERM) && self.is_named(path, inode)
    }

    /// For a rename: ENOENT may be the answer to the second time it was asked.
    fn is_named(&self, path: &Path, inode: Inode) -> bool {
        self.disk.look(path).is_ok_and(|at_path| at_path.identity == inode.identity)
    }

    /// Write a whole record at the start of a file.
    fn write(&self, file: &D::File, record: &Record) -> Result<(), Errno> {
        let bytes = record.to_bytes();
        let mut written = 0;
        while written < bytes.len() {
            match self.disk.write(file, &bytes[written..], written as u64)? {
                0 => return Err(Errno::NOSPC),
                more => written += more,
            }
        }
        Ok(())
    }

    fn new_record(&self, proof: RecordedProof) -> Result<Box<Record>, Stop> {
        let hold_id = self.environment.hold_id();
        let hold_id = hold_id.map_err(|error| self.failed("drawing random bits for", error))?;
        Ok(Box::new(self.environment.record(hold_id, proof, self.options)))
    }

    /// Whether a foreign file is one whose process has been gone for long enough.
    fn judge_foreign(
        &mut self,
        inode: Inode,
        contents: Contents,
        local: bool,
    ) -> Result<Stale, Busy> {
        let how = match self.environment.judge(&contents, local) {
            Verdict::Alive => return Err(Busy::by(&contents, Evidence::ProcessRuns)),
            Verdict::Unknown(why) => return Err(Busy::by(&contents, Evidence::Unknown(why))),
            Verdict::Dead(how) => how,
        };
        let age = self.sightings.age(inode.identity, &contents, self.environment.now());
        if age < YOUTH {
            let busy = Busy::by(&contents, Evidence::Young);
            return Err(Busy { look_again: Some(YOUTH - age), ..busy });
        }
        let evidence = match contents {
            Contents::Empty => Evidence::NobodyNamed,
            _ => Evidence::ProcessGone(how),
        };
        Ok(Stale { contents, evidence })
    }

    /// Whether the process that wrote one of our records is dead.
    fn judge_process(&self, contents: Contents, local: bool) -> Result<Stale, Busy> {
        let evidence = match self.environment.judge(&contents, local) {
            Verdict::Alive => Evidence::ProcessRuns,
            Verdict::Unknown(why) => Evidence::Unknown(why),
            Verdict::Dead(how) => {
                return Ok(Stale { contents, evidence: Evidence::ProcessGone(how) });
            }
        };
        Err(Busy::by(&contents, evidence))
    }

    /// A record of the other protocol: its holder lives, or it is not ours to judge.
    fn judge_other_protocol(&self, contents: Contents, local: bool) -> Busy {
        let stale = match self.judge_process(contents, local) {
            Err(busy) => return busy,
            Ok(stale) => stale,
        };
        let why = "it was left by a holder of the other kind (pinned or portable); \
                   `lockkeeper break` removes it if it is dead";
        Busy::by(&stale.contents, Evidence::Unknown(why.to_owned()))
    }

    fn never_still() -> Busy {
        let why = "the file changes faster than it can be looked at".to_owned();
        Busy {
            holder: Some(Box::new(Holder::nobody(Evidence::Unknown(why)))),
            look_again: None,
            inode: None,
        }
    }

    /// A lock that is ours, on probation where another program may not know it. The
    /// write began at `started`.
    fn acquired(
        &self,
        mut lock_file: LockFile<D>,
        stale: Option<Stale>,
        started: Instant,
    ) -> Result<Outcome<D>, Stop> {
        let was_foreign = stale.as_ref().is_some_and(|stale| stale.contents.record().is_none());
        let is_on_probation = was_foreign || self.options.openlock_compat;
        let recovered_from = stale.filter(|stale| stale.evidence != Evidence::Released).map(
            |Stale { contents, evidence }| {
                let dead = Holder::new(&contents, evidence);
                lock_file.remember(contents);
                Box::new(dead)
            },
        );
        let acquired = Acquired { lock_file, recovered_from };
        if !is_on_probation || mutants::is_on(Mutant::NoProbation) {
            return Ok(Outcome::Acquired(acquired));
        }
        self.check_speed(started)?;
        Ok(Outcome::Probation(acquired, self.options.race_delay))
    }

    /// openlock's rule: a write that takes two thirds of `race_delay` or more
    /// leaves too little of it.
    fn check_speed(&self, started: Instant) -> Result<(), Error> {
        let took = self.environment.now().saturating_duration_since(started);
        let race_delay = self.options.race_delay;
        if took < race_delay * 2 / 3 {
            return Ok(());
        }
        let path = self.path.path().to_owned();
        let error = Error::SlowSystem { lock: path.into(), took, race_delay };
        match self.options.slow_system {
            SlowSystem::Error => Err(error),
            SlowSystem::Warn => {
                tracing::warn!("{error}");
                Ok(())
            }
        }
    }

    fn not_a_lock_file(&self, found: String) -> Error {
        Error::NotALockFile { lock: self.path.path().into(), found }
    }

    /// ESTALE: the file was removed on a network file system while it was used.
    fn failed(&self, doing: &'static str, error: Errno) -> Stop {
        match error {
            Errno::STALE => Stop::GoneFromServer(Error::io(doing, self.path.path(), error)),
            error => Stop::Failed(Error::io(doing, self.path.path(), error)),
        }
    }

    fn cannot_open(&self, error: Errno) -> Stop {
        Stop::Failed(match error {
            Errno::LOOP => self.not_a_lock_file("it is a symbolic link".to_owned()),
            // The last is the word of macOS and the BSDs for a socket.
            Errno::NXIO | Errno::NODEV | Errno::OPNOTSUPP => {
                self.not_a_lock_file("it is a socket or a device".to_owned())
            }
            Errno::NAMETOOLONG => self.bad_path("its name is too long for the file system"),
            Errno::NOTDIR => Error::not_a_directory(self.path.path()),
            error => return self.failed("opening", error),
        })
    }

    fn cannot_take_over(&self, owner: u32, stale: Stale, error: Errno) -> Stop {
        Stop::Failed(Error::CannotTakeOver {
            lock: self.path.path().into(),
            owner,
            stale: Box::new(Holder::new(&stale.contents, stale.evidence)),
            source: error.into(),
        })
    }

    fn cannot_create(&self, error: Errno) -> Error {
        match error {
            Errno::NOENT => Error::NoDirectory { lock: self.path.path().into() },
            Errno::NAMETOOLONG => self.bad_path("its name is too long for the file system"),
            Errno::NOTDIR => Error::not_a_directory(self.path.path()),
            error => Error::io("creating", self.path.path(), error),
        }
    }

    fn bad_path(&self, why: &str) -> Error {
        Error::BadPath { lock: self.path.path().into(), why: why.to_owned() }
    }
}

/// The second look, after the delay of a probation.
pub(crate) fn survived<D: Disk>(disk: &D, lock_file: &LockFile<D>) -> Survival {
    match lock_file.look() {
        Ok(AtPath::Mine) => match lock_file.is_intact() {
            Ok(true) => Survival::Held,
            Ok(false) => {
                // Another program wrote its own record into our file.
                lock_file.abandon();
                Survival::Replaced
            }
            Err(_) => Survival::Destroyed,
        },
        Ok(AtPath::Another) if holds_a_lock_file(disk, lock_file.path().path()) => {
            Survival::Replaced
        }
        _ => Survival::Destroyed,
    }
}

fn holds_a_lock_file<D: Disk>(disk: &D, path: &Path) -> bool {
    let mut bytes = [0; RECORD_BYTES + 1];
    let length = disk.open(path, Access::Read).and_then(|file| disk.read(&file, &mut bytes));
    length.is_ok_and(|length| Contents::parse(&bytes[..length]).is_ok())
}
