//! The kinds that an etcd cluster keeps. All places of a process are in one cluster, each
//! below a prefix of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockkeeper::{AsyncEtcdLock, EtcdOptions, LostReason};
use serde_json::Value;

use crate::etcd_support::{Cluster, Version, is_there};
use crate::kinds::{Kind, Life, Promises, Site};
use crate::support::{HOUR, VERY_LONG};

/// A lock of a cluster with so many members.
pub struct Etcd<const MEMBERS: usize>;

pub type EtcdOne = Etcd<1>;
pub type EtcdThree = Etcd<3>;

/// Short, but no machine is so busy that it is not renewed in time.
const SHORT: Duration = Duration::from_secs(4);

fn ttl(life: Life) -> Duration {
    match life {
        Life::Long => HOUR,
        Life::Short => SHORT,
    }
}

fn cluster(members: usize) -> &'static Cluster {
    static CLUSTERS: [OnceLock<Cluster>; 2] = [OnceLock::new(), OnceLock::new()];
    CLUSTERS[usize::from(members > 1)].get_or_init(|| Cluster::start(members))
}

/// Endpoints and prefix.
fn parts(address: &str) -> (&str, &str) {
    address.split_once('/').expect("endpoints and a prefix")
}

/// How many keys there are of the lock, as the JSON gateway of a member says: sooner than
/// a process of etcdctl starts.
fn keys(address: &str) -> usize {
    let (endpoints, prefix) = parts(address);
    let (key, end) = (format!("{prefix}/a/"), format!("{prefix}/a0"));
    let body =
        serde_json::json!({ "key": base64(&key), "range_end": base64(&end), "count_only": true });
    let (endpoint, body) = (endpoints.split(',').next().expect("one"), body.to_string());
    let mut tcp = TcpStream::connect(endpoint).expect("a member");
    let length = body.len();
    let head = format!("POST /v3/kv/range HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
    tcp.write_all((head + &body).as_bytes()).expect("it is sent");
    let mut said = String::new();
    tcp.read_to_string(&mut said).expect("an answer");
    let (_, body) = said.split_once("\r\n\r\n").expect("a body");
    let said: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("JSON: {said}"));
    said["count"].as_str().map_or(0, |count| count.parse().expect("a number"))
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in text.as_bytes().chunks(3) {
        let bits = part.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - part.len()));
        for digit in 0..4 {
            let is_there = digit <= part.len();
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            out.push(if is_there { char::from(DIGITS[value]) } else { '=' });
        }
    }
    out
}

impl<const MEMBERS: usize> Kind for Etcd<MEMBERS> {
    type Lock = AsyncEtcdLock;
    type Ground = ();

    const PROMISES: Promises = Promises {
        names_holders_elsewhere: true,
        // Of one for which a waiter waited.
        tells_of_the_dead: true,
        release_says_lost: true,
        // The cluster knows processes, and not where in them a lock was asked for.
        says_where: false,
        has_hold_ids: true,
        has_lines: true,
        has_fencing_tokens: true,
    };
    /// `Expired` and `Revoked` are tested in `etcd_holders.rs`.
    const LOSSES: &'static [LostReason] = &[LostReason::Ended];
    const SCHEMES: &'static [&'static str] = &["etcd", "etcd+tls"];

    fn is_there() -> bool {
        is_there(Version::V3_4)
    }

    fn prepare() -> (String, ()) {
        static PLACES: AtomicUsize = AtomicUsize::new(0);
        let (process, place) = (std::process::id(), PLACES.fetch_add(1, Ordering::Relaxed));
        (format!("{}/p{process}-{place}", cluster(MEMBERS).endpoints()), ())
    }

    fn lock(address: &str, limit: Option<Duration>, life: Life) -> AsyncEtcdLock {
        let (endpoints, prefix) = parts(address);
        let options = EtcdOptions::default().prefix(prefix).ttl(ttl(life)).timeout(limit);
        AsyncEtcdLock::with_options(endpoints, "a", options.reconnect(VERY_LONG)).expect("options")
    }

    fn url(address: &str, limit: Option<Duration>, life: Life) -> (String, String) {
        let (ttl, reconnect) = (ttl(life).as_secs(), VERY_LONG.as_secs());
        let limit = limit.map(|limit| format!("&timeout={}us", limit.as_micros()));
        let limit = limit.unwrap_or_default();
        (format!("etcd://{address}?ttl={ttl}s&reconnect={reconnect}s{limit}"), "a".into())
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        assert_eq!(reason, LostReason::Ended);
        let (_, prefix) = parts(place.address);
        let cluster = cluster(MEMBERS);
        let keys = cluster.keys(&format!("{prefix}/a/"));
        let holder = keys.first().expect("it is held");
        cluster.etcdctl(&["del", &holder.key]);
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        keys(place.address).saturating_sub(1)
    }

    /// Tasks of one process stand in its own queue, in the order in which they were polled.
    fn are_waiting(_: &Site<'_, Self>, _: usize) -> bool {
        true
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        keys(place.address) == 0
    }
}
