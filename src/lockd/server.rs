//! The daemon as a value: a directory, an address, and what runs between them.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::http::access_tokens::TokenFile;
use super::http::app_state::AppState;
use super::http::auth::Gate;
use super::http::limits::{BodyReader, Limits};
use super::http::metrics::Counts;
use super::http::origin::{Hosts, PublicUrl};
use super::http::permits::Permits;
use super::http::survey_cache::SurveyCache;
use super::http::tls::{FileError, ServerTls};
use super::http::{self, listen, rpc};
use super::state::{LockTable, LockTableOptions, OpenError};
use super::store::TOKENS_ABOVE_MAX;
use super::xmlrpc::FaultStyle;
use crate::sys::mutex::Mutex;

/// What a [`Server`] serves, and how.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    directory: PathBuf,
    listen: SocketAddr,
    sync: bool,
    accept_damage: bool,
    tokens_above: Option<u64>,
    fault_style: FaultStyle,
    limits: Limits,
    tokens: Option<PathBuf>,
    tls: Option<(PathBuf, PathBuf)>,
    is_insecure: bool,
    hosts: Vec<String>,
    public_url: Option<String>,
    waiting: usize,
    waiting_per_peer: usize,
    counts: Counts,
    locks_per_client: Option<usize>,
    waiters_per_client: Option<usize>,
}

impl ServerOptions {
    /// Options for the locks in this directory, which must be there.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::lockd::ServerOptions;
    ///
    /// let options = ServerOptions::new("/var/lib/lockkeeper").tokens("/etc/lockkeeper/tokens.json");
    /// ```
    pub fn new(directory: impl AsRef<Path>) -> Self {
        Self {
            directory: directory.as_ref().to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            sync: true,
            accept_damage: false,
            tokens_above: None,
            fault_style: FaultStyle::default(),
            limits: Limits::default(),
            tokens: None,
            tls: None,
            is_insecure: false,
            hosts: Vec::new(),
            public_url: None,
            waiting: 8192,
            waiting_per_peer: 512,
            counts: Counts::default(),
            locks_per_client: None,
            waiters_per_client: None,
        }
    }

    /// The address to listen at; port 0 is any that is free. Default: 127.0.0.1:8000.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Whether an answer waits until the disk has what it says. Without it, a
    /// power cut can undo what was answered; `kill -9` cannot. Default: true.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Whether to go on without what a damaged journal has lost. What cannot have
    /// changed in the lost part stays as it is. A lock that may have ended in it, or may
    /// have been given again, is held if its file is there. It has a new fencing token
    /// then, and no lease and no request id. After a power cut its file may be lost as
    /// well: it is made again, and the log says so. No such file is removed. What is
    /// damaged is kept beside what is new. Fencing tokens go on above all that were
    /// given. Default: false, and damage is [`OpenError::Damaged`].
    #[must_use]
    pub fn accept_damage(mut self, accept: bool) -> Self {
        self.accept_damage = accept;
        self
    }

    /// Give no fencing token up to this one. A directory that is a copy needs it, if
    /// locks were given elsewhere since: see
    /// [`backup_and_restore`](crate::_docs::backup_and_restore). It is synced before the first
    /// grant, and takes no token back at a later start. It is for one start all the same:
    /// where the counter is lost later, it stands in for it. Below the greatest token in
    /// the journal it does not: that is [`OpenError::Damaged`]. At most half of what a
    /// `u64` holds. Default: none.
    #[must_use]
    pub fn tokens_above(mut self, token: u64) -> Self {
        self.tokens_above = Some(token);
        self
    }

    /// How long a connection may take for the head of its next request, idle
    /// time included. Default: 30 s.
    #[must_use]
    pub fn head_time(mut self, time: Duration) -> Self {
        self.limits.head_time = time;
        self
    }

    /// How long the body of a request may take. Default: 10 s.
    #[must_use]
    pub fn body_time(mut self, time: Duration) -> Self {
        self.limits.body_time = time;
        self
    }

    /// How long a client may take nothing of what it is sent; then its connection
    /// is reset. Default: 30 s.
    #[must_use]
    pub fn write_time(mut self, time: Duration) -> Self {
        self.limits.write_time = time;
        self
    }

    /// How many connections there may be at a time. Default: 16 384.
    ///
    /// The one that is idle longest makes room for a new one. Never more than the process may have
    /// files open, less 128.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.limits.connections = connections;
        self
    }

    /// How long requests that are being answered are waited for at the end.
    /// Default: 10 s.
    #[must_use]
    pub fn grace(mut self, time: Duration) -> Self {
        self.limits.grace = time;
        self
    }

    /// The file of the tokens, of which every request needs one.
    ///
    /// It is read when the server is bound and by a [`Reloader`]. It is JSON:
    ///
    /// ```json
    /// {"tokens": [
    ///   {"name": "web", "sha256": "…", "clients": ["web-1", "web-2"]},
    ///   {"name": "ops", "sha256": "…", "clients": ["*"], "administrator": true},
    ///   {"name": "prometheus", "sha256": "…", "viewer": true}
    /// ]}
    /// ```
    ///
    /// `sha256` is that of the token in hexadecimal digits, as of `printf %s "$TOKEN" |
    /// sha256sum`. A token has 32 characters or more and is made by chance, as by `openssl
    /// rand -hex 32`: nothing shorter is ever accepted. `clients` are the names it may use;
    /// one that ends in `*` is the start of a name. An administrator may force. A viewer
    /// may look at lists, events and metrics, and change nothing. A file that its group or
    /// others can write is refused. Default: none, and on loopback none is needed.
    #[must_use]
    pub fn tokens(mut self, file: impl AsRef<Path>) -> Self {
        self.tokens = Some(file.as_ref().to_owned());
        self
    }

    /// Speak TLS, with a certificate and its private key in PEM files.
    ///
    /// Those that vouch for the certificate follow it in its file. The files are read when the server is bound and by
    /// a [`Reloader`]. A key that its group or others can write is refused; of one that
    /// all users can read the log warns. Default: none.
    #[must_use]
    pub fn tls(mut self, certificates: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.tls = Some((certificates.as_ref().to_owned(), key.as_ref().to_owned()));
        self
    }

    /// Serve an address that is not loopback without tokens or without TLS. Without tokens
    /// every caller that reaches the address may use every client's name, though only this
    /// machine may force. Without TLS, an eavesdropper on the network has the tokens.
    /// Default: false.
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.is_insecure = insecure;
        self
    }

    /// A further name by which clients call this server, without a port.
    ///
    /// It is what stands in the `Host` of their requests. Other names are refused, so that no page can have a name of its own
    /// lead a browser here. Known without this: `localhost`, addresses (at loopback only
    /// those of loopback) and, at other addresses, the machine's own name. One that no
    /// `Host` can have, as with a port, a scheme or a star, is refused when the server is
    /// bound.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.hosts.push(name.into());
        self
    }

    /// The URL at which browsers and clients find this server behind a proxy. Its host is
    /// known, and pages from there may ask. Its path is taken away, if the proxy passes it
    /// on. Without tokens no caller is an administrator then, as every request may come
    /// from elsewhere. Default: none.
    #[must_use]
    pub fn public_url(mut self, url: impl Into<String>) -> Self {
        self.public_url = Some(url.into());
        self
    }

    /// How many requests may wait for a lock at a time, and how many of one address.
    ///
    /// An address is an IPv4 address, or an IPv6 network of 64 bits. Where tokens are needed, each has its own count, so
    /// that machines behind one address share only what they share a token for. A request
    /// that a proxy on this machine passed on counts for the address that the proxy says
    /// (`X-Forwarded-For`, `Forwarded`). This machine's own requests count for the first
    /// limit only. As many connections as that may be open from one address, and as many
    /// again. Default: 8192 and 512.
    #[must_use]
    pub fn waiting(mut self, in_all: usize, per_address: usize) -> Self {
        (self.waiting, self.waiting_per_peer) = (in_all, per_address);
        let connections = per_address.saturating_mul(2);
        self.limits.connections_per_peer = connections.max(self.limits.connections_per_peer);
        self
    }

    /// A count of lines that the log of this process has dropped, for its metrics.
    ///
    /// There it is `lockkeeper_log_lines_dropped_total`. Default: none, and no such figure.
    #[must_use]
    pub fn log_lines_dropped(mut self, count: Arc<AtomicU64>) -> Self {
        self.counts.log_lines_dropped = Some(count);
        self
    }

    /// How many locks one client, by its name, may hold at a time.
    ///
    /// All that it holds count, also from before a restart. A request beyond is refused with the code
    /// `locks_per_client`; one that waits is refused when its turn comes. Default:
    /// any number.
    #[must_use]
    pub fn locks_per_client(mut self, locks: usize) -> Self {
        self.locks_per_client = Some(locks);
        self
    }

    /// How many requests of one client, by its name, may wait at a time. A request
    /// beyond is refused with the code `waiters_per_client`. Default: any number.
    #[must_use]
    pub fn waiters_per_client(mut self, waiters: usize) -> Self {
        self.waiters_per_client = Some(waiters);
        self
    }

    /// How faults of XML-RPC name their type. Default: [`FaultStyle::Python3`].
    #[must_use]
    pub fn fault_style(mut self, style: FaultStyle) -> Self {
        self.fault_style = style;
        self
    }
}

impl ServerOptions {
    /// The gate, and the files that it is made of.
    fn security(&self) -> Result<(Gate, Reloader), ServerError> {
        let is_local = self.listen.ip().to_canonical().is_loopback();
        let is_secured = self.tokens.is_some() && self.tls.is_some();
        if !is_local && !is_secured {
            if !self.is_insecure {
                return Err(ServerError::Insecure { address: self.listen });
            }
            let (tokens, tls) = (self.tokens.is_some(), self.tls.is_some());
            tracing::warn!(address = %self.listen, tokens, tls, "serving other machines insecurely");
        }
        let public = self.public_url.as_deref().map(PublicUrl::parse).transpose();
        let public = public.map_err(|why| ServerError::PublicUrl { why })?;
        let tokens = self.tokens.as_deref().map(TokenFile::read).transpose()?;
        let tls =
            self.tls.as_ref().map(|(chain, key)| ServerTls::from_files(chain, key)).transpose()?;
        let hosts = Hosts::new(&self.hosts, public, is_local, tls.is_some())
            .map_err(|(name, why)| ServerError::Host { name, why })?;
        let gate = Gate::new(hosts, tokens.clone());
        Ok((gate, Reloader { tokens, tls, reading: Arc::default() }))
    }

    /// What answers.
    fn parts(&self, locks: &LockTable, stop: &CancellationToken) -> (AppState, rpc::Rpc) {
        let bodies = BodyReader::new(&self.limits);
        let shape = self.limits.shape;
        let rpc = rpc::Rpc::new(locks.clone(), self.fault_style, bodies.clone(), shape);
        let api = AppState {
            locks: locks.clone(),
            bodies,
            waiting: Permits::new(self.waiting, self.waiting_per_peer),
            viewers: Permits::new(VIEWERS, VIEWERS_PER_PEER),
            live: SurveyCache::new(locks.clone()),
            counts: self.counts.clone(),
            document: Arc::default(),
            stop: stop.clone(),
        };
        (api, rpc)
    }
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The directory cannot be served.
    #[error(transparent)]
    Directory(#[from] OpenError),
    /// The address cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address can be reached from elsewhere, and that is not secured.
    #[error(
        "{address} can be reached from other machines: give the server tokens and TLS, or say that it may be insecure"
    )]
    Insecure {
        /// The address.
        address: SocketAddr,
    },
    /// The fencing tokens cannot go on above this one.
    #[error("fencing tokens cannot go on above {token}: {most} is the most, or they could run out")]
    TokensAbove {
        /// What was asked for.
        token: u64,
        /// The greatest that is allowed.
        most: u64,
    },
    /// A name that no request can have in its `Host`.
    #[error("{name:?} cannot be the host of a request: {why}")]
    Host {
        /// The name.
        name: String,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
    /// The public URL is none. It is not repeated here, it may hold a password.
    #[error("the public URL cannot be used: {why}")]
    PublicUrl {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file of tokens, certificates or a key cannot be used.
    #[error("{} {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The server may not go on with its directory.
    #[error("stopped serving: {0}")]
    Failed(String),
}

impl From<FileError> for ServerError {
    fn from(FileError { path, why }: FileError) -> Self {
        Self::File { path, why }
    }
}

/// So many may watch at a time: each is sent up to four lists a second.
const VIEWERS: usize = 128;

/// And of one address, or of one token at it.
const VIEWERS_PER_PEER: usize = 16;

/// Reads the files of tokens, certificates and keys again while a server runs.
///
/// Clones are the same.
#[derive(Clone)]
pub struct Reloader {
    tokens: Option<TokenFile>,
    tls: Option<ServerTls>,
    /// One reads at a time, so that what was read last counts.
    reading: Arc<Mutex<()>>,
}

impl Reloader {
    /// Whether the server has such files.
    pub fn has_files(&self) -> bool {
        self.tokens.is_some() || self.tls.is_some()
    }

    /// Read all of them again. What cannot be used changes nothing: the old
    /// tokens, or the old certificate with its key, stay in force. One that is
    /// refused does not keep the other from being taken. Each is a line of the log.
    ///
    /// * New connections get the new certificate. Those that are open stay.
    /// * What a token is good for changes at once. A request that waits for a lock
    ///   with a token that may do so no more is refused. A stream of events ends, and
    ///   so does a list that is on its way. What its client holds stays held.
    ///
    /// It reads files, and blocks meanwhile.
    ///
    /// # Errors
    /// [`ServerError::File`]: what is wrong with the first that was refused.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use lockkeeper::lockd::{Server, ServerOptions};
    /// use tokio::signal::unix::{SignalKind, signal};
    ///
    /// let options = ServerOptions::new("/var/lib/lockkeeper").tokens("/etc/lockkeeper/tokens.json");
    /// let server = Server::bind(options).await?;
    /// let reloader = server.reloader();
    /// tokio::spawn(async move {
    ///     let mut hangups = signal(SignalKind::hangup()).expect("a handler");
    ///     while hangups.recv().await.is_some() {
    ///         if let Err(error) = reloader.reload() {
    ///             eprintln!("{error}");
    ///         }
    ///     }
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn reload(&self) -> Result<(), ServerError> {
        let _reading = self.reading.lock();
        let tokens = self.tokens.as_ref().map_or(Ok(()), reload_tokens);
        let tls = self.tls.as_ref().map_or(Ok(()), reload_tls);
        Ok(tokens.and(tls)?)
    }
}

fn reload_tokens(file: &TokenFile) -> Result<(), FileError> {
    let reloaded = file.reload();
    match &reloaded {
        Ok(tokens) => tracing::info!(file = %file.path().display(), tokens, "tokens read again"),
        Err(error) => tracing::error!("the old tokens stay in force: {error}"),
    }
    reloaded.map(drop)
}

fn reload_tls(tls: &ServerTls) -> Result<(), FileError> {
    let reloaded = tls.reload();
    match &reloaded {
        Ok(()) => {
            tracing::info!(file = %tls.certificates().display(), "certificate and key read again");
        }
        Err(error) => tracing::error!("the old certificate and its key stay in force: {error}"),
    }
    reloaded
}

/// A lock daemon that has its directory and its address.
pub struct Server {
    locks: LockTable,
    listener: TcpListener,
    address: SocketAddr,
    options: ServerOptions,
    gate: Gate,
    reloader: Reloader,
}

impl Server {
    /// Take the directory over, with the locks that are held in it, and listen.
    ///
    /// # Cancel safety
    /// None: a thread that reads the directory goes on for a moment, while the directory is
    /// given back. Await the future, or end the process.
    ///
    /// # Errors
    /// [`ServerError`] says what to do.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use lockkeeper::lockd::{Server, ServerOptions};
    ///
    /// let server = Server::bind(ServerOptions::new("/var/lib/lockkeeper")).await?;
    /// println!("http://{}", server.address());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn bind(options: ServerOptions) -> Result<Self, ServerError> {
        let (gate, reloader) = options.security()?;
        let not_there = |source| ServerError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(not_there)?;
        Self::open(options, gate, reloader, listener).await
    }

    /// Take the directory over, and serve at a socket that listens already.
    ///
    /// Such is one that systemd passed. [`ServerOptions::listen`] does not count.
    ///
    /// # Cancel safety
    /// None: a thread that reads the directory goes on for a moment, while the directory is
    /// given back. Await the future, or end the process.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use lockkeeper::lockd::{Server, ServerOptions};
    ///
    /// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let options = ServerOptions::new("/var/lib/lockkeeper");
    /// let server = Server::with_listener(options, listener).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn with_listener(
        mut options: ServerOptions,
        listener: std::net::TcpListener,
    ) -> Result<Self, ServerError> {
        let not_there = |source| ServerError::Listen { address: options.listen, source };
        let address = listener.local_addr().map_err(not_there)?;
        listener.set_nonblocking(true).map_err(not_there)?;
        let listener = TcpListener::from_std(listener).map_err(not_there)?;
        // Whether other machines reach it is for its own address to say.
        options.listen = address;
        let (gate, reloader) = options.security()?;
        Self::open(options, gate, reloader, listener).await
    }

    async fn open(
        options: ServerOptions,
        gate: Gate,
        reloader: Reloader,
        listener: TcpListener,
    ) -> Result<Self, ServerError> {
        if let Some(token) = options.tokens_above.filter(|&token| token > TOKENS_ABOVE_MAX) {
            return Err(ServerError::TokensAbove { token, most: TOKENS_ABOVE_MAX });
        }
        let not_there = |source| ServerError::Listen { address: options.listen, source };
        let address = listener.local_addr().map_err(not_there)?;
        let settings = LockTableOptions {
            sync: options.sync,
            accept_damage: options.accept_damage,
            tokens_above: options.tokens_above,
            locks_per_client: options.locks_per_client,
            waiters_per_client: options.waiters_per_client,
            ..LockTableOptions::default()
        };
        let locks = LockTable::open(&options.directory, settings).await?;
        Ok(Self { locks, listener, address, options, gate, reloader })
    }

    /// What reads the server's files again while it runs.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// The address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serve until `stop` is cancelled, and then end what is being answered.
    ///
    /// # Cancel safety
    /// None: connections that are open are served on, and the directory stays taken until
    /// they end. Cancel `stop` instead.
    ///
    /// # Errors
    /// [`ServerError::Failed`] if it could not go on.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use lockkeeper::lockd::{Server, ServerOptions};
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let server = Server::bind(ServerOptions::new("/var/lib/lockkeeper")).await?;
    /// let stop = CancellationToken::new();
    /// let serving = tokio::spawn(server.serve(stop.clone()));
    /// tokio::signal::ctrl_c().await?;
    /// stop.cancel();
    /// serving.await??;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn serve(self, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { locks, listener, options, gate, reloader, .. } = self;
        let stop = stop.child_token();
        let (api, rpc) = options.parts(&locks, &stop);
        let router = http::router(api, rpc, gate);
        let (limits, stopping) = (options.limits, stop.clone());
        let open = options.counts.connections;
        let serving = async move {
            match reloader.tls {
                Some(tls) => listen::serve(listener, tls, router, limits, open, stopping).await,
                None => {
                    listen::serve(listener, listen::Plain, router, limits, open, stopping).await
                }
            }
        };
        tokio::pin!(serving);
        let failure = tokio::select! {
            () = &mut serving => None,
            why = locks.failed() => Some(why),
        };
        if failure.is_some() {
            stop.cancel();
            serving.await;
        }
        locks.close().await;
        failure.map_or(Ok(()), |why| Err(ServerError::Failed(why)))
    }
}

/// What answers for a directory.
#[cfg(test)]
pub(super) async fn parts_for_tests(directory: &Path) -> (AppState, rpc::Rpc, Gate) {
    let locks = LockTable::open(directory, LockTableOptions::default()).await.expect("the locks");
    let options = ServerOptions::new(directory);
    let (gate, _) = options.security().expect("options");
    let (api, rpc) = options.parts(&locks, &CancellationToken::new());
    (api, rpc, gate)
}
