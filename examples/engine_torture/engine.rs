//! What differs from engine to engine.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use crate::dice::Dice;
use crate::oracle::now;
use crate::settings::Job;

/// What keeps locks for many machines.
pub(crate) trait Engine: Sync {
    fn name(&self) -> &'static str;

    /// Servers of its own on this machine.
    fn start(&self, directory: &Path) -> Box<dyn Servers>;

    /// How servers at these addresses are named to a client.
    fn address(&self, servers: &[SocketAddr]) -> String;

    /// Whether a lock can be given to the next before the lease of one that is cut off is over.
    fn can_take_over_at_once(&self) -> bool;

    /// A client process, to its end.
    fn run_client(&self, job: &Job);

    /// What clients left at the servers that are named so; `None` if they do not answer. No
    /// task wants a lock any more, and if `has_ended` no client runs.
    fn left(&self, traces: &Traces<'_>, has_ended: bool) -> Option<Vec<String>>;

    /// The servers are to go on as if this had never been.
    fn forget(&self, traces: &Traces<'_>);
}

/// Where clients may have left something.
pub(crate) struct Traces<'a> {
    pub(crate) at: &'a str,
    pub(crate) prefix: &'a str,
    pub(crate) locks: u64,
}

/// Servers that are killed and stopped.
pub(crate) trait Servers {
    /// What they are, for the summary.
    fn name(&self) -> String;

    fn addresses(&self) -> Vec<SocketAddr>;

    /// Something goes wrong with one of them.
    fn harm(&mut self, dice: &mut Dice, actions: &Actions);

    /// Undo what is due, and go on with what takes longer.
    fn tick(&mut self, now: Instant, actions: &Actions);

    /// Undo all; gives back when all is well again.
    fn heal(&mut self, actions: &Actions);

    /// What went wrong, for the summary.
    fn told(&self) -> String;
}

/// The engines that this program was built with.
pub(crate) fn engines() -> Vec<&'static dyn Engine> {
    vec![
        #[cfg(feature = "etcd")]
        &crate::etcd::Etcd,
        #[cfg(feature = "postgres")]
        &crate::postgres::Postgres,
    ]
}

/// A file in which is written what was done to whom, and when.
pub(crate) struct Actions(File);

impl Actions {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        File::create(path).map(Self)
    }

    pub(crate) fn note(&self, action: &str) {
        let _ = (&self.0).write_all(format!("{} {action}\n", now()).as_bytes());
    }
}
