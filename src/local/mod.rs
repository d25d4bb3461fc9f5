//! What the locks of one machine share: whose turn it is in this process, what a
//! contender waits for, and where system calls run.

pub(crate) mod deadline;
pub(crate) mod endurance;
pub(crate) mod executor;
pub(crate) mod follow_predecessors;
mod handoff_expiry;
pub(crate) mod hold_id;
pub(crate) mod jitter;
pub(crate) mod options;
pub(crate) mod path_check;
pub(crate) mod task_queue;
pub(crate) mod timer;
pub(crate) mod wakeup;
pub(crate) mod yield_cpu;
