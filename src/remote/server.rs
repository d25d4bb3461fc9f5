//! The daemon, as its clients know it: where it is, and how to talk to it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::http::Uri;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::connection::{Answer, Connection, Tls};
use super::error::RemoteError;
use super::options::RemoteOptions;
use super::socket::Line;

/// How long a daemon may take for a connection, and for an answer that nobody
/// makes it wait for.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// More connections than that are not kept for later.
const IDLE_MAX: usize = 8;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("lockkeeper/", env!("CARGO_PKG_VERSION")));

/// A daemon, and the connections to it that are free.
pub(crate) struct Server {
    url: String,
    host: String,
    port: u16,
    tls: Option<Tls>,
    /// What the URL has before the paths of the daemon.
    prefix: String,
    authority: HeaderValue,
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<Connection>>,
}

/// Why there was no answer.
pub(crate) struct Failure {
    pub(crate) error: io::Error,
    /// The daemon may have the request.
    pub(crate) may_have_come: bool,
    /// Another try would fare as badly.
    pub(crate) is_final: bool,
    /// The connection was an old one, so nothing is said of the daemon.
    pub(crate) was_reused: bool,
}

impl Server {
    /// # Errors
    /// [`RemoteError::InvalidOption`].
    pub(crate) fn new(url: &str, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let wrong = |why: &str| invalid("server", format!("{url:?}: {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("this is no URL"))?;
        let is_secret = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("write http:// or https://, a host and a port")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("the host is missing"))?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong("only a host, a port and a path belong here"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if is_secret { 443 } else { 80 });
        let tls = is_secret.then(|| tls(&host, options.ca_file.as_deref())).transpose()?;
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
            idle: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Where XML-RPC is answered: the URL's own path, or the usual one.
    #[cfg(feature = "cli")]
    pub(crate) fn rpc_path(&self) -> &'static str {
        if self.prefix.is_empty() { "/RPC2" } else { "" }
    }

    /// Ask for something, and hear the answer. The line can be hung up meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(crate) async fn call(
        &self,
        path: &str,
        content_type: HeaderValue,
        body: String,
        line: &Line,
    ) -> Result<Answer, Failure> {
        let (mut connection, was_reused) = match self.idle_connection().await {
            Some(connection) => (connection, true),
            None => (self.connect().await?, false),
        };
        if !line.open(&connection.socket) {
            return Err(Failure::before(io::ErrorKind::Interrupted.into()));
        }
        let request = self.request(path, content_type, body);
        let exchanged = connection.exchange(request).await;
        line.close();
        match exchanged {
            Ok(answer) => {
                self.keep(connection, line);
                Ok(answer)
            }
            Err(error) => Err(Failure { error, may_have_come: true, is_final: false, was_reused }),
        }
    }

    fn request(&self, path: &str, content_type: HeaderValue, body: String) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        let target = format!("{}{path}", self.prefix);
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = target.parse().expect("BUG: a path of ours is none");
        let head = request.headers_mut();
        head.insert(HOST, self.authority.clone());
        head.insert(USER_AGENT, AGENT);
        head.insert(CONTENT_TYPE, content_type);
        head.extend(self.authorization.clone().map(|value| (AUTHORIZATION, value)));
        request
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let opening = Connection::open(&self.host, self.port, self.tls.as_ref());
        match timeout(ANSWER, opening).await {
            Ok(opened) => opened.map_err(Failure::before),
            Err(_) => Err(Failure::before(io::ErrorKind::TimedOut.into())),
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

    fn keep(&self, connection: Connection, line: &Line) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX && !line.is_hung_up() {
            idle.push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failure {
    pub(super) fn before(error: io::Error) -> Self {
        // What rustls finds wrong with the other side, it finds again.
        let is_final = error.kind() == io::ErrorKind::InvalidData;
        Self { error, may_have_come: false, is_final, was_reused: false }
    }

    /// No answer came in time.
    pub(crate) fn silence() -> Self {
        let error = io::Error::new(io::ErrorKind::TimedOut, "no answer came");
        Self { error, may_have_come: true, is_final: false, was_reused: false }
    }
}

fn tls(host: &str, ca_file: Option<&Path>) -> Result<Tls, RemoteError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| invalid("server", format!("{host:?}: {error}")))?;
    let roots = match ca_file {
        Some(file) => roots_in(file)?,
        None => roots_of_the_system(),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("BUG: ring has no protocol version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Tls { connector: TlsConnector::from(Arc::new(config)), name })
}

fn roots_in(file: &Path) -> Result<RootCertStore, RemoteError> {
    let wrong = |why: String| invalid("ca_file", format!("{}: {why}", file.display()));
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

fn roots_of_the_system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "reading the certificates that the system trusts");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

fn bearer(token: &str) -> Result<HeaderValue, RemoteError> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| invalid("bearer_token", "it has characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn invalid(option: &'static str, why: String) -> RemoteError {
    RemoteError::InvalidOption { option, why }
}
