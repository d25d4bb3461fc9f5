//! systemd, which this system has not: nothing is told, and no socket is passed.

use std::io;
use std::net::TcpListener;

use crate::sys::no_listener::NoListener;

/// Tells nothing.
pub(crate) struct Notify;

impl Notify {
    /// `NOTIFY_SOCKET` in the environment would be of no systemd.
    pub(crate) fn from_environment() -> io::Result<Self> {
        Ok(Self)
    }

    /// It serves, or serves again.
    pub(crate) fn ready(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    /// It reads its files again.
    pub(crate) fn reloading(&self) -> io::Result<()> {
        Ok(())
    }

    /// It ends.
    pub(crate) fn stopping(&self) -> io::Result<()> {
        Ok(())
    }
}

/// No socket is passed.
pub(crate) fn listener() -> Result<Option<TcpListener>, NoListener> {
    Ok(None)
}
