//! A clock that is read often.
#![allow(unsafe_code)]

use windows_sys::Win32::System::SystemInformation::GetTickCount64;

/// Milliseconds, by a clock that costs less than it errs: some 16 of them.
pub(crate) fn coarse_milliseconds() -> u64 {
    // SAFETY: the call takes nothing.
    unsafe { GetTickCount64() }
}
