//! Keys: whose they are, and what they are called.

use std::fmt;

use crate::lock::error::Error;

/// Below the prefix: what belongs to sessions and not to a lock.
const OWN: &str = ".lockkeeper";

/// A longer name is some mistake; etcd itself takes 1.5 MiB.
const NAME_MAX_BYTES: usize = 1024;

/// The key by which a lock is held, for transactions of the holder's own.
///
/// With `create_revision(key) = create_revision` as a comparison, they change nothing once the
/// lock is lost. No other fence is as good where the data is in etcd itself.
///
/// ```
/// use lockkeeper::EtcdGuard;
///
/// fn comparison(guard: &EtcdGuard) -> String {
///     let key = guard.key();
///     format!("create({:?}) = \"{}\"", key.name(), key.create_revision())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EtcdKey {
    pub(super) name: String,
    pub(super) create_revision: i64,
    pub(super) lease: i64,
}

impl EtcdKey {
    /// The key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The revision at which it was made.
    #[must_use]
    pub fn create_revision(&self) -> i64 {
        self.create_revision
    }

    /// The lease that it lives with.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.lease
    }
}

/// As etcdctl takes it in a transaction.
impl fmt::Display for EtcdKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "create({:?}) = \"{}\"", self.name, self.create_revision)
    }
}

/// What the keys of one lock begin with, up to and with the `/`. (M3)
pub(super) fn queue(prefix: &str, name: &str, raw_key: Option<&str>) -> Result<String, Error> {
    let wrong = |why: &str| {
        let why = format!("{name:?} cannot be used: {why}");
        Err(Error::InvalidOption { option: "name", why })
    };
    match name {
        _ if name.trim().is_empty() => wrong("it is empty"),
        OWN | "." | ".." => wrong("it has a meaning of its own"),
        _ if name.contains('/') => {
            wrong("a / would make it part of another lock's queue: use the prefix for folders")
        }
        _ if name.chars().any(char::is_control) => wrong("it has control characters"),
        _ if name.len() > NAME_MAX_BYTES => wrong("it has more than 1024 bytes"),
        _ => Ok(raw_key.map_or_else(|| format!("{prefix}{name}/"), |key| format!("{key}/"))),
    }
}

/// S. (M1)
pub(super) fn session(prefix: &str, lease: i64) -> String {
    format!("{prefix}{OWN}/{lease:x}")
}

/// K: no acquisition has it but the one that drew this number. (M3)
pub(super) fn place(queue: &str, lease: i64, owner: u64) -> String {
    format!("{queue}{lease:x}-{owner:016x}")
}

/// The end of the range of all keys that begin so.
pub(super) fn range_end(queue: &str) -> Vec<u8> {
    let mut end = queue.as_bytes().to_vec();
    // It ends with a /, which has a successor.
    *end.last_mut().expect("BUG: a queue without a name") += 1;
    end
}

/// The end of a range that has this key as its last.
pub(super) fn just_behind(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_part_of_a_key() {
        assert_eq!(queue("jobs/", "import", None).unwrap(), "jobs/import/");
        assert_eq!(queue("jobs/", "import", Some("/a/b")).unwrap(), "/a/b/");
        let long = "n".repeat(NAME_MAX_BYTES + 1);
        for name in ["", " ", "a/b", "/", ".lockkeeper", ".", "..", "a\nb", "a\0", &long] {
            let error = queue("", name, None).unwrap_err().to_string();
            assert!(error.contains("cannot be used"), "{name:?}: {error}");
        }
    }

    #[test]
    fn the_range_of_a_queue_is_its_keys_and_no_others() {
        let (begin, end) = (b"a/".to_vec(), range_end("a/"));
        for (key, is_in) in
            [("a/", true), ("a/x", true), ("a/x/y", true), ("a", false), ("a0", false)]
        {
            assert_eq!((&begin[..]..&end[..]).contains(&key.as_bytes()), is_in, "{key}");
        }
    }
}
