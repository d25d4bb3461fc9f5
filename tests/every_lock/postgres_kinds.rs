//! The kinds that a PostgreSQL server keeps. All places of a process are in one server, each
//! with sessions of its own.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockkeeper::{
    AsyncPostgresLock, Holder, LockKey, LostReason, PostgresLocks, PostgresOptions, Table,
};
use tokio_postgres::Config;

use crate::kinds::{Kind, Life, Promises, Site};
use crate::postgres_support::{PASSWORD, ROLE, Server, Session, is_there};
use crate::support::{HOUR, VERY_LONG, eventually};

/// A lock with the table of holders, or without.
pub struct Postgres<const HAS_TABLE: bool>;

pub type PostgresTable = Postgres<true>;
pub type PostgresBare = Postgres<false>;

/// Short, but no machine is so busy that it is not renewed in time.
const SHORT: Duration = Duration::from_secs(4);

fn lease(life: Life) -> Duration {
    match life {
        Life::Long => HOUR,
        Life::Short => SHORT,
    }
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::builder().max_connections(400).set("fsync", "off").start();
        server.sql(PostgresLocks::SCHEMA);
        server.sql(&format!(
            "GRANT USAGE ON SCHEMA lockkeeper TO {ROLE}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA lockkeeper TO {ROLE}; \
             GRANT pg_signal_backend TO {ROLE}"
        ));
        server
    })
}

/// A port of loopback and a name, which is the lock's and its sessions'.
fn parts(address: &str) -> (&str, &str, &str) {
    let (host, name) = address.split_once('/').expect("a server and a name");
    let (host, port) = host.split_once(':').expect("a host and a port");
    (host, port, name)
}

fn text(address: &str) -> String {
    let (host, port, name) = parts(address);
    format!(
        "host={host} port={port} user={ROLE} password='{PASSWORD}' dbname=postgres \
         application_name={name}"
    )
}

fn lock(address: &str, options: PostgresOptions) -> AsyncPostgresLock {
    let (_, _, name) = parts(address);
    AsyncPostgresLock::with_options(text(address), name, options).expect("options")
}

/// Whether the end of a connection with this server is open that has this port. Connections
/// with other servers may have it too.
fn is_open(port: u16, server: SocketAddr) -> bool {
    const OPEN: [&str; 2] = ["01", "08"];
    let SocketAddr::V4(server) = server else { panic!("{server} is not of IPv4") };
    let ip = u32::from_ne_bytes(server.ip().octets());
    let (ours, theirs) = (format!(":{port:04X}"), format!("{ip:08X}:{:04X}", server.port()));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table");
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&ours) && fields[2] == theirs && OPEN.contains(&fields[3])
    })
}

/// A URL has no password in it. The same file for all processes.
fn password_file() -> &'static str {
    static FILE: OnceLock<String> = OnceLock::new();
    FILE.get_or_init(|| {
        let file = format!("{}/pgpass", env!("CARGO_TARGET_TMPDIR"));
        let new = format!("{file}.{}", std::process::id());
        let mut how = File::options();
        let how = how.create(true).write(true).truncate(true).mode(0o600);
        let mut made = how.open(&new).expect("a file");
        writeln!(made, "*:*:*:{ROLE}:{PASSWORD}").expect("a line");
        std::fs::rename(new, &file).expect("the file is in place");
        file
    })
}

/// The value of this expression over the sessions that hold the lock or wait for it.
fn ask(address: &str, expression: &str) -> String {
    let LockKey::One(key) = lock(address, PostgresOptions::default()).key() else {
        panic!("a name has one key")
    };
    let (class, object) = ((key >> 32) & 0xffff_ffff, key & 0xffff_ffff);
    let config: Config = text(address).parse().expect("a connection string");
    Session::open(&config).expect("a session").value(&format!(
        "select {expression} from pg_locks where locktype = 'advisory' \
         and classid = {class} and objid = {object} and objsubid = 1"
    ))
}

impl<const HAS_TABLE: bool> Postgres<HAS_TABLE> {
    fn options(life: Life) -> PostgresOptions {
        let table = if HAS_TABLE { Table::Own } else { Table::None };
        PostgresOptions::default().lease(lease(life)).table(table).reconnect(VERY_LONG)
    }
}

impl<const HAS_TABLE: bool> Kind for Postgres<HAS_TABLE> {
    type Lock = AsyncPostgresLock;
    type Ground = ();

    const PROMISES: Promises = Promises {
        names_holders_elsewhere: HAS_TABLE,
        tells_of_the_dead: HAS_TABLE,
        release_says_lost: true,
        // The server knows sessions, and not where a lock was asked for.
        says_where: false,
        has_hold_ids: HAS_TABLE,
        has_lines: true,
        has_fencing_tokens: true,
    };
    /// `Expired` is tested in `postgres_holders.rs`.
    const LOSSES: &'static [LostReason] = &[LostReason::Ended];
    const SCHEMES: &'static [&'static str] = &["postgres", "postgresql"];

    fn is_there() -> bool {
        is_there()
    }

    fn prepare() -> (String, ()) {
        static PLACES: AtomicUsize = AtomicUsize::new(0);
        let (process, place) = (std::process::id(), PLACES.fetch_add(1, Ordering::Relaxed));
        (format!("{}/p{process}-{place}", server().address()), ())
    }

    fn lock(address: &str, limit: Option<Duration>, life: Life) -> AsyncPostgresLock {
        lock(address, Self::options(life).timeout(limit))
    }

    fn url(address: &str, limit: Option<Duration>, life: Life) -> (String, String) {
        let (host, port, name) = parts(address);
        let (lease, reconnect) = (lease(life).as_millis(), VERY_LONG.as_secs());
        let table = if HAS_TABLE { "own" } else { "none" };
        let limit = limit.map(|limit| format!("&timeout={}us", limit.as_micros()));
        let url = format!(
            "postgres://{ROLE}@{host}:{port}/postgres?application_name={name}&passfile={}\
             &lease={lease}ms&table={table}&reconnect={reconnect}s{}",
            password_file(),
            limit.unwrap_or_default()
        );
        (url, name.to_owned())
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        assert_eq!(reason, LostReason::Ended);
        let port = "(select client_port from pg_stat_activity a where a.pid = pg_locks.pid)";
        let port = ask(place.address, &format!("max({port}) filter (where granted)"));
        let port: u16 = port.parse().expect("a port");
        let ended =
            ask(place.address, "bool_and(pg_terminate_backend(pid)) filter (where granted)");
        assert_eq!(ended, "t", "it is held");
        // Else a release that is under way by then may or may not be carried out.
        let server = server().address();
        eventually("its client has closed the connection", || !is_open(port, server));
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        ask(place.address, "count(*) filter (where not granted)").parse().expect("a number")
    }

    /// Tasks of one process stand in its own queue, in the order in which they were polled.
    fn are_waiting(_: &Site<'_, Self>, _: usize) -> bool {
        true
    }

    /// Without a table the server knows sessions alone: no other process is told by them.
    fn names(holder: &Holder, process: u32) -> bool {
        let session = holder.name.as_deref().is_some_and(|name| name.starts_with("the session "));
        if HAS_TABLE {
            holder.pid == Some(process)
        } else {
            session && process == std::process::id()
        }
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        ask(place.address, "count(*)") == "0"
    }
}
