//! Locks by URL: the only file that knows all kinds.
//!
//! | URL | lock | name |
//! |---|---|---|
//! | a path, `file:///run/lock` | [`AsyncFileLock`] | file `<name>.lock` in the directory |
//! | `flock:///run/lock`, `ofd:///run/lock` | [`AsyncKernelLock`] | file `<name>` in the directory |
//! | `lockd+http://host:8000`, `lockd+https://…` | `AsyncRemoteLock` (feature `lockd-client`) | resource |
//! | `etcd://h1:2379,h2:2379/prefix`, `etcd+tls://…` | `AsyncEtcdLock` (feature `etcd`) | key below the prefix |
//! | `postgres://user@host/db` | `AsyncPostgresLock` (feature `postgres`) | hashed to a key |
//!
//! Options are keys of the query, as in `?timeout=30s&note=import`. A key that is not
//! known, a value that is none, and a secret are refused.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;

#[cfg(feature = "etcd")]
use crate::etcd::{EtcdLocks, url::UrlKeys};
use crate::file::options::{AtExit, FileOptions, Proof};
use crate::kernel::{KernelOptions, Primitive};
use crate::lock::any_lock::AnyLock;
use crate::lock::duration;
use crate::lock::error::Error;
#[cfg(feature = "postgres")]
use crate::postgres::PostgresLocks;
#[cfg(feature = "lockd-client")]
use crate::remote::{AsyncRemoteLock, RemoteOptions};
use crate::sys::files::path_of_bytes;
#[cfg(feature = "lockd-client")]
use crate::sys::host;
use crate::{AsyncFileLock, AsyncKernelLock};

const SCHEMES: [&str; 8] =
    ["file", "flock", "ofd", "lockd+http", "lockd+https", "etcd", "etcd+tls", "postgres"];

/// Keys that would carry a secret.
const SECRETS: [&str; 5] = ["token", "bearer_token", "password", "secret", "key"];

/// Names in the environment the file with the secret of this client, as `token_file` does.
#[cfg(feature = "lockd-client")]
const TOKEN_FILE: &str = "LOCKKEEPER_TOKEN_FILE";

/// The place where locks are kept, as a URL names it.
///
/// No lock is looked at, and no connection is made, until
/// a lock is acquired or asked for its status. Files that the URL names are read at once.
///
/// | URL | kind | a lock's name is | keys |
/// |---|---|---|---|
/// | a path without keys, or `file:///run/lock` | [`AsyncFileLock`] | the file `<name>.lock` in that directory | `timeout` `retry_period` `fallback_period` `local_handoff` `race_delay` `tries` `mode` `proof` (`auto`, `kernel_lock`, `process`) `openlock_compat` `at_exit` (`leave`, `remove`) `note` |
/// | `flock:///run/lock`, `ofd:///run/lock` | [`AsyncKernelLock`] | the file in that directory | `timeout` `retry_period` `fallback_period` `local_handoff` `mode` `keep_open` `delete_on_release` |
/// | `lockd+http://host:8000`, `lockd+https://host` | `AsyncRemoteLock`, with feature `lockd-client` | the resource | `client` (default: host name and process id) `timeout` `lease` `reconnect` `ca_file` `token_file` |
/// | `etcd://h1:2379,h2:2379/prefix`, `etcd+tls://…` | `AsyncEtcdLock`, with feature `etcd` | what follows the prefix in the key | `ttl` `timeout` `reconnect` `note` `user` `password_file` `ca_file` `cert_file` `key_file` `server_name` |
/// | `postgres://user@host1,host2/db` | `AsyncPostgresLock`, with feature `postgres` | hashed to the key of an advisory lock | `lease` `takeover` `table` `timeout` `reconnect` `most_locks` `own_session` `note`, and libpq's |
///
/// Times are written as in `300ms`, `30s`, `1h30m`; a bare number is seconds.
/// `true` and `false` are the values of the rest. A secret never stands in a URL, which
/// process lists and logs show: `token_file` names the file that has it, as
/// `LOCKKEEPER_TOKEN_FILE` in the environment does, and `password_file` that of an etcd
/// user's password.
///
/// # etcd
///
/// The locks of one `Locks` share connections and one lease. `/jobs`, `/jobs/` and no
/// slash at all are one prefix. A port that is left out is 2379. `ttl` is in whole seconds.
/// `etcd+tls` speaks TLS. So does `etcd` where a file of certificates or `server_name` is
/// given. A `raw_key` is that of one lock, so it is an option of `AsyncEtcdLock` alone.
///
/// What the URL leaves out, the environment of etcdctl says: `ETCDCTL_USER`
/// (`name:password`, or a name), `ETCDCTL_PASSWORD`, `ETCDCTL_CACERT`, `ETCDCTL_CERT`,
/// `ETCDCTL_KEY`, and `ETCDCTL_ENDPOINTS` for a URL without a host, as in `etcd:///jobs`. A
/// password of `ETCDCTL_USER` is not that of another `user` in the URL.
///
/// # PostgreSQL
///
/// A URL as libpq takes it, with libpq's keys, and without a password. What it leaves out, the
/// environment of libpq says, as `PGHOST` and `PGUSER`, the service file and `~/.pgpass`. The
/// locks of one database share sessions. `takeover` is `after_lease` or `at_once`, `table`
/// `own` or `none`, and `sslmode` is `verify-full` beyond loopback unless it is said
/// otherwise. A `raw_key` is that of one lock, so it is an option of `AsyncPostgresLock` alone.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lockkeeper::Error> {
/// use lockkeeper::{Guard, Lock};
///
/// # let directory = std::env::temp_dir().join(format!("lockkeeper-open-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory).unwrap();
/// # let at = directory.display().to_string();
/// let locks = lockkeeper::open(format!("file://{at}?timeout=30s"))?;
/// let guard = locks.lock("import")?.acquire().await?;
/// guard.release().await?;
/// # std::fs::remove_dir(directory).unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Locks {
    url: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    File {
        directory: PathBuf,
        options: FileOptions,
    },
    Kernel {
        directory: PathBuf,
        options: KernelOptions,
    },
    #[cfg(feature = "lockd-client")]
    Remote {
        server: String,
        client: String,
        options: RemoteOptions,
    },
    #[cfg(feature = "etcd")]
    Etcd(EtcdLocks),
    #[cfg(feature = "postgres")]
    Postgres(PostgresLocks),
}

/// Open the place that a URL or a path names; see [`Locks`].
///
/// # Errors
/// [`Error::InvalidOption`]: what is wrong with the URL, and what to write.
///
/// # Examples
/// ```
/// let locks = lockkeeper::open("flock:///run/lock?timeout=30s")?;
/// let lock = locks.lock("import")?; // no I/O yet
/// assert!(lockkeeper::open("redis://locks").is_err());
/// # Ok::<(), lockkeeper::Error>(())
/// ```
pub fn open(url: impl AsRef<str>) -> Result<Locks, Error> {
    let url = url.as_ref();
    let Some((scheme, rest)) = url.split_once("://") else {
        if url.is_empty() {
            return Err(wrong("it is empty: give a directory, or a URL such as file:///run/lock"));
        }
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        if SCHEMES.contains(&scheme) {
            return Err(wrong(format!("write {scheme}:// with two slashes, or ./ before a path")));
        }
        if url.contains('?') && !Path::new(url).exists() {
            return Err(wrong("keys need a URL: write file:// and the absolute path before them"));
        }
        let kind = Kind::File { directory: url.into(), options: FileOptions::process_default() };
        return Ok(Locks { url: url.to_owned(), kind });
    };
    let parts = || Parts::of(scheme, rest);
    let kind = match scheme {
        "file" => {
            let parts = parts()?;
            Kind::File { directory: parts.directory(scheme)?, options: parts.file_options()? }
        }
        "flock" | "ofd" => {
            let parts = parts()?;
            let primitive = if scheme == "flock" { Primitive::Flock } else { Primitive::Ofd };
            let options = parts.kernel_options(primitive)?;
            Kind::Kernel { directory: parts.directory(scheme)?, options }
        }
        "lockd+http" | "lockd+https" => remote(scheme, &parts()?)?,
        "etcd" | "etcd+tls" => etcd(scheme, &parts()?)?,
        "postgres" | "postgresql" => postgres(scheme, url)?,
        "http" | "https" => {
            return Err(wrong(format!(
                "a lock daemon's URL begins with lockd+{scheme}://, and that of etcd with \
                 etcd:// or etcd+tls://"
            )));
        }
        _ => {
            return Err(wrong(format!(
                "no kind of lock is called {scheme:?}: there are file, flock, ofd, lockd+http, \
                 lockd+https, etcd, etcd+tls and postgres"
            )));
        }
    };
    Ok(Locks { url: url.to_owned(), kind })
}

#[cfg(feature = "lockd-client")]
fn remote(scheme: &str, parts: &Parts<'_>) -> Result<Kind, Error> {
    if parts.authority.is_empty() {
        return Err(wrong(format!("it names no host, as in {scheme}://locks.example:8000")));
    }
    let (client, options) = parts.remote_options()?;
    let scheme = scheme.trim_start_matches("lockd+");
    let server = format!("{scheme}://{}{}", parts.authority, parts.path);
    let kind = Kind::Remote { server, client, options };
    // What is wrong with the host or the port.
    kind.lock("any")?;
    Ok(kind)
}

#[cfg(not(feature = "lockd-client"))]
fn remote(scheme: &str, _: &Parts<'_>) -> Result<Kind, Error> {
    Err(wrong(format!(
        "{scheme} needs the feature lockd-client of lockkeeper, which this program was built \
         without: cargo add lockkeeper --features lockd-client"
    )))
}

#[cfg(feature = "etcd")]
fn etcd(scheme: &str, parts: &Parts<'_>) -> Result<Kind, Error> {
    let is_tls = scheme == "etcd+tls";
    let locks = parts.etcd_keys()?.open(is_tls, parts.authority, parts.path)?;
    Ok(Kind::Etcd(locks))
}

#[cfg(feature = "postgres")]
fn postgres(_: &str, url: &str) -> Result<Kind, Error> {
    crate::postgres::url::open(url).map(Kind::Postgres)
}

#[cfg(not(feature = "postgres"))]
fn postgres(scheme: &str, _: &str) -> Result<Kind, Error> {
    Err(wrong(format!(
        "{scheme} needs the feature postgres of lockkeeper, which this program was built \
         without: cargo add lockkeeper --features postgres"
    )))
}

#[cfg(not(feature = "etcd"))]
fn etcd(scheme: &str, _: &Parts<'_>) -> Result<Kind, Error> {
    Err(wrong(format!(
        "{scheme} needs the feature etcd of lockkeeper, which this program was built without: \
         cargo add lockkeeper --features etcd"
    )))
}

impl Locks {
    /// The lock of this name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: why there is no lock of this name.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::Lock;
    ///
    /// let lock = lockkeeper::open("/run/lock")?.lock("import")?;
    /// assert_eq!(lock.name().to_string(), "/run/lock/import.lock");
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn lock(&self, name: impl AsRef<str>) -> Result<AnyLock, Error> {
        self.kind.lock(name.as_ref())
    }

    /// The same place for a command of this name: lock files, etcd and
    /// PostgreSQL show it, with the note, unless the URL has another.
    #[cfg(feature = "cli")]
    pub(crate) fn of_command(mut self, name: &str, note: Option<String>) -> Self {
        match &mut self.kind {
            Kind::File { options, .. } => {
                options.name = Some(name.into());
                options.note = options.note.take().or(note);
            }
            #[cfg(feature = "etcd")]
            Kind::Etcd(locks) => *locks = locks.of_command(name, note),
            #[cfg(feature = "postgres")]
            Kind::Postgres(locks) => *locks = locks.of_command(name, note),
            _ => {}
        }
        self
    }

    #[cfg(feature = "cli")]
    pub(crate) fn are_lock_files(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }

    /// Whether these are files of the user's that stay, locked by the kernel.
    #[cfg(feature = "cli")]
    pub(crate) fn are_of_the_kernel(&self) -> bool {
        matches!(&self.kind, Kind::Kernel { options, .. } if !options.deletes_on_release())
    }

    /// `None` if these are no lock files.
    #[cfg(feature = "cli")]
    pub(crate) fn lock_file(&self, name: &str) -> Result<Option<AsyncFileLock>, Error> {
        match &self.kind {
            Kind::File { directory, options } => lock_file(directory, name, options).map(Some),
            _ => Ok(None),
        }
    }

    /// `None` if etcd does not keep these.
    #[cfg(all(feature = "cli", feature = "etcd"))]
    pub(crate) fn etcd_lock(&self, name: &str) -> Result<Option<crate::AsyncEtcdLock>, Error> {
        match &self.kind {
            Kind::Etcd(locks) => locks.lock(name).map(Some),
            _ => Ok(None),
        }
    }

    /// `None` if PostgreSQL does not keep these.
    #[cfg(all(feature = "cli", feature = "postgres"))]
    pub(crate) fn postgres_lock(
        &self,
        name: &str,
    ) -> Result<Option<crate::AsyncPostgresLock>, Error> {
        match &self.kind {
            Kind::Postgres(locks) => locks.lock(name).map(Some),
            _ => Ok(None),
        }
    }

    /// What was opened.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Locks").field(&self.url).finish()
    }
}

impl Kind {
    fn lock(&self, name: &str) -> Result<AnyLock, Error> {
        if name.trim().is_empty() {
            return Err(bad_name(name, "it is empty"));
        }
        match self {
            Kind::File { directory, options } => {
                lock_file(directory, name, options).map(AnyLock::new)
            }
            Kind::Kernel { directory, options } => {
                let path = directory.join(file_name(name)?);
                AsyncKernelLock::with_options(path, options.clone()).map(AnyLock::new)
            }
            #[cfg(feature = "lockd-client")]
            Kind::Remote { server, client, options } => {
                AsyncRemoteLock::with_options(server, name, client, options.clone())
                    .map(AnyLock::new)
            }
            #[cfg(feature = "etcd")]
            Kind::Etcd(locks) => locks.lock(name).map(AnyLock::new),
            #[cfg(feature = "postgres")]
            Kind::Postgres(locks) => locks.lock(name).map(AnyLock::new),
        }
    }
}

fn lock_file(directory: &Path, name: &str, options: &FileOptions) -> Result<AsyncFileLock, Error> {
    let path = directory.join(format!("{}.lock", file_name(name)?));
    AsyncFileLock::with_options(path, options.clone())
}

/// A name that stays in its directory.
fn file_name(name: &str) -> Result<&str, Error> {
    match name {
        "." | ".." => Err(bad_name(name, "it names a directory")),
        _ if name.contains(['/', '\0']) => {
            Err(bad_name(name, "a file's name has no / and no NUL in it"))
        }
        _ => Ok(name),
    }
}

fn bad_name(name: &str, why: &str) -> Error {
    Error::InvalidOption { option: "name", why: format!("{name:?} cannot be used: {why}") }
}

/// Never with the URL in it, which may have a secret in it by mistake.
fn wrong(why: impl Into<String>) -> Error {
    Error::InvalidOption { option: "url", why: why.into() }
}

/// A URL and its parts.
struct Parts<'a> {
    /// How a secret reaches this kind of lock.
    secret_way: &'static str,
    authority: &'a str,
    path: &'a str,
    query: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Parts<'a> {
    fn of(scheme: &str, rest: &'a str) -> Result<Self, Error> {
        let secret_way = match scheme {
            "etcd" | "etcd+tls" => "?user= and ?password_file=",
            _ => "?token_file=",
        };
        if rest.contains('#') {
            return Err(wrong("it has a #: write %23 where that belongs to a name"));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        if authority.contains('@') {
            return Err(wrong(format!(
                "it has a user or a password in it, which process lists and logs would show: \
                 write the secret into a file and name that with {secret_way}"
            )));
        }
        let query = form_urlencoded::parse(query.as_bytes()).collect();
        Ok(Self { secret_way, authority, path, query })
    }

    fn directory(&self, scheme: &str) -> Result<PathBuf, Error> {
        if !matches!(self.authority, "" | "localhost") {
            return Err(wrong(format!(
                "a file's URL names no host: write {scheme}:///{}{}",
                self.authority, self.path
            )));
        }
        if self.path.is_empty() {
            return Err(wrong(format!("it names no directory, as in {scheme}:///run/lock")));
        }
        let path: Vec<u8> = percent_decode_str(self.path).collect();
        if path.contains(&0) {
            return Err(wrong("a path has no NUL in it"));
        }
        let path = path_of_bytes(path).ok_or_else(|| wrong("its path is not text"))?;
        Ok(path.into())
    }

    /// The options as each key of the query sets them; `set` gives `None` for a key that
    /// it does not know.
    fn options<O>(
        &self,
        known: &str,
        mut options: O,
        mut set: impl FnMut(O, &str, &str) -> Result<Option<O>, Error>,
    ) -> Result<O, Error> {
        let mut seen: Vec<&str> = Vec::new();
        for (key, value) in &self.query {
            if SECRETS.contains(&&**key) {
                return Err(wrong(format!(
                    "{key} would be a secret that process lists and logs show: write it into \
                     a file and name that with {}",
                    self.secret_way
                )));
            }
            if seen.contains(&&**key) {
                return Err(wrong(format!("{key} is given twice")));
            }
            seen.push(key);
            let unknown = || wrong(format!("there is no key {key:?} here, but {known}"));
            options = set(options, key, value)?.ok_or_else(unknown)?;
        }
        Ok(options)
    }

    fn file_options(&self) -> Result<FileOptions, Error> {
        let known = "timeout, retry_period, fallback_period, local_handoff, race_delay, tries, \
                     mode, proof, openlock_compat, at_exit and note";
        let options = self.options(known, FileOptions::process_default(), |old, key, value| {
            Ok(Some(match key {
                "timeout" => old.timeout(time(key, value)?),
                "retry_period" => old.retry_period(time(key, value)?),
                "fallback_period" => old.fallback_period(time(key, value)?),
                "local_handoff" => old.local_handoff(time(key, value)?),
                "race_delay" => old.race_delay(time(key, value)?),
                "tries" => old.tries(number(key, value, 10)?),
                "mode" => old.mode(number(key, value, 8)?),
                "openlock_compat" => old.openlock_compat(flag(key, value)?),
                "proof" => old.proof(match value {
                    "auto" => Proof::Auto,
                    "kernel_lock" => Proof::KernelLock,
                    "process" => Proof::Process,
                    _ => return Err(bad_value(key, value, "auto, kernel_lock or process")),
                }),
                "at_exit" => old.at_exit(match value {
                    "leave" => AtExit::Leave,
                    "remove" => AtExit::Remove,
                    _ => return Err(bad_value(key, value, "leave or remove")),
                }),
                "note" => old.note(value),
                _ => return Ok(None),
            }))
        })?;
        options.check()?;
        Ok(options)
    }

    fn kernel_options(&self, primitive: Primitive) -> Result<KernelOptions, Error> {
        let known = "timeout, retry_period, fallback_period, local_handoff, mode, keep_open and \
                     delete_on_release";
        let start = KernelOptions::default().primitive(primitive);
        let options = self.options(known, start, |old, key, value| {
            Ok(Some(match key {
                "timeout" => old.timeout(time(key, value)?),
                "retry_period" => old.retry_period(time(key, value)?),
                "fallback_period" => old.fallback_period(time(key, value)?),
                "local_handoff" => old.local_handoff(time(key, value)?),
                "mode" => old.mode(number(key, value, 8)?),
                "keep_open" => old.keep_open(flag(key, value)?),
                "delete_on_release" => old.delete_on_release(flag(key, value)?),
                _ => return Ok(None),
            }))
        })?;
        // What does not go together is refused here, and not at the first lock.
        AsyncKernelLock::with_options("any", options.clone())?;
        Ok(options)
    }

    #[cfg(feature = "lockd-client")]
    #[expect(clippy::disallowed_methods, reason = "reads the token file that a URL names")]
    fn remote_options(&self) -> Result<(String, RemoteOptions), Error> {
        let mut client = None;
        let mut token_file = std::env::var_os(TOKEN_FILE).map(PathBuf::from);
        let known = "client, timeout, lease, reconnect, ca_file and token_file";
        let mut options = self.options(known, RemoteOptions::default(), |old, key, value| {
            Ok(Some(match key {
                "timeout" => old.timeout(Some(time(key, value)?)),
                "lease" => old.lease(Some(time(key, value)?)),
                "reconnect" => old.reconnect(time(key, value)?),
                "ca_file" => old.ca_file(value),
                "client" => {
                    client = Some(value.to_owned());
                    old
                }
                "token_file" => {
                    token_file = Some(value.into());
                    old
                }
                _ => return Ok(None),
            }))
        })?;
        if let Some(file) = token_file {
            let why = |error| Error::InvalidOption {
                option: "token_file",
                why: format!("{} cannot be read: {error}", file.display()),
            };
            let token = std::fs::read_to_string(&file).map_err(why)?;
            options = options.bearer_token(token.trim());
        }
        Ok((client.unwrap_or_else(own_name), options))
    }

    #[cfg(feature = "etcd")]
    fn etcd_keys(&self) -> Result<UrlKeys, Error> {
        let known = "ttl, timeout, reconnect, note, user, password_file, ca_file, cert_file, \
                     key_file and server_name";
        self.options(known, UrlKeys::default(), |mut keys, key, value| {
            if value.is_empty() && key != "note" {
                return Err(wrong(format!("{key} has no value")));
            }
            match key {
                "ttl" => keys.options = keys.options.ttl(time(key, value)?),
                "timeout" => keys.options = keys.options.timeout(time(key, value)?),
                "reconnect" => keys.options = keys.options.reconnect(time(key, value)?),
                "note" => keys.options = keys.options.note(value),
                "server_name" => keys.options = keys.options.server_name(value),
                "user" if value.contains(':') => {
                    return Err(wrong(format!(
                        "user is a name without a password: write that into a file and name \
                         it with {}",
                        self.secret_way
                    )));
                }
                "user" => keys.user = Some(value.to_owned()),
                "password_file" => keys.password_file = Some(value.into()),
                "ca_file" => keys.ca_file = Some(value.into()),
                "cert_file" => keys.cert_file = Some(value.into()),
                "key_file" => keys.key_file = Some(value.into()),
                _ => return Ok(None),
            }
            Ok(Some(keys))
        })
    }
}

/// This machine and this process, for people.
#[cfg(feature = "lockd-client")]
pub(crate) fn own_name() -> String {
    format!("{}:{}", host::name(), std::process::id())
}

fn bad_value(key: &str, value: &str, wanted: &str) -> Error {
    wrong(format!("{key}={value:?} is no value: write {wanted}"))
}

fn time(key: &str, value: &str) -> Result<Duration, Error> {
    duration::parse(value).map_err(|_| bad_value(key, value, "a time, as in 300ms, 30s or 1h30m"))
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, Error> {
    u32::from_str_radix(value, radix).map_err(|_| bad_value(key, value, "a number"))
}

fn flag(key: &str, value: &str) -> Result<bool, Error> {
    value.parse().map_err(|_| bad_value(key, value, "true or false"))
}
