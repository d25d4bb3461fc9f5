//! Exit codes of this program's own. The numbers are those of `sysexits.h` and
//! of the shells where these have one that fits.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use crate::Error;
use crate::lock::error::rounded;

/// `status`: one of the locks is held. `break`: a holder lives.
pub(super) const HELD: u8 = 1;
/// The command line, or a path that can name no file. `EX_USAGE`.
pub(super) const USAGE: u8 = 64;
/// What is at the path is not a lock file. `EX_DATAERR`.
pub(super) const NOT_A_LOCK_FILE: u8 = 65;
/// The system refused something. `EX_UNAVAILABLE`.
pub(super) const SYSTEM: u8 = 69;
/// The lock was not had in time. `EX_CANTCREAT`: its file could not be made.
pub(super) const NOT_IN_TIME: u8 = 73;
/// The lock was lost while the command ran. `EX_IOERR`.
pub(super) const LOST: u8 = 74;
/// As in the shells: the command is there, but could not be started.
pub(super) const NOT_EXECUTABLE: u8 = 126;
/// As in the shells: there is no such command.
pub(super) const NOT_FOUND: u8 = 127;

/// For `--help`.
pub(super) const TABLE: &str = "\
Exit codes:
  run     that of CMD; 128+n if signal n killed CMD or ended the wait;
           64  bad usage
           65  what is at LOCK is not a lock file; it was not touched
           69  the system refused something, such as a file in that directory, or
               the daemon, etcd or PostgreSQL could not be reached or refused it:
               nothing is known of the lock
           73  the lock was not free in time (--timeout, --try)
           74  the lock was lost while CMD ran
          126  CMD is there, but could not be started
          127  CMD was not found
  status  0 none of the locks is held, 1 one is held; 64, 65, 69
  break   0 removed, asked, ended, or nothing to do, 1 refused: the holder is
          alive, cannot be asked, or has another lease or session; 64, 65,
          69";

/// The code for a signal that ended something, as in the shells.
pub(super) fn by_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// Why this program ends otherwise than it was asked to.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn system(doing: &str, error: &io::Error) -> Self {
        Self { code: SYSTEM, message: format!("{doing}: {error}") }
    }

    /// `break`: the holder lives.
    pub(super) fn refused(why: &Error) -> Self {
        Self { code: HELD, message: format!("refused: {}", message_of(why)) }
    }

    /// `command` could not be started.
    pub(super) fn to_start(command: &str, error: &io::Error) -> Self {
        let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        Self { code, message: format!("{command}: {error}") }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: code_of(&error), message: message_of(&error) }
    }
}

fn code_of(error: &Error) -> u8 {
    match error {
        Error::InvalidOption { .. } | Error::BadPath { .. } => USAGE,
        Error::NotALockFile { .. } => NOT_A_LOCK_FILE,
        Error::Timeout { .. } => NOT_IN_TIME,
        Error::Lost(_) => LOST,
        _ => SYSTEM,
    }
}

/// The error and its causes, in one line.
pub(super) fn message_of(error: &Error) -> String {
    if let Error::Timeout { lock, waited, holder } = error {
        let holder = holder.as_ref().map_or("another process".to_owned(), |holder| {
            format!("{holder} ({evidence})", evidence = holder.evidence)
        });
        return match waited.as_millis() {
            0 => format!("{lock} is held by {holder}"),
            _ => format!("{lock} was not free within {}: held by {holder}", rounded(*waited)),
        };
    }
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    message
}
