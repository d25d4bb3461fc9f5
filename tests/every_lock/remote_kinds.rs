//! The kinds that a server keeps.

use std::time::Duration;

use lockkeeper::{AsyncRemoteLock, Holder, LostReason, RemoteOptions};
use tempfile::TempDir;

use crate::kinds::{Kind, Life, Promises, Site};
use crate::remote_support::Daemon;
use crate::support::{HOUR, VERY_LONG, on_tmpfs};

/// A lock of a daemon, `lockkeeper serve`.
pub struct Remote;

/// Short, but no machine is so busy that it is not renewed in time.
const SHORT: Duration = Duration::from_secs(6);

fn lease(life: Life) -> Duration {
    match life {
        Life::Long => HOUR,
        Life::Short => SHORT,
    }
}

/// By which a process is known to the daemon.
fn client(process: u32) -> String {
    format!("process-{process}")
}

impl Kind for Remote {
    type Lock = AsyncRemoteLock;
    type Ground = (Daemon, TempDir);

    const PROMISES: Promises = Promises {
        names_holders_elsewhere: true,
        // A lease that ends says nothing of what became of its holder.
        tells_of_the_dead: false,
        release_says_lost: true,
        // The daemon knows clients, and not which of their holds is whose.
        says_where: false,
        has_hold_ids: true,
        has_lines: true,
        has_fencing_tokens: true,
    };
    /// `Expired` needs a network that fails: `lockd_remote.rs` has one.
    const LOSSES: &'static [LostReason] = &[LostReason::Ended];
    /// The second is the first over TLS, which `lockd_remote.rs` tests.
    const SCHEMES: &'static [&'static str] = &["lockd+http", "lockd+https"];

    fn prepare() -> (String, Self::Ground) {
        let directory = on_tmpfs();
        let daemon = Daemon::start(directory.path(), &[]);
        (daemon.url.clone(), (daemon, directory))
    }

    fn lock(address: &str, limit: Option<Duration>, life: Life) -> AsyncRemoteLock {
        let options = RemoteOptions::default().lease(Some(lease(life))).timeout(limit);
        let client = client(std::process::id());
        AsyncRemoteLock::with_options(address, "a", client, options.reconnect(VERY_LONG))
            .expect("options")
    }

    fn url(address: &str, limit: Option<Duration>, life: Life) -> (String, String) {
        let (client, lease) = (client(std::process::id()), lease(life).as_secs());
        let reconnect = VERY_LONG.as_secs();
        let limit = limit.map(|limit| format!("&timeout={}us", limit.as_micros()));
        let limit = limit.unwrap_or_default();
        let url =
            format!("lockd+{address}?client={client}&lease={lease}s&reconnect={reconnect}s{limit}");
        (url, "a".into())
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        assert_eq!(reason, LostReason::Ended);
        place.ground.0.force("a");
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        place.ground.0.waiting("a")
    }

    fn are_waiting(place: &Site<'_, Self>, tasks: usize) -> bool {
        place.ground.0.waiting("a") == tasks
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        place.ground.0.shown("a").is_none()
    }

    fn names(holder: &Holder, process: u32) -> bool {
        holder.name == Some(client(process))
    }
}
