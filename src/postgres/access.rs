//! A server as this process reaches it: hosts, user, database, and what proves both sides.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::connection_string::{Pairs, Reader};
use super::environment::Environment;
use super::password_file::{PasswordFile, Purpose};
use super::service_file;
use super::ssl_mode::Security;
use crate::lease::Tls;
use crate::lock::error::Error;
use crate::sys::{libpq, program};

/// PostgreSQL's port.
const PORT: u16 = 5432;

/// How long a try of a host may take, if no `connect_timeout` is given or it is 0. If
/// larger, a host that is silent holds up the next.
const LIMIT: Duration = Duration::from_secs(10);

/// What the system takes for the file of a socket, in bytes.
const LONGEST_SOCKET: usize = 107;

/// More would be a mistake. If larger, a text full of commas makes that many names.
const MOST_HOSTS: usize = 64;

/// What PostgreSQL keeps of a session's name, in bytes.
const LONGEST_APPLICATION: usize = 63;

/// What needs no escape in a URL.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A server, or several of which one can write. The same one compares equal.
#[derive(Clone)]
pub(super) struct Access {
    named: Named,
    routes: Vec<Route>,
    /// The route that led to a session last. Of another one, which is silent, each session
    /// would wait for the limit.
    first: Arc<AtomicUsize>,
}

/// What a user named. It has secrets in it.
#[derive(Clone, PartialEq, Eq)]
struct Named {
    hosts: Vec<Host>,
    user: String,
    database: String,
    application: String,
    options: Option<String>,
    limit: Duration,
    security: Security,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) place: Place,
    pub(super) port: u16,
    pub(super) password: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The directory of a socket.
    Directory(PathBuf),
    /// A name, and its address where that is not asked for.
    Name(String, Option<IpAddr>),
}

/// How a host is reached.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) host: Host,
    /// In the order of the tries; `None` is without TLS.
    pub(super) tries: Vec<Option<Tls>>,
}

/// What a session of this program is called in `pg_stat_activity`, unless the user says it: a
/// waiter is known by that alone.
fn called(program: &str) -> String {
    let (program, pid) = (program::program_name(program), std::process::id());
    let host = crate::sys::host::name();
    let name = format!("lockkeeper: {program} (pid {pid} on {host})");
    program::one_line(&name, LONGEST_APPLICATION)
}

impl Access {
    /// As a program says it: a URL, or pairs as in `host=db1 dbname=app`. Empty for what the
    /// environment says.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], never with the text in it.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let parsed = Reader::OF_A_PROGRAM.read(text)?;
        Self::of(parsed.pairs, Environment::OF_THIS_PROCESS)
    }

    /// As the URL of a lock says it, without a password. Keys of its query that are `own` to
    /// the caller are given back, each once, with a `+` read as a space.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], never with the URL in it.
    pub(super) fn of_lock_url(
        url: &str,
        own: &[&str],
    ) -> Result<(Self, Vec<(String, String)>), Error> {
        let parsed = Reader::of_a_url(own).read(url)?;
        Ok((Self::of(parsed.pairs, Environment::OF_THIS_PROCESS)?, parsed.own))
    }

    pub(super) fn of(mut pairs: Pairs, environment: Environment<'_>) -> Result<Self, Error> {
        let service = match pairs.get("service") {
            Some(service) => Some(service.to_owned()),
            None => environment.variable("PGSERVICE")?,
        };
        if let Some(service) = service {
            pairs.complete(service_file::pairs(&service, environment)?);
        }
        pairs.complete(environment.pairs()?);
        let user = match pairs.get("user") {
            Some(user) => user.to_owned(),
            None => Environment::login()?,
        };
        let database = pairs.get("dbname").unwrap_or(&user).to_owned();
        let mut hosts = hosts(&pairs, environment)?;
        set_passwords(&mut hosts, &pairs, environment, &database, &user)?;
        let application = pairs.get("application_name").or(pairs.get("fallback_application_name"));
        let named = Named {
            hosts,
            user,
            database,
            application: application.map_or_else(|| called(&program::my_name()), str::to_owned),
            options: pairs.get("options").map(str::to_owned),
            limit: limit(pairs.get("connect_timeout"))?,
            security: Security::new(&pairs, environment)?,
        };
        let routes: Result<Vec<_>, Error> =
            named.hosts.iter().map(|host| Route::to(host, &named.security)).collect();
        Ok(Self { routes: routes?, named, first: Arc::default() })
    }

    /// The same for a command of this name.
    #[cfg(feature = "cli")]
    pub(super) fn of_command(&self, name: &str) -> Self {
        let mut access = self.clone();
        if access.named.application == called(&program::my_name()) {
            access.named.application = called(name);
        }
        access
    }

    pub(super) fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The numbers of the routes, in the order in which they are tried.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let first = self.first.load(Ordering::Relaxed);
        (first..self.routes.len()).chain(0..first)
    }

    /// The route of this number is tried first from now on.
    pub(super) fn begin_with(&self, route: usize) {
        self.first.store(route, Ordering::Relaxed);
    }

    /// How long each try may take.
    pub(super) fn limit(&self) -> Duration {
        self.named.limit
    }

    /// What every session says of itself at its start.
    pub(super) fn config(&self, host: &Host) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.user(&self.named.user).dbname(&self.named.database);
        config.application_name(&self.named.application);
        // What TLS is spoken is decided before, see `stream`.
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        if let Some(options) = &self.named.options {
            config.options(options);
        }
        if let Some(password) = &host.password {
            config.password(password);
        }
        config
    }

    /// As a URL, without anything secret.
    pub(super) fn url(&self) -> String {
        let hosts: Vec<_> = self.named.hosts.iter().map(ToString::to_string).collect();
        let (user, database) = (escaped(&self.named.user), escaped(&self.named.database));
        format!("postgres://{user}@{}/{database}", hosts.join(","))
    }
}

impl PartialEq for Access {
    fn eq(&self, other: &Self) -> bool {
        self.named == other.named
    }
}

impl Eq for Access {}

/// Without the password.
impl fmt::Debug for Access {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Access")
            .field("url", &self.url())
            .field("application", &self.named.application)
            .field("limit", &self.named.limit)
            .field("security", &self.named.security)
            .finish_non_exhaustive()
    }
}

impl Route {
    fn to(host: &Host, security: &Security) -> Result<Self, Error> {
        let tries = match &host.place {
            Place::Directory(_) => vec![None],
            Place::Name(name, address) => security.tries(name, is_loopback(name, *address))?,
        };
        Ok(Self { host: host.clone(), tries })
    }
}

impl Host {
    /// # Errors
    /// [`Error::InvalidOption`].
    fn check(&self) -> Result<(), Error> {
        let Place::Directory(directory) = &self.place else { return Ok(()) };
        let length = self.socket(directory).as_os_str().len();
        if length <= LONGEST_SOCKET {
            return Ok(());
        }
        let why = format!("the file of its socket has {length} bytes, at most {LONGEST_SOCKET}");
        Err(invalid("host", why))
    }

    /// The file of its socket.
    pub(super) fn socket(&self, directory: &Path) -> PathBuf {
        directory.join(format!(".s.PGSQL.{}", self.port))
    }
}

/// As in a URL.
impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.place {
            Place::Directory(path) => write!(out, "{}:{port}", escaped(&path.to_string_lossy())),
            Place::Name(name, _) if name.contains(':') => write!(out, "[{name}]:{port}"),
            Place::Name(name, _) => write!(out, "{name}:{port}"),
        }
    }
}

/// Without the password.
impl fmt::Debug for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

fn escaped(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, ESCAPED)
}

fn invalid(option: &'static str, why: String) -> Error {
    Error::InvalidOption { option, why }
}

/// A list at whose place there may be none.
fn list<'a>(pairs: &'a Pairs, key: &str) -> Vec<&'a str> {
    pairs.get(key).map_or_else(Vec::new, |text| text.split(',').map(str::trim).collect())
}

fn hosts(pairs: &Pairs, environment: Environment<'_>) -> Result<Vec<Host>, Error> {
    let [names, addresses, ports] = ["host", "hostaddr", "port"].map(|key| list(pairs, key));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        let why = format!("{} names and {} addresses do not match", names.len(), addresses.len());
        return Err(invalid("hostaddr", why));
    }
    if ports.len() > 1 && ports.len() != count {
        let why = format!("{} ports and {count} hosts do not match", ports.len());
        return Err(invalid("port", why));
    }
    if count > MOST_HOSTS {
        return Err(invalid("host", format!("there are {count}, and at most {MOST_HOSTS}")));
    }
    let at = |list: &[&'_ str], index: usize| list.get(index).copied().unwrap_or("").to_owned();
    let host = |index| {
        let port = if ports.len() == 1 { ports[0] } else { &at(&ports, index) };
        let (port, place) = (port_of(port)?, (at(&names, index), at(&addresses, index)));
        let host = Host { place: place_of(place.0, &place.1, environment)?, port, password: None };
        host.check()?;
        Ok(host)
    };
    (0..count).map(host).collect()
}

fn port_of(text: &str) -> Result<u16, Error> {
    match text.parse() {
        _ if text.is_empty() => Ok(PORT),
        Ok(port) if port > 0 => Ok(port),
        _ => Err(invalid("port", "it is no number from 1 to 65535".to_owned())),
    }
}

fn place_of(name: String, address: &str, environment: Environment<'_>) -> Result<Place, Error> {
    if !address.is_empty() {
        let parsed = address.parse::<IpAddr>();
        let parsed = parsed.map_err(|_| invalid("hostaddr", "it is no IP address".to_owned()))?;
        let name = if name.is_empty() { address.to_owned() } else { name };
        return Ok(Place::Name(name, Some(parsed)));
    }
    if name.starts_with('/') {
        return Ok(Place::Directory(name.into()));
    }
    if name.starts_with('@') {
        return Err(invalid("host", "abstract sockets are not spoken to".to_owned()));
    }
    if !name.is_empty() {
        let is_none = |it: char| it.is_whitespace() || matches!(it, '@' | '/' | '%' | '[' | ']');
        return match name.contains(is_none) {
            true => Err(invalid("host", "it has a character that no host's name has".to_owned())),
            false => Ok(Place::Name(name, None)),
        };
    }
    let sockets = Path::new(environment.sockets);
    Ok(match sockets.is_dir() {
        true => Place::Directory(sockets.to_owned()),
        false => Place::Name("localhost".to_owned(), None),
    })
}

/// Whether this is surely this machine.
fn is_loopback(name: &str, address: Option<IpAddr>) -> bool {
    match address.or_else(|| name.parse().ok()) {
        Some(address) => address.to_canonical().is_loopback(),
        None => name.eq_ignore_ascii_case("localhost"),
    }
}

fn set_passwords(
    hosts: &mut [Host],
    pairs: &Pairs,
    environment: Environment<'_>,
    database: &str,
    user: &str,
) -> Result<(), Error> {
    if let Some(password) = pairs.get("password") {
        hosts.iter_mut().for_each(|host| host.password = Some(password.to_owned()));
        return Ok(());
    }
    let named = pairs.get("passfile").map(PathBuf::from);
    let is_named = named.is_some();
    let Some(file) =
        named.map_or_else(|| environment.at_home(libpq::PASSWORDS), |file| Ok(Some(file)))?
    else {
        return Ok(());
    };
    let file = PasswordFile::read(&file, is_named);
    for host in hosts {
        let name = match &host.place {
            Place::Directory(path) if path == Path::new(environment.sockets) => "localhost".into(),
            Place::Directory(path) => path.to_string_lossy(),
            Place::Name(name, _) => name.into(),
        };
        let port = host.port;
        host.password = file.password(Purpose { host: &name, port, database, user });
    }
    Ok(())
}

fn limit(text: Option<&str>) -> Result<Duration, Error> {
    let Some(text) = text else { return Ok(LIMIT) };
    match text.trim().parse::<i32>().map(u64::try_from) {
        Ok(Ok(seconds)) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        Ok(_) => Ok(LIMIT),
        Err(_) => Err(invalid("connect_timeout", "it is no number of seconds".to_owned())),
    }
}
