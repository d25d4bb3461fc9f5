//! A disk in memory, exact to the byte, one of whose calls fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use crate::file::protocol::disk::{Access, Disk, Flock};
use crate::file::record::Contents;
use crate::sys::files::Errno;
use crate::sys::inode::{FileKind, Inode};

/// The calls of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Open,
    OpenForWriting,
    CreateUnnamed,
    Create,
    Inspect,
    Links,
    Look,
    Read,
    Write,
    Flock,
    Unlock,
    LinkUnnamed,
    Link,
    Rename,
    RenameToFree,
    Unlink,
    Trusts,
    RangeLocked,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Error(Errno),
    /// It takes effect and says this: the answer was lost, or asked for twice.
    DoneAnd(Errno),
    /// Another removed the old name a moment ago.
    Swept,
    /// So many bytes only.
    Short(usize),
    /// A file system that is not trusted.
    Untrusted,
    /// A process on another machine has the file locked.
    Locked,
    /// Another is removing the name: its file has no link any more.
    Going,
    /// A file that is mounted at the name, and was removed elsewhere.
    WithoutLinks,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) call: Call,
    /// Which of its calls, from zero.
    pub(super) turn: u32,
    pub(super) effect: Effect,
    pub(super) is_for_ever: bool,
}

impl Call {
    pub(super) const ALL: [Call; 18] = [
        Call::Open,
        Call::OpenForWriting,
        Call::CreateUnnamed,
        Call::Create,
        Call::Inspect,
        Call::Links,
        Call::Look,
        Call::Read,
        Call::Write,
        Call::Flock,
        Call::Unlock,
        Call::LinkUnnamed,
        Call::Link,
        Call::Rename,
        Call::RenameToFree,
        Call::Unlink,
        Call::Trusts,
        Call::RangeLocked,
    ];

    /// How it can plausibly fail. (`EINTR` as from a disk that did not repeat the
    /// call itself.)
    pub(super) fn effects(self) -> &'static [Effect] {
        use Effect::{DoneAnd, Error, Locked, Short, Swept, Untrusted};
        const IO: Effect = Error(Errno::IO);
        const NOSPC: Effect = Error(Errno::NOSPC);
        const DQUOT: Effect = Error(Errno::DQUOT);
        const ACCESS: Effect = Error(Errno::ACCESS);
        const PERM: Effect = Error(Errno::PERM);
        const ROFS: Effect = Error(Errno::ROFS);
        const MFILE: Effect = Error(Errno::MFILE);
        const NFILE: Effect = Error(Errno::NFILE);
        const NOMEM: Effect = Error(Errno::NOMEM);
        const STALE: Effect = Error(Errno::STALE);
        const NOLCK: Effect = Error(Errno::NOLCK);
        const INTR: Effect = Error(Errno::INTR);
        const BADF: Effect = Error(Errno::BADF);
        const OPNOTSUPP: Effect = Error(Errno::OPNOTSUPP);
        const NOENT: Effect = Error(Errno::NOENT);
        const NOTDIR: Effect = Error(Errno::NOTDIR);
        const LOST: Effect = DoneAnd(Errno::IO);
        const DONE_BEFORE: Effect = DoneAnd(Errno::EXIST);
        const GONE_BEFORE: Effect = DoneAnd(Errno::NOENT);
        const XDEV: Effect = Error(Errno::XDEV);
        const NOSYS: Effect = Error(Errno::NOSYS);
        const INVAL: Effect = Error(Errno::INVAL);
        const MLINK: Effect = Error(Errno::MLINK);
        match self {
            Call::Open => &[IO, ACCESS, NOTDIR, MFILE, NFILE, NOMEM, STALE],
            Call::OpenForWriting => &[IO, ACCESS, PERM, ROFS, MFILE, NFILE, STALE],
            Call::CreateUnnamed => {
                &[IO, NOENT, NOTDIR, NOSPC, DQUOT, ACCESS, ROFS, MFILE, OPNOTSUPP]
            }
            Call::Create => &[IO, NOENT, NOTDIR, NOSPC, DQUOT, ACCESS, ROFS, MFILE],
            Call::Inspect | Call::Links | Call::Look => &[IO, STALE, NOMEM, INTR],
            Call::Read => &[IO, STALE, Short(0)],
            Call::Write => &[IO, NOSPC, DQUOT, Short(0), Short(1), Short(100)],
            Call::Flock => &[NOLCK, IO, BADF, OPNOTSUPP],
            Call::Unlock => &[NOLCK, IO],
            Call::LinkUnnamed => {
                &[IO, NOSPC, ACCESS, PERM, ROFS, NOENT, XDEV, OPNOTSUPP, INTR, LOST, DONE_BEFORE]
            }
            Call::Link => {
                &[IO, NOSPC, PERM, ACCESS, MLINK, NOSYS, INTR, STALE, Swept, LOST, DONE_BEFORE]
            }
            Call::RenameToFree => {
                &[IO, NOSPC, PERM, ACCESS, INVAL, INTR, Swept, LOST, DONE_BEFORE, GONE_BEFORE]
            }
            Call::Rename => &[IO, NOSPC, ACCESS, PERM, INTR, Swept, LOST, GONE_BEFORE],
            Call::Unlink => &[IO, ACCESS, PERM, ROFS, INTR, LOST, GONE_BEFORE],
            Call::Trusts => &[IO, STALE, Untrusted],
            Call::RangeLocked => &[IO, INVAL, NOLCK, Locked],
        }
    }
}

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, u64>,
    contents: BTreeMap<u64, Vec<u8>>,
    last_inode: u64,
    /// By description: its inode and its lock.
    open: BTreeMap<u64, (u64, Option<Flock>)>,
    last_description: u64,
    denied: Vec<(Call, Errno)>,
    tells_no_mounts: bool,
    /// The name that another is removing.
    going: Option<PathBuf>,
    fault: Option<Fault>,
    turn: u32,
    was_hit: bool,
}

/// The disk.
#[derive(Clone, Default)]
pub(super) struct FaultyDisk(Arc<Mutex<State>>);

/// An open file description.
pub(super) struct FaultyFile {
    disk: FaultyDisk,
    description: u64,
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        self.disk.state().open.remove(&self.description);
    }
}

impl AsFd for FaultyFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        static NOTHING: LazyLock<File> =
            LazyLock::new(|| File::open("/dev/null").expect("BUG: no /dev/null"));
        NOTHING.as_fd()
    }
}

impl FaultyDisk {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("BUG: the disk panicked")
    }

    /// From now on.
    pub(super) fn inject(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// Whether the fault has come.
    pub(super) fn was_hit(&self) -> bool {
        self.state().was_hit
    }

    /// The end of the fault; whether its turn came.
    pub(super) fn heal(&self) -> bool {
        let mut state = self.state();
        state.fault = None;
        state.was_hit
    }

    /// A call that never works here.
    pub(super) fn deny(&self, call: Call, error: Errno) {
        self.state().denied.push((call, error));
    }

    /// As a kernel that does not tell of mounts.
    pub(super) fn tell_no_mounts(&self) {
        self.state().tells_no_mounts = true;
    }

    pub(super) fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let inode = state.new_inode();
        state.contents.insert(inode, bytes.to_vec());
        state.names.insert(path.to_owned(), inode);
    }

    pub(super) fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.get(path).map(|inode| state.contents[inode].clone())
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.state().names.keys().map(|path| path.display().to_string()).collect()
    }

    pub(super) fn open_files(&self) -> usize {
        self.state().open.len()
    }

    pub(super) fn is_locked(&self, path: &Path) -> bool {
        let state = self.state();
        let inode = state.names.get(path);
        state
            .open
            .values()
            .any(|(open, lock)| Some(open) == inode && *lock == Some(Flock::Exclusive))
    }

    /// A process is over: what it wrote is a dead one's.
    pub(super) fn bury(&self, living: u8, gone: u8) {
        for bytes in self.state().contents.values_mut() {
            match Contents::parse(bytes) {
                Ok(Contents::Ours(mut record)) if record.pid == u32::from(living) + 1 => {
                    record.pid = u32::from(gone) + 1;
                    *bytes = record.to_bytes().to_vec();
                }
                _ => {}
            }
        }
    }

    /// What the fault, if its turn has come, does to this call.
    fn fate(&self, call: Call) -> Result<Option<Effect>, Errno> {
        let mut state = self.state();
        if let Some((_, error)) = state.denied.iter().find(|(denied, _)| *denied == call) {
            return Err(*error);
        }
        let Some(fault) = state.fault.filter(|fault| fault.call == call) else {
            return Ok(None);
        };
        let turn = state.turn;
        state.turn += 1;
        if turn < fault.turn || turn > fault.turn && !fault.is_for_ever {
            return Ok(None);
        }
        state.was_hit = true;
        match fault.effect {
            Effect::Error(error) => Err(error),
            effect => Ok(Some(effect)),
        }
    }

    /// Do something, unless it fails, or although it fails.
    fn act<T>(
        &self,
        call: Call,
        act: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let fate = self.fate(call)?;
        let result = act(&mut self.state());
        match fate {
            Some(Effect::DoneAnd(error)) => Err(error),
            _ => result,
        }
    }

    fn file(&self, inode: u64) -> FaultyFile {
        let mut state = self.state();
        state.last_description += 1;
        let description = state.last_description;
        state.open.insert(description, (inode, None));
        FaultyFile { disk: self.clone(), description }
    }
}

impl State {
    fn new_inode(&mut self) -> u64 {
        self.last_inode += 1;
        self.contents.insert(self.last_inode, Vec::new());
        self.last_inode
    }

    fn links(&self, inode: u64) -> u64 {
        self.names.values().filter(|named| **named == inode).count() as u64
    }

    fn inspect(&self, inode: u64) -> Inode {
        let (identity, kind) = ((1, inode), FileKind::Regular);
        Inode {
            identity,
            kind,
            owner: 0,
            mode: 0o644,
            links: self.links(inode),
            is_mount: (!self.tells_no_mounts).then_some(false),
        }
    }

    fn named(&self, path: &Path) -> Result<u64, Errno> {
        self.names.get(path).copied().ok_or(Errno::NOENT)
    }

    fn name(&mut self, inode: u64, to: &Path) -> Result<(), Errno> {
        if self.names.contains_key(to) {
            return Err(Errno::EXIST);
        }
        self.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn inode(&self, file: &FaultyFile) -> u64 {
        self.open[&file.description].0
    }
}

impl Disk for FaultyDisk {
    type File = FaultyFile;

    fn open(&self, path: &Path, access: Access) -> Result<FaultyFile, Errno> {
        let call = match access {
            Access::Read => Call::Open,
            Access::ReadWrite => Call::OpenForWriting,
        };
        let inode = self.act(call, |state| state.named(path))?;
        Ok(self.file(inode))
    }

    fn create_unnamed(&self, _: &Path, _: u32) -> Result<FaultyFile, Errno> {
        let inode = self.act(Call::CreateUnnamed, |state| Ok(state.new_inode()))?;
        Ok(self.file(inode))
    }

    fn create(&self, path: &Path, _: u32) -> Result<FaultyFile, Errno> {
        let inode = self.act(Call::Create, |state| {
            let inode = state.new_inode();
            state.name(inode, path).map(|()| inode)
        })?;
        Ok(self.file(inode))
    }

    fn inspect(&self, file: &FaultyFile) -> Result<Inode, Errno> {
        self.act(Call::Inspect, |state| Ok(state.inspect(state.inode(file))))
    }

    fn links(&self, file: &FaultyFile) -> Result<u64, Errno> {
        self.act(Call::Links, |state| Ok(state.links(state.inode(file))))
    }

    fn look(&self, path: &Path) -> Result<Inode, Errno> {
        let fate = self.fate(Call::Look)?;
        let mut state = self.state();
        let inode = state.inspect(state.named(path)?);
        if fate == Some(Effect::Going) {
            state.going = Some(path.to_owned());
        }
        match fate {
            Some(Effect::DoneAnd(error)) => Err(error),
            Some(Effect::Going | Effect::WithoutLinks) => Ok(Inode { links: 0, ..inode }),
            _ => Ok(inode),
        }
    }

    fn read(&self, file: &FaultyFile, into: &mut [u8]) -> Result<usize, Errno> {
        if let Some(Effect::Short(length)) = self.fate(Call::Read)? {
            return Ok(length);
        }
        let state = self.state();
        let bytes = &state.contents[&state.inode(file)];
        let length = bytes.len().min(into.len());
        into[..length].copy_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn write(&self, file: &FaultyFile, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let length = match self.fate(Call::Write)? {
            Some(Effect::Short(length)) => length.min(bytes.len()),
            _ => bytes.len(),
        };
        let mut state = self.state();
        let inode = state.inode(file);
        let content = state.contents.get_mut(&inode).expect("BUG: no such inode");
        let offset = usize::try_from(offset).expect("BUG: a long file");
        let end = offset + length;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn try_flock(&self, file: &FaultyFile, flock: Flock) -> Result<bool, Errno> {
        self.act(Call::Flock, |state| {
            let inode = state.inode(file);
            let conflicts = state.open.iter().any(|(other, (open, lock))| {
                *other != file.description
                    && *open == inode
                    && lock
                        .is_some_and(|lock| lock == Flock::Exclusive || flock == Flock::Exclusive)
            });
            if !conflicts {
                state.open.insert(file.description, (inode, Some(flock)));
            }
            Ok(!conflicts)
        })
    }

    fn unlock(&self, file: &FaultyFile) -> Result<(), Errno> {
        self.act(Call::Unlock, |state| {
            let inode = state.inode(file);
            state.open.insert(file.description, (inode, None));
            Ok(())
        })
    }

    fn link_unnamed(&self, file: &FaultyFile, to: &Path) -> Result<(), Errno> {
        self.act(Call::LinkUnnamed, |state| state.name(state.inode(file), to))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        let fate = self.fate(Call::Link)?;
        let mut state = self.state();
        if fate == Some(Effect::Swept) {
            state.names.remove(from);
        }
        let inode = state.named(from)?;
        let linked = state.name(inode, to);
        match fate {
            Some(Effect::DoneAnd(error)) => linked.and(Err(error)),
            _ => linked,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        let fate = self.fate(Call::Rename)?;
        let mut state = self.state();
        if fate == Some(Effect::Swept) {
            state.names.remove(from);
        }
        let inode = state.named(from)?;
        if state.names.get(to) != Some(&inode) {
            state.names.remove(from);
            state.names.insert(to.to_owned(), inode);
        }
        match fate {
            Some(Effect::DoneAnd(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn rename_to_free(&self, _: &FaultyFile, from: &Path, to: &Path) -> Result<(), Errno> {
        let fate = self.fate(Call::RenameToFree)?;
        let mut state = self.state();
        if fate == Some(Effect::Swept) {
            state.names.remove(from);
        }
        let inode = state.named(from)?;
        let renamed = state.name(inode, to);
        if renamed.is_ok() {
            state.names.remove(from);
        }
        match fate {
            Some(Effect::DoneAnd(error)) => renamed.and(Err(error)),
            _ => renamed,
        }
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        self.act(Call::Unlink, |state| state.names.remove(path).map(drop).ok_or(Errno::NOENT))
    }

    fn remove(
        &self,
        _: &FaultyFile,
        path: &Path,
        _: impl FnOnce() -> PathBuf,
    ) -> Result<(), Errno> {
        self.unlink(path)
    }

    fn list(&self, _: &Path, prefix: &OsStr) -> Result<Vec<OsString>, Errno> {
        let mut state = self.state();
        if let Some(going) = state.going.take() {
            state.names.remove(&going);
        }
        let names = state.names.keys().filter_map(|path| path.file_name());
        let prefix = prefix.as_encoded_bytes();
        let has_prefix = |name: &&OsStr| name.as_encoded_bytes().starts_with(prefix);
        Ok(names.filter(has_prefix).map(OsString::from).collect())
    }

    fn trusts_flock(&self, _: &FaultyFile) -> Result<bool, Errno> {
        self.fate(Call::Trusts).map(|effect| effect != Some(Effect::Untrusted))
    }

    fn is_range_locked(&self, _: &FaultyFile) -> Result<bool, Errno> {
        self.fate(Call::RangeLocked).map(|effect| effect == Some(Effect::Locked))
    }
}
