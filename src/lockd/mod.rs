//! A lock daemon: long-lived locks that are files in a directory, over HTTP.
//!
//! The daemon speaks the XML-RPC of gocept.lockd and keeps its files,
//! `<resource>.resource.lock` with the client's name in it. So clients and a directory with
//! held locks can change over, and back. Beside that it speaks JSON, with waiting, leases
//! and fencing tokens.
//!
//! # How it differs from gocept.lockd
//!
//! A table at the head of `src/lockd/xmlrpc/mod.rs` has the differences on the wire. They
//! are mainly faults of our own, with clear texts, where the original answers with an
//! error of Python. And:
//!
//! * What was answered with success is on disk. A second daemon on one directory is
//!   refused, and names the first.
//! * On a full disk a lock is refused and leaves nothing; unlocking works.
//! * White space around a client's name does not count, on either side. The
//!   original strips it on one side only, so that `"c "` cannot unlock its lock.
//! * Only text can be a client's name; the original stores what nil or a number
//!   leaves behind, which no client can unlock.
//! * A resource's name that is not plainly safe (slash, `%`, leading dot, control
//!   characters) is percent-encoded in the file's name. Nothing outside the directory is
//!   ever touched. A file `a%2Fb.resource.lock` that the original made is therefore the
//!   resource `a/b`.
//! * A file that names no client (empty, torn, a link, a directory) is reported and not
//!   guessed about; an administrator can unlock it by force.
//! * A lock file that was removed by hand counts as unlocked from the next
//!   request on; a change of its content by hand counts after a restart.
//! * After a power cut this daemon must be started before the original: until a
//!   graceful stop only its journal is synced. It puts the files right.
//! * A directory that has lost something of the daemon's own is not served until the
//!   loss is accepted: `serve --accept-damage`, [`ServerOptions::accept_damage`].
//! * Files beside the locks that are called `.lockkeeper-…` are the daemon's own.
//!   A few of them are files of locks that ended, kept for the same client's next.
//! * An idle or slow connection holds up no other, and a client that is gone holds and
//!   waits for nothing.
//!
//! How it is run is in [`daemon`](crate::_docs::daemon), how it stands behind nginx or
//! HAProxy in [`behind_a_proxy`](crate::_docs::behind_a_proxy), and how its directory is
//! copied and restored in [`backup_and_restore`](crate::_docs::backup_and_restore).

mod histogram;
pub(crate) mod http;
pub(crate) mod name;
mod server;
pub(crate) mod state;
mod store;
pub(crate) mod xmlrpc;

pub use server::{Reloader, Server, ServerError, ServerOptions};
pub use state::OpenError;
pub use xmlrpc::FaultStyle;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use xmlrpc::read_anything;
