//! What runs in `exit`.

/// Whether the system tells a program of its exit.
pub(crate) const HAS_EXIT_HANDLERS: bool = true;

/// Have this run in `exit`; whether that could be arranged. A forked child has the
/// handlers of its parent.
// std offers no exit handler; C's is given a function and cannot fail but for
// want of memory.
#[allow(unsafe_code)]
pub(crate) fn at_exit(handler: extern "C" fn()) -> bool {
    unsafe extern "C" {
        safe fn atexit(handler: extern "C" fn()) -> std::ffi::c_int;
    }
    atexit(handler) == 0
}
