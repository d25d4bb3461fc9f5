//! How a PostgreSQL server is found and reached, compiled into the crate's own tests: none
//! of it is public.

mod certificates;
mod fake;
mod libpq;
mod refusals;
mod server;
mod sessions;
mod texts;
mod tls;

use super::access::Access;
use super::connect::Session;
use super::connection_string::{Pairs, Parsed, Reader};
use super::environment::Environment;
use super::failure::{Failure, Kind};
use crate::lock::error::Error;

/// Without what the environment of the tests says.
fn access(text: &str) -> Result<Access, Error> {
    access_in(text, &[])
}

/// With these variables and no others.
fn access_in(text: &str, set: &[(&str, &str)]) -> Result<Access, Error> {
    let parsed = Reader::OF_A_PROGRAM.read(text)?;
    let variable = |name: &'static str| {
        let found = set.iter().find(|(known, _)| *known == name);
        let home = (name == "HOME").then_some("/nonexistent");
        Ok(found.map(|(_, value)| *value).or(home).map(str::to_owned))
    };
    Access::of(parsed.pairs, Environment::new(&variable, "/nonexistent"))
}

/// On the thread of `lease::io`, as a lock does.
async fn open(text: &str) -> Result<Session, Failure> {
    open_by(access(text).unwrap()).await
}

async fn open_by(access: Access) -> Result<Session, Failure> {
    crate::lease::io().unwrap().spawn(async move { Session::open(&access).await }).await.unwrap()
}

/// Why there is no session.
async fn refused(text: &str) -> Failure {
    open(text).await.err().unwrap_or_else(|| panic!("there is a session: {text}"))
}
