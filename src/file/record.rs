//! Bytes to [`Contents`] and [`Record`] to bytes. Pure: no I/O, no clock.
//!
//! A record is text of a fixed size, so that rewriting it in place is one
//! write and never changes the length of the file. Its first two lines are
//! openlock's, which ignores the rest; after them come `key: value` lines. The
//! first of a repeated key wins and an unknown key is ignored.
//!
//! What may ever be taken over is a short list, everything else is another's
//! data and stays untouched: our record (whole or torn), openlock's two lines,
//! a bare process id, an empty file, a file of NUL bytes.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use crate::local::hold_id::HoldId;
use crate::lock::holder::{Evidence, Holder};
use crate::sys::process::PID_MAX;
use crate::sys::program::{host_name, one_line};

/// Size of a record, and of the largest file that can be a lock file: one disk
/// sector, which disks write whole.
pub(crate) const RECORD_BYTES: usize = 512;

/// Which process this is, in terms that another process can check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    /// Boot id of the kernel.
    pub(crate) boot: Option<Arc<str>>,
    /// Inode of the pid namespace.
    pub(crate) pid_namespace: Option<u64>,
    /// Start time of the process in clock ticks since boot.
    pub(crate) started: Option<u64>,
    /// Inode of the process in pidfs (kernel 6.9): never reused within a boot.
    pub(crate) pidfs_inode: Option<u64>,
}

/// How a record says that its holder's life is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RecordedProof {
    /// The holder keeps the inode locked with `flock`.
    Flock,
    /// Nothing but its process.
    Process,
}

/// What a holder writes about itself. Text that a process writes each time is
/// shared, not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) pid: u32,
    pub(crate) name: Arc<str>,
    pub(crate) hold_id: HoldId,
    pub(crate) host: Option<Arc<str>>,
    pub(crate) identity: ProcessIdentity,
    pub(crate) proof: RecordedProof,
    /// The holder had the file on a local file system. So it ran on the machine
    /// that has that file system, and its `flock` is seen there. A holder that
    /// came over a network, as an NFS client or from a virtual machine, has it on
    /// another file system and does not say so.
    pub(crate) is_local: bool,
    pub(crate) since: Option<SystemTime>,
    pub(crate) released: bool,
    pub(crate) note: Option<String>,
}

impl Record {
    /// The record padded with newlines to its fixed size.
    pub(crate) fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [b'\n'; RECORD_BYTES];
        // The last newline is not written to: the last line must end.
        let mut rest = &mut bytes[..RECORD_BYTES - 1];
        self.write(&mut rest).expect("BUG: a record does not fit");
        bytes
    }

    /// Whether [`to_bytes`](Self::to_bytes) has room for it. Ours always fit.
    fn fits(&self) -> bool {
        let mut room = [0; RECORD_BYTES - 1];
        self.write(&mut room.as_mut_slice()).is_ok()
    }

    /// When it was acquired, as far as it is written down: in whole seconds.
    pub(crate) fn second(&self) -> Option<u64> {
        let since = self.since?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(since.as_secs())
    }

    fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        write!(out, "{}\n{}\ntoken: {}\n", self.pid, self.name, self.hold_id)?;
        if let Some(host) = &self.host {
            writeln!(out, "host: {host}")?;
        }
        if let Some(boot) = &self.identity.boot {
            writeln!(out, "boot: {boot}")?;
        }
        let numbers = [
            ("pidns", self.identity.pid_namespace),
            ("started", self.identity.started),
            ("pidfd", self.identity.pidfs_inode),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                writeln!(out, "{key}: {number}")?;
            }
        }
        out.write_all(match self.proof {
            RecordedProof::Flock => b"pin: flock\n",
            RecordedProof::Process => b"pin: none\n",
        })?;
        if self.is_local {
            out.write_all(b"local: yes\n")?;
        }
        if let Some(since) = self.since {
            writeln!(out, "since: {}", humantime::format_rfc3339_seconds(since))?;
        }
        if self.released {
            out.write_all(b"released: yes\n")?;
        }
        match &self.note {
            Some(note) => writeln!(out, "note: {note}"),
            None => Ok(()),
        }
    }
}

/// What is in a file that may be taken over once its owner is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Written by this crate.
    Ours(Record),
    /// Written by this crate and cut short, by a power failure or a full disk.
    Torn { pid: u32, name: String },
    /// openlock's two lines.
    OpenLock { pid: u32, name: String },
    /// A process id and nothing else.
    BarePid(u32),
    /// Nothing, or only NUL bytes.
    Empty,
}

impl Contents {
    /// Read a whole file. `bytes` is what it holds, up to one byte more than a
    /// record has, so that a longer file shows.
    ///
    /// # Errors
    /// What the file is instead, in words that fit "not a lock file (…)".
    pub(crate) fn parse(bytes: &[u8]) -> Result<Contents, String> {
        if bytes.len() > RECORD_BYTES {
            return Err(format!("it is longer than {RECORD_BYTES} bytes"));
        }
        let text = match bytes.iter().rposition(|&byte| byte != 0) {
            Some(last) => &bytes[..=last],
            None => return Ok(Contents::Empty),
        };
        let is_torn = text.len() < bytes.len();
        let text = match std::str::from_utf8(text) {
            Ok(text) => text,
            // Cut within a character.
            Err(error) if error.error_len().is_none() => {
                std::str::from_utf8(&text[..error.valid_up_to()]).expect("BUG: valid up to there")
            }
            Err(_) => return Err("its content is not text".to_owned()),
        };
        // The last line may have been cut anywhere if it has no end.
        let is_cut = is_torn || !text.ends_with('\n');
        let mut lines = text.lines();
        let pid = lines.next().and_then(parse_pid).ok_or("its first line is not a process id")?;
        let Some(name) = lines.next() else {
            return Ok(Contents::BarePid(pid));
        };
        if name.chars().any(char::is_control) {
            return Err("its second line is not a program name".to_owned());
        }
        let name = name.trim().to_owned();
        let rest: Vec<&str> = lines.collect();
        match rest.first() {
            None if is_torn => Ok(Contents::Torn { pid, name }),
            None => Ok(Contents::OpenLock { pid, name }),
            Some(third) if third.starts_with("token:") || is_cut && "token:".starts_with(third) => {
                Ok(match parse_fields(pid, &name, &rest) {
                    Some(record) if !is_torn => Contents::Ours(record),
                    _ => Contents::Torn { pid, name },
                })
            }
            Some(_) => Err("it has more lines than a process id and a name".to_owned()),
        }
    }

    /// The content again, filled up to the size of a record.
    pub(crate) fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let text = match self {
            Contents::Ours(record) => return record.to_bytes(),
            Contents::Torn { pid, name } | Contents::OpenLock { pid, name } => {
                format!("{pid}\n{name}\n")
            }
            Contents::BarePid(pid) => format!("{pid}\n"),
            Contents::Empty => String::new(),
        };
        let mut bytes = [0; RECORD_BYTES];
        let length = text.len().min(RECORD_BYTES);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        bytes
    }

    /// The record, if it is a whole one of ours.
    pub(crate) fn record(&self) -> Option<&Record> {
        match self {
            Contents::Ours(record) => Some(record),
            _ => None,
        }
    }
}

impl Holder {
    pub(crate) fn new(contents: &Contents, evidence: Evidence) -> Self {
        match contents {
            Contents::Ours(record) => Self::of_record(record, evidence),
            Contents::Torn { pid, name } | Contents::OpenLock { pid, name } => {
                Self { pid: Some(*pid), name: Some(name.clone()), ..Self::nobody(evidence) }
            }
            Contents::BarePid(pid) => Self { pid: Some(*pid), ..Self::nobody(evidence) },
            Contents::Empty => Self::nobody(evidence),
        }
    }

    pub(crate) fn of_record(record: &Record, evidence: Evidence) -> Self {
        Self {
            pid: Some(record.pid),
            name: Some(record.name.to_string()),
            host: record.host.as_deref().map(str::to_owned),
            since: record.since,
            note: record.note.clone(),
            hold_id: Some(record.hold_id.to_string()),
            acquired_at: None,
            evidence,
        }
    }
}

fn parse_pid(line: &str) -> Option<u32> {
    let digits = line.trim();
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let pid = digits.parse().ok().filter(|_| is_plain)?;
    (1..=PID_MAX).contains(&pid).then_some(pid)
}

fn parse_fields(pid: u32, name: &str, lines: &[&str]) -> Option<Record> {
    let field = |key: &str| {
        lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    };
    let number = |key| field(key).and_then(|value| value.parse::<u64>().ok());
    let record = Record {
        pid,
        name: name.into(),
        hold_id: field("token")?.parse().ok()?,
        host: field("host").map(|host| host_name(host).into()),
        identity: ProcessIdentity {
            boot: field("boot").map(Arc::from),
            pid_namespace: number("pidns"),
            started: number("started"),
            pidfs_inode: number("pidfd"),
        },
        proof: match field("pin")? {
            "flock" => RecordedProof::Flock,
            "none" => RecordedProof::Process,
            _ => return None,
        },
        is_local: field("local") == Some("yes"),
        since: field("since").and_then(|value| humantime::parse_rfc3339(value).ok()),
        released: field("released").is_some(),
        note: field("note").map(|note| one_line(note, RECORD_BYTES)),
    };
    // `key:value` grows by a blank when it is written again.
    record.fits().then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::PID_MAX;
    use crate::sys::program::{NAME_MAX_BYTES, program_name};

    fn record() -> Record {
        Record {
            pid: 4242,
            name: "worker".into(),
            hold_id: HoldId(0x5f0c),
            host: Some("db-1".into()),
            identity: ProcessIdentity {
                boot: Some("2b0f".into()),
                pid_namespace: Some(4_026_531_836),
                started: Some(8_273_645),
                pidfs_inode: Some(12_345),
            },
            proof: RecordedProof::Flock,
            is_local: true,
            since: Some(SystemTime::UNIX_EPOCH),
            released: false,
            note: Some("nächtlicher Import".to_owned()),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let bytes = record().to_bytes();
        assert_eq!(Contents::parse(&bytes), Ok(Contents::Ours(record())));
        assert!(bytes.starts_with(b"4242\nworker\n"), "openlock reads the first two lines");
    }

    #[test]
    fn the_longest_record_fits() {
        let longest = Record {
            pid: PID_MAX,
            name: program_name(&"n".repeat(500)).into(),
            hold_id: HoldId(u128::MAX),
            host: Some(host_name(&"h".repeat(500)).into()),
            identity: ProcessIdentity {
                boot: Some("0".repeat(36).into()),
                pid_namespace: Some(u32::MAX.into()),
                started: Some(u64::MAX),
                pidfs_inode: Some(u64::MAX),
            },
            since: Some(SystemTime::now()),
            released: true,
            note: Some("x".repeat(crate::file::options::NOTE_MAX_BYTES)),
            ..record()
        };
        let read = Contents::parse(&longest.to_bytes()).unwrap();
        assert_eq!(read.record().unwrap().note, longest.note);
    }

    #[test]
    fn every_cut_of_a_record_is_ours_torn_or_a_shorter_lock_file() {
        let bytes = record().to_bytes();
        for cut in 1..RECORD_BYTES {
            let mut torn = [0; RECORD_BYTES];
            torn[..cut].copy_from_slice(&bytes[..cut]);
            let read = Contents::parse(&torn);
            let is_lock_file =
                matches!(read, Ok(Contents::Torn { .. } | Contents::BarePid(_) | Contents::Empty));
            assert!(is_lock_file, "cut at {cut}: {read:?}");
            let short = Contents::parse(&bytes[..cut]);
            assert!(short.is_ok(), "{cut} bytes: {short:?}");
        }
    }

    #[test]
    fn what_is_put_back_reads_as_what_it_was() {
        let files = [Contents::Ours(record()), Contents::BarePid(12), Contents::Empty];
        for contents in files {
            assert_eq!(Contents::parse(&contents.to_bytes()), Ok(contents));
        }
        let open_lock = Contents::OpenLock { pid: 12, name: "worker".to_owned() };
        let put_back = Contents::Torn { pid: 12, name: "worker".to_owned() };
        assert_eq!(Contents::parse(&open_lock.to_bytes()), Ok(put_back));
    }

    #[test]
    fn control_characters_of_others_are_dropped() {
        let text = format!("1\na\ntoken: {}\npin: none\nhost: a\x1b[2J\nnote: b\x07\n", HoldId(7));
        let read = Contents::parse(text.as_bytes()).unwrap();
        let record = read.record().unwrap();
        assert_eq!((record.host.as_deref(), record.note.as_deref()), (Some("a[2J"), Some("b")));
    }

    #[test]
    fn the_first_of_a_repeated_key_wins_and_unknown_keys_are_ignored() {
        let hold_id = HoldId(7);
        let text = format!("1\na\ntoken: {hold_id}\nfuture: 1\npin: flock\npin: none\n");
        let read = Contents::parse(text.as_bytes()).unwrap();
        assert_eq!(read.record().unwrap().proof, RecordedProof::Flock);
    }

    #[test]
    fn foreign_lock_files_are_told_apart() {
        let open_lock = Contents::OpenLock { pid: 12, name: "worker".to_owned() };
        assert_eq!(Contents::parse(b"12\nworker\n"), Ok(open_lock));
        assert_eq!(Contents::parse(b"12"), Ok(Contents::BarePid(12)));
        assert_eq!(Contents::parse(b"        12\n"), Ok(Contents::BarePid(12)));
        assert_eq!(Contents::parse(b""), Ok(Contents::Empty));
        assert_eq!(Contents::parse(&[0; RECORD_BYTES]), Ok(Contents::Empty));
    }

    #[test]
    fn what_is_not_a_lock_file_is_refused() {
        let refused: [&[u8]; 12] = [
            b"hello",
            b"\n",
            b"0\nname\n",
            b"-1\nname\n",
            b"+5\nname\n",
            b"99999999999\nname\n",
            b"1\nname\nmore\n",
            b"1\nna\x07me\n",
            b"1\nname\n\n\n",
            b"\xff\xfe",
            &[0; RECORD_BYTES + 1],
            &[b'1'; RECORD_BYTES],
        ];
        for bytes in refused {
            assert!(Contents::parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_was_read_can_be_written_again() {
        let mut text = format!("1\na\ntoken:{}\npin:flock\nboot:", HoldId(7));
        text.push_str(&"x".repeat(RECORD_BYTES - text.len()));
        let read = Contents::parse(text.as_bytes()).unwrap();
        assert_eq!(read, Contents::Torn { pid: 1, name: "a".to_owned() });
        assert_eq!(Contents::parse(&read.to_bytes()), Ok(read));
    }

    #[test]
    fn a_name_is_one_short_line() {
        assert_eq!(program_name("a\nb\tc"), "abc");
        assert_eq!(program_name(&"é".repeat(100)).len(), NAME_MAX_BYTES);
        assert_eq!(program_name("\n"), "unnamed");
    }
}
