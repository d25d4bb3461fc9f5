//! The holder of a kernel lock, as far as the kernel shows it.
//!
//! `F_OFD_GETLK` names the process of a POSIX lock and no process of a lock that
//! belongs to an open file. For `flock` there is no such question, but the kernel's
//! [list](crate::sys::lock_list) has the process that took it, where there is one. That
//! process may be gone by now and a child have the open file. To read the list takes
//! long, so no thread of a runtime does.

use std::fs::File;
use std::sync::Arc;

use super::attempt::{cannot_open, check_kind};
use super::open_file::OpenFile;
use super::options::Primitive;
use super::shared::{LockInner, LockState};
use super::syscalls::{self, KernelSpec, Sharing};
use crate::local::executor::Started;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};
use crate::sys::files::Errno;
use crate::sys::lock_list::flock_owner;
use crate::sys::process::name_of;
use crate::sys::program::program_name;

/// The holder of the lock, if it has one.
pub(super) async fn holder(lock: &Arc<LockInner>) -> Result<Option<Holder>, Error> {
    match status(lock).await? {
        Status::Held(holder) => Ok(Some(holder)),
        Status::Free | Status::Stale(_) => Ok(None),
    }
}

/// Free or held.
pub(super) async fn status(lock: &Arc<LockInner>) -> Result<Status, Error> {
    let state = lock.state().await?;
    let executor = match lock.options.primitive {
        Primitive::Flock => state.executor.on_thread(),
        Primitive::Ofd => state.executor.clone(),
    };
    let known = (Arc::clone(lock), state);
    executor.run(known, |(lock, state)| look(&lock, &state)).await
}

/// What is at the path: a lock's file stays, so it tells nothing by itself.
fn look(lock: &LockInner, state: &LockState) -> Result<Status, Error> {
    let spec = lock.spec(Sharing::Exclusive);
    let path = lock.path.path();
    let fail = |error: Errno| Error::io("looking at", path, error);
    let Some(inode) = syscalls::look_at(&lock.system_path).map_err(fail)? else {
        return Ok(Status::Free);
    };
    let identity = inode.identity;
    if inode.does_more_when_opened() {
        check_kind(lock, inode.kind)?;
    }
    if let Some(source) = state.queue.asked_at(identity) {
        let holder = of_process(state.process.pid);
        return Ok(Status::Held(Holder { acquired_at: Some(source), ..holder }));
    }
    let file = match OpenFile::open(|| syscalls::open_existing(&lock.system_path)) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Status::Free),
        Err(error) => return Err(cannot_open(lock, error)),
    };
    check_kind(lock, file.kind)?;
    let holder = match spec.primitive {
        Primitive::Flock => {
            let holder = of_flock(&file, file.identity, spec);
            // The question may have been in a contender's way.
            if state.executor.is_local() && file.closes_unheard() {
                syscalls::signal(&file);
            }
            holder
        }
        Primitive::Ofd => syscalls::conflict(&file, spec)
            .map(|conflict| conflict.map(|conflict| known(conflict.pid))),
    };
    Ok(holder.map_err(fail)?.map_or(Status::Free, Status::Held))
}

/// Listed first, since asking the kernel by locking can be in a contender's way. It may
/// have been taken since, and of a list that changes a look may miss a line: hence once more.
fn of_flock(file: &File, identity: (u64, u64), spec: KernelSpec) -> Result<Option<Holder>, Errno> {
    if let Some(pid) = flock_owner(identity) {
        return Ok(Some(known(Some(pid))));
    }
    let is_free = syscalls::try_lock(file, spec.with(Sharing::Exclusive))?;
    if is_free {
        // A forked child may have a copy.
        syscalls::unlock(file, spec)?;
    }
    Ok((!is_free).then(|| known(flock_owner(identity))))
}

/// The process in the way of a contender, whose end it should hear of. The answer is not
/// waited for here.
pub(super) fn process_in_the_way(
    state: &LockState,
    file: &OpenFile,
    spec: KernelSpec,
) -> Started<Option<u32>> {
    let identity = file.identity;
    match spec.primitive {
        Primitive::Flock => state.executor.on_thread().start(move || flock_owner(identity)),
        Primitive::Ofd => {
            let conflict = syscalls::conflict(file, spec).ok().flatten();
            Started::Done(conflict.and_then(|conflict| conflict.pid))
        }
    }
}

fn known(pid: Option<u32>) -> Holder {
    pid.map_or_else(|| Holder::nobody(Evidence::KernelLock), of_process)
}

fn of_process(pid: u32) -> Holder {
    let name = name_of(pid).map(|name| program_name(name.trim_end()));
    Holder { pid: Some(pid), name, ..Holder::nobody(Evidence::KernelLock) }
}
