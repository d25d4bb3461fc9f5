//! Random bits from the kernel.

#![expect(clippy::disallowed_methods, reason = "the room of random bits")]

use std::fs::File;
use std::io::Read;

use rustix::rand::{GetRandomFlags, getrandom};

use super::files::{self, Errno};

/// Fill `bits`. A process waits for random bits at most in the first moments of a
/// boot, getrandom(2). Where a sandbox or an old kernel refuses that call, they come
/// from `/dev/urandom`, as Rust's own library has it.
///
/// # Errors
/// What the kernel says to both.
pub(crate) fn fill(bits: &mut [u8]) -> Result<(), Errno> {
    let mut filled = 0;
    while filled < bits.len() {
        match files::call(|| getrandom(&mut bits[filled..], GetRandomFlags::empty())) {
            Ok(more) => filled += more,
            Err(_) => return from_device(&mut bits[filled..]),
        }
    }
    Ok(())
}

/// Random bits, if some can be had without waiting.
pub(crate) fn fill_at_once(bits: &mut [u8]) -> Result<(), Errno> {
    getrandom(bits, GetRandomFlags::NONBLOCK).map(drop)
}

/// `read_exact` goes on after signals.
#[cold]
fn from_device(bits: &mut [u8]) -> Result<(), Errno> {
    let read = File::open("/dev/urandom").and_then(|mut device| device.read_exact(bits));
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
