//! What names one hold of a lock.

use std::fmt;
use std::str::FromStr;

/// 128 random bits, new for each hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct HoldId(pub(crate) u128);

impl fmt::Display for HoldId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", self.0)
    }
}

impl fmt::Debug for HoldId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for HoldId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.as_bytes().iter().all(is_hex) {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(HoldId).map_err(|_| ())
    }
}
