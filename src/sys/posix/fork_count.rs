//! How often this process has forked, as far as the C library knows: a child that has
//! not executed a program has copies of all open files.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);

/// Another number after each fork than before it, once this has returned to the first
/// that called it.
pub(crate) fn forks() -> u64 {
    static HAS_BEGUN: AtomicBool = AtomicBool::new(false);
    // Not waited for: the C library may hold it up for the length of a fork, whose
    // child would then wait for ever.
    if !HAS_BEGUN.load(Ordering::Relaxed) && !HAS_BEGUN.swap(true, Ordering::Relaxed) {
        begin();
    }
    FORKS.load(Ordering::Relaxed)
}

/// Which cannot fail but for want of memory: then forks are not known.
#[cold]
fn begin() {
    type Handler = Option<extern "C" fn()>;
    unsafe extern "C" {
        safe fn pthread_atfork(before: Handler, in_parent: Handler, in_child: Handler) -> c_int;
    }
    // Before the copy is made, and after it: what is opened between is taken for a file
    // that may have been copied.
    let _ = pthread_atfork(Some(count), Some(count), None);
}

extern "C" fn count() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
