//! Locks that an etcd cluster keeps, for all machines that can reach it.
//!
//! A contender puts a key of its own below the lock's name, with the lease of its process.
//! The key with the lowest create revision is the holder's. So do etcdctl and Go's
//! `concurrency.Mutex`, and all of them take turns.
//!
//! M0. Requests, renewals, deadlines and deletes belong to the thread of `lease::io`.
//! M1. A process has one session for each [`EtcdLocks`]: a lease, and a key S that lives as
//!     long as it. The revision at which S was put is the *epoch*.
//! M2. The lease is kept alive each third of its length, by one request at a time, each on
//!     a stream of its own: answers carry no number. An answer that the lease is over is
//!     believed only if S is gone as well.
//! M3. The key K of an acquisition has a name that no other acquisition has. A
//!     transaction puts it only if it is new and the epoch is the one that is known.
//! M4. A request without a clear answer may be carried out, now or later. The same one is
//!     repeated; K then says whether it was.
//! M5. The holder is the key with the lowest create revision. A key that has no lease, or
//!     is deeper than the queue's keys, would be waited for for ever: it is an error.
//! M6. A waiter watches its own key and the next lower one, from the revision after it
//!     looked, in one range: so both deletes come in order. Where the lower one was the
//!     lowest, its delete is the grant. Else, and after every trouble, it looks.
//! M7. The holder checks D before it says that it holds, and watches K while it does.
//! M8. A contender or holder that gives up deletes K, and keeps the place in the process's
//!     queue until that is confirmed. A K that was clearly never put needs no delete, and
//!     keeps no place. If a put of K was unclear, S is put in the same transaction: the epoch
//!     changes, and every older put fails its comparison. Where no put is possible, S is
//!     deleted.
//! M9. A revision that goes back, or another cluster id, is an older state that was
//!     restored: what was held is lost. Between two sessions a member that was of the cluster
//!     may say that it is another one now. A member that never was of it is never used.
//! M10. An auth token that is over, or older than the users, is replaced by a login, once.
//!     A refusal of rights is final.
//! M11. The fencing token is the revision at which the lock was seen to be ours. It is
//!     greater than that at which any earlier holder left.

mod acquire;
mod as_lock;
mod client;
mod cluster;
mod connection;
mod endpoint;
mod failure;
mod guard;
mod hold;
mod key;
mod key_watch;
mod lock;
mod locks;
mod options;
mod place;
mod record;
mod session;
mod status;
mod target;
pub(crate) mod url;
mod watch;
mod wire;

pub use guard::EtcdGuard;
pub use key::EtcdKey;
pub use lock::AsyncEtcdLock;
pub use locks::EtcdLocks;
pub use options::EtcdOptions;
