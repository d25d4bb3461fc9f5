//! Which process is this? Asked at every step that a forked child must not take
//! for its parent.

/// What tells a process from the children it forked: its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessKey {
    pub(crate) pid: u32,
}

/// This process. The system is asked each time: a child must not find what its parent
/// remembered.
pub(crate) fn this_process() -> ProcessKey {
    ProcessKey { pid: std::process::id() }
}

/// There are none.
pub(crate) fn pid_namespace() -> Option<u64> {
    None
}
