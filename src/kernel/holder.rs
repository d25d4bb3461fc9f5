//! The holder of a kernel lock, as far as the kernel shows it.
//!
//! `F_OFD_GETLK` names the process of a POSIX lock and no process of a lock that
//! belongs to an open file. For `flock` there is no such question, but
//! `/proc/locks` lists the process that took it. That may be gone by now and a
//! child have the open file. The list leaves out processes that this pid namespace
//! does not see, and on file systems with subvolumes it names other devices
//! than `stat` does. Reading it takes some ten milliseconds: before it lists
//! locks the kernel waits until no processor is in the middle of changing one
//! (`percpu_down_write` in fs/locks.c). So no thread of a runtime reads it.

#![expect(clippy::disallowed_methods, reason = "reads /proc")]

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::sync::Arc;

use rustix::fs::{major, minor};
use tokio::runtime::Handle;

use super::attempt::{cannot_open, check_kind};
use super::open_file::OpenFile;
use super::options::Primitive;
use super::shared::{LockInner, LockState};
use super::syscalls::{self, KernelSpec, Sharing};
use crate::local::executor::Started;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};
use crate::sys::files::Errno;
use crate::sys::process::program_name;

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
    let Some(inode) = syscalls::look_at(path).map_err(fail)? else {
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
    let file = match OpenFile::open(|| syscalls::open_existing(path)) {
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

/// Listed first, since asking the kernel by locking can be in a contender's way.
fn of_flock(file: &File, identity: (u64, u64), spec: KernelSpec) -> Result<Option<Holder>, Errno> {
    if let Some(pid) = listed(identity) {
        return Ok(Some(known(Some(pid))));
    }
    let is_free = syscalls::try_lock(file, spec.with(Sharing::Exclusive))?;
    if is_free {
        // A forked child may have a copy.
        syscalls::unlock(file, spec)?;
    }
    Ok((!is_free).then(|| known(None)))
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
        Primitive::Flock => state.executor.on_thread().start(move || listed(identity)),
        Primitive::Ofd => {
            let conflict = syscalls::conflict(file, spec).ok().flatten();
            Started::Done(conflict.and_then(|conflict| conflict.pid))
        }
    }
}

/// The process that took a `flock` on this inode, by `/proc/locks`.
fn listed((device, inode): (u64, u64)) -> Option<u32> {
    let locks = listing()?;
    locks.lines().find_map(|line| parse(line.split_ascii_whitespace().skip(1), (device, inode)))
}

/// `/proc/locks`, in reads as large as the kernel gives: it finds its place
/// again by counting lines, so that an unlock between two reads hides one.
fn listing() -> Option<String> {
    debug_assert!(Handle::try_current().is_err(), "BUG: a runtime's thread reads /proc/locks");
    let mut file = File::open("/proc/locks").ok()?;
    let (mut bytes, mut end) = (vec![0; 4 * READ], 0);
    loop {
        if bytes.len() - end < READ {
            bytes.resize(2 * bytes.len(), 0);
        }
        match file.read(&mut bytes[end..]) {
            Ok(0) => break,
            Ok(more) => end += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// More than a line of `/proc/locks` has, and than the kernel gives at once.
const READ: usize = 16 * 1024;

/// `FLOCK ADVISORY WRITE 4242 fe:00:131 0 EOF`, see proc_locks(5).
fn parse<'a>(mut words: impl Iterator<Item = &'a str>, identity: (u64, u64)) -> Option<u32> {
    if words.next() != Some("FLOCK") {
        return None;
    }
    let pid = words.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
    is_of(words.next()?, identity).then_some(pid)
}

fn is_of(word: &str, (device, inode): (u64, u64)) -> bool {
    let mut numbers = word.split(':');
    let hexadecimal = |number: Option<&str>| u32::from_str_radix(number?, 16).ok();
    hexadecimal(numbers.next()) == Some(major(device))
        && hexadecimal(numbers.next()) == Some(minor(device))
        && numbers.next().is_some_and(|number| number.parse() == Ok(inode))
}

fn known(pid: Option<u32>) -> Holder {
    pid.map_or_else(|| Holder::nobody(Evidence::KernelLock), of_process)
}

fn of_process(pid: u32) -> Holder {
    // The name that ps shows: of a program that cannot be read about, none.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let name = name.map(|name| program_name(name.trim_end()));
    Holder { pid: Some(pid), name, ..Holder::nobody(Evidence::KernelLock) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read() {
        let device = rustix::fs::makedev(0xfe, 0x10);
        let find = |line: &str| parse(line.split_ascii_whitespace().skip(1), (device, 131));
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 4242 fe:10:131 0 EOF"), Some(4242));
        assert_eq!(find("1: FLOCK  ADVISORY  READ 7 fe:10:131 0 EOF"), Some(7));
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 4242 fe:10:132 0 EOF"), None);
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 4242 fe:11:131 0 EOF"), None);
        assert_eq!(find("1: POSIX  ADVISORY  WRITE 4242 fe:10:131 0 EOF"), None);
        assert_eq!(find("1: -> FLOCK  ADVISORY  WRITE 4242 fe:10:131 0 EOF"), None);
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 0 fe:10:131 0 EOF"), None);
    }
}
