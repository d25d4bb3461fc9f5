//! The connections that are open, and which one makes room for another.
//!
//! Which connection is closed while there is no room for a new one is said in `listen`,
//! C2.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::limits::Limits;
use super::permits::PeerGroup;
use crate::sys::limits;
use crate::sys::mutex::Mutex;

/// Files that this process may have open besides connections. With more, fewer connections
/// are let in.
const OTHER_FILES: usize = 128;

/// Connections without a place that may hear so at a time: those that find no room, and
/// those that made room. Each is an open file.
const LINGERING: usize = 32;

/// What a connection does, in the order in which it is closed to make room.
pub(super) const IDLE: u8 = 0;
pub(super) const SENDING: u8 = 1;
pub(super) const ANSWERED: u8 = 2;

/// A connection that is open.
#[derive(Debug)]
pub(super) struct OpenConnection {
    group: PeerGroup,
    pub(super) state: AtomicU8,
    /// The time of that state, in microseconds since the start.
    since: AtomicU64,
    started: Instant,
    /// The body of the last request was not read to its end.
    pub(super) is_unread: AtomicBool,
    pub(super) close: CancellationToken,
}

impl OpenConnection {
    pub(super) fn is(&self, state: u8) {
        let since = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.since.store(since, Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }
}

/// The connections that are open.
pub(super) struct Connections {
    pub(super) limits: Limits,
    started: Instant,
    open: Mutex<ConnectionTable>,
    /// How many there are, for the metrics.
    count: Arc<AtomicU64>,
    lingering: Arc<Semaphore>,
}

#[derive(Default)]
struct ConnectionTable {
    last: u64,
    connections: HashMap<u64, Arc<OpenConnection>>,
    by_group: HashMap<PeerGroup, usize>,
}

impl ConnectionTable {
    fn remove(&mut self, number: u64) {
        let Some(connection) = self.connections.remove(&number) else { return };
        let Some(count) = self.by_group.get_mut(&connection.group) else { return };
        *count -= 1;
        if *count == 0 {
            self.by_group.remove(&connection.group);
        }
    }

    /// C2. Close one of these connections; whether there was one.
    fn make_room(&mut self, may_go: impl Fn(&OpenConnection) -> bool) -> bool {
        let rank = |connection: &OpenConnection| {
            let state = connection.state.load(Ordering::Relaxed);
            (state, connection.since.load(Ordering::Relaxed))
        };
        let ranked = self.connections.iter().filter(|(_, connection)| may_go(connection));
        let ranked = ranked.map(|(number, connection)| (rank(connection), *number));
        let Some((_, number)) = ranked.filter(|((state, _), _)| *state != ANSWERED).min() else {
            return false;
        };
        if let Some(connection) = self.connections.get(&number) {
            connection.close.cancel();
        }
        // Its place is free at once: it ends as soon as it is scheduled.
        self.remove(number);
        true
    }
}

impl Connections {
    /// `count` says how many are open.
    pub(super) fn new(mut limits: Limits, count: Arc<AtomicU64>) -> Self {
        let files = usize::try_from(limits::open_files()).unwrap_or(usize::MAX);
        limits.connections = limits.connections.min(files.saturating_sub(OTHER_FILES)).max(1);
        let lingering = Arc::new(Semaphore::new(LINGERING));
        let open = Mutex::default();
        Self { limits, started: Instant::now(), open, count, lingering }
    }

    /// A place to tell a connection that there is no room.
    pub(super) fn linger(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lingering).try_acquire_owned().ok()
    }

    /// A seat for a new connection, if there is room or room can be made.
    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<ConnectionPermit> {
        let group = PeerGroup::of(peer);
        let mut open = self.open.lock();
        let of_group = open.by_group.get(&group).copied().unwrap_or(0);
        let is_full = group != PeerGroup::Here && of_group >= self.limits.connections_per_peer;
        if is_full && !open.make_room(|other| other.group == group) {
            return None;
        }
        if open.connections.len() >= self.limits.connections && !open.make_room(|_| true) {
            return None;
        }
        let connection = Arc::new(OpenConnection {
            group,
            state: AtomicU8::new(IDLE),
            since: AtomicU64::new(0),
            started: self.started,
            is_unread: AtomicBool::new(false),
            close: CancellationToken::new(),
        });
        connection.is(IDLE);
        open.last += 1;
        let number = open.last;
        open.connections.insert(number, Arc::clone(&connection));
        *open.by_group.entry(group).or_default() += 1;
        self.count.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionPermit { connections: Arc::clone(self), number, connection })
    }

    pub(super) fn make_room(&self, may_go: impl Fn(&OpenConnection) -> bool) {
        self.open.lock().make_room(may_go);
    }

    pub(super) fn close_all(&self) {
        self.open.lock().connections.values().for_each(|connection| connection.close.cancel());
    }
}

/// A place among the open connections, free again when dropped.
pub(super) struct ConnectionPermit {
    pub(super) connections: Arc<Connections>,
    number: u64,
    pub(super) connection: Arc<OpenConnection>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.open.lock().remove(self.number);
        self.connections.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(connections: usize, connections_per_peer: usize) -> Arc<Connections> {
        let limits = Limits { connections, connections_per_peer, ..Limits::default() };
        Arc::new(Connections::new(limits, Arc::default()))
    }

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), 1)
    }

    fn is_closed(permit: &ConnectionPermit) -> bool {
        permit.connection.close.is_cancelled()
    }

    #[test]
    fn a_peer_makes_room_for_itself_only() {
        let connections = connections(100, 2);
        let other = connections.admit(from("192.0.2.2")).expect("a permit");
        let oldest = connections.admit(from("192.0.2.1")).expect("a permit");
        let next = connections.admit(from("::ffff:192.0.2.1")).expect("a permit");
        let last = connections.admit(from("192.0.2.1")).expect("a permit");
        assert!(is_closed(&oldest) && ![&other, &next, &last].into_iter().any(is_closed));
        // Nothing is counted twice when it ends.
        drop(oldest);
        next.connection.is(ANSWERED);
        last.connection.is(ANSWERED);
        assert!(connections.admit(from("192.0.2.1")).is_none());
        drop(last);
        assert!(connections.admit(from("192.0.2.1")).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer() {
        let connections = connections(100, 1);
        let first = connections.admit(from("2001:db8:1:2::1")).expect("a permit");
        let _other = connections.admit(from("2001:db8:1:3::1")).expect("a permit");
        assert!(!is_closed(&first));
        let _next = connections.admit(from("2001:db8:1:2:ffff::1")).expect("a permit");
        assert!(is_closed(&first));
    }

    #[test]
    fn this_machine_is_limited_as_a_whole_only() {
        let connections = connections(3, 1);
        let permits: Vec<ConnectionPermit> =
            (0..3).map(|_| connections.admit(from("127.0.0.1")).expect("a permit")).collect();
        assert!(!permits.iter().any(is_closed));
        permits[0].connection.is(SENDING);
        let _fourth = connections.admit(from("::1")).expect("a permit");
        assert!(is_closed(&permits[1]) && !is_closed(&permits[0]));
        assert_eq!(connections.open.lock().connections.len(), 3);
    }

    #[test]
    fn nothing_is_left_of_connections_that_are_over() {
        let connections = connections(3, 1);
        drop(connections.admit(from("192.0.2.1")));
        assert!(
            connections.open.lock().connections.is_empty()
                && connections.open.lock().by_group.is_empty()
        );
    }
}
