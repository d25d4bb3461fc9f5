//! Who holds what and who waits, in one daemon.
//!
//! I1. One holder. A resource is given to one request at a time, and to the
//!     next only behind the end of the last: the store takes them in this
//!     order, and gives nothing whose file is still there.
//! I2. Who waits is served in the order in which it asked; one try never
//!     overtakes one who waits.
//! I3. Nothing is answered before the store has it (S1). The books are ahead
//!     of the store; what it could not do is taken back.
//! I4. A grant that nobody heard of is undone: its client was gone before the
//!     answer came there. A client that may have read the answer keeps it.
//! I5. A request that is repeated by its id is one request: it has one place
//!     in the queue and one grant, which is given once, and the lease of the
//!     grant runs from the repetition. A client that loses its connection while
//!     it waits is passed over, and has its place again if it comes back soon
//!     (`absent`).
//! I6. A lease runs on `CLOCK_BOOTTIME` and from when it was granted or
//!     renewed here, so never shorter than its holder counts, who began before.
//!     After a restart it runs its whole length again.
//! I7. When the directory's own lock is lost, or the journal, nothing is
//!     given or ended any more. Whether it is lost is looked at before each
//!     batch, and now and then: to be told by events would be to be woken by
//!     each change of one's own.

mod absent;
mod api;
mod audit;
mod books;
mod finished;
mod lock_table;
mod opening;
mod resource;
mod usage;
mod writer;

pub use api::OpenError;
pub(crate) use api::{
    GrantReply, LockRequest, LockStatus, LockTableOptions, Refusal, Survey, TIME_BOUNDS, WaitLimit,
    in_directory,
};
pub(crate) use audit::{Credential, RefusedRequest, Requester};
pub(crate) use lock_table::LockTable;
