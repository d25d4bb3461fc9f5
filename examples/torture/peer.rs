//! Other libraries that can be put to the same torture.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::settings::Job;

/// A library, and where it is.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: &'static str,
    pub version: &'static str,
    /// As `tests/peers/locks.py` calls it.
    kind: &'static str,
    python: PathBuf,
}

/// Name, version, kind and environment.
const PEERS: [(&str, &str, &str, &str); 8] = [
    ("openlock", "1.2.1", "openlock-fast", "openlock-1.2.1"),
    ("filelock-py", "4.2.11", "filelock", "filelock-4.2.11"),
    ("filelock-py-3", "3.32.7", "filelock", "filelock-3.32.7"),
    ("filelock-py-soft", "4.2.11", "filelock-soft", "filelock-4.2.11"),
    ("filelock-py-3-soft", "3.32.7", "filelock-soft", "filelock-3.32.7"),
    ("flufl-lock", "10.0.0", "flufl", "flufl.lock-10.0.0"),
    ("pidlock-py", "3.0.2", "pidlock", "pidlock-3.0.2"),
    ("lockmgr-like", "flock, unlock, unlink", "flock-unlink", ""),
];

impl Peer {
    /// # Errors
    /// What to do to have it.
    pub fn named(wanted: &str) -> Result<Self, String> {
        let found = PEERS.into_iter().find(|(name, ..)| *name == wanted);
        let Some((name, version, kind, home)) = found else {
            let names = PEERS.map(|(name, ..)| name).join(", ");
            return Err(format!("--peer: {wanted:?} is none of {names}"));
        };
        if home.is_empty() {
            return Ok(Self { name, version, kind, python: PathBuf::from("python3") });
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        let python = target.join("peers").join(home).join("bin/python");
        let python = std::path::absolute(&python).map_err(|why| why.to_string())?;
        if !python.exists() {
            let python = python.display();
            return Err(format!("{python} is not there: tests/peers/run.sh --set-up makes it"));
        }
        Ok(Self { name, version, kind, python })
    }

    pub fn command(&self, job: &Job) -> Command {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(&self.python);
        command.arg(sources.join("examples/torture/peer.py")).arg(sources.join("tests/peers"));
        command.arg(self.kind).arg(&job.place);
        let numbers = [job.number, job.seed, job.hold_us, job.period_us];
        command.args(numbers.map(|number| number.to_string()));
        command
    }
}
