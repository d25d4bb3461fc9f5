//! What an error says to people.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lockkeeper::Error;

#[test]
fn durations_are_rounded() {
    for (nanos, shown) in [
        (0, "0s"),
        (300_123, "0s"),
        (20_000_349, "20ms"),
        (999_999_999, "999ms"),
        (2_000_349_000, "2s"),
        (1_560_000_000, "1.5s"),
        (59_990_000_000, "59.9s"),
        (65_400_000_000, "1m 5s"),
        (7_200_000_349_000, "2h"),
    ] {
        let (path, waited) = (PathBuf::from("/locks/a.lock"), Duration::from_nanos(nanos));
        let error = Error::Timeout { lock: path.into(), waited, holder: None };
        assert_eq!(error.to_string(), format!("/locks/a.lock was not free within {shown}"));
    }
    let error = Error::SlowSystem {
        lock: "/locks/a.lock".into(),
        took: Duration::from_nanos(2_000_349_000),
        race_delay: Duration::from_millis(200),
    };
    assert!(error.to_string().contains("took 2s,"), "{error}");
}

/// What is short is named, and what to do.
#[test]
fn a_shortage_says_what_to_raise() {
    const FILES: i32 = 24; // EMFILE
    const ALL_FILES: i32 = 23; // ENFILE
    const MEMORY: i32 = 12; // ENOMEM
    for (number, remedy) in [(FILES, "ulimit -n"), (ALL_FILES, "fs.file-max"), (MEMORY, "memory")] {
        let source = io::Error::from_raw_os_error(number);
        let error = Error::Shortage { doing: "opening", lock: "/locks/a.lock".into(), source };
        let text = error.to_string();
        assert!(text.starts_with("opening /locks/a.lock") && text.contains(remedy), "{text}");
    }
}
