//! `lockkeeper break`: remove what is dead, or ask what lives.

use std::time::Duration;

use super::exit::{self, Failure, message_of};
use super::text::{print, printable};
use super::{Break, named, runtime};
use crate::{AsyncFileLock, Error};

pub(super) fn break_lock(arguments: &Break) -> Result<u8, Failure> {
    let lock = named::lock_file(&arguments.lock)?;
    let verb = if arguments.revoke { ask(&lock) } else { remove(&lock) };
    print(printable(verb?));
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
            refused(&Error::Timeout { lock, waited: Duration::ZERO, holder })
        }
        Error::CannotAsk { .. } => refused(&error),
        error => error.into(),
    }
}

fn refused(why: &Error) -> Failure {
    Failure { code: exit::HELD, message: format!("refused: {}", message_of(why)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_does_not_tell_how_long_the_try_took() {
        let waited = Duration::from_millis(6);
        let refusal = refusal(Error::Timeout { lock: "a.lock".into(), waited, holder: None });
        assert_eq!(refusal.code, exit::HELD);
        assert_eq!(refusal.message, "refused: a.lock is held by another process");
    }
}
