//! sysctl(3): what the kernel tells by name.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::ptr;

use nix::libc;

/// More than any value that is asked for here has.
const BYTES_MAX: usize = 128;

/// The bytes of a value.
///
/// # Errors
/// What the kernel says, `ENOENT` of one that it does not know.
pub(super) fn read(name: &CStr) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0_u8; BYTES_MAX];
    let mut length = bytes.len();
    // SAFETY: the name ends with a zero, the kernel writes at most `length` bytes, and
    // nothing is set.
    let answer = unsafe {
        let into = bytes.as_mut_ptr().cast();
        libc::sysctlbyname(name.as_ptr(), into, &raw mut length, ptr::null_mut(), 0)
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// The same of a text, or of an identifier in bytes: these as hexadecimal digits.
pub(super) fn read_text(name: &CStr) -> io::Result<String> {
    let bytes = read(name)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = &bytes[..end];
    if !text.is_empty() && text.iter().all(u8::is_ascii_graphic) {
        return Ok(String::from_utf8_lossy(text).into_owned());
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What a number under these names is made of.
pub(super) fn read_struct<T: Copy, const N: usize>(mut name: [libc::c_int; N]) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>();
    // SAFETY: the kernel writes at most `length` bytes into the value.
    let answer = unsafe {
        let into = value.as_mut_ptr().cast();
        libc::sysctl(name.as_mut_ptr(), N as _, into, &raw mut length, ptr::null_mut(), 0)
    };
    match answer {
        // SAFETY: the values asked for are numbers and arrays of numbers, filled by the
        // kernel to the last byte.
        0 if length == size_of::<T>() => Ok(unsafe { value.assume_init() }),
        0 => Err(io::ErrorKind::NotFound.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
