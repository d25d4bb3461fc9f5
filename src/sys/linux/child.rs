//! CMD: how it is started, what it inherits, and how it ends.

use std::ffi::OsString;
use std::io;

pub(crate) use crate::sys::posix::child::{
    ABOUT, Carrier, ask_to_end, code, exit_code, kill, pass_on, pass_on_anyway, start,
};

/// Replace this program by itself under another `argv[0]`, also if its file is gone; why
/// that failed.
pub(crate) fn start_again(name: &str, arguments: impl Iterator<Item = OsString>) -> io::Error {
    crate::sys::posix::child::start_again_as("/proc/self/exe".as_ref(), name, arguments)
}
