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
    /// Take over what the second opening found without locking it again: the
    /// probe found it dead.
    TakeOverUnlocked,
    /// Take over what the second opening found without looking whether the
    /// path still names it.
    NoSecondLook,
    /// Unlink whatever the path names when it is released.
    UnlinkUnseen,
    /// Portable: claim a stale file and do not look whether it is still there.
    NoLookAfterClaim,
    /// Portable: give the claim back before the stale file is replaced.
    ClaimRemovedFirst,
    /// Portable: unlink a dead process's claim instead of claiming it.
    DeadClaimUnlinked,
    /// Sweep every claim that is not on what the path names.
    SweepByPathOnly,
    /// Next to openlock: do not wait before the second look.
    NoProbation,
    /// Where there are no hard links: move the candidate to the path whatever is there.
    RenameOver,
}

impl Mutant {
    /// With the names that `LOCKKEEPER_MUTANT` knows them by.
    #[cfg(lockkeeper_proof)]
    pub(crate) const ALL: [(&'static str, Mutant); 12] = [
        ("no-inode-check", Mutant::NoInodeCheck),
        ("close-before-unlink", Mutant::CloseBeforeUnlink),
        ("pin-after-link", Mutant::PinAfterLink),
        ("take-over-unlocked", Mutant::TakeOverUnlocked),
        ("no-second-look", Mutant::NoSecondLook),
        ("unlink-unseen", Mutant::UnlinkUnseen),
        ("no-look-after-claim", Mutant::NoLookAfterClaim),
        ("claim-removed-first", Mutant::ClaimRemovedFirst),
        ("dead-claim-unlinked", Mutant::DeadClaimUnlinked),
        ("sweep-by-path-only", Mutant::SweepByPathOnly),
        ("no-probation", Mutant::NoProbation),
        ("rename-over", Mutant::RenameOver),
    ];
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
    use std::cell::Cell;
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::Mutant;

    /// From `LOCKKEEPER_MUTANT`, one of the names of [`Mutant::ALL`].
    static MUTANT: LazyLock<Option<Mutant>> = LazyLock::new(|| {
        let name = std::env::var("LOCKKEEPER_MUTANT").ok()?;
        let found = Mutant::ALL.iter().find(|(known, _)| *known == name);
        Some(found.unwrap_or_else(|| panic!("LOCKKEEPER_MUTANT: no mutant {name:?}")).1)
    });

    thread_local! {
        /// On this thread, whatever the environment says.
        static OVERRIDE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Break the protocol on this thread while `run` runs.
    #[cfg(test)]
    pub(crate) fn with<T>(mutant: Mutant, run: impl FnOnce() -> T) -> T {
        OVERRIDE.set(Some(mutant));
        let result = run();
        OVERRIDE.set(None);
        result
    }

    /// From `LOCKKEEPER_DELAY_US`: the longest random delay before each step.
    static DELAY_US: LazyLock<u64> = LazyLock::new(|| {
        let text = std::env::var("LOCKKEEPER_DELAY_US").unwrap_or_else(|_| "0".to_owned());
        text.parse().expect("LOCKKEEPER_DELAY_US is a number of microseconds")
    });

    pub(crate) fn is_on(mutant: Mutant) -> bool {
        OVERRIDE.get().or(*MUTANT) == Some(mutant)
    }

    /// Most steps go through at once and a few wait long: that is what puts
    /// processes into each other's windows.
    pub(crate) fn step() {
        if *DELAY_US == 0 {
            return;
        }
        let mut bits = [0; 8];
        crate::sys::random::fill(&mut bits).expect("BUG: no random bits");
        let bits = u64::from_ne_bytes(bits);
        if bits % 4 == 0 {
            std::thread::sleep(Duration::from_micros((bits >> 8) % *DELAY_US));
        }
    }
}

#[cfg(all(test, lockkeeper_proof))]
pub(crate) use switch::with;
pub(crate) use switch::{is_on, step};
