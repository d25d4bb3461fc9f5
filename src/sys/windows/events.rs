//! Events that are a reason to look again: one completion port for the whole process, and
//! the thread of its [registry](crate::sys::listeners), which waits there.
//!
//! 1. A directory is watched by `ReadDirectoryChangesW`. What was changed is not read from
//!    it: the registry compares what its listeners' names lead to. So changes that did not
//!    fit the buffer are as good as others.
//! 2. Between two calls the system keeps what happens for the next, since the first.
//! 3. What the system writes to belongs to the call until its completion was read, however
//!    early its listeners leave.
//! 4. The end of a process is heard by its handle, which a thread of the system's pool
//!    waits for. That thread only posts it to the port.
//! 5. Closes of a file are not told, nor are its locks.
#![allow(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "opens directories to watch them")]

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OVERLAPPED, FILE_LIST_DIRECTORY,
    FILE_NOTIFY_CHANGE_FILE_NAME, FILE_NOTIFY_CHANGE_LAST_WRITE, FILE_NOTIFY_CHANGE_SIZE,
    FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, ReadDirectoryChangesW,
};
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, GetQueuedCompletionStatus, OVERLAPPED,
    PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::{
    INFINITE, RegisterWaitForSingleObject, UnregisterWaitEx, WT_EXECUTEONLYONCE,
};

use super::files::{self, Errno};
use super::process::Process;
use super::process_key::ProcessKey;
use super::tickets::Predecessor;
pub(crate) use crate::sys::event::{Event, Following};
use crate::sys::listeners::{self, Backend, Closes, Identity, Instance, Report, Sight, Unfollowed};
use crate::sys::mutex::Mutex;

/// A file is made, renamed or removed in the directory, or written to.
const CHANGES: u32 =
    FILE_NOTIFY_CHANGE_FILE_NAME | FILE_NOTIFY_CHANGE_LAST_WRITE | FILE_NOTIFY_CHANGE_SIZE;

/// In units that are aligned as the system wants it. Nothing is read from it (1), and the
/// system keeps as much again of memory that is never paged out.
const BUFFER_UNITS: usize = 256;

/// Whether the end of a kernel lock is an event, as a rule (5).
pub(crate) const UNLOCKS_ARE_HEARD: bool = false;

/// Whether the close of a file is an event for waiters.
pub(crate) const CLOSES_ARE_HEARD: bool = false;

/// Listens for what may change the holder of a lock.
pub(crate) type Subscription = listeners::Subscription<Port>;

static INSTANCE: Instance<Port> = Instance::new();

/// To be called before a lock file is opened: nothing is to be done.
pub(crate) fn prepare(_: ProcessKey) {}

impl Subscription {
    /// There are none.
    pub(crate) fn follow_predecessors(&mut self, _: [Predecessor; 2]) -> bool {
        false
    }
}

/// The completion port of this process.
pub(crate) struct Port(Arc<OwnedHandle>);

/// The watch of a directory. Dropping it ends that.
pub(crate) struct DirectoryWatch(Arc<Call>);

/// A call for the changes in a directory, one after the other.
#[repr(C)]
struct Call {
    /// First, so that its place is that of the call.
    state: UnsafeCell<OVERLAPPED>,
    buffer: UnsafeCell<[u32; BUFFER_UNITS]>,
    number: usize,
    directory: File,
    /// No other call is to be made. Locked while one is.
    is_over: Mutex<bool>,
}

// SAFETY: what is in the cells is touched by the system, and by `Call::begin` when no call
// is under way.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

impl Call {
    /// Ask for what happens from now on, or since the last call (2).
    fn begin(self: &Arc<Self>) -> Result<(), Errno> {
        let is_over = self.is_over.lock();
        if *is_over {
            return Ok(());
        }
        // The system's, until the completion was read (3).
        let lent = Arc::into_raw(Arc::clone(self));
        let bytes = size_of_val(&self.buffer) as u32;
        // SAFETY: no call is under way, so the cells are ours alone. They stay where they
        // are until `lent` is taken back.
        let is_begun = unsafe {
            *self.state.get() = OVERLAPPED::default();
            ReadDirectoryChangesW(
                self.directory.as_raw_handle(),
                self.buffer.get().cast::<c_void>(),
                bytes,
                0,
                CHANGES,
                ptr::null_mut(),
                self.state.get(),
                None,
            )
        };
        if is_begun == 0 {
            let error = Errno::last();
            // SAFETY: made above, and not taken by the system.
            drop(unsafe { Arc::from_raw(lent) });
            return Err(error);
        }
        Ok(())
    }

    /// The call that ended. Reports what that means, after the next has begun.
    fn report(self: Arc<Self>, has_succeeded: bool, reports: &mut Vec<Report>) {
        let goes_on = has_succeeded && self.begin().is_ok();
        if !*self.is_over.lock() {
            reports.push(match goes_on {
                true => Report::Names(self.number),
                false => Report::DirectoryMoved(self.number),
            });
        }
    }
}

impl Drop for DirectoryWatch {
    fn drop(&mut self) {
        let call = &self.0;
        let mut is_over = call.is_over.lock();
        *is_over = true;
        // SAFETY: the handle is open. If no such call is under way, nothing is done.
        unsafe { CancelIoEx(call.directory.as_raw_handle(), call.state.get()) };
    }
}

/// The watch of a process. Dropping it ends that.
pub(crate) struct ProcessWatch {
    wait: HANDLE,
    _process: Process,
    /// What the thread that waits is given.
    end: *mut End,
}

// SAFETY: it belongs to no thread; `end` is only read, and by the one that waits.
unsafe impl Send for ProcessWatch {}

/// The end of a process, to be posted.
struct End {
    port: Arc<OwnedHandle>,
    number: usize,
}

/// (4)
unsafe extern "system" fn post(end: *mut c_void, _: bool) {
    // SAFETY: what `watch_process` gave, which is there until no thread waits any more.
    let End { port, number } = unsafe { &*end.cast::<End>() };
    // SAFETY: the port is open. There is nothing to do where there is no memory for that:
    // waiters look after a time.
    unsafe { PostQueuedCompletionStatus(port.as_raw_handle(), 0, *number, ptr::null()) };
}

impl Drop for ProcessWatch {
    fn drop(&mut self) {
        // SAFETY: the wait was made here, and is ended once. The call returns when no
        // thread is in `post` for it, and none will be. `post` waits for nothing.
        unsafe { UnregisterWaitEx(self.wait, INVALID_HANDLE_VALUE) };
        // SAFETY: from `Box::into_raw`, and used by no thread any more.
        drop(unsafe { Box::from_raw(self.end) });
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(FILE_LIST_DIRECTORY)
        // It may be removed or renamed meanwhile.
        .share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OVERLAPPED)
        .open(path)
}

impl Backend for Port {
    type Directory = DirectoryWatch;
    type File = std::convert::Infallible;
    type Process = ProcessWatch;

    fn new() -> io::Result<Self> {
        // SAFETY: the call takes no other handle.
        let port = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, 1) };
        if port.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the handle was made here, and is no other's.
        Ok(Self(Arc::new(unsafe { OwnedHandle::from_raw_handle(port) })))
    }

    fn instance() -> &'static Instance<Self> {
        &INSTANCE
    }

    fn look(path: &Path) -> Option<Sight> {
        let (inode, changed) = files::look_with_time(path).ok()?;
        Some(Sight { identity: inode.identity, changed })
    }

    fn directory(path: &Path) -> io::Result<Identity> {
        Ok(files::directory_identity(path)?)
    }

    fn watch_directory(
        &self,
        number: usize,
        path: &Path,
    ) -> io::Result<(Identity, DirectoryWatch)> {
        let directory = open_directory(path)?;
        let identity = files::inspect_at_once(&directory)?.identity;
        let (handle, port) = (directory.as_raw_handle(), self.0.as_raw_handle());
        // SAFETY: both handles are open.
        if unsafe { CreateIoCompletionPort(handle, port, number, 0) }.is_null() {
            return Err(io::Error::last_os_error());
        }
        let (state, buffer) = (UnsafeCell::default(), UnsafeCell::new([0; BUFFER_UNITS]));
        let is_over = Mutex::new(false);
        let watch = DirectoryWatch(Arc::new(Call { state, buffer, number, directory, is_over }));
        watch.0.begin()?;
        Ok((identity, watch))
    }

    fn watch_file(&self, _: usize, _: &Path, _: Closes) -> io::Result<(Identity, Self::File)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn watch_process(&self, number: usize, pid: u32) -> Result<ProcessWatch, Unfollowed> {
        let process = Process::open(pid).map_err(|error| match error {
            Errno::INVAL => Unfollowed::Gone,
            _ => Unfollowed::Refused,
        })?;
        if process.has_ended() {
            return Err(Unfollowed::Gone);
        }
        let end = Box::into_raw(Box::new(End { port: Arc::clone(&self.0), number }));
        let mut wait = ptr::null_mut();
        let flags = WT_EXECUTEONLYONCE;
        // SAFETY: the handle is open, and `end` is there, until the wait was ended.
        let is_waited_for = unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                process.handle(),
                Some(post),
                end.cast::<c_void>(),
                INFINITE,
                flags,
            )
        };
        if is_waited_for == 0 {
            // SAFETY: made above, and given to no thread.
            drop(unsafe { Box::from_raw(end) });
            return Err(Unfollowed::Refused);
        }
        Ok(ProcessWatch { wait, _process: process, end })
    }

    fn wait(&self, reports: &mut Vec<Report>) -> io::Result<()> {
        let (mut bytes, mut number, mut call) = (0, 0, ptr::null_mut());
        // SAFETY: the port is open, and the places are there until the call is over.
        let has_succeeded = unsafe {
            GetQueuedCompletionStatus(
                self.0.as_raw_handle(),
                &raw mut bytes,
                &raw mut number,
                &raw mut call,
                INFINITE,
            )
        } != 0;
        if !call.is_null() {
            // SAFETY: every call is that of a `Call`, whose first field it is, and which
            // was lent to the system for it.
            let call = unsafe { Arc::from_raw(call.cast::<Call>().cast_const()) };
            call.report(has_succeeded, reports);
            return Ok(());
        }
        if !has_succeeded {
            return Err(io::Error::last_os_error());
        }
        reports.push(Report::ProcessEnded(number));
        Ok(())
    }
}
