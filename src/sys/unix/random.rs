//! Random bits from the kernel.

#![expect(clippy::disallowed_methods, reason = "the room of random bits")]
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;

use nix::libc;

use super::files::Errno;

/// `getentropy` gives no more at a time.
const MOST_AT_ONCE: usize = 256;

/// Fill `bits`, by `getentropy`, which needs no descriptor. Where a sandbox refuses that,
/// they come from `/dev/urandom`.
///
/// # Errors
/// What the system says to both.
pub(crate) fn fill(bits: &mut [u8]) -> Result<(), Errno> {
    for part in bits.chunks_mut(MOST_AT_ONCE) {
        // SAFETY: these are as many bytes as are told, and all may be written.
        if unsafe { libc::getentropy(part.as_mut_ptr().cast(), part.len()) } != 0 {
            from_device(part)?;
        }
    }
    Ok(())
}

/// Random bits, if some can be had without waiting: the system has them from the first
/// moments of a boot on.
pub(crate) fn fill_at_once(bits: &mut [u8]) -> Result<(), Errno> {
    fill(bits)
}

/// `read_exact` goes on after signals.
#[cold]
fn from_device(bits: &mut [u8]) -> Result<(), Errno> {
    let read = File::open("/dev/urandom").and_then(|mut device| device.read_exact(bits));
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
