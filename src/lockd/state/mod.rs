//! The holders of locks and the requests that wait for them, in one daemon.
//!
//! I1. One holder. A resource is granted to one request at a time, and to the next only
//!     behind the end of the last. The store takes both in this order. It grants nothing
//!     while the file of the lock is still there.
//! I2. Waiters are served in the order of their requests. One try never overtakes a waiter.
//! I3. Nothing is answered before the store has it (S1). The books are ahead of the store.
//!     What the store could not do is taken back.
//! I4. A grant whose answer did not reach its client is undone: the client was gone before
//!     the answer came. A client that may have read the answer keeps the grant.
//! I5. A request that is repeated by its id is one request. It has one place in the queue
//!     and one grant. The lease of the grant runs from the repetition. A waiter that loses
//!     its connection is passed over, and has its place again if it comes back soon
//!     (`absent`).
//! I6. A lease runs on `CLOCK_BOOTTIME`, from its grant or renewal here. So it is never
//!     shorter than its holder counts, as the holder began before. After a restart it runs
//!     its whole length again.
//! I7. When the directory's own lock is lost, or the journal, nothing is granted or ended
//!     any more. The lock is looked at before each batch, and now and then. An event would
//!     wake the daemon for each change of its own.

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
