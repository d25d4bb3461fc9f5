//! Advisory locks: what they are called, and in which mode they are held.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::lock::error::Error;

/// What is hashed before the name, so that no other use of the hash gives the same key.
const DOMAIN: &[u8] = b"lockkeeper postgres lock 1\0";

/// A longer name is some mistake.
const NAME_MAX_BYTES: usize = 1024;

/// The key of an advisory lock. Both forms exclude nothing of the other.
///
/// ```
/// use lockkeeper::AsyncPostgresLock;
///
/// let lock = AsyncPostgresLock::new("host=db dbname=app user=app", "import")?;
/// // For `pg_advisory_xact_lock` in a transaction of one's own, through any pooler.
/// assert_eq!(lock.key().to_string(), "-3844359319230631340");
/// # Ok::<(), lockkeeper::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockKey {
    /// As in `pg_advisory_lock(key)`.
    One(i64),
    /// As in `pg_advisory_lock(class, object)`.
    Two(i32, i32),
}

impl LockKey {
    /// # Errors
    /// [`Error::InvalidOption`]: a name is not empty and has no control characters.
    pub(super) fn of_name(name: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::InvalidOption { option: "name", why: why.to_owned() };
        if name.is_empty() {
            return Err(wrong("it is empty"));
        }
        if name.len() > NAME_MAX_BYTES {
            return Err(wrong("it is longer than 1024 bytes"));
        }
        if name.chars().any(char::is_control) {
            return Err(wrong("it has a control character in it"));
        }
        let hash = Sha256::new().chain_update(DOMAIN).chain_update(name).finalize();
        let first: [u8; 8] = hash[..8].try_into().expect("BUG: a short hash");
        Ok(Self::One(i64::from_be_bytes(first)))
    }

    /// As functions of PostgreSQL take it.
    pub(super) fn arguments(self) -> String {
        match self {
            // Quoted: the lowest number is none without its sign.
            Self::One(key) => format!("'{key}'::pg_catalog.int8"),
            Self::Two(class, object) => {
                format!("'{class}'::pg_catalog.int4, '{object}'::pg_catalog.int4")
            }
        }
    }

    /// The same, of the parameter `$1` that has the key of the row.
    pub(super) fn of_parameter(self) -> &'static str {
        match self {
            Self::One(_) => "$1",
            // Its halves, with their signs.
            Self::Two(..) => "($1 >> 32)::pg_catalog.int4, ($1 << 32 >> 32)::pg_catalog.int4",
        }
    }

    /// `classid`, `objid` and `objsubid` of `pg_locks`, where keys have no sign.
    pub(super) fn shown(self) -> (u32, u32, i16) {
        match self {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "halves")]
            Self::One(key) => ((key as u64 >> 32) as u32, key as u32, 1),
            Self::Two(class, object) => (unsigned(class), unsigned(object), 2),
        }
    }

    /// The key of its row: which form, and the key or both.
    pub(super) fn row(self) -> (i16, i64) {
        match self {
            Self::One(key) => (1, key),
            Self::Two(class, object) => (2, i64::from(class) << 32 | i64::from(unsigned(object))),
        }
    }
}

/// The same bits. `i32::cast_unsigned` is younger than the oldest Rust of this crate.
#[expect(clippy::cast_sign_loss, reason = "the bits are what is wanted")]
fn unsigned(number: i32) -> u32 {
    number as u32
}

/// As functions of PostgreSQL take it, in SQL.
impl fmt::Display for LockKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::One(i64::MIN) => write!(out, "'{}'", i64::MIN),
            Self::One(key) => write!(out, "{key}"),
            Self::Two(class, object) => {
                // The lowest number is none without its sign.
                let shown = |key| match key {
                    i32::MIN => format!("'{key}'"),
                    _ => key.to_string(),
                };
                write!(out, "{}, {}", shown(class), shown(object))
            }
        }
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Exclusive,
    Shared,
}

impl Mode {
    /// What the names of PostgreSQL's functions end with.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Mode::Exclusive => "",
            Mode::Shared => "_shared",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_same_key_for_ever() {
        let key = |name| LockKey::of_name(name).expect("a name");
        assert_eq!(key("import"), LockKey::One(-3_844_359_319_230_631_340));
        assert_ne!(key("import"), key("Import"));
        for wrong in ["", "a\nb", &"x".repeat(1025)] {
            assert!(LockKey::of_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn halves_are_shown_without_a_sign() {
        assert_eq!(LockKey::One(-1).shown(), (u32::MAX, u32::MAX, 1));
        assert_eq!(LockKey::One(1 << 32 | 7).shown(), (1, 7, 1));
        assert_eq!(LockKey::Two(-1, 2).shown(), (u32::MAX, 2, 2));
        assert_eq!(LockKey::Two(-1, -2).row(), (2, -2));
    }
}
