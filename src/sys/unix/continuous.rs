//! A clock that goes on while the machine sleeps.

use std::time::Duration;

use nix::libc;
use nix::time::ClockId;

/// `mach_continuous_time`. Under this name Apple's C library has it.
const CONTINUOUS: ClockId = ClockId::from_raw(libc::CLOCK_MONOTONIC_RAW);

pub(crate) fn time() -> Duration {
    CONTINUOUS.now().expect("BUG: the system has no such clock").into()
}
