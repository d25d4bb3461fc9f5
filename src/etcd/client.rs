//! Requests to a cluster: whichever member answers.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::connection::{Connection, REMEDIES};
use super::endpoint::Endpoint;
use super::failure::{Failure, Kind};
use super::wire::{
    AUTHENTICATE, Answer, AuthenticateRequest, AuthenticateResponse, RANGE, STATUS, StatusRequest,
    StatusResponse, TXN,
};
use crate::lease::{self, Exhausted, Patience, explained};

/// How long one member may take for an answer before the next is asked. If larger, a
/// member that hangs holds callers up longer; if smaller, a busy disk looks like one.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The oldest etcd of which this was tried.
const OLDEST: (u32, u32) = (3, 4);

/// Name and password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

/// What this process has of a cluster. Used on the thread of `lease::io` alone. (M0)
pub(super) struct Client {
    members: Vec<Member>,
    credentials: Option<Credentials>,
    /// The member that is asked first.
    current: AtomicUsize,
    /// After a login.
    token: Mutex<Option<MetadataValue<Ascii>>>,
    /// Of the first answer; 0 before that.
    cluster: AtomicU64,
    /// No guard relies on that cluster: its members may say that it is another one now.
    is_loose: AtomicBool,
    /// The highest revision that a linearizable answer had. (M9)
    revision: AtomicI64,
}

struct Member {
    endpoint: Endpoint,
    /// Of its last answer that was taken; 0 before that.
    cluster: AtomicU64,
    /// As long as the mutex is locked, one is being opened.
    connection: Mutex<Option<Connection>>,
}

impl Client {
    pub(super) fn new(endpoints: &[Endpoint], credentials: Option<Credentials>) -> Self {
        let member = |endpoint: &Endpoint| Member {
            endpoint: endpoint.clone(),
            cluster: AtomicU64::new(0),
            connection: Mutex::new(None),
        };
        Self {
            members: endpoints.iter().map(member).collect(),
            credentials,
            current: AtomicUsize::new(0),
            token: Mutex::new(None),
            cluster: AtomicU64::new(0),
            is_loose: AtomicBool::new(false),
            revision: AtomicI64::new(0),
        }
    }

    /// The cluster's id; 0 before the first answer.
    pub(super) fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Relaxed)
    }

    /// Take whatever revision comes next. A member of the cluster may then say that it is of
    /// another one, as after a restore; any other member may not, as it never was of this one.
    pub(super) fn loosen(&self) {
        self.is_loose.store(true, Ordering::Relaxed);
        self.revision.store(0, Ordering::Relaxed);
    }

    /// Ask one member after another, each once, until one answers. `is_unclear` becomes
    /// true if the request may be carried out without an answer; it is true meanwhile. (M4)
    pub(super) async fn call<Q, A>(
        &self,
        path: &'static str,
        request: &Q,
        limit: Duration,
        is_unclear: &mut bool,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Answer,
    {
        let (mut was_unclear, mut failures) = (*is_unclear, Failures::default());
        for _ in 0..self.members.len() {
            let index = self.current.load(Ordering::Relaxed) % self.members.len();
            *is_unclear = true;
            let asked = self.call_member(index, path, request, limit).await;
            let failure = match asked {
                Ok(answer) => {
                    *is_unclear = was_unclear;
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            was_unclear |= failure.is_unclear;
            *is_unclear = was_unclear;
            if !failure.is_of_the_endpoint() {
                return Err(failure);
            }
            failures.add(&self.members[index].endpoint, failure);
            self.next_after(index);
        }
        Err(failures.all())
    }

    /// [`call`](Self::call) for at most as long as one member may take after the caller's limit.
    pub(super) async fn call_within<Q, A>(
        &self,
        path: &'static str,
        request: &Q,
        patience: &Patience,
        is_unclear: &mut bool,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Answer,
    {
        let asking = self.call(path, request, ANSWER_LIMIT, is_unclear);
        match patience.end_of(ANSWER_LIMIT) {
            None => asking.await,
            Some(end) => timeout_at(end, asking).await.unwrap_or_else(|_| Err(Failure::silence())),
        }
    }

    /// [`call`](Self::call) until there is an answer, or a failure that would stay.
    pub(super) async fn persist<Q, A>(
        &self,
        path: &'static str,
        request: &Q,
        patience: &mut Patience,
        is_unclear: &mut bool,
    ) -> Result<A, GivenUp>
    where
        Q: Message + Clone + 'static,
        A: Answer,
    {
        loop {
            let begun = Instant::now();
            match self.call_within(path, request, patience, is_unclear).await {
                Ok(answer) => {
                    patience.renew(begun.elapsed());
                    return Ok(answer);
                }
                Err(Failure { kind: Kind::Passing, message, .. }) => {
                    let error = io::Error::other(message);
                    if patience.is_trouble() {
                        told(error.to_string());
                    }
                    patience.pause(begun, error).await.map_err(GivenUp::Exhausted)?;
                }
                Err(failure) => return Err(GivenUp::Final(failure)),
            }
        }
    }

    /// Open a stream in both directions to the member that is asked first.
    pub(super) async fn stream<Q, A>(
        &self,
        path: &'static str,
        requests: mpsc::UnboundedReceiver<Q>,
    ) -> Result<(Streaming<A>, Connection), Failure>
    where
        Q: Message + 'static,
        A: Answer,
    {
        let index = self.current.load(Ordering::Relaxed) % self.members.len();
        let opened = timeout(ANSWER_LIMIT, self.open_stream(index, path, requests)).await;
        let opened = opened.unwrap_or_else(|_| Err(Failure::silence()));
        if let Err(failure) = &opened {
            if failure.is_of_the_endpoint() {
                self.next_after(index);
            }
        }
        opened
    }

    async fn open_stream<Q, A>(
        &self,
        index: usize,
        path: &'static str,
        requests: mpsc::UnboundedReceiver<Q>,
    ) -> Result<(Streaming<A>, Connection), Failure>
    where
        Q: Message + 'static,
        A: Answer,
    {
        let connection = self.connection(index).await?;
        let request = self.with_metadata(Queue(requests)).await?;
        let mut grpc = self.grpc(index, &connection);
        grpc.ready().await.map_err(|error| Failure::new(Kind::Passing, error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        let opened = grpc.streaming(request, PathAndQuery::from_static(path), codec).await;
        match opened {
            Ok(response) => Ok((response.into_inner(), connection)),
            Err(status) => Err(self.failed(index, &connection, &status).await),
        }
    }

    /// One request over a stream of its own, so that no late answer is taken for this one's. (M2)
    pub(super) async fn ask_by_stream<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        limit: Duration,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Answer,
    {
        let mut failures = Failures::default();
        for _ in 0..self.members.len() {
            let index = self.current.load(Ordering::Relaxed) % self.members.len();
            let asking = async {
                let (sender, requests) = mpsc::unbounded_channel();
                let _ = sender.send(request.clone());
                drop(sender);
                let (mut answers, connection) =
                    self.open_stream::<Q, A>(index, path, requests).await?;
                match answers.message().await {
                    Ok(Some(answer)) => Ok(answer),
                    Ok(None) => Err(Failure::new(Kind::Passing, "the stream ended")),
                    Err(status) => Err(self.failed(index, &connection, &status).await),
                }
            };
            let asked = timeout(limit, asking).await.unwrap_or_else(|_| Err(Failure::silence()));
            match asked {
                Ok(answer) => {
                    self.check(index, answer.header(), None)?;
                    return Ok(answer);
                }
                Err(failure) if failure.is_of_the_endpoint() => {
                    failures.add(&self.members[index].endpoint, failure);
                    self.next_after(index);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(failures.all())
    }

    async fn call_member<Q, A>(
        &self,
        index: usize,
        path: &'static str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Answer,
    {
        let is_linearizable = path == RANGE || path == TXN;
        let floor = is_linearizable.then(|| self.revision.load(Ordering::Relaxed));
        let asking = async {
            let asked = self.call_once(index, path, request).await;
            match asked {
                // Once more, after another login.
                Err(failure) if failure.kind == Kind::Stale && self.credentials.is_some() => {
                    let was_unclear = failure.is_unclear;
                    let again = self.call_once(index, path, request).await;
                    again.map_err(|failure| Failure {
                        is_unclear: failure.is_unclear || was_unclear,
                        ..failure
                    })
                }
                asked => asked,
            }
        };
        let asked: Result<A, Failure> =
            timeout(limit, asking).await.unwrap_or_else(|_| Err(Failure::silence()));
        let answer = asked.map_err(|failure| match failure.kind {
            Kind::Stale => Failure { kind: Kind::Forbidden, ..failure },
            _ => failure,
        })?;
        self.check(index, answer.header(), floor)?;
        Ok(answer)
    }

    async fn call_once<Q, A>(
        &self,
        index: usize,
        path: &'static str,
        request: &Q,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Answer,
    {
        let connection = self.connection(index).await?;
        let request = self.with_metadata(request.clone()).await?;
        self.unary(index, &connection, path, request).await
    }

    async fn unary<Q, A>(
        &self,
        index: usize,
        connection: &Connection,
        path: &'static str,
        request: Request<Q>,
    ) -> Result<A, Failure>
    where
        Q: Message + 'static,
        A: Answer,
    {
        let mut grpc = self.grpc(index, connection);
        if let Err(error) = grpc.ready().await {
            self.forget(index, connection).await;
            return Err(Failure::new(Kind::Passing, error.to_string()));
        }
        let codec = ProstCodec::<Q, A>::default();
        match grpc.unary(request, PathAndQuery::from_static(path), codec).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.failed(index, connection, &status).await),
        }
    }

    fn grpc(&self, index: usize, connection: &Connection) -> Grpc<Connection> {
        Grpc::with_origin(connection.clone(), self.members[index].endpoint.origin().clone())
    }

    async fn failed(&self, index: usize, connection: &Connection, status: &Status) -> Failure {
        let mut failure = Failure::read(status);
        if failure.kind == Kind::Stale {
            *self.token.lock().await = None;
        }
        if connection.is_closed() {
            self.forget(index, connection).await;
        }
        if let Some(foreign) = connection.foreign() {
            (failure.kind, failure.message) = (Kind::Foreign, foreign.to_owned());
        }
        failure
    }

    /// The open connection, or a new one to a member that was looked at.
    async fn connection(&self, index: usize) -> Result<Connection, Failure> {
        let mut place = self.members[index].connection.lock().await;
        if let Some(connection) = place.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        drop(place.take());
        // Boxed, as it is rare and large.
        Ok(place.insert(Box::pin(self.open(index)).await?).clone())
    }

    async fn open(&self, index: usize) -> Result<Connection, Failure> {
        let endpoint = &self.members[index].endpoint;
        let opening = Connection::open(endpoint.host(), endpoint.port(), endpoint.tls());
        let opened = timeout(ANSWER_LIMIT, opening).await;
        let connection = match opened {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let (outlook, error) = explained(error, &REMEDIES);
                return Err(Failure::unsent(outlook, error.to_string()));
            }
            Err(_) => return Err(Failure::new(Kind::Passing, "no connection was made in time")),
        };
        // So that a member that cannot be used is known before a lock is asked for.
        let mut grpc = self.grpc(index, &connection);
        let ready = grpc.ready().await;
        ready.map_err(|error| Failure::new(Kind::Passing, error.to_string()))?;
        let codec = ProstCodec::<StatusRequest, StatusResponse>::default();
        let asking =
            grpc.unary(Request::new(StatusRequest {}), PathAndQuery::from_static(STATUS), codec);
        match timeout(ANSWER_LIMIT, asking).await {
            Ok(Ok(response)) => self.judge(index, &response.into_inner())?,
            Ok(Err(status)) => {
                let failure = Failure::read(&status);
                if let Some((outlook, message)) = connection.tls_failure() {
                    return Err(Failure::unsent(outlook, message));
                }
                if let Some(foreign) = connection.foreign() {
                    return Err(Failure::new(Kind::Foreign, foreign));
                }
                // As etcd's port does that speaks TLS.
                if !connection.is_heard() && endpoint.tls().is_none() {
                    let text = "it closed the connection without a word: if it speaks TLS, the \
                                URL begins with etcd+tls:// or https://";
                    return Err(Failure::new(Kind::Passing, text));
                }
                // A member that shows its status to some users alone is used all the same.
                if !matches!(failure.kind, Kind::Forbidden | Kind::Stale) {
                    return Err(Failure { is_unclear: false, ..failure });
                }
            }
            Err(_) => return Err(Failure::new(Kind::Passing, "no answer came in time")),
        }
        Ok(connection)
    }

    fn judge(&self, index: usize, status: &StatusResponse) -> Result<(), Failure> {
        let mut numbers = status.version.split('.').map(|number| number.parse::<u32>().ok());
        let version = numbers.next().flatten().zip(numbers.next().flatten());
        match version {
            Some(version) if version >= OLDEST => {}
            Some(_) => {
                let found: String = status.version.chars().take(20).collect();
                let text = format!("etcd {found} is too old: 3.4 or later is needed");
                return Err(Failure::new(Kind::Foreign, text));
            }
            None => return Err(Failure::new(Kind::Foreign, "it names no version of etcd")),
        }
        if status.is_learner {
            let text = "this member is a learner, which answers no client: name the voters";
            return Err(Failure::new(Kind::Passing, text));
        }
        self.check(index, status.header.as_ref(), None)
    }

    /// M9.
    fn check(
        &self,
        index: usize,
        header: Option<&super::wire::Header>,
        floor: Option<i64>,
    ) -> Result<(), Failure> {
        let Some(header) = header else {
            return Err(Failure::new(Kind::Foreign, "an answer without a header"));
        };
        let (id, known) = (header.cluster_id, self.cluster());
        let was_of_it = self.members[index].cluster.load(Ordering::Relaxed) == known;
        let is_restored = self.is_loose.load(Ordering::Relaxed) && was_of_it;
        if ![0, id].contains(&known) && !is_restored {
            let text = "it belongs to another cluster than the first member that answered";
            return Err(Failure::new(Kind::Foreign, text));
        }
        self.is_loose.store(false, Ordering::Relaxed);
        self.cluster.store(id, Ordering::Relaxed);
        self.members[index].cluster.store(id, Ordering::Relaxed);
        let Some(floor) = floor else { return Ok(()) };
        if header.revision < floor {
            self.revision.store(header.revision, Ordering::Relaxed);
            let text = format!(
                "the cluster is at revision {}, and was at {floor}: an older state was restored",
                header.revision
            );
            return Err(Failure::new(Kind::Restored, text));
        }
        self.revision.fetch_max(header.revision, Ordering::Relaxed);
        Ok(())
    }

    async fn with_metadata<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        // A member that is cut off from its cluster says so at once.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(credentials) = &self.credentials {
            let token = self.token.lock().await.clone();
            let token = match token {
                Some(token) => token,
                None => Box::pin(self.log_in(credentials)).await?,
            };
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }

    /// M10: one login for all that wait for it.
    async fn log_in(&self, credentials: &Credentials) -> Result<MetadataValue<Ascii>, Failure> {
        let mut token = self.token.lock().await;
        if let Some(token) = &*token {
            return Ok(token.clone());
        }
        let index = self.current.load(Ordering::Relaxed) % self.members.len();
        let connection = self.connection(index).await?;
        let Credentials { user, password } = credentials.clone();
        let request = Request::new(AuthenticateRequest { name: user, password });
        let mut grpc = self.grpc(index, &connection);
        grpc.ready().await.map_err(|error| Failure::new(Kind::Passing, error.to_string()))?;
        let codec = ProstCodec::<AuthenticateRequest, AuthenticateResponse>::default();
        let path = PathAndQuery::from_static(AUTHENTICATE);
        let answered = grpc.unary(request, path, codec).await;
        let answer =
            answered.map_err(|status| Failure { is_unclear: false, ..Failure::read(&status) })?;
        let foreign = |_| Failure::new(Kind::Foreign, "its auth token is none");
        Ok(token.insert(answer.into_inner().token.parse().map_err(foreign)?).clone())
    }

    /// Go on with the member after this one.
    fn next_after(&self, index: usize) {
        let next = (index + 1) % self.members.len();
        let moved =
            self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() {
            if let Ok(mut place) = self.members[index].connection.try_lock() {
                if let Some(connection) = place.take() {
                    connection.leave();
                }
            }
        }
    }

    async fn forget(&self, index: usize, connection: &Connection) {
        let mut place = self.members[index].connection.lock().await;
        if place.as_ref().is_some_and(|found| found.is(connection)) {
            *place = None;
        }
    }
}

/// Log what the user should know, though no call fails.
fn told(error: String) {
    if let Ok(io) = lease::io() {
        io.log(move || tracing::warn!(%error, "no answer of etcd, it is asked again"));
    }
}

/// Why a request is not made again.
pub(super) enum GivenUp {
    Exhausted(Exhausted),
    Final(Failure),
}

/// What each endpoint said.
#[derive(Default)]
struct Failures {
    worst: Option<Failure>,
    texts: Vec<String>,
}

impl Failures {
    fn add(&mut self, endpoint: &Endpoint, failure: Failure) {
        self.texts.push(format!("{endpoint}: {}", failure.message));
        // What may pass at one endpoint may help at all.
        if self.worst.is_none() || failure.kind == Kind::Passing {
            self.worst = Some(failure);
        }
    }

    fn all(self) -> Failure {
        let worst = self.worst.expect("BUG: a cluster without endpoints");
        Failure { message: self.texts.join("; "), ..worst }
    }
}

/// Requests as they come.
struct Queue<Q>(mpsc::UnboundedReceiver<Q>);

impl<Q> Stream for Queue<Q> {
    type Item = Q;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Q>> {
        self.0.poll_recv(context)
    }
}
