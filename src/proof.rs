//! Ways to break the protocol on purpose, so that the tests that look for two
//! holders can be shown to find them. Compiled to nothing without
//! `--cfg lockkeeper_proof`.

/// A rule of the protocol that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(lockkeeper_proof), allow(dead_code))]
pub(crate) enum Mutant {
    /// Lock the inode and do not look whether the path still names it.
    NoInodeCheck,
    /// Unlock and close before the path is unlinked.
    CloseBeforeUnlink,
    /// Give the candidate its name before it is locked.
    PinAfterLink,
    /// Portable: claim a stale file and do not look whether it is still there.
    NoLookAfterClaim,
}

#[cfg(not(lockkeeper_proof))]
mod switch {
    use super::Mutant;

    #[inline(always)]
    pub(crate) const fn is_on(_: Mutant) -> bool {
        false
    }

    #[inline(always)]
    pub(crate) const fn step() {}
}

#[cfg(lockkeeper_proof)]
mod switch {
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::Mutant;

    /// From `LOCKKEEPER_MUTANT`: `no-inode-check`, `close-before-unlink`,
    /// `pin-after-link` or `no-look-after-claim`.
    static MUTANT: LazyLock<Option<Mutant>> = LazyLock::new(|| {
        let name = std::env::var("LOCKKEEPER_MUTANT").ok()?;
        Some(match name.as_str() {
            "no-inode-check" => Mutant::NoInodeCheck,
            "close-before-unlink" => Mutant::CloseBeforeUnlink,
            "pin-after-link" => Mutant::PinAfterLink,
            "no-look-after-claim" => Mutant::NoLookAfterClaim,
            other => panic!("LOCKKEEPER_MUTANT: no mutant {other:?}"),
        })
    });

    /// From `LOCKKEEPER_DELAY_US`: the longest random delay before each step.
    static DELAY_US: LazyLock<u64> = LazyLock::new(|| {
        let text = std::env::var("LOCKKEEPER_DELAY_US").unwrap_or_else(|_| "0".to_owned());
        text.parse().expect("LOCKKEEPER_DELAY_US is a number of microseconds")
    });

    pub(crate) fn is_on(mutant: Mutant) -> bool {
        *MUTANT == Some(mutant)
    }

    /// Most steps go through at once and a few wait long: that is what puts
    /// processes into each other's windows.
    pub(crate) fn step() {
        if *DELAY_US == 0 {
            return;
        }
        let mut bits = [0; 8];
        rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty())
            .expect("BUG: no random bits");
        let bits = u64::from_ne_bytes(bits);
        if bits % 4 == 0 {
            std::thread::sleep(Duration::from_micros((bits >> 8) % *DELAY_US));
        }
    }
}

pub(crate) use switch::{is_on, step};
