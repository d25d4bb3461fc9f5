//! The page of (1).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::ProcessKey;

/// Zeros until it is filled, and again in each child.
#[repr(C)]
pub(super) struct Page {
    /// Written last. 0 is no process.
    pid: AtomicU32,
    namespace: AtomicU64,
}

const SIZE: usize = size_of::<Page>();

static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// In place of a page where none can be had, so as not to try each time.
static NONE: Page = Page { pid: AtomicU32::new(0), namespace: AtomicU64::new(0) };

/// The page, which is never given back.
pub(super) fn of_this_process() -> Option<&'static Page> {
    let mut page = PAGE.load(Ordering::Acquire).cast_const();
    if page.is_null() {
        page = make();
    }
    // SAFETY: not null, and what PAGE points to lives for ever.
    (!ptr::eq(page, &raw const NONE)).then(|| unsafe { &*page })
}

impl Page {
    /// Threads that fill it at the same time write the same.
    pub(super) fn get_or_look(&self, look: impl FnOnce() -> ProcessKey) -> ProcessKey {
        let pid = self.pid.load(Ordering::Acquire);
        if pid != 0 {
            return ProcessKey { pid, namespace: self.namespace.load(Ordering::Relaxed) };
        }
        let found = look();
        self.namespace.store(found.namespace, Ordering::Relaxed);
        self.pid.store(found.pid, Ordering::Release);
        found
    }
}

#[cold]
fn make() -> *const Page {
    let made = map().unwrap_or((&raw const NONE).cast_mut());
    // (2), (3) Whoever comes second takes the first one's.
    let first = PAGE.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
    let Err(page) = first else { return made };
    if !ptr::eq(made, &raw const NONE) {
        // SAFETY: nobody else was told of it.
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
        // SAFETY: nobody was told of it.
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
