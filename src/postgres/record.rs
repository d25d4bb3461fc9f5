//! What a row says of a holder: JSON of ours, and anything at all of others.

#![expect(clippy::disallowed_methods, reason = "the time of day is shown to people")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::lock::holder::{Evidence, Holder};
use crate::sys::program;

/// A longer text is no record. If larger, another program can have more memory used here.
const RECORD_MAX_BYTES: usize = 8192;

/// What is shown of a note. If larger, one holder fills a screen.
const NOTE_MAX_BYTES: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The lock's name, for those who read the table: its key is a hash.
    #[serde(default)]
    lock: String,
    name: String,
    pid: u32,
    host: String,
    /// When it was asked for, in milliseconds since 1970 by the owner's clock.
    since_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// What is written of this process.
pub(super) fn of_this_process(lock: &str, name: Option<&str>, note: Option<&str>) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let host = crate::sys::host::name();
    let record = Record {
        lock: lock.to_owned(),
        name: name.map_or_else(program::my_name, program::program_name),
        pid: std::process::id(),
        host: program::host_name(&host),
        since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        note: note.map(|note| program::one_line(note, NOTE_MAX_BYTES)),
    };
    serde_json::to_string(&record).expect("BUG: a record that is no JSON")
}

/// The owner of a row. What was written elsewhere is cut and made one line.
pub(super) fn holder(record: &str, owner: &str, evidence: Evidence) -> Option<Holder> {
    if record.len() > RECORD_MAX_BYTES {
        return None;
    }
    let record: Record = serde_json::from_str(record).ok()?;
    Some(Holder {
        pid: Some(record.pid),
        name: Some(program::program_name(&record.name)),
        host: Some(program::host_name(&record.host)),
        since: since(record.since_ms),
        note: record.note.map(|note| program::one_line(&note, NOTE_MAX_BYTES)),
        hold_id: Some(program::one_line(owner, NOTE_MAX_BYTES)),
        ..Holder::nobody(evidence)
    })
}

/// A moment, by milliseconds since 1970.
pub(super) fn since(ms: impl TryInto<u64>) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms.try_into().ok()?))
}

/// A statement of another program, in one line.
#[cfg(feature = "cli")]
pub(super) fn statement(text: &str) -> String {
    program::one_line(text, NOTE_MAX_BYTES)
}

/// A session of which only the server knows something.
pub(super) fn session(application: &str, user: &str, client: &str, pid: i32) -> Holder {
    let shown = |text: &str| program::one_line(text, NOTE_MAX_BYTES);
    let name = match (application, client) {
        ("", "") => format!("the session {pid} of {}", shown(user)),
        ("", client) => format!("the session {pid} of {} from {}", shown(user), shown(client)),
        (application, "") => {
            format!("the session {pid} of {} ({})", shown(user), shown(application))
        }
        (application, client) => format!(
            "the session {pid} of {} ({}) from {}",
            shown(user),
            shown(application),
            shown(client)
        ),
    };
    Holder { name: Some(name), ..Holder::nobody(Evidence::Server) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = of_this_process("import", Some("wo\nrk"), Some("two\nlines"));
        let found = holder(&record, "7f", Evidence::Server).expect("a record");
        assert_eq!(found.pid, Some(std::process::id()));
        assert_eq!((found.name.as_deref(), found.hold_id.as_deref()), (Some("work"), Some("7f")));
        assert_eq!(found.note.as_deref(), Some("twolines"));
    }

    #[test]
    fn what_another_program_wrote_is_no_record() {
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(RECORD_MAX_BYTES));
        for text in ["", "{}", "\u{1b}[31m", "{\"pid\":-1}", "[1]", &long] {
            assert_eq!(holder(text, "", Evidence::Server), None, "{text}");
        }
        let shown = session("a\u{1b}[31m", "b\n", "c\u{7}", 1).to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }
}
