//! A lock daemon: long-lived locks that are files in a directory, over HTTP.

pub(crate) mod engine;
pub(crate) mod http;
pub(crate) mod name;
mod server;
mod store;
pub(crate) mod xmlrpc;

pub use engine::OpenError;
pub use server::{Server, ServerError, ServerOptions};
pub use xmlrpc::FaultStyle;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use xmlrpc::read_anything;
