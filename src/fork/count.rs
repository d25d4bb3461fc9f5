//! How often this process has forked, as far as the C library knows: a child that has
//! not executed a program has copies of all open files.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);

/// Another number after each fork than before it, once this was called.
pub(crate) fn forks() -> u64 {
    static BEGIN: Once = Once::new();
    BEGIN.call_once(begin);
    FORKS.load(Ordering::Relaxed)
}

/// Which cannot fail but for want of memory: then forks are not known.
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
