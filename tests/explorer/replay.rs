//! A [`Disk`] whose answers are written down beforehand, and which stops the
//! process at the first question that has no answer yet.
//!
//! An attempt is deterministic given what it is answered. So a process *is* the
//! list of answers it got, and its next step is found by running the shipped
//! code from the start with that list.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::program::Program;
use super::vocabulary::{Answer, MYSELF, Name, Op, Symbol, Text, drawn, record};
use crate::file::options::FileOptions;
use crate::file::protocol::Environment;
use crate::file::protocol::disk::{Access, Disk, Flock};
use crate::file::record::{Contents, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::sys::files::Errno;
use crate::sys::inode::{FileKind, Inode};
use crate::sys::process_key::{ProcessKey, this_process};
use crate::sys::verdict::Verdict;

/// What a process was asked and answered so far.
#[derive(Default)]
struct Replay {
    steps: Vec<(Op, Answer)>,
    at: usize,
    next: Option<Op>,
    handles: Symbol,
    clock: Duration,
}

thread_local! {
    static REPLAY: RefCell<Replay> = RefCell::default();
    static NAMES: RefCell<Vec<Vec<Name>>> = const { RefCell::new(Vec::new()) };
}

/// What a process unwinds with when it is stopped.
struct Stopped;

/// The step that `program` takes next after `steps`.
pub(super) fn next_op(program: Program, steps: Vec<(Op, Answer)>) -> Op {
    REPLAY.replace(Replay { steps, ..Replay::default() });
    match catch_unwind(AssertUnwindSafe(|| program.run())) {
        Ok(ended) => Op::End(ended),
        Err(payload) if payload.is::<Stopped>() => {
            REPLAY.with_borrow(|replay| replay.next).expect("BUG: stopped without a step")
        }
        Err(payload) => resume_unwind(payload),
    }
}

/// The number of a list of names.
pub(super) fn names_number(names: Vec<Name>) -> u16 {
    NAMES.with_borrow_mut(|known| {
        let number = known.iter().position(|list| *list == names).unwrap_or_else(|| {
            known.push(names);
            known.len() - 1
        });
        u16::try_from(number).expect("BUG: too many lists of names")
    })
}

/// The list of names behind its number.
pub(super) fn names(number: u16) -> Vec<Name> {
    NAMES.with_borrow(|known| known[usize::from(number)].clone())
}

pub(super) fn ask(op: Op) -> Answer {
    let answer = REPLAY.with_borrow_mut(|replay| {
        if replay.next.is_some() || std::thread::panicking() {
            // The destructors of a process that was stopped.
            return Some(Answer::Failed(Errno::IO.raw_os_error()));
        }
        let Some((asked, answer)) = replay.steps.get(replay.at).copied() else {
            replay.next = Some(op);
            return None;
        };
        assert_eq!(asked, op, "BUG: an attempt is not deterministic");
        replay.at += 1;
        Some(answer)
    });
    answer.unwrap_or_else(|| resume_unwind(Box::new(Stopped)))
}

pub(super) fn choose(among: u8) -> u8 {
    match ask(Op::Choose(among)) {
        Answer::Chosen(choice) => choice,
        other => unreachable!("BUG: {other:?}"),
    }
}

fn done(op: Op) -> Result<(), Errno> {
    match ask(op) {
        Answer::Done => Ok(()),
        Answer::Failed(error) => Err(Errno::from_raw_os_error(error)),
        other => unreachable!("BUG: {other:?}"),
    }
}

fn opened(op: Op) -> Result<SimFile, Errno> {
    match ask(op) {
        Answer::Opened => Ok(SimFile(REPLAY.with_borrow_mut(|replay| {
            replay.handles += 1;
            replay.handles - 1
        }))),
        Answer::Failed(error) => Err(Errno::from_raw_os_error(error)),
        other => unreachable!("BUG: {other:?}"),
    }
}

fn inode(op: Op) -> Result<Inode, Errno> {
    match ask(op) {
        Answer::Inode(number) => {
            let kind = FileKind::Regular;
            let (identity, is_mount) = ((1, number.into()), Some(false));
            Ok(Inode { identity, kind, owner: 0, mode: 0o644, links: 1, is_mount })
        }
        Answer::Failed(error) => Err(Errno::from_raw_os_error(error)),
        other => unreachable!("BUG: {other:?}"),
    }
}

/// The simulated disk, seen from the process that is being run.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimDisk;

/// An open file description.
#[derive(Debug)]
pub(super) struct SimFile(Symbol);

impl Drop for SimFile {
    fn drop(&mut self) {
        ask(Op::Close(self.0));
    }
}

impl AsFd for SimFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        static NOTHING: LazyLock<File> =
            LazyLock::new(|| File::open("/dev/null").expect("BUG: no /dev/null"));
        NOTHING.as_fd()
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, path: &Path, access: Access) -> Result<SimFile, Errno> {
        opened(Op::Open(Name::of(path), access))
    }

    fn create_unnamed(&self, _: &Path, _: u32) -> Result<SimFile, Errno> {
        opened(Op::CreateUnnamed)
    }

    fn create(&self, path: &Path, _: u32) -> Result<SimFile, Errno> {
        opened(Op::Create(Name::of(path)))
    }

    fn inspect(&self, file: &SimFile) -> Result<Inode, Errno> {
        inode(Op::Inspect(file.0))
    }

    fn links(&self, file: &SimFile) -> Result<u64, Errno> {
        match ask(Op::Links(file.0)) {
            Answer::Links(links) => Ok(links.into()),
            Answer::Failed(error) => Err(Errno::from_raw_os_error(error)),
            other => unreachable!("BUG: {other:?}"),
        }
    }

    fn look(&self, path: &Path) -> Result<Inode, Errno> {
        inode(Op::Look(Name::of(path)))
    }

    fn read(&self, file: &SimFile, into: &mut [u8]) -> Result<usize, Errno> {
        match ask(Op::Read(file.0)) {
            Answer::Text(text) => {
                let bytes = text.bytes();
                into[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            Answer::Failed(error) => Err(Errno::from_raw_os_error(error)),
            other => unreachable!("BUG: {other:?}"),
        }
    }

    fn write(&self, file: &SimFile, bytes: &[u8], _: u64) -> Result<usize, Errno> {
        done(Op::Write(file.0, Text::parse(bytes))).map(|()| bytes.len())
    }

    fn try_flock(&self, file: &SimFile, flock: Flock) -> Result<bool, Errno> {
        match ask(Op::Flock(file.0, flock)) {
            Answer::Granted(is_granted) => Ok(is_granted),
            Answer::Failed(error) => Err(Errno::from_raw_os_error(error)),
            other => unreachable!("BUG: {other:?}"),
        }
    }

    fn unlock(&self, file: &SimFile) -> Result<(), Errno> {
        done(Op::Unlock(file.0))
    }

    fn link_unnamed(&self, file: &SimFile, to: &Path) -> Result<(), Errno> {
        done(Op::LinkUnnamed(file.0, Name::of(to)))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        done(Op::Link(Name::of(from), Name::of(to)))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        done(Op::Rename(Name::of(from), Name::of(to)))
    }

    fn rename_to_free(&self, _: &SimFile, from: &Path, to: &Path) -> Result<(), Errno> {
        done(Op::RenameToFree(Name::of(from), Name::of(to)))
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        done(Op::Unlink(Name::of(path)))
    }

    fn remove(&self, _: &SimFile, path: &Path, _: impl FnOnce() -> PathBuf) -> Result<(), Errno> {
        self.unlink(path)
    }

    fn list(&self, _: &Path, _: &OsStr) -> Result<Vec<OsString>, Errno> {
        match ask(Op::List) {
            Answer::Names(number) => NAMES.with_borrow(|known| {
                let name = |name: &Name| name.path().file_name().expect("BUG: no name").to_owned();
                Ok(known[usize::from(number)].iter().map(name).collect())
            }),
            Answer::Failed(error) => Err(Errno::from_raw_os_error(error)),
            other => unreachable!("BUG: {other:?}"),
        }
    }

    fn trusts_flock(&self, file: &SimFile) -> Result<bool, Errno> {
        done(Op::Trusts(file.0)).map(|()| true)
    }

    /// No other machine takes part.
    fn is_range_locked(&self, _: &SimFile) -> Result<bool, Errno> {
        Ok(false)
    }
}

/// What else an attempt needs, simulated.
pub(super) struct SimSurroundings {
    /// When the clock of this process began.
    began: Instant,
    /// Once, at any reading, the clock may be hours on; or once, over a sleep,
    /// it may have stood still.
    may_jump: Cell<bool>,
}

impl SimSurroundings {
    /// Every hold lasts so long that its revocation is looked for at its end.
    pub(super) fn new(may_jump: bool) -> Self {
        const LONG: Duration = Duration::from_secs(24 * 3600);
        Self { began: Instant::now() - LONG, may_jump: Cell::new(may_jump) }
    }

    /// Longer than what openlock may take, and as long as asked.
    pub(super) fn sleep(&self, delay: Duration) {
        ask(Op::Sleep);
        if !self.jumps() {
            REPLAY.with_borrow_mut(|replay| replay.clock += delay);
        }
    }

    /// Whether it is now that the clock does not do as it should.
    fn jumps(&self) -> bool {
        let jumps = self.may_jump.get() && choose(2) == 1;
        self.may_jump.set(self.may_jump.get() && !jumps);
        jumps
    }
}

impl Environment for SimSurroundings {
    fn judge(&self, contents: &Contents, _: bool) -> Verdict {
        let Some(pid) = Text::of(contents).pid() else {
            return Verdict::Dead("it names nobody".to_owned());
        };
        match ask(Op::Judge(pid)) {
            Answer::Dead(true) => Verdict::Dead("it is over".to_owned()),
            Answer::Dead(false) => Verdict::Alive,
            other => unreachable!("BUG: {other:?}"),
        }
    }

    fn process(&self) -> ProcessKey {
        this_process()
    }

    fn hold_id(&self) -> Result<HoldId, Errno> {
        match ask(Op::DrawHoldId) {
            Answer::HoldId(symbol) => Ok(drawn(symbol)),
            other => unreachable!("BUG: {other:?}"),
        }
    }

    fn record(&self, hold_id: HoldId, proof: RecordedProof, _: &FileOptions) -> Record {
        record(MYSELF, hold_id, proof)
    }

    fn now(&self) -> Instant {
        const HOURS: Duration = Duration::from_secs(5 * 3600);
        if self.jumps() {
            REPLAY.with_borrow_mut(|replay| replay.clock += HOURS);
        }
        self.began + REPLAY.with_borrow(|replay| replay.clock)
    }
}
