//! `lockkeeper break` for a lock that etcd keeps.

use super::exit::{self, Failure};
use super::named::usage;
use super::{Break, runtime};
use crate::{AsyncEtcdLock, Error, Lock, Status};

/// What was done, in a line.
pub(super) fn break_lock(arguments: &Break, lock: &AsyncEtcdLock) -> Result<String, Failure> {
    match &arguments.force {
        Some(text) => {
            let lease = lease(text).map_err(|why| usage(format!("--force {text} {why}")))?;
            runtime()?.block_on(force(lock, lease))
        }
        None if arguments.revoke => runtime()?.block_on(ask(lock)),
        None => Err(usage(
            "etcd removes what the dead left, with their leases: --revoke asks the holder to let \
             go, and --force LEASE ends its hold (status shows the lease)"
                .to_owned(),
        )),
    }
}

async fn ask(lock: &AsyncEtcdLock) -> Result<String, Failure> {
    let name = lock.name();
    match lock.revoke().await {
        Ok(Some(holder)) => Ok(format!("{name}: asked {holder} to let go")),
        Ok(None) => Ok(format!("{name}: nobody holds it")),
        Err(error @ Error::CannotAsk { .. }) => {
            let lease = lock.queue().await?.lease;
            let mut failure = Failure::refused(&error);
            failure.message.push_str(&format!(", or {}", way_to_end(lease)));
            Err(failure)
        }
        Err(error) => Err(error.into()),
    }
}

async fn force(lock: &AsyncEtcdLock, lease: i64) -> Result<String, Failure> {
    let name = lock.name();
    if let Some(holder) = lock.force_release(lease).await? {
        return Ok(format!("{name}: ended the hold of {holder}"));
    }
    let queue = lock.queue().await?;
    let holder = match queue.status {
        Status::Held(holder) => holder,
        _ => return Ok(format!("{name}: free, nothing to end")),
    };
    let way = way_to_end(queue.lease);
    let message = format!(
        "refused: the lease {lease:x} does not hold {name}, but {holder} ({}): {way}",
        holder.evidence
    );
    Err(Failure { code: exit::HELD, message })
}

fn way_to_end(lease: Option<i64>) -> String {
    match lease {
        Some(lease) => format!("end its hold with --force {lease:x}"),
        None => "delete its key with etcdctl".to_owned(),
    }
}

/// A lease as etcdctl shows it.
fn lease(text: &str) -> Result<i64, &'static str> {
    const WANTED: &str = "must be the lease of the holder in hexadecimal, as status shows it";
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.starts_with('+') {
        return Err(WANTED);
    }
    let lease = i64::from_str_radix(digits, 16).map_err(|_| WANTED)?;
    if lease > 0 { Ok(lease) } else { Err(WANTED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_as_etcdctl_writes_it() {
        assert_eq!(lease("694d9a0b1c2d3e4f"), Ok(0x694d_9a0b_1c2d_3e4f));
        assert_eq!(lease("0x7"), Ok(7));
        for text in ["", "0", "-7", "+7", "lease", "8000000000000000", "694d9a0b1c2d3e4f0"] {
            assert!(lease(text).is_err(), "{text}");
        }
    }
}
