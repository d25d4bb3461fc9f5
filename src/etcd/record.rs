//! What a key says of its owner: JSON of ours, and anything at all of others.

#![expect(clippy::disallowed_methods, reason = "the time of day is shown to people")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::wire::KeyValue;
use crate::lock::holder::{Evidence, Holder};
use crate::sys::program;

/// A longer value is no record. If larger, another program can have more memory used here.
const RECORD_MAX_BYTES: usize = 8192;

/// What is shown of a note. If larger, one holder fills a screen.
const NOTE_MAX_BYTES: usize = 1024;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    name: String,
    pid: u32,
    host: String,
    /// When it was asked for, in milliseconds since 1970 by the owner's clock.
    since_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// The holder is asked to release.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_revoked: bool,
}

impl Record {
    pub(super) fn of_this_process(name: Option<&str>, note: Option<&str>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let host = crate::sys::host::name();
        Self {
            name: name.map_or_else(program::my_name, program::program_name),
            pid: std::process::id(),
            host: program::host_name(&host),
            since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            note: note.map(|note| program::one_line(note, NOTE_MAX_BYTES)),
            is_revoked: false,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: a record that is no JSON")
    }

    /// `None` for a value that another program wrote.
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        if value.len() > RECORD_MAX_BYTES {
            return None;
        }
        serde_json::from_slice(value).ok()
    }

    pub(super) fn is_revoked(value: &[u8]) -> bool {
        Self::read(value).is_some_and(|record| record.is_revoked)
    }

    pub(super) fn revoked(self) -> Self {
        Self { is_revoked: true, ..self }
    }
}

/// The owner of a key, as far as it can be told. What was written elsewhere is cut and
/// made one line.
pub(super) fn holder(key: &KeyValue, queue: &str) -> Holder {
    let id = key.key.strip_prefix(queue.as_bytes()).unwrap_or(&key.key);
    let id = program::one_line(&String::from_utf8_lossy(id), NOTE_MAX_BYTES);
    match Record::read(&key.value) {
        Some(record) => Holder {
            pid: Some(record.pid),
            name: Some(program::program_name(&record.name)),
            host: Some(program::host_name(&record.host)),
            since: UNIX_EPOCH.checked_add(Duration::from_millis(record.since_ms)),
            note: record.note.map(|note| program::one_line(&note, NOTE_MAX_BYTES)),
            hold_id: Some(id),
            ..Holder::nobody(Evidence::Server)
        },
        None => Holder {
            name: Some(format!("a client of etcd with the lease {:x}", key.lease)),
            ..Holder::nobody(Evidence::Server)
        },
    }
}

/// Why no contender may wait for this key to go. (M5)
pub(super) fn why_foreign(key: &KeyValue, queue: &str) -> Option<&'static str> {
    let id = key.key.strip_prefix(queue.as_bytes()).unwrap_or_default();
    if key.lease == 0 {
        Some("it has no lease, so it stays for ever")
    } else if id.is_empty() || id.contains(&b'/') {
        Some("it is the key of another lock, whose name has a / in it")
    } else {
        None
    }
}

/// A key as it may be shown.
pub(super) fn shown_key(key: &[u8]) -> String {
    program::one_line(&String::from_utf8_lossy(key), NOTE_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &[u8]) -> KeyValue {
        KeyValue { key: b"a/7-1".to_vec(), value: value.to_vec(), lease: 7, ..KeyValue::default() }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record::of_this_process(Some("wo\nrk"), Some("two\nlines"));
        let found = holder(&key(&record.to_bytes()), "a/");
        assert_eq!(found.pid, Some(std::process::id()));
        assert_eq!(found.name.as_deref(), Some("work"));
        assert_eq!(
            (found.note.as_deref(), found.hold_id.as_deref()),
            (Some("twolines"), Some("7-1"))
        );
        assert!(!Record::is_revoked(&record.to_bytes()));
        assert!(Record::is_revoked(&record.revoked().to_bytes()));
    }

    #[test]
    fn what_another_program_wrote_names_its_lease_alone() {
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(RECORD_MAX_BYTES));
        for value in ["", "{}", "\u{1b}[31m", "{\"pid\":-1}", "[1]", &long] {
            let found = holder(&key(value.as_bytes()), "a/");
            assert_eq!(found.name.as_deref(), Some("a client of etcd with the lease 7"), "{value}");
            assert!(found.is_foreign());
        }
    }

    #[test]
    fn no_control_character_is_shown() {
        let hostile = br#"{"name":"a\u001b[31m","pid":1,"host":"h\nh","since_ms":18446744073709551615,"note":"\u0007"}"#;
        let shown = holder(&key(hostile), "a/").to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }
}
