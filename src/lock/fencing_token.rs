//! Numbers that order the holds of a lock.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A number that grows with each hold, by which storage refuses a late holder.
///
/// The holder gives the number to the storage with each write. Storage that has seen a
/// greater number refuses the smaller one.
///
/// Numbers compare within their domain, the server or cluster that counts them, as its URL
/// was written. Those of different domains do not compare: `partial_cmp` gives `None`, and
/// both `<` and `>=` are false. Storage asks [`is_older_than`](Self::is_older_than), which
/// is true wherever it is not known better.
#[doc(alias("fence", "epoch"))]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FencingToken {
    number: u64,
    domain: Arc<str>,
}

impl FencingToken {
    /// A number of this domain. Locks make their own; this is for tests of a storage.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::FencingToken;
    ///
    /// let token = FencingToken::new(7, "http://locks:8000");
    /// assert_eq!((token.number(), token.domain()), (7, "http://locks:8000"));
    /// ```
    #[must_use]
    pub fn new(number: u64, domain: &str) -> Self {
        Self { number, domain: domain.into() }
    }

    /// The number, to be stored with what the holder writes.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether storage that has seen the other one must refuse this one.
    ///
    /// That is so if this one is smaller, or cannot be compared.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::FencingToken;
    ///
    /// let first = FencingToken::new(7, "http://locks:8000");
    /// let second = FencingToken::new(8, "http://locks:8000");
    /// assert!(first.is_older_than(&second) && !second.is_older_than(&first));
    /// // What cannot be compared is refused.
    /// assert!(second.is_older_than(&FencingToken::new(1, "http://others:8000")));
    /// ```
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
