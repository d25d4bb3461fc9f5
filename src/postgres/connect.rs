//! One session with a server that can write.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Connection, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::access::{Access, Host, Route};
use super::failure::{Failure, Kind};
use super::stream::{Peer, StaysOpen, Stream};
use crate::lease::{io, shown};
use crate::lock::error::rounded;
use crate::sys::mutex::Mutex;

/// `client_connection_check_interval` is of this version.
const OLDEST: u32 = 14;

/// How long a server may take to cancel a statement, connection included. If larger, a
/// wait that was dropped keeps its session for longer.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// What is asked first. Names are qualified: nothing of the user's schemas takes part.
const IDENTITY: &str = "SELECT pg_catalog.current_setting('server_version_num'), \
    (SELECT d.oid FROM pg_catalog.pg_database d \
        WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()), \
    pg_catalog.pg_backend_pid(), \
    pg_catalog.pg_is_in_recovery(), \
    pg_catalog.current_setting('transaction_read_only'), \
    pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')";

/// Apart: a role without that right cannot even plan it.
const SYSTEM: &str = "SELECT system_identifier FROM pg_catalog.pg_control_system()";

/// A former primary answers reads, and a write only if no standby has to store it. The server
/// may have it off: then a commit waits for none. It is on for this transaction alone. (P5)
const WRITE: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', true), \
    pg_catalog.pg_logical_emit_message(true, 'lockkeeper', '')";

/// A session. It ends when this is dropped.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) server: Server,
    /// The server's process, as `pg_stat_activity` and `pg_locks` show it.
    pub(super) pid: i32,
    peer: Peer,
    ending: Arc<Ending>,
    driver: AbortOnDropHandle<()>,
}

/// Which server and database a session is with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// The system identifier; a standby has that of its primary. `None` where the role may
    /// not execute `pg_control_system`: then only the names of the hosts tell servers
    /// apart.
    pub(super) system: Option<u64>,
    pub(super) database: u32,
    /// As in 150018.
    pub(super) version: u32,
}

impl Session {
    /// A session by the first route that leads to one. On the thread of `lease::io`. (P4, P6)
    pub(super) async fn open(access: &Access) -> Result<Self, Failure> {
        let mut failures = Vec::new();
        for at in access.order() {
            let route = &access.routes()[at];
            match Self::open_by(access, route).await {
                Ok(session) => {
                    access.begin_with(at);
                    return Ok(session);
                }
                Err(failure) => {
                    let message = format!("{}: {}", route.host, failure.message);
                    let failure = Failure { message, ..failure };
                    // As with libpq, a server that refuses this user has the last word.
                    if !failure.kind.is_of_the_host() {
                        return Err(failure);
                    }
                    failures.push(failure);
                }
            }
        }
        Err(Failure::of_all(failures))
    }

    /// With TLS or without, as the route says.
    async fn open_by(access: &Access, route: &Route) -> Result<Self, Failure> {
        let mut failures: Vec<Failure> = Vec::new();
        for tls in &route.tries {
            let peer = Peer::new(&route.host, tls.as_ref());
            let opening = Self::open_with(access, &route.host, &peer);
            let opened = timeout(access.limit(), opening).await.unwrap_or_else(|_| {
                let limit = rounded(access.limit());
                Err(Failure::new(Kind::Passing, format!("no session was made within {limit}")))
            });
            let opened = match opened {
                Ok(session) => session.written(access.limit()).await,
                Err(failure) => Err(failure),
            };
            match opened {
                Ok(session) => return Ok(session),
                Err(failure) => failures.push(failure),
            }
            if failures.last().is_some_and(|failure| !failure.kind.may_be_of_tls()) {
                break;
            }
        }
        if failures.len() > 1 {
            failures.retain(|failure| failure.kind != Kind::NoTls);
        }
        Err(Failure::of_all(failures))
    }

    async fn open_with(access: &Access, host: &Host, peer: &Peer) -> Result<Self, Failure> {
        let (stream, peer) = peer.open().await?;
        let has_begun = stream.has_begun();
        let connected = access.config(host).connect_raw(stream, NoTls).await;
        let (client, connection) = connected.map_err(|error| Failure::of(&error))?;
        has_begun.store(true, Ordering::Relaxed);
        check_version(&connection)?;
        let ending = Arc::new(Ending::default());
        let driver = Driver { connection, driving: Driving(Arc::clone(&ending)) };
        let driver = AbortOnDropHandle::new(tokio::spawn(driver.run()));
        let (server, pid) = Server::ask(&client).await?;
        Ok(Self { client, server, pid, peer, ending, driver })
    }

    /// Itself, if the server stores what is written. (P4)
    ///
    /// # Cancel safety
    /// Dropping the future cancels the write.
    async fn written(self, limit: Duration) -> Result<Self, Failure> {
        let failed = |error| Failure::of_io(&error);
        // A process that ends waits for the cancel.
        let outstanding = io().map_err(failed)?.outstanding();
        let (_caller, gone) = oneshot::channel::<()>();
        let writing = async move {
            let _outstanding = outstanding;
            let written = tokio::select! {
                biased;
                written = only_row(&self.client, WRITE) => Some(written),
                () = sleep(limit) => None,
                _ = gone => None,
            };
            if let Some(written) = written {
                return written.map(|_| self);
            }
            // Else the server's process waits for the standby though its client is gone.
            let _ = self.cancel().await;
            let why = format!(
                "it stored no write within {}: a former primary, or one whose synchronous \
                 standby is away",
                rounded(limit)
            );
            Err(Failure::new(Kind::Passing, why))
        };
        let written = tokio::spawn(writing).await;
        written.unwrap_or_else(|error| Err(Failure::of_io(&error.into())))
    }

    /// Why it has ended, if it has.
    pub(super) fn over(&self) -> Option<Failure> {
        self.ending.token.is_cancelled().then(|| self.ending.why())
    }

    /// Resolves when it has ended, with the reason. It outlives the session.
    pub(super) fn ended(&self) -> impl Future<Output = Failure> + Send + use<> {
        let ending = Arc::clone(&self.ending);
        async move {
            ending.token.cancelled().await;
            ending.why()
        }
    }

    /// End it without a word to the server, whatever statement is under way. Its socket is
    /// closed when [`ended`](Self::ended) resolves.
    pub(super) fn end(&self) {
        self.driver.abort();
    }

    /// Cancel the statement that is under way. When this resolves with success the server
    /// has done so, and no later statement is hit.
    pub(super) async fn cancel(&self) -> Result<(), Failure> {
        let cancelling = async {
            let (mut stream, _) = self.peer.open().await?;
            let token = self.client.cancel_token();
            let sent = token.cancel_query_raw(StaysOpen(&mut stream), NoTls).await;
            sent.map_err(|error| Failure::of(&error))?;
            stream.read_to_end().await;
            Ok(())
        };
        timeout(CANCEL_LIMIT, cancelling).await.unwrap_or_else(|_| {
            Err(Failure::new(Kind::Passing, "the server did not cancel it in time"))
        })
    }
}

/// That a session has ended, and why.
#[derive(Default)]
struct Ending {
    token: CancellationToken,
    why: Mutex<Option<Failure>>,
}

impl Ending {
    fn why(&self) -> Failure {
        let why = self.why.lock().clone();
        why.unwrap_or_else(|| Failure::new(Kind::Passing, "the session was ended here"))
    }
}

/// The task that a session is.
struct Driver {
    // It is dropped first, and closes the socket.
    connection: Connection<Stream, NoTlsStream>,
    driving: Driving,
}

/// The session has ended when this is dropped.
struct Driving(Arc<Ending>);

impl Driver {
    async fn run(mut self) {
        while let Some(message) = poll_fn(|context| self.connection.poll_message(context)).await {
            match message {
                // A log that is stuck would hold up every renewal, so notices are not logged.
                Ok(_) => {}
                Err(error) => {
                    *self.driving.0.why.lock() = Some(Failure::of(&error));
                    break;
                }
            }
        }
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.token.cancel();
    }
}

/// By what the server said of itself before any statement: an old one may not know what
/// is asked.
fn check_version(connection: &Connection<Stream, NoTlsStream>) -> Result<(), Failure> {
    let said = shown(connection.parameter("server_version").unwrap_or_default());
    let no_locks = if connection.parameter("crdb_version").is_some() {
        Some("CockroachDB")
    } else if said.contains("-YB-") {
        Some("YugabyteDB")
    } else {
        None
    };
    if let Some(name) = no_locks {
        let why = format!("it is {name}, whose advisory locks are not those of PostgreSQL");
        return Err(Failure::new(Kind::Foreign, why));
    }
    let major = said.split(|it: char| !it.is_ascii_digit()).next().and_then(|it| it.parse().ok());
    match major {
        Some(major) if OLDEST <= major => Ok(()),
        Some::<u32>(_) => Err(Failure::new(
            Kind::TooOld,
            format!("it is of version {said}, and PostgreSQL {OLDEST} is the oldest that will do"),
        )),
        None => Err(Failure::new(Kind::Foreign, format!("{said:?} is no version of PostgreSQL"))),
    }
}

impl Server {
    /// The server, and its process for this session.
    async fn ask(client: &Client) -> Result<(Self, i32), Failure> {
        let row = only_row(client, IDENTITY).await?;
        let is = |column: usize, value: &str| row.try_get(column).ok().flatten() == Some(value);
        if is(3, "t") {
            let why = "it is in recovery: a standby, or a server that still starts";
            return Err(Failure::new(Kind::ReadOnly, why));
        }
        if is(4, "on") {
            let why = "sessions are read-only there (default_transaction_read_only)";
            return Err(Failure::new(Kind::ReadOnly, why));
        }
        let system =
            if is(5, "t") { Some(number(&only_row(client, SYSTEM).await?, 0)?) } else { None };
        let server = Self { system, version: number(&row, 0)?, database: number(&row, 1)? };
        Ok((server, number(&row, 2)?))
    }
}

/// By the simple protocol: no statement is named. (P5)
async fn only_row(client: &Client, statement: &str) -> Result<SimpleQueryRow, Failure> {
    let messages = client.simple_query(statement).await;
    let messages = messages.map_err(|error| match Failure::of(&error) {
        // A function that each PostgreSQL has.
        failure if failure.is("42883") => Failure { kind: Kind::Foreign, ..failure },
        failure => failure,
    })?;
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.ok_or_else(foreign)
}

fn number<T: std::str::FromStr>(row: &SimpleQueryRow, column: usize) -> Result<T, Failure> {
    let value = row.try_get(column).ok().flatten().and_then(|value| value.parse().ok());
    value.ok_or_else(foreign)
}

fn foreign() -> Failure {
    Failure::new(Kind::Foreign, "it does not answer as PostgreSQL does")
}
