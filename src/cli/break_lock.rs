//! `lockkeeper break`: remove what is dead, or ask what lives.

use std::time::Duration;

use super::exit::Failure;
use super::named::{self, Breakable, usage};
use super::text::{print, printable};
use super::{Break, runtime};
use crate::{AsyncFileLock, Error};

pub(super) fn break_lock(arguments: &Break) -> Result<u8, Failure> {
    let done = match named::of_break(arguments)? {
        Breakable::LockFile(_) if arguments.is_forced() => Err(usage(
            "--force is for the locks of etcd and PostgreSQL: end the process that holds this one"
                .to_owned(),
        )),
        Breakable::LockFile(lock) if arguments.revoke => ask(&lock),
        Breakable::LockFile(lock) => remove(&lock),
        #[cfg(feature = "etcd")]
        Breakable::Etcd(lock) => super::etcd::break_lock(arguments, &lock),
        #[cfg(feature = "postgres")]
        Breakable::Postgres(lock) => super::postgres::break_lock(arguments, &lock),
    };
    print(printable(done?));
    Ok(0)
}

fn remove(lock: &AsyncFileLock) -> Result<String, Failure> {
    let path = lock.path().display();
    Ok(match runtime()?.block_on(lock.break_stale()).map_err(refusal)? {
        Some(dead) => format!("{path}: removed, left by {dead} ({})", dead.evidence),
        None => format!("{path}: free, nothing to remove"),
    })
}

fn ask(lock: &AsyncFileLock) -> Result<String, Failure> {
    let path = lock.path().display();
    Ok(match runtime()?.block_on(lock.revoke()).map_err(refusal)? {
        Some(holder) => format!("{path}: asked {holder} to release it"),
        None => format!("{path}: not held"),
    })
}

/// A living holder is what `break` refuses, not a failure of the system.
fn refusal(error: Error) -> Failure {
    match error {
        // There was no wait, so how long the try took says nothing.
        Error::Timeout { lock, holder, .. } => {
            Failure::refused(&Error::Timeout { lock, waited: Duration::ZERO, holder })
        }
        Error::CannotAsk { .. } => Failure::refused(&error),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::exit;
    use super::*;

    #[test]
    fn a_refusal_does_not_tell_how_long_the_try_took() {
        let waited = Duration::from_millis(6);
        let refusal = refusal(Error::Timeout { lock: "a.lock".into(), waited, holder: None });
        assert_eq!(refusal.code, exit::HELD);
        assert_eq!(refusal.message, "refused: a.lock is held by another process");
    }
}
