//! Random bits from the kernel.

#![expect(clippy::disallowed_methods, reason = "the room of random bits")]

use std::fs::File;
use std::io::Read;

use super::files::Errno;

/// Fill `bits` from `/dev/urandom`. `read_exact` goes on after signals.
///
/// # Errors
/// What opening or reading it came to.
pub(crate) fn fill(bits: &mut [u8]) -> Result<(), Errno> {
    let read = File::open("/dev/urandom").and_then(|mut device| device.read_exact(bits));
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Random bits, if some can be had without waiting.
pub(crate) fn fill_at_once(bits: &mut [u8]) -> Result<(), Errno> {
    fill(bits)
}
