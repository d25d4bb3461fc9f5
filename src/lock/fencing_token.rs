//! Numbers that order the holds of a lock.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A number that grows with each acquisition, for the storage that the holder writes to:
/// storage that has seen a greater number refuses the smaller one.
///
/// Numbers compare within their domain, the server or cluster that counts them, as its URL
/// was written. Those of different domains do not compare: `partial_cmp` gives `None`, and
/// both `<` and `>=` are false. Storage asks [`is_older_than`](Self::is_older_than), which
/// is true wherever it is not known better.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FencingToken {
    number: u64,
    domain: Arc<str>,
}

impl FencingToken {
    /// A number of this domain. Locks make their own; this is for tests of a storage.
    #[must_use]
    pub fn new(number: u64, domain: &str) -> Self {
        Self { number, domain: domain.into() }
    }

    /// The number, to be stored with what the holder writes.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether storage that has seen the other one is to refuse this: it is smaller, or
    /// cannot be compared.
    #[must_use]
    pub fn is_older_than(&self, seen: &Self) -> bool {
        !matches!(self.partial_cmp(seen), Some(Ordering::Equal | Ordering::Greater))
    }

    /// The server or cluster that counts.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }
}

impl PartialOrd for FencingToken {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.domain == other.domain).then(|| self.number.cmp(&other.number))
    }
}

/// The number.
impl fmt::Display for FencingToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(out)
    }
}
