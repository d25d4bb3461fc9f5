//! Locks that a lock daemon keeps, for the machines that can reach it.
//!
//! R1. A clock says what is held. A lease counts here from before the request was sent
//!     that began or renewed it, and at the daemon from when that request came: so it
//!     ends here first (`lease::renewal`).
//! R2. A request for a lock has one id, however often it is sent: it is granted once.
//! R3. No grant is left over. A caller that stops asking closes the connection for
//!     writing and reads what was on its way; a grant is released. Where the response
//!     was lost, it is asked for again by its id, without waiting.
//! R4. Every request can be repeated: a lock by its id, the rest by the token. So a
//!     request without a response is sent again.
//! R5. What is lost stays lost, whatever the daemon says later.
//! R6. Requests, renewals, deadlines and releases belong to the thread of
//!     `lease::io`, never to a caller's runtime.
//! R7. A forked child holds no lock of its parent and uses none of its connections. It
//!     makes its own.

mod acquire;
mod as_lock;
mod connection;
mod endpoint;
mod event_stream;
mod guard;
mod hang_up;
mod hold;
mod lock;
mod no_response;
mod options;
mod response;
mod status;
mod target;
mod watch;

#[cfg(feature = "cli")]
pub(crate) use endpoint::Endpoint;
pub use guard::RemoteGuard;
#[cfg(feature = "cli")]
pub(crate) use hang_up::HangUp;
pub use lock::AsyncRemoteLock;
pub use options::RemoteOptions;
#[cfg(feature = "cli")]
pub(crate) use response::{Response, is_passing};
