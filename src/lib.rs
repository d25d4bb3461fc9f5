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
//! | [`AsyncFileLock`] | processes of one machine: the holder is shown, told when the lock is lost, and told when its predecessor died |
//! | [`AsyncKernelLock`] | a file that other programs lock with the kernel (`flock`, `fcntl`), and readers beside a writer |
//! | `AsyncRemoteLock` (feature `lockd-client`) | many machines, by the lock daemon of feature `lockd` |
//!
//! All of them implement [`Lock`], and their guards [`Guard`]: a program can be generic
//! over the kind. [`open`] makes an [`AnyLock`] of a kind that a URL names, as in
//! `open("/run/lock")?.lock("import")?`. [`Lock::run`] runs a future under a lock.
//! What follows is about [`AsyncFileLock`].
//!
//! # What is promised
//!
//! * **One holder.** The holder keeps its lock file's inode locked (`flock`). The lock
//!   belongs to the process that has locked the inode which the path names. No timing is
//!   assumed and no process id is trusted. The protocol and its invariants stand at the
//!   head of `src/file/protocol/mod.rs`.
//! * **Killed means free.** When a holder's last thread is gone, by SIGKILL or a power
//!   failure, the next contender takes the file over. [`FileGuard::recovered_from`] names
//!   the dead holder: its work may be half done. The contender must be allowed to write
//!   or replace the file, and prove its life as the dead holder did
//!   ([`FileOptions::proof`]).
//! * **Stopped means held.** A holder that is stopped, swapped out or stuck in
//!   a debugger still holds. Only its end ends that.
//! * **Waiting is asleep.** A release or a death wakes the next process at once, and
//!   within it one task: first in, first out. Of the waiters behind it two wake as well, to
//!   be ready, however many there are. That is so among processes that may look at each
//!   other below `/proc`, as those of one user and pid namespace do. A waiter that may not
//!   look at the two before it wakes at each release. From its first wait on, a task on the
//!   waiter's runtime listens.
//! * **Waiting costs few descriptors**, however many locks a process waits for: one
//!   for each directory, one for each process that is waited for (on each runtime), one
//!   by which others hear of this process, and at most eight for files that are ready to
//!   become lock files. An [`AsyncKernelLock`] has its file open as well. Afterwards
//!   none of these is left.
//! * **Taking turns.** Tasks of a process are served first in, first out. While other
//!   processes wait, they hand the held file on for [`FileOptions::local_handoff`].
//!   Processes are served in the order in which they began to wait, at any uptime and in
//!   any time namespace. A process that does not make use of its turn for ten milliseconds
//!   is passed over. Where the first two do nothing, being stopped, the third finds that
//!   out within about [`FileOptions::retry_period`].
//! * **Cancelled means gone.** A dropped future leaves no file, no lock and no
//!   place in the queue.
//! * **Nothing of yours is lost.** What cannot be a lock file is never written,
//!   renamed or removed: [`Error::NotALockFile`]. An empty file, a file with one
//!   number and a file with a number and one more line *are* lock files, of
//!   other programs: do not point a lock at such a file of yours.
//!
//! # What is not
//!
//! * An advisory lock binds only the programs that ask for it. To remove the file of a
//!   living holder makes two: that holder is notified through [`FileGuard::lost`], but the
//!   other is inside by then. To break a lock, use [`AsyncFileLock::break_stale`] or
//!   [`AsyncFileLock::revoke`].
//! * A lock does not defend itself. A user that may make files in the directory can remove
//!   the lock file or ask its holder to release it. A user that may read the file can keep
//!   it locked. Give a service's locks a directory of its own.
//! * Another program's stale file is watched for two seconds before it is taken
//!   over. Its process is judged by its id and name, as openlock does.
//! * A child that was forked without `exec` shares the lock: if the holder is
//!   killed, it lasts until the child is gone too. A child made by
//!   `std::process::Command` does not, unless it is given [`FileGuard::lock_fd`].
//!   As always after the fork of a threaded process, such a child should ask
//!   for nothing new: drop what it inherited, and `exec` or exit.
//! * With [`Proof::Process`], and for files that other programs wrote, life is
//!   judged by the recorded process. Where that cannot be judged exactly, as
//!   in another container, the lock counts as held.
//!
//! # Where
//!
//! * **Local file systems** (ext2 to ext4, xfs, btrfs, tmpfs, f2fs, zfs,
//!   bcachefs, overlayfs): everything above. In an overlay the merged path and
//!   the path in its upper layer are two different locks.
//! * **Network and unknown file systems** (NFS, SMB, FUSE, 9p, Ceph, …): a free
//!   kernel lock proves nothing there by itself. A file is taken over only if
//!   its process can also be seen to be gone from here: same boot, same pid
//!   namespace. The lock of a dead machine stays until its operator removes it. So does an
//!   empty file, which another machine may have filled without that showing here yet.
//!   System calls run on a thread of this crate.
//! * **A local directory that is exported** (by NFS or SMB, or to a virtual machine)
//!   can be used from both sides. A lock file says whether its holder had it on a
//!   local file system. A file that does not say so counts as held until its process can
//!   be seen to be gone; `status` names the process and its machine.
//! * **File systems without hard links** (exFAT, some of SMB and FUSE): the file is
//!   moved to its path, without replacing, by `renameat2`. Where the kernel has no such
//!   call, and where a link counts as another file, [`Error::NoHardLinks`] says so,
//!   and a kernel lock ([`AsyncKernelLock`]) works.
//! * **A lock file that is itself mounted**, as by `docker run -v /host/a.lock:/a.lock`,
//!   is refused: mount its directory. Its removal would be seen on one side only.
//! * **Containers** that share a directory of a local file system share its
//!   locks, whatever their pid namespaces; a container killed and restarted
//!   finds its lock free.
//! * **Clocks** may jump: waits and deadlines use the monotonic clock. The time
//!   in a lock file is shown and never compared.
//! * **A paused Tokio clock**, as in `#[tokio::test(start_paused = true)]`, stands
//!   while this crate works, ten seconds of real time at most, so that only waits take
//!   virtual time. What is done in respect of other programs takes real time: to watch
//!   their files, to let a daemon answer, and the daemon's leases.
//! * **Linux only.** Kernel 6.9 and newer identify processes exactly; older
//!   ones by their start time.

// See clippy.toml: each kind of outside access has its room.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[cfg(not(target_os = "linux"))]
compile_error!("lockkeeper runs on Linux only: its proofs of life are the Linux kernel's");

mod any;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(test)]
#[path = "../tests/explorer/mod.rs"]
mod explorer;
mod file;
mod kernel;
#[cfg(any(feature = "etcd", feature = "lockd-client"))]
mod lease;
mod local;
mod lock;
#[cfg(feature = "lockd")]
pub mod lockd;
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
#[cfg(feature = "lockd-client")]
pub use remote::{AsyncRemoteLock, RemoteGuard, RemoteOptions};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
