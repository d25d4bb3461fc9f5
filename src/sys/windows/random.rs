//! Random bits from the system.
#![allow(unsafe_code)]

use windows_sys::Win32::Security::Cryptography::{
    BCRYPT_USE_SYSTEM_PREFERRED_RNG, BCryptGenRandom,
};

use super::files::Errno;

/// Fill `bits`. This waits for nothing.
///
/// # Errors
/// [`Errno::IO`] if the system has no generator that works.
pub(crate) fn fill(bits: &mut [u8]) -> Result<(), Errno> {
    let length = u32::try_from(bits.len()).map_err(|_| Errno::INVAL)?;
    let (any, buffer) = (std::ptr::null_mut(), bits.as_mut_ptr());
    // SAFETY: the buffer has that length.
    let status = unsafe { BCryptGenRandom(any, buffer, length, BCRYPT_USE_SYSTEM_PREFERRED_RNG) };
    if status >= 0 { Ok(()) } else { Err(Errno::IO) }
}

/// Random bits, if some can be had without waiting.
pub(crate) fn fill_at_once(bits: &mut [u8]) -> Result<(), Errno> {
    fill(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        let [mut one, mut other] = [[0; 16]; 2];
        fill(&mut one).unwrap();
        fill(&mut other).unwrap();
        assert_ne!(one, other);
    }
}
