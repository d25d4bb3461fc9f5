//! Takes one lock of a Rust library, as `worker.py` does for Python ones:
//! `lockkeeper-peers KIND PATH`, then lines on standard input. All system calls
//! are made by the first thread.

use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use distributed_lock_core::traits::{DistributedLock, LockHandle};
use distributed_lock_file::{FileDistributedLock, FileLockHandle};
use lockkeeper::{AsyncFileLock, FileGuard, Offload, FileOptions, Proof};
use pidlock::{Pidlock, PidlockError};
use tokio::runtime::{Builder, Runtime};

const POLL: Duration = Duration::from_millis(10);

trait Lock {
    fn acquire(&mut self);
    fn release(&mut self);
}

struct Ours {
    runtime: Runtime,
    lock: AsyncFileLock,
    guard: Option<FileGuard>,
}

impl Ours {
    fn new(path: &Path, pin: Proof) -> Self {
        let options = FileOptions::default().proof(pin).offload(Offload::Never);
        let lock = AsyncFileLock::with_options(path, options).expect("possible options");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, lock, guard: None }
    }
}

impl Lock for Ours {
    fn acquire(&mut self) {
        self.guard = Some(self.runtime.block_on(self.lock.acquire()).expect("the lock"));
    }

    fn release(&mut self) {
        let guard = self.guard.take().expect("held");
        let _ = self.runtime.block_on(guard.release());
    }
}

struct PidLock {
    lock: Pidlock,
}

impl Lock for PidLock {
    fn acquire(&mut self) {
        loop {
            match self.lock.acquire() {
                Ok(()) => return,
                Err(PidlockError::LockExists) => sleep(POLL),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn release(&mut self) {
        let _ = self.lock.release();
    }
}

struct DistributedFileLock {
    runtime: Runtime,
    lock: FileDistributedLock,
    handle: Option<FileLockHandle>,
}

impl Lock for DistributedFileLock {
    fn acquire(&mut self) {
        while self.handle.is_none() {
            self.handle = self.runtime.block_on(self.lock.try_acquire()).expect("the lock");
            if self.handle.is_none() {
                sleep(POLL);
            }
        }
    }

    fn release(&mut self) {
        let handle = self.handle.take().expect("held");
        let _ = self.runtime.block_on(handle.release());
    }
}

fn lock(kind: &str, path: &Path) -> Box<dyn Lock> {
    match kind {
        "lockkeeper" => Box::new(Ours::new(path, Proof::Auto)),
        "lockkeeper-portable" => Box::new(Ours::new(path, Proof::Process)),
        "pidlock" => Box::new(PidLock { lock: Pidlock::new_validated(path).expect("a path") }),
        "distributed-lock-file" => Box::new(DistributedFileLock {
            runtime: Builder::new_current_thread().enable_all().build().expect("a runtime"),
            lock: FileDistributedLock::from_path(path).expect("a path"),
            handle: None,
        }),
        other => panic!("{other:?} is no kind of lock"),
    }
}

fn tell(word: &str) {
    let mut out = stdout();
    writeln!(out, "{word}").and_then(|()| out.flush()).expect("somebody who listens");
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kind, path] = arguments.as_slice() else { panic!("KIND PATH") };
    let warm = std::env::temp_dir().join(format!("peer-{}", std::process::id()));
    let mut first = lock(kind, &warm);
    first.acquire();
    first.release();
    let mut lock = lock(kind, Path::new(path));
    tell("ready");
    for line in stdin().lock().lines() {
        match line.expect("standard input").as_str() {
            "acquire" => {
                lock.acquire();
                tell("inside");
            }
            "release" => {
                lock.release();
                tell("out");
            }
            other => panic!("{other:?}"),
        }
    }
}
