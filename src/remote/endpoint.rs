//! Where the daemon is, and the connections to it.

use std::convert::Infallible;
use std::io;
use std::sync::MutexGuard;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::http::Uri;
use tokio::time::timeout;

use super::connection::{Connection, collected};
use super::event_stream::EventStream;
use super::hang_up::HangUp;
use super::no_response::NoResponse;
use super::options::{RemoteOptions, invalid};
use super::response::Response;
use crate::lease::{
    OptionNames, Outlook, PerProcess, RESPONSE_LIMIT, Remedies, Tls, TlsError, Trust, explained,
};
use crate::lock::error::Error;
use crate::sys::mutex::Mutex;

const EVENTS: &str = "text/event-stream";

/// As many connections are kept for later. If larger, a burst of requests leaves more of
/// them open.
const IDLE_MAX: usize = 8;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("lockkeeper/", env!("CARGO_PKG_VERSION")));

/// A daemon, and the connections to it that are free.
pub(crate) struct Endpoint {
    url: String,
    host: String,
    port: u16,
    tls: Option<Tls>,
    /// The path of the URL: what stands before the daemon's own paths.
    prefix: String,
    authority: HeaderValue,
    authorization: Option<HeaderValue>,
    idle: PerProcess<Mutex<Vec<Connection>>>,
}

impl Endpoint {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(crate) fn new(url: &str, options: &RemoteOptions) -> Result<Self, Error> {
        // Never with the URL in it, which may have a password.
        let wrong = |why: &str| invalid("server", why.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong("what is given is no URL"))?;
        let is_secret = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("write http:// or https://, a host and a port")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("the host is missing"))?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong(
                "only a host, a port and a path belong into its URL, no name, password or query",
            ));
        }
        let host = authority.host();
        let port = match authority.as_str().strip_prefix(host).unwrap_or_default() {
            "" if is_secret => 443,
            "" => 80,
            port => port[1..].parse().map_err(|_| wrong("the port is no number"))?,
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        let trust = options.ca_file.as_deref().map_or(Trust::System, Trust::File);
        let tls = || Tls::new(&host, trust, None, OptionNames::USUAL);
        let tls = is_secret.then(tls).transpose()?;
        let authorization = options.bearer_token.as_deref().map(bearer).transpose()?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            host,
            port,
            tls,
            prefix: uri.path().trim_end_matches('/').to_owned(),
            authority: HeaderValue::from_str(authority.as_str())
                .map_err(|_| wrong("the host has characters that no host has"))?,
            authorization,
            idle: PerProcess::new(),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Where XML-RPC is answered, below the path of the URL, which may name it already.
    #[cfg(feature = "cli")]
    pub(crate) fn rpc_path(&self) -> &'static str {
        if self.prefix.ends_with("/RPC2") { "" } else { "/RPC2" }
    }

    /// Send a request and read its response. It can be hung up meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(crate) async fn call(
        &self,
        path: &str,
        content_type: HeaderValue,
        body: String,
        hang_up: &HangUp,
    ) -> Result<Response, NoResponse> {
        let mut request = self.request(hyper::Method::POST, path, body);
        request.headers_mut().insert(CONTENT_TYPE, content_type);
        self.exchange(request, hang_up).await
    }

    /// [`call`](Self::call) of what is only to be read.
    pub(crate) async fn get(&self, path: &str, hang_up: &HangUp) -> Result<Response, NoResponse> {
        self.exchange(self.request(hyper::Method::GET, path, String::new()), hang_up).await
    }

    /// Ask for a stream of events, over a connection of its own. Any other response is
    /// given as it is.
    pub(super) async fn events(
        &self,
        path: &str,
    ) -> Result<Result<EventStream, Response>, NoResponse> {
        let mut connection = self.connect().await?;
        let request = self.request(hyper::Method::GET, path, String::new());
        let lost = |error| after(error, false);
        let response = connection.send(request).await.map_err(lost)?;
        let kind = response.headers().get(CONTENT_TYPE);
        if response.status().is_success() && kind.is_some_and(|kind| *kind == EVENTS) {
            return Ok(Ok(EventStream::new(response.into_body(), connection)));
        }
        collected(response).await.map(Err).map_err(lost)
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        hang_up: &HangUp,
    ) -> Result<Response, NoResponse> {
        let (mut connection, was_reused) = match self.idle_connection().await {
            Some(connection) => (connection, true),
            None => (self.connect().await?, false),
        };
        if !hang_up.attach(&connection.socket) {
            return Err(before(io::ErrorKind::Interrupted.into()));
        }
        let exchanged = connection.exchange(request).await;
        hang_up.detach();
        match exchanged {
            Ok(answer) => {
                self.keep(connection, hang_up);
                Ok(answer)
            }
            Err(error) => Err(after(error, was_reused)),
        }
    }

    fn request(&self, method: hyper::Method, path: &str, body: String) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        let target = format!("{}{path}", self.prefix);
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().expect("BUG: a path of ours is none");
        let head = request.headers_mut();
        head.insert(HOST, self.authority.clone());
        head.insert(USER_AGENT, AGENT);
        head.extend(self.authorization.clone().map(|value| (AUTHORIZATION, value)));
        request
    }

    async fn connect(&self) -> Result<Connection, NoResponse> {
        let opening = Connection::open(&self.host, self.port, self.tls.as_ref());
        match timeout(RESPONSE_LIMIT, opening).await {
            Ok(opened) => opened.map_err(before),
            Err(_) => {
                let text = "no connection was made in time";
                Err(before(io::Error::new(io::ErrorKind::TimedOut, text)))
            }
        }
    }

    async fn idle_connection(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle().pop()?;
            if connection.is_usable().await {
                return Some(connection);
            }
        }
    }

    fn keep(&self, connection: Connection, hang_up: &HangUp) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX && !hang_up.is_hung_up() {
            idle.push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        match self.idle.get_or_make(|| Ok::<_, Infallible>(Mutex::default())) {
            Ok(idle) => idle.lock(),
            Err(never) => match never {},
        }
    }
}

/// The request was sent.
fn after(error: io::Error, was_reused: bool) -> NoResponse {
    let is_of_tls = error.get_ref().is_some_and(|inner| inner.is::<TlsError>());
    let (outlook, error) = match error.kind() {
        _ if was_reused => (Outlook::Open, error),
        // With TLS 1.3 a server refuses its client's certificate after the handshake.
        _ if is_of_tls => explained(error, &REMEDIES),
        io::ErrorKind::InvalidData => (Outlook::Foreign, error),
        _ => (Outlook::Open, error),
    };
    NoResponse { error, may_have_come: true, outlook, was_reused }
}

const REMEDIES: Remedies =
    Remedies { plain: "without TLS the URL begins with http://", ca: "--ca, ca_file" };

/// The request was not sent.
fn before(error: io::Error) -> NoResponse {
    let (outlook, error) = explained(error, &REMEDIES);
    NoResponse { error, may_have_come: false, outlook, was_reused: false }
}

fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| invalid("bearer_token", "it has characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
