//! A page that a fork gives to the child full of zeros, with what tells a process from
//! its children. The numbers are those of `process_key`.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Zeros until it is filled, and again in each child.
#[repr(C)]
pub(crate) struct Page {
    /// Written last. 0 is no process.
    pid: AtomicU32,
    namespace: AtomicU64,
}

const SIZE: usize = size_of::<Page>();

static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// In place of a page where none can be had, so as not to try each time.
static NONE: Page = Page { pid: AtomicU32::new(0), namespace: AtomicU64::new(0) };

/// The page, which is never given back.
pub(crate) fn of_this_process() -> Option<&'static Page> {
    let mut page = PAGE.load(Ordering::Acquire).cast_const();
    if page.is_null() {
        page = make();
    }
    // SAFETY: not null, and what PAGE points to lives for ever.
    (!ptr::eq(page, &raw const NONE)).then(|| unsafe { &*page })
}

impl Page {
    /// Process id and pid namespace. Threads that fill the page at the same time write
    /// the same.
    pub(crate) fn get_or_look(&self, look: impl FnOnce() -> (u32, u64)) -> (u32, u64) {
        let pid = self.pid.load(Ordering::Acquire);
        if pid != 0 {
            return (pid, self.namespace.load(Ordering::Relaxed));
        }
        let (pid, namespace) = look();
        self.namespace.store(namespace, Ordering::Relaxed);
        self.pid.store(pid, Ordering::Release);
        (pid, namespace)
    }
}

#[cold]
fn make() -> *const Page {
    let made = map().unwrap_or((&raw const NONE).cast_mut());
    // (2), (3) The second thread takes the first one's.
    let first = PAGE.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
    let Err(page) = first else { return made };
    if !ptr::eq(made, &raw const NONE) {
        // SAFETY: no other thread knows of it.
        let _ = unsafe { munmap(made.cast(), SIZE) };
    }
    page
}

fn map() -> Option<*mut Page> {
    let (rights, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: the kernel chooses the place.
    let memory = unsafe { mmap_anonymous(ptr::null_mut(), SIZE, rights, kind) }.ok()?;
    if takes_any_advice(memory)
        // SAFETY: only this page, which holds zeros.
        || unsafe { madvise(memory, SIZE, Advice::LinuxWipeOnFork) }.is_err()
    {
        // SAFETY: no other thread knows of it.
        let _ = unsafe { munmap(memory, SIZE) };
        return None;
    }
    Some(memory.cast())
}

/// Older versions of QEMU's user mode answer success to any advice and do nothing
/// about it: a child would find what its parent left.
fn takes_any_advice(memory: *mut c_void) -> bool {
    unsafe extern "C" {
        fn madvise(start: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    // SAFETY: there is no such advice: either nothing is done, or as above.
    unsafe { madvise(memory, SIZE, -1) == 0 }
}
