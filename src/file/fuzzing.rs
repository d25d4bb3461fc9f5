//! What the fuzz targets in `tests/fuzz` call: the reading of a lock file and
//! the judgement of it, with any bytes at all. Built by cargo-fuzz only.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::options::{FileOptions, Proof};
use super::protocol::disk::OsDisk;
use super::protocol::environment::OsEnvironment;
use super::protocol::{Attempt, Environment, Outcome, Sightings};
use super::record::{Contents, RECORD_BYTES, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::lock::error::Error;
use crate::sys::files::Errno;
use crate::sys::path::LockPath;
use crate::sys::process_key::{ProcessKey, this_process};
use crate::sys::verdict::Verdict;

/// Read `bytes` as a lock file. What is read can be written again, and then
/// reads the same, but for the fraction of a second and, in openlock's file,
/// whether it was cut short.
#[expect(clippy::missing_panics_doc, reason = "to panic is how a fuzz target fails")]
pub fn record(bytes: &[u8]) {
    let Ok(contents) = Contents::parse(bytes) else { return };
    assert!(bytes.len() <= RECORD_BYTES, "too long, and taken for a lock file");
    let again = Contents::parse(&contents.to_bytes()).map(essence);
    assert_eq!(again, Ok(essence(contents)), "read from {:?}", String::from_utf8_lossy(bytes));
}

fn essence(contents: Contents) -> Contents {
    match contents {
        Contents::OpenLock { pid, name } => Contents::Torn { pid, name },
        Contents::Ours(record) => {
            let since = record.second().map(|second| UNIX_EPOCH + Duration::from_secs(second));
            Contents::Ours(Record { since, ..record })
        }
        same => same,
    }
}

/// The running system, but three seconds pass at each look at the clock: no
/// foreign file stays young.
struct Hasty {
    system: OsEnvironment,
    began: Instant,
    looks: AtomicU64,
}

impl Environment for Hasty {
    fn judge(&self, contents: &Contents, local: bool) -> Verdict {
        self.system.judge(contents, local)
    }

    fn process(&self) -> ProcessKey {
        self.system.process()
    }

    fn hold_id(&self) -> Result<HoldId, Errno> {
        self.system.hold_id()
    }

    fn record(&self, hold_id: HoldId, proof: RecordedProof, options: &FileOptions) -> Record {
        self.system.record(hold_id, proof, options)
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_secs(3 * self.looks.fetch_add(1, Ordering::Relaxed))
    }
}

/// A directory on tmpfs for this process.
static PATH: LazyLock<Arc<LockPath>> = LazyLock::new(|| {
    let directory = format!("/dev/shm/lockkeeper-fuzz-{}", std::process::id());
    fs::create_dir_all(&directory).expect("a directory on tmpfs");
    Arc::new(LockPath::new(format!("{directory}/a.lock").as_ref()).expect("a path"))
});

/// Contend for a lock file that holds `bytes` and that is not locked. What
/// cannot be a lock file, or cannot be known to be stale, stays as it is; what
/// was taken over goes when it is released; nothing else stays.
#[expect(clippy::missing_panics_doc, reason = "to panic is how a fuzz target fails")]
pub fn judge(bytes: &[u8]) {
    let Some((&choice, bytes)) = bytes.split_first() else { return };
    let pin = if choice % 2 == 0 { Proof::Auto } else { Proof::Process };
    // Nothing here waits.
    let options = FileOptions::default().proof(pin).race_delay(Duration::from_secs(3600));
    let path = &*PATH;
    fs::write(path.path(), bytes).expect("a lock file");
    let contents = Contents::parse(bytes);
    let environment = Hasty {
        system: OsEnvironment::of(this_process()),
        began: Instant::now(),
        looks: AtomicU64::new(0),
    };
    let mut sightings = Sightings::default();
    // The second time, a foreign file is old enough.
    for _ in 0..2 {
        let mut attempt = Attempt::new(&OsDisk, &environment, path, &options, &mut sightings);
        let looked = attempt.probe();
        assert_eq!(looked.is_ok(), contents.is_ok(), "{looked:?}", looked = looked.err());
        match attempt.run() {
            Ok(Outcome::Busy(_)) => {
                assert!(contents.is_ok(), "not a lock file, and busy");
                assert_eq!(fs::read(path.path()).ok().as_deref(), Some(bytes), "it was changed");
            }
            Ok(Outcome::Acquired(acquired) | Outcome::Probation(acquired, _)) => {
                assert!(contents.is_ok(), "not a lock file, and taken over");
                let now = fs::read(path.path()).expect("the holder's file");
                assert_eq!(now, acquired.lock_file.record().to_bytes(), "not our record");
                // No user knew of the dead holder, so its file goes on telling.
                acquired.lock_file.acknowledge_recovery();
                drop(acquired);
                assert!(!path.path().exists(), "released, and still there");
                break;
            }
            Err(Error::NotALockFile { .. }) => {
                assert!(contents.is_err(), "a lock file, and refused: {contents:?}");
                assert_eq!(fs::read(path.path()).ok().as_deref(), Some(bytes), "it was changed");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let _ = fs::remove_file(path.path());
    let left = fs::read_dir(path.directory()).expect("the directory").count();
    assert_eq!(left, 0, "names stay beside the lock");
}
