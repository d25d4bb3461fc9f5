//! A server and its locks as a URL names them: a URL of libpq's, and keys of a lock.

use super::access::Access;
use super::locks::PostgresLocks;
use super::options::{PostgresOptions, Table, Takeover};
use super::server::Server;
use crate::lock::duration;
use crate::lock::error::Error;

/// Beside libpq's.
const KEYS: [&str; 8] =
    ["lease", "takeover", "table", "timeout", "reconnect", "most_locks", "own_session", "note"];

/// # Errors
/// [`Error::InvalidOption`], never with the URL in it.
pub(crate) fn open(url: &str) -> Result<PostgresLocks, Error> {
    let (access, own) = Access::of_lock_url(url, &KEYS)?;
    let mut options = PostgresOptions::default();
    for (key, value) in own {
        let wrong = |wanted: &str| Error::InvalidOption {
            option: "url",
            why: format!("{key}={value:?} is no value: write {wanted}"),
        };
        let time = || duration::parse(&value).map_err(|_| wrong("a time, as in 300ms, 30s or 1h"));
        options = match key.as_str() {
            "lease" => options.lease(time()?),
            "timeout" => options.timeout(time()?),
            "reconnect" => options.reconnect(time()?),
            "takeover" => options.takeover(match value.as_str() {
                "after_lease" => Takeover::AfterLease,
                "at_once" => Takeover::AtOnce,
                _ => return Err(wrong("after_lease or at_once")),
            }),
            "table" => options.table(match value.as_str() {
                "own" => Table::Own,
                "none" => Table::None,
                _ => return Err(wrong("own or none")),
            }),
            "most_locks" => options.most_locks(value.parse().map_err(|_| wrong("a number"))?),
            "own_session" => options.own_session(match value.as_str() {
                "true" => true,
                "false" => false,
                _ => return Err(wrong("true or false")),
            }),
            _ => options.note(value),
        };
    }
    Ok(PostgresLocks::of(Server::new(access, options)?))
}
