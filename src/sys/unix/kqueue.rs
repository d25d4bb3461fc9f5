//! Events of macOS and the BSDs: one kqueue for the process, and one thread that waits on
//! it. What they are good for is said at the head of the [registry](super::super::listeners).
//!
//! | system | a close or an unlock of the file | it is opened to be watched |
//! |---|---|---|
//! | macOS | `NOTE_FUNLOCK`: each unlock by `flock`, also of a look | by `O_EVTONLY` |
//! | FreeBSD | `NOTE_CLOSE_WRITE`, `NOTE_CLOSE` | by `O_PATH` |
//! | others | none | to be read |
//!
//! On all of them the file has to be one that may be read.
//!
//! 1. A directory tells that one of its names was made, removed or moved, and not which.
//! 2. Each watched directory and file takes a descriptor. A process takes none. The watch
//!    of a directory ends with its last listener, so there are no more than there are
//!    waiters. An inode that is gone is reported (`MOVED`) before its number is given to
//!    another; on FreeBSD the descriptor does not keep it.
//! 3. Files are opened by path for that, never duplicated from one that may be locked:
//!    `flock` lasts until all copies are closed.
//! 4. A process's end is reported once, as `NOTE_EXIT`: on macOS after its files were
//!    closed, on FreeBSD perhaps before.
//! 5. A fork leaves a kqueue behind, and `exec` closes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::libc;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use rustix::fd::AsRawFd;
use rustix::fs::OFlags;
use rustix::io::{FdFlags, fcntl_setfd};

use super::files;
use super::process_key::ProcessKey;
use super::tickets::Predecessor;
pub(crate) use crate::sys::event::{Event, Following};
use crate::sys::inode::FileKind;
use crate::sys::listeners::{self, Backend, Closes, Identity, Instance, Report, Sight, Unfollowed};

/// So many events are taken at a time.
const EVENTS_AT_ONCE: usize = 64;

/// Opened only to be watched, where the system knows such a thing. On macOS it is in the way
/// of no unmount then.
#[cfg(target_vendor = "apple")]
const WATCHED: OFlags = OFlags::from_bits_retain(libc::O_EVTONLY as u32);
#[cfg(target_os = "freebsd")]
const WATCHED: OFlags = OFlags::PATH;
#[cfg(not(any(target_vendor = "apple", target_os = "freebsd")))]
const WATCHED: OFlags = OFlags::RDONLY;

/// Events of the end of a hold that leaves the file where it is: by any process, and by
/// one that could write to the file.
#[cfg(target_vendor = "apple")]
const CLOSED: Option<[FilterFlag; 2]> = {
    /// sys/event.h: the file was unlocked by `flock`.
    const NOTE_FUNLOCK: FilterFlag = FilterFlag::from_bits_retain(0x0100);
    Some([NOTE_FUNLOCK; 2])
};
#[cfg(target_os = "freebsd")]
const CLOSED: Option<[FilterFlag; 2]> = {
    /// sys/event.h: a file was closed that was not open for writing, and one that was.
    const NOTE_CLOSE: FilterFlag = FilterFlag::from_bits_retain(0x0100);
    const NOTE_CLOSE_WRITE: FilterFlag = FilterFlag::from_bits_retain(0x0200);
    Some([NOTE_CLOSE.union(NOTE_CLOSE_WRITE), NOTE_CLOSE_WRITE])
};
#[cfg(not(any(target_vendor = "apple", target_os = "freebsd")))]
const CLOSED: Option<[FilterFlag; 2]> = None;

/// Which events are closes.
const ANY_CLOSE: FilterFlag = match CLOSED {
    Some([any, _]) => any,
    None => FilterFlag::empty(),
};

const MOVED: FilterFlag =
    FilterFlag::NOTE_DELETE.union(FilterFlag::NOTE_RENAME).union(FilterFlag::NOTE_REVOKE);

const WRITTEN: FilterFlag = FilterFlag::NOTE_WRITE.union(FilterFlag::NOTE_EXTEND);

static INSTANCE: Instance<Queue> = Instance::new();

/// Whether the end of a kernel lock is an event, as a rule.
pub(crate) const UNLOCKS_ARE_HEARD: bool = CLOSED.is_some();

/// Whether the close of a file is an event for waiters: on macOS its unlock was one already.
pub(crate) const CLOSES_ARE_HEARD: bool = cfg!(target_os = "freebsd");

pub(crate) type Subscription = listeners::Subscription<Queue>;

impl Subscription {
    /// There are no events of single contenders.
    pub(crate) fn follow_predecessors(&mut self, _: [Predecessor; 2]) -> bool {
        false
    }
}

/// Nothing has to be there before the first lock file is opened.
pub(crate) fn prepare(_: ProcessKey) {}

/// The kqueue of a process.
pub(crate) struct Queue(Arc<Kqueue>);

/// A process whose end is reported. Its drop ends that.
pub(crate) struct Followed {
    queue: Arc<Kqueue>,
    pid: usize,
}

/// What a number is of, as it is given to the kernel and back.
#[derive(Clone, Copy)]
enum Kind {
    Directory,
    File,
    Process,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Directory, Self::File, Self::Process];

    fn label(self, number: usize) -> isize {
        (number * Self::ALL.len() + self as usize) as isize
    }

    fn read(label: isize) -> (Self, usize) {
        let label = label as usize;
        (Self::ALL[label % Self::ALL.len()], label / Self::ALL.len())
    }
}

impl Queue {
    fn change(&self, change: KEvent) -> nix::Result<()> {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        self.0.kevent(&[change], &mut [], Some(none)).map(drop)
    }

    /// Watch what is at this path from now on.
    fn watch(
        &self,
        path: &Path,
        flags: OFlags,
        label: isize,
        events: FilterFlag,
    ) -> io::Result<File> {
        let opened = File::from(files::open(path, WATCHED | OFlags::CLOEXEC | flags, 0)?);
        let descriptor = opened.as_raw_fd() as usize;
        let add = EvFlags::EV_ADD | EvFlags::EV_CLEAR;
        self.change(KEvent::new(descriptor, EventFilter::EVFILT_VNODE, add, events, 0, label))?;
        Ok(opened)
    }
}

impl Backend for Queue {
    type Directory = File;
    type File = File;
    type Process = Followed;

    fn new() -> io::Result<Self> {
        let queue = Kqueue::new()?;
        fcntl_setfd(&queue, FdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(queue)))
    }

    fn instance() -> &'static Instance<Self> {
        &INSTANCE
    }

    fn look(path: &Path) -> Option<Sight> {
        let found = std::fs::symlink_metadata(path).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Sight { identity: (found.dev(), found.ino()), changed })
    }

    fn directory(path: &Path) -> io::Result<Identity> {
        Ok(files::directory_identity(path)?)
    }

    fn watch_directory(&self, number: usize, path: &Path) -> io::Result<(Identity, File)> {
        let label = Kind::Directory.label(number);
        let events = MOVED | FilterFlag::NOTE_WRITE;
        let opened = self.watch(path, OFlags::DIRECTORY, label, events)?;
        Ok((files::inspect_at_once(&opened)?.identity, opened))
    }

    fn watch_file(
        &self,
        number: usize,
        path: &Path,
        closes: Closes,
    ) -> io::Result<(Identity, File)> {
        let closed = match (CLOSED, closes) {
            (Some([any, _]), Closes::All) => any,
            (Some([_, by_writers]), Closes::Writers) => by_writers,
            (None, Closes::Writers) => FilterFlag::empty(),
            (None, Closes::All) => return Err(io::ErrorKind::Unsupported.into()),
        };
        // Others do more when they are opened.
        if files::look(path)?.kind != FileKind::Regular {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let label = Kind::File.label(number);
        let opened = self.watch(path, files::OPEN_FLAGS, label, MOVED | WRITTEN | closed)?;
        Ok((files::inspect_at_once(&opened)?.identity, opened))
    }

    fn watch_process(&self, number: usize, pid: u32) -> Result<Followed, Unfollowed> {
        let pid = usize::try_from(pid).map_err(|_| Unfollowed::Refused)?;
        let add = EvFlags::EV_ADD | EvFlags::EV_ONESHOT;
        let label = Kind::Process.label(number);
        let exit = FilterFlag::NOTE_EXIT;
        match self.change(KEvent::new(pid, EventFilter::EVFILT_PROC, add, exit, 0, label)) {
            Ok(()) => Ok(Followed { queue: Arc::clone(&self.0), pid }),
            Err(nix::Error::ESRCH) => Err(Unfollowed::Gone),
            Err(_) => Err(Unfollowed::Refused),
        }
    }

    fn wait(&self, reports: &mut Vec<Report>) -> io::Result<()> {
        let nothing = (EvFlags::empty(), FilterFlag::empty());
        let nothing = KEvent::new(0, EventFilter::EVFILT_READ, nothing.0, nothing.1, 0, 0);
        let mut events = [nothing; EVENTS_AT_ONCE];
        let heard = loop {
            match self.0.kevent(&[], &mut events, None) {
                Err(nix::Error::EINTR) => {}
                heard => break heard?,
            }
        };
        events[..heard].iter().for_each(|event| report(event, reports));
        Ok(())
    }
}

/// One event may tell several things. That a file is elsewhere ends its watch, so it comes
/// last.
fn report(event: &KEvent, reports: &mut Vec<Report>) {
    let (kind, number) = Kind::read(event.udata());
    let heard = event.fflags();
    let mut tell = |events, report| {
        if heard.intersects(events) {
            reports.push(report);
        }
    };
    match kind {
        Kind::Directory => {
            tell(FilterFlag::NOTE_WRITE, Report::Names(number));
            tell(MOVED, Report::DirectoryMoved(number));
        }
        Kind::File => {
            tell(WRITTEN, Report::FileWritten(number));
            tell(ANY_CLOSE, Report::FileClosed(number));
            tell(MOVED, Report::FileMoved(number));
        }
        Kind::Process => reports.push(Report::ProcessEnded(number)),
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let (filter, end) = (EventFilter::EVFILT_PROC, EvFlags::EV_DELETE);
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let change = KEvent::new(self.pid, filter, end, FilterFlag::empty(), 0, 0);
        // One whose end was reported is not there any more.
        let _ = self.queue.kevent(&[change], &mut [], Some(none));
    }
}
