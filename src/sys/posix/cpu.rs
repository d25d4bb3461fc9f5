//! The processor that a thread is on.

/// `sched_yield(2)`.
pub(crate) fn give_way() {
    rustix::thread::sched_yield();
}
