//! Locks between processes for Tokio services.
//!
//! A service awaits a lock that another process holds, composes the wait with
//! `timeout` and `select!`, may drop it anywhere, and may be killed at any
//! instruction. No other process is stuck afterwards, and no two hold the lock. On one
//! machine that needs a directory and nothing else.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), lockkeeper::Error> {
//! # async fn work() {}
//! # let directory = std::env::temp_dir().join(format!("lockkeeper-lib-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory).unwrap();
//! # let path = directory.join("job.lock");
//! use lockkeeper::AsyncFileLock;
//!
//! let lock = AsyncFileLock::new(path);
//! let guard = lock.acquire().await?;
//! tokio::select! {
//!     () = work() => {}
//!     why = guard.lost() => return Err(why.into()),
//! }
//! guard.release().await?;
//! # std::fs::remove_dir(directory).unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! # Which lock
//!
//! | | for |
//! |---|---|
//! | [`AsyncFileLock`] | a job that one process of a machine at a time may run: the holder is shown, and notified when the lock is lost or its predecessor died |
//! | [`AsyncKernelLock`] | a file that other programs lock with the kernel (`flock`, `fcntl`), and readers beside a writer |
//! | `AsyncRemoteLock` (feature `lockd-client`) | many machines, by the lock daemon of feature `lockd` |
//! | `AsyncEtcdLock` (feature `etcd`) | many machines, by an etcd cluster |
//! | `AsyncPostgresLock` (feature `postgres`) | many machines, by a PostgreSQL server |
//!
//! All of them implement [`Lock`], and their guards [`Guard`]: a program can be generic
//! over the kind. [`open`] makes an [`AnyLock`] of a kind that a URL names, as in
//! `open("/run/lock")?.lock("import")?`. [`Lock::run`] runs a future under a lock.
//! More on the choice is in [`_docs::choosing`].
//!
//! # What is promised
//!
//! * **One holder.** The kernel's lock on the file decides. No timing is assumed and no
//!   process id is trusted.
//! * **Killed means free.** After `kill -9` or a power cut the next contender acquires the
//!   lock at once, in other containers too. [`FileGuard::recovered_from`] names the dead
//!   holder of a lock file. A daemon's lock ends with its lease.
//! * **Stopped means held.** A holder that is stopped, swapped out or in a debugger still
//!   holds. Only a daemon's lease ends that.
//! * **Cancelled means gone.** A dropped future leaves no file, no lock and no place in the
//!   queue.
//! * **Waiting is asleep, and in turns.** A release or a death wakes the next process, by
//!   an event, and within it one task: first in, first out. No thread waits.
//! * **Nothing of yours is lost.** What cannot be a lock file is refused:
//!   [`Error::NotALockFile`].
//!
//! # What is not
//!
//! * A lock is advisory: it binds only the programs that ask for it.
//! * To remove the file of a living holder makes two. That holder is notified through
//!   [`FileGuard::lost`], but the other can be inside by then.
//! * A user that may make files in the directory can remove the lock file. Give a service's
//!   locks a directory of its own.
//! * A child that was forked without `exec` shares the lock.
//! * On network file systems (NFS, SMB, FUSE) the lock file of a machine that is gone stays
//!   until its operator removes it.
//! * What a system lacks is an error or an `Option`. [`_docs::platforms`] has, for Linux,
//!   macOS, the BSDs and Windows, what each promise rests on and what was run where.
//!
//! [`_docs::guarantees`] has all of this in detail, for each kind of lock and of file system,
//! and [`_docs::faq`] what goes wrong. [`_docs`] lists the pages.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `cli` | the command `lockkeeper` |
//! | `lockd` | the lock daemon, `lockd`; with `cli`: `lockkeeper serve` |
//! | `lockd-client` | `AsyncRemoteLock`; with `cli`: `run --server`, `lock`, `unlock`, `health` |
//! | `etcd` | `AsyncEtcdLock` |
//! | `postgres` | `AsyncPostgresLock` |

#![cfg_attr(docsrs, feature(doc_cfg))]
// See clippy.toml: each kind of outside access has its room.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[cfg(all(feature = "lockd", not(unix)))]
compile_error!("the feature `lockd` exists on Unix only: on Windows there is `lockd-client`");

#[cfg(any(doc, doctest))]
#[path = "docs/mod.rs"]
pub mod _docs;
mod any;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(all(test, unix))]
#[path = "../tests/explorer/mod.rs"]
mod explorer;
mod file;
mod kernel;
#[cfg(any(feature = "etcd", feature = "lockd-client", feature = "postgres"))]
mod lease;
mod local;
mod lock;
#[cfg(feature = "lockd")]
pub mod lockd;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "lockd-client")]
mod remote;
mod sys;
#[cfg(any(feature = "lockd", feature = "lockd-client"))]
mod wire;

pub use any::{Locks, open};
#[cfg(feature = "etcd")]
pub use etcd::{AsyncEtcdLock, EtcdGuard, EtcdKey, EtcdLocks, EtcdOptions};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use file::fuzzing;
pub use file::{
    AsyncFileLock, AtExit, FileGuard, FileOptions, LockGuards, Proof, SlowSystem, acquire_all,
    acquire_all_timeout,
};
pub use kernel::{AsyncKernelLock, KernelGuard, KernelOptions, Primitive};
pub use local::executor::flush;
pub use local::options::Offload;
pub use lock::Lock;
pub use lock::any_lock::{AnyGuard, AnyLock};
pub use lock::changes::StatusChanges;
pub use lock::error::{Error, Lost, LostReason};
pub use lock::fencing_token::FencingToken;
pub use lock::guard::Guard;
pub use lock::holder::{Evidence, Holder, Status};
pub use lock::name::LockName;
pub use lock::run::Ran;
pub use lock::shared::{Shared, SharedLock};
pub use lock::wait::{Acquired, Busy, Wait};
#[cfg(feature = "postgres")]
pub use postgres::{
    AsyncPostgresLock, LockKey, PostgresGuard, PostgresLocks, PostgresOptions, Table, Takeover,
};
#[cfg(feature = "lockd-client")]
pub use remote::{AsyncRemoteLock, RemoteGuard, RemoteOptions};
pub use sys::files::BorrowedFile;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
