//! What locks of a server share, whatever the server.
//!
//! L1. One thread of this process, `lockkeeper-io`, owns connections, renewals,
//!     deadlines and releases. So a caller's runtime may be blocked, dropped or one of
//!     several.
//! L2. A forked child has a thread of its own, made at its first request. What
//!     its parent left in memory stays untouched there: no byte is sent, no
//!     descriptor is closed, no lock of the parent's threads is waited for.
//! L3. The holder is notified before the server gives the lock to another. A lease may be
//!     relied on up to D, counted from before the request was sent that began or renewed
//!     it (see `renewal`). Unknown is neither renewed nor lost.
//! L4. What is lost stays lost, whatever the server says later.

mod background;
mod contender;
mod heard_out;
mod io;
mod per_process;
mod renewal;
mod retry;
#[cfg(any(feature = "etcd", feature = "postgres"))]
mod shown;
mod socket;
mod tls;
mod watch;

pub(crate) use background::Background;
#[cfg(any(feature = "etcd", feature = "postgres"))]
pub(crate) use contender::unless_gone;
pub(crate) use contender::{Acquiring, Contender, Decided, Gone, RESPONSE_LIMIT, Target, WaitEnd};
#[cfg(any(feature = "etcd", feature = "postgres"))]
pub(crate) use heard_out::HeardOut;
#[cfg(any(feature = "etcd", feature = "postgres"))]
pub(crate) use io::Running;
pub(crate) use io::io;
pub(crate) use per_process::PerProcess;
#[cfg(any(feature = "etcd", feature = "lockd-client"))]
pub(crate) use renewal::RENEWED_AFTER;
pub(crate) use renewal::{LeaseState, Over, Renewal};
pub(crate) use retry::{Exhausted, Patience};
#[cfg(any(feature = "etcd", feature = "postgres"))]
pub(crate) use shown::shown;
pub(crate) use socket::Socket;
pub(crate) use tls::{OptionNames, Outlook, Remedies, Tls, TlsError, Trust, explained};
pub(crate) use watch::{End, Latest, Watched, Watcher};
