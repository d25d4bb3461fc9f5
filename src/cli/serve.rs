//! `lockkeeper serve`: the lock daemon.

use std::error::Error as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use clap::{Args, ValueEnum};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tracing::Level;
use tracing_subscriber::filter::LevelFilter;

use super::exit::{self, Failure};
use super::log_line::LogFormat;
use super::queued_log::Log;
use super::text::print;
use crate::lockd::{FaultStyle, OpenError, Reloader, Server, ServerError, ServerOptions};
use crate::sys::limits;
use crate::sys::mutex::Mutex;
use crate::sys::no_listener::NoListener;
use crate::sys::signals::{Signals, hangups_are_ignored};
use crate::sys::systemd::{self, Notify};

pub(super) const EXAMPLES: &str = "\
Examples:
  lockkeeper serve --dir /var/lib/lockkeeper
  lockkeeper serve --dir /var/lib/lockkeeper --listen 10.0.0.5:8000 \\
      --tokens tokens.json --tls-cert cert.pem --tls-key key.pem

The first line on standard output is the URL at which it serves. SIGTERM,
SIGINT and SIGQUIT end it: waiters are refused, locks stay held. A second one
ends it at once. On SIGHUP it reads --tokens, --tls-cert and --tls-key again:
new connections have the new certificate, and a token that is gone is refused
at once, also where it waits. Files that cannot be used change nothing, and the
log says so. Every grant and release is a line of the log at info, which is the
default here.";

pub(super) const CODES: &str = "\
Exit codes:
    0  it was asked to stop
   64  bad usage
   69  the directory, the address or a file of the options cannot be used
   73  another daemon serves the directory";

/// Serve locks to all machines that can reach this one: the lock daemon
#[derive(Debug, Args)]
#[command(after_help = super::sections(&[EXAMPLES, CODES, super::LOG_HELP]))]
pub(super) struct Serve {
    /// The directory of the locks; it must exist. It may be that of a gocept.lockd, with locks held
    /// in it
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// The address to listen at; port 0 is any free one [default: 127.0.0.1:8000, or the socket
    /// that systemd passes]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,

    /// Which client names each token may use: a JSON file with the hashes of bearer
    /// tokens. Without it, every user of this machine may do everything
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// Speak TLS with this certificate, in PEM, followed by those that vouch for it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Serve other machines without tokens or without TLS
    #[arg(long)]
    insecure: bool,

    /// A further name by which clients call this daemon, without scheme and port; can be repeated
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,

    /// The URL at which browsers and clients find this daemon behind a proxy, with a path if it has
    /// one. Without --tokens no client can unlock by force then, as every request may come from
    /// elsewhere
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,

    /// How many requests of one address may wait for a lock at a time; with --tokens, of one token
    /// at one address. Further ones are asked to try again later
    #[arg(long, value_name = "N", default_value_t = 512)]
    waiters_per_address: usize,

    /// How many locks one client, by its name, may hold at a time; further ones are refused
    /// [default: any number]
    #[arg(long, value_name = "N")]
    locks_per_client: Option<NonZeroUsize>,

    /// How many requests of one client, by its name, may wait at a time; further ones are refused
    /// [default: any number]
    #[arg(long, value_name = "N")]
    waiters_per_client: Option<NonZeroUsize>,

    /// Do not wait for the disk. kill -9 still loses nothing; a power cut loses the last moments
    #[arg(long)]
    no_sync: bool,

    /// Start although the journal is damaged, and go on without what is lost. Not for a unit file:
    /// only without it is damage reported
    #[arg(long)]
    accept_damage: bool,

    /// Give only fencing tokens above N: for a directory that was restored from an older copy
    #[arg(long, value_name = "N")]
    tokens_above: Option<u64>,

    /// How the log is written: lines of text, or one JSON object a line
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// How XML-RPC faults name their type: as a server on Python 2 does, or on Python 3
    #[arg(long, value_enum, default_value_t = Style::Py3)]
    fault_style: Style,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Style {
    Py2,
    Py3,
}

/// How many requests may wait for a lock at a time, of all addresses: the
/// library's default.
const WAITERS: usize = 8192;

pub(super) fn serve(arguments: &Serve) -> Result<u8, Failure> {
    let queued = Log::start(std::io::stderr(), arguments.log_format);
    let queued =
        queued.map_err(|error| Failure::system("starting a thread for the log", &error))?;
    queued.listen(LevelFilter::INFO);
    let code = serve_with(arguments, &queued).unwrap_or_else(|failure| {
        queued.tell(Level::ERROR, failure.message);
        failure.code
    });
    queued.flush();
    Ok(code)
}

fn serve_with(arguments: &Serve, log: &Log) -> Result<u8, Failure> {
    raise_file_limit(log);
    let runtime = Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::system("starting the runtime", &error))?;
    runtime.block_on(run(arguments, log))
}

async fn run(arguments: &Serve, log: &Log) -> Result<u8, Failure> {
    let watched = Signals::watch();
    let signals = watched.map_err(|error| Failure::system("watching signals", &error))?;
    let notify = Notify::from_environment();
    let notify = notify.map_err(|error| Failure::system("NOTIFY_SOCKET of systemd", &error))?;
    let (listen, options) = (arguments.listen, options(arguments).log_lines_dropped(log.dropped()));
    let server = match (systemd::listener().map_err(not_passed)?, listen) {
        (None, _) => Server::bind(options).await,
        (Some(listener), None) => Server::with_listener(options, listener).await,
        (Some(_), Some(_)) => {
            let message = "systemd passed a socket: leave --listen out".to_owned();
            return Err(Failure { code: exit::USAGE, message });
        }
    };
    let server = server.map_err(failure)?;
    let scheme = if arguments.tls_cert.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", server.address());
    print(&url);
    let (reloader, log, reading) = (server.reloader(), log.clone(), Mutex::default());
    let operator = Arc::new(Operator { notify, url, reloader, log, reading });
    operator.warn_if_hangups_are_ignored();
    operator.told(operator.notify.ready(&operator.url));
    let stop = CancellationToken::new();
    let serving = server.serve(stop.clone());
    tokio::select! {
        served = serving => served.map(|()| 0).map_err(failure),
        code = obey(signals, operator, stop) => Ok(code),
    }
}

/// SIGHUP reads files again. The first signal that ends stops the server; what the
/// second one's exit code is.
async fn obey(mut signals: Signals, operator: Arc<Operator>, stop: CancellationToken) -> u8 {
    loop {
        let arrived = signals.next().await;
        if arrived.is_hangup() {
            reload(&operator);
        } else if !arrived.ends() {
            let number = arrived.number;
            operator
                .log
                .tell(Level::INFO, format_args!("signal {number} means nothing to a daemon"));
        } else if stop.is_cancelled() {
            return exit::by_signal(arrived.number);
        } else {
            operator.log.tell(Level::INFO, "stopping");
            operator.told(operator.notify.stopping());
            stop.cancel();
        }
    }
}

/// What a signal is answered with.
struct Operator {
    notify: Notify,
    url: String,
    reloader: Reloader,
    log: Log,
    reading: Mutex<Reading>,
}

/// Whether files are read again. One thread does: on a file system that hangs, one for
/// each signal would be ever more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    No,
    Yes,
    /// Once more behind it: it may have begun before the files were what they are now.
    Again,
}

impl Operator {
    /// systemd was told something, or not.
    fn told(&self, told: std::io::Result<()>) {
        if let Err(error) = told {
            self.log.tell(Level::WARN, format_args!("systemd could not be told so: {error}"));
        }
    }

    /// Under nohup nothing is heard of it, and files would seem to be read again.
    fn warn_if_hangups_are_ignored(&self) {
        if hangups_are_ignored() && self.reloader.has_files() {
            let message = "SIGHUP is ignored, as under nohup: certificate and tokens are read \
                again only by a restart";
            self.log.tell(Level::WARN, message);
        }
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock()
    }

    /// Files are to be read again; whether that has to be begun.
    fn begins(&self) -> bool {
        let mut reading = self.reading();
        let is_first = *reading == Reading::No;
        *reading = if is_first { Reading::Yes } else { Reading::Again };
        is_first
    }

    /// Files were read again; whether they have to be once more.
    fn goes_on(&self) -> bool {
        let mut reading = self.reading();
        let is_again = *reading == Reading::Again;
        *reading = if is_again { Reading::Yes } else { Reading::No };
        is_again
    }

    /// As often as it is asked to.
    fn reload(&self) {
        self.reload_once();
        while self.goes_on() {
            self.reload_once();
        }
    }

    /// It logs what it did.
    fn reload_once(&self) {
        self.told(self.notify.reloading());
        if self.reloader.has_files() {
            let _ = self.reloader.reload();
        } else {
            let why = "neither --tokens nor --tls-cert was given";
            self.log.tell(Level::INFO, format_args!("nothing to read again: {why}"));
        }
        self.told(self.notify.ready(&self.url));
    }
}

/// On a thread of its own: a file system that hangs does not keep it from ending.
fn reload(operator: &Arc<Operator>) {
    if !operator.begins() {
        return;
    }
    let reloading = Arc::clone(operator);
    let named = std::thread::Builder::new().name("lockkeeper-reload".to_owned());
    if let Err(error) = named.spawn(move || reloading.reload()) {
        *operator.reading() = Reading::No;
        operator.log.tell(
            Level::ERROR,
            format_args!("nothing was read again, for want of a thread: {error}"),
        );
    }
}

fn options(arguments: &Serve) -> ServerOptions {
    let mut options = ServerOptions::new(&arguments.dir)
        .insecure(arguments.insecure)
        .sync(!arguments.no_sync)
        .accept_damage(arguments.accept_damage)
        .waiting(WAITERS, arguments.waiters_per_address)
        .fault_style(match arguments.fault_style {
            Style::Py2 => FaultStyle::Python2,
            Style::Py3 => FaultStyle::Python3,
        });
    if let Some(token) = arguments.tokens_above {
        options = options.tokens_above(token);
    }
    if let Some(address) = arguments.listen {
        options = options.listen(address);
    }
    if let Some(url) = &arguments.public_url {
        options = options.public_url(url);
    }
    if let Some(locks) = arguments.locks_per_client {
        options = options.locks_per_client(locks.get());
    }
    if let Some(waiters) = arguments.waiters_per_client {
        options = options.waiters_per_client(waiters.get());
    }
    if let Some(file) = &arguments.tokens {
        options = options.tokens(file);
    }
    if let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) {
        options = options.tls(certificate, key);
    }
    arguments.host.iter().fold(options, ServerOptions::host)
}

/// Each connection is an open file.
fn raise_file_limit(log: &Log) {
    if let Err(error) = limits::raise_open_files() {
        log.tell(Level::WARN, format_args!("the limit of open files could not be raised: {error}"));
    }
}

fn not_passed(error: NoListener) -> Failure {
    let code = if error.is_misconfigured { exit::USAGE } else { exit::SYSTEM };
    Failure { code, message: error.message }
}

fn failure(error: ServerError) -> Failure {
    let code = match error {
        ServerError::Directory(OpenError::InUse { .. }) => exit::NOT_IN_TIME,
        ServerError::Insecure { .. }
        | ServerError::Host { .. }
        | ServerError::PublicUrl { .. }
        | ServerError::TokensAbove { .. } => exit::USAGE,
        _ => exit::SYSTEM,
    };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Failure { code, message }
}
