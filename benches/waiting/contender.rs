//! A process that acquires and releases when it is told to.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use lockkeeper::{AsyncFileLock, FileGuard};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat};
use rustix::io::Errno;
use tokio::io::AsyncReadExt;
use tokio::runtime::{Builder, Runtime};

use crate::figures::now;
use crate::processes::{Process, Report, Reports, as_text, orders};

/// Whose lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    /// Ours on a runtime with one thread.
    OursOneThread,
    /// filelock 0.7 with `tokio`: the best of those that poll.
    Filelock,
    /// A thread blocked in `flock`.
    Flock,
    /// The floor of a lock file with events: the system calls alone, by a thread
    /// that blocks in them and has nothing else to do.
    Bare,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Ours, Kind::OursOneThread, Kind::Filelock, Kind::Flock, Kind::Bare];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ours => "lockkeeper",
            Kind::OursOneThread => "lockkeeper, one thread",
            Kind::Filelock => "filelock 0.7 tokio",
            Kind::Flock => "thread in flock",
            Kind::Bare => "the bare calls",
        }
    }

    pub(crate) fn of(name: &str) -> Kind {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.unwrap_or_else(|| panic!("no kind {name}"))
    }

    pub(crate) fn runtime(self) -> Runtime {
        let mut builder = match self {
            Kind::Ours | Kind::Filelock => Builder::new_multi_thread(),
            Kind::OursOneThread | Kind::Flock | Kind::Bare => Builder::new_current_thread(),
        };
        builder.enable_all().build().expect("a runtime")
    }
}

/// A lock of either kind.
pub(crate) enum Lock {
    Ours(AsyncFileLock),
    Filelock(Option<filelock::FileLock>),
    Flock(File),
    Bare(Bare),
}

/// A hold; it ends with [`Lock::release`].
pub(crate) enum Hold {
    Ours(FileGuard),
    Filelock(filelock::OwnedFileLockGuard),
    Flock,
    Bare(OwnedFd),
}

impl Lock {
    pub(crate) fn new(kind: Kind, path: &Path) -> Self {
        match kind {
            Kind::Ours | Kind::OursOneThread => Lock::Ours(AsyncFileLock::new(path)),
            Kind::Filelock => Lock::Filelock(Some(filelock::new(path).expect("a lock file"))),
            Kind::Flock => Lock::Flock(File::create(path).expect("a lock file")),
            Kind::Bare => Lock::Bare(Bare::new(path)),
        }
    }

    pub(crate) async fn acquire(&mut self) -> Hold {
        match self {
            Lock::Ours(lock) => Hold::Ours(lock.acquire().await.expect("nothing is wrong")),
            Lock::Filelock(lock) => {
                let lock = lock.take().expect("it is not held");
                Hold::Filelock(lock.lock_owned_async().await.expect("nothing is wrong"))
            }
            Lock::Flock(file) => {
                flock(&*file, FlockOperation::LockExclusive).expect("nothing is wrong");
                Hold::Flock
            }
            Lock::Bare(lock) => Hold::Bare(lock.acquire()),
        }
    }

    pub(crate) async fn release(&mut self, hold: Hold) {
        match (self, hold) {
            (_, Hold::Ours(guard)) => guard.release().await.expect("nobody touched it"),
            (Lock::Filelock(lock), Hold::Filelock(guard)) => {
                *lock = Some(guard.unlock().expect("it is held"));
            }
            (Lock::Flock(file), Hold::Flock) => {
                flock(&*file, FlockOperation::Unlock).expect("it is held")
            }
            (Lock::Bare(lock), Hold::Bare(file)) => lock.release(&file),
            _ => unreachable!("a hold of another lock"),
        }
    }
}

/// A lock file by the system calls that one with a record cannot do without. It
/// recovers from nothing.
pub(crate) struct Bare {
    path: PathBuf,
    inotify: OwnedFd,
}

impl Bare {
    fn new(path: &Path) -> Self {
        let directory = path.parent().expect("a directory");
        let inotify = inotify::init(CreateFlags::CLOEXEC).expect("inotify");
        inotify::add_watch(&inotify, directory, WatchFlags::DELETE).expect("a watch");
        Self { path: path.to_owned(), inotify }
    }

    fn acquire(&self) -> OwnedFd {
        let directory = self.path.parent().expect("a directory");
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory, flags, Mode::from(0o644)).expect("a file");
        rustix::io::pwrite(&file, &[b'\n'; 512], 0).expect("it can be written");
        flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
        while let Err(error) = linkat(&file, c"", CWD, &self.path, AtFlags::EMPTY_PATH) {
            assert_eq!(error, Errno::EXIST);
            rustix::io::read(&self.inotify, &mut [0; 4096]).expect("an event");
        }
        file
    }

    fn release(&self, file: &OwnedFd) {
        let named = rustix::fs::lstat(&self.path).expect("it is there");
        assert_eq!(named.st_ino, rustix::fs::fstat(file).expect("it is open").st_ino);
        rustix::fs::unlink(&self.path).expect("it is ours");
        rustix::thread::sched_yield();
    }
}

/// What a contender can be told. It reports when that is done, except for a
/// release: that is reported as of just before.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    Acquire = b'a' as isize,
    Release = b'r' as isize,
    /// Open 3000 sockets.
    OpenSockets = b's' as isize,
}

/// Connections, of two sockets each.
const CONNECTIONS: usize = 1500;

/// A contender seen from the one who tells it what to do.
pub(crate) struct Contender {
    pub(crate) process: Process,
}

impl Contender {
    pub(crate) fn spawn(kind: Kind, path: &Path, number: usize, reports: &Reports) -> Self {
        let number = number.to_string();
        let words = [kind.name(), as_text(path), &number];
        Contender { process: Process::spawn("contender", words, Stdio::piped(), reports.end()) }
    }

    pub(crate) fn tell(&mut self, order: Order) {
        let stdin = self.process.child().stdin.as_mut().expect("it is piped");
        stdin.write_all(&[order as u8]).expect("it listens");
    }

    /// Tell it something that is done at once.
    pub(crate) fn has(&mut self, order: Order, reports: &Reports) -> Report {
        self.tell(order);
        reports.next()
    }
}

/// The role: kind, path, number.
pub(crate) fn play(words: &[String]) {
    let [kind, path, number] = words else { panic!("kind, path, number") };
    let (kind, path) = (Kind::of(kind), PathBuf::from(path));
    let number: usize = number.parse().expect("a number");
    let report = move |time: u64| {
        let line = format!("{number} {time}\n");
        std::io::stdout().write_all(line.as_bytes()).expect("somebody listens");
    };
    let carry_out = async move {
        let mut orders = orders();
        let mut lock = Lock::new(kind, &path);
        let mut hold = None;
        let mut sockets = Vec::new();
        while let Ok(order) = orders.read_u8().await {
            match order {
                b'a' => {
                    hold = Some(lock.acquire().await);
                    report(now());
                }
                b'r' => {
                    let time = now();
                    lock.release(hold.take().expect("it is held")).await;
                    report(time);
                }
                _ => {
                    sockets.push(connections());
                    report(now());
                }
            }
        }
    };
    let runtime = kind.runtime();
    let carried_out = runtime.spawn(carry_out);
    runtime.block_on(carried_out).expect("no panic");
}

fn connections() -> (TcpListener, Vec<(TcpStream, TcpStream)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let connect = |_| {
        let near = TcpStream::connect(address).expect("it listens");
        (near, listener.accept().expect("somebody connected").0)
    };
    let connections = (0..CONNECTIONS).map(connect).collect();
    (listener, connections)
}
