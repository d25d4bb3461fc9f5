//! What a process can ask its world, and what the world can answer.
//!
//! A process knows inodes, hold ids, processes and descriptors by [`Symbol`]s: the
//! order in which it met them. So what two processes do in the same situation
//! is the same sequence, whatever the numbers behind the symbols are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use crate::file::protocol::disk::{Access, Flock};
use crate::file::record::{Contents, ProcessIdentity, Record, RecordedProof};
use crate::file::siblings::Sibling;
use crate::local::hold_id::HoldId;
use crate::sys::path::LockPath;

/// The how-manieth thing of its kind that a process met, or its global number.
pub(super) type Symbol = u8;

/// The symbol by which a process knows itself.
pub(super) const MYSELF: Symbol = 0;

/// What stands beside the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Beside {
    Candidate,
    Claim,
    Revocation,
    /// openlock's temporary file.
    Scratch,
}

/// A name in the one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Path,
    Beside(Beside, Symbol),
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Text {
    Empty,
    Ours {
        pid: Symbol,
        hold_id: Symbol,
        proof: RecordedProof,
        released: bool,
    },
    /// openlock's two lines.
    Foreign(Symbol),
    /// The same, filled up with NUL bytes.
    Torn(Symbol),
}

/// How a run of a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Another holds it: try again, or do not.
    Busy,
    /// It was held and given back.
    Released,
    /// It was given up before the user had it.
    GivenUp,
    /// An error that should not be.
    Failed(&'static str),
}

/// One step of a process: a system call, or what stands for something else
/// that other processes can come in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Open(Name, Access),
    CreateUnnamed,
    Create(Name),
    Inspect(Symbol),
    Links(Symbol),
    Look(Name),
    Read(Symbol),
    Write(Symbol, Text),
    Flock(Symbol, Flock),
    Unlock(Symbol),
    LinkUnnamed(Symbol, Name),
    Link(Name, Name),
    Rename(Name, Name),
    RenameToFree(Name, Name),
    Unlink(Name),
    List,
    Trusts(Symbol),
    Close(Symbol),
    DrawHoldId,
    /// Whether a process runs.
    Judge(Symbol),
    /// Longer than openlock takes between judging and replacing.
    Sleep,
    /// The user is inside.
    Hold,
    /// Something that the world decides, one of so many.
    Choose(u8),
    End(Ended),
}

/// What came of it. New things get the next symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Done,
    /// A number of an errno.
    Failed(i32),
    Opened,
    Granted(bool),
    Inode(Symbol),
    /// How many names a file has.
    Links(u8),
    Text(Text),
    /// Number of a list of names, see [`names`](super::replay::names).
    Names(u16),
    Dead(bool),
    HoldId(Symbol),
    Chosen(u8),
}

/// The path of the lock in the simulated world.
pub(super) static PATH: LazyLock<Arc<LockPath>> =
    LazyLock::new(|| Arc::new(LockPath::new(Path::new("/locks/P")).expect("BUG: a bad path")));

impl Name {
    pub(super) fn of(path: &Path) -> Name {
        if path == PATH.path() {
            return Name::Path;
        }
        let name = path.file_name().expect("BUG: no name");
        if let Some((sibling, hold_id)) = PATH.parse_sibling(name) {
            let beside = match sibling {
                Sibling::Candidate => Beside::Candidate,
                Sibling::Claim => Beside::Claim,
                Sibling::Revocation => Beside::Revocation,
            };
            return Name::Beside(beside, symbol(hold_id));
        }
        let number = name.to_str().and_then(|name| name.strip_prefix("tmp"));
        let hold_id = number.and_then(|number| number.parse().ok()).expect("BUG: an unknown name");
        Name::Beside(Beside::Scratch, hold_id)
    }

    pub(super) fn path(self) -> PathBuf {
        match self {
            Name::Path => PATH.path().to_owned(),
            Name::Beside(Beside::Candidate, hold_id) => PATH.candidate(drawn(hold_id)),
            Name::Beside(Beside::Claim, hold_id) => PATH.claim(drawn(hold_id)),
            Name::Beside(Beside::Revocation, hold_id) => PATH.revocation(drawn(hold_id)),
            Name::Beside(Beside::Scratch, hold_id) => {
                PATH.directory().join(format!("tmp{hold_id}"))
            }
        }
    }

    pub(super) fn hold_id(self) -> Option<Symbol> {
        match self {
            Name::Path => None,
            Name::Beside(_, hold_id) => Some(hold_id),
        }
    }

    /// The same name where hold ids are called otherwise.
    pub(super) fn map(self, hold_id: impl FnOnce(Symbol) -> Symbol) -> Name {
        match self {
            Name::Path => Name::Path,
            Name::Beside(beside, symbol) => Name::Beside(beside, hold_id(symbol)),
        }
    }
}

impl Text {
    pub(super) fn map(
        self,
        to_pid: impl FnOnce(Symbol) -> Symbol,
        to_hold_id: impl FnOnce(Symbol) -> Symbol,
    ) -> Text {
        match self {
            Text::Empty => Text::Empty,
            Text::Ours { pid, hold_id, proof, released } => {
                Text::Ours { pid: to_pid(pid), hold_id: to_hold_id(hold_id), proof, released }
            }
            Text::Foreign(pid) => Text::Foreign(to_pid(pid)),
            Text::Torn(pid) => Text::Torn(to_pid(pid)),
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Text {
        Text::of(&Contents::parse(bytes).expect("BUG: not a lock file was written"))
    }

    pub(super) fn of(contents: &Contents) -> Text {
        match contents {
            Contents::Empty => Text::Empty,
            Contents::Ours(record) => Text::Ours {
                pid: pid_symbol(record.pid),
                hold_id: symbol(record.hold_id),
                proof: record.proof,
                released: record.released,
            },
            Contents::OpenLock { pid, .. } => Text::Foreign(pid_symbol(*pid)),
            Contents::Torn { pid, .. } => Text::Torn(pid_symbol(*pid)),
            Contents::BarePid(_) => unreachable!("BUG: nobody writes a bare pid"),
        }
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Text::Empty => Vec::new(),
            Text::Ours { pid, hold_id, proof, released } => {
                Record { released, ..record(pid, drawn(hold_id), proof) }.to_bytes().to_vec()
            }
            Text::Foreign(pid) => format!("{}\nsim\n", pid_number(pid)).into_bytes(),
            Text::Torn(pid) => {
                Contents::Torn { pid: pid_number(pid), name: "sim".to_owned() }.to_bytes().to_vec()
            }
        }
    }

    pub(super) fn pid(self) -> Option<Symbol> {
        match self {
            Text::Empty => None,
            Text::Ours { pid, .. } | Text::Foreign(pid) | Text::Torn(pid) => Some(pid),
        }
    }
}

pub(super) fn record(pid: Symbol, hold_id: HoldId, proof: RecordedProof) -> Record {
    Record {
        pid: pid_number(pid),
        name: "sim".into(),
        hold_id,
        host: None,
        identity: ProcessIdentity::default(),
        proof,
        is_local: true,
        since: Some(SystemTime::UNIX_EPOCH),
        released: false,
        note: None,
    }
}

/// The hold id behind a symbol.
pub(super) fn drawn(symbol: Symbol) -> HoldId {
    HoldId(u128::from(symbol) + 1)
}

fn symbol(hold_id: HoldId) -> Symbol {
    u8::try_from(hold_id.0 - 1).expect("BUG: a token nobody drew")
}

fn pid_number(symbol: Symbol) -> u32 {
    u32::from(symbol) + 1
}

fn pid_symbol(pid: u32) -> Symbol {
    u8::try_from(pid - 1).expect("BUG: a process nobody is")
}
