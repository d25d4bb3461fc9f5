//! `sslmode`: whether TLS is spoken to a host, and what is checked of its certificate.
//!
//! | `sslmode` | tried, in this order | checked |
//! |---|---|---|
//! | `disable` | without TLS | |
//! | `allow` | without TLS, with TLS | as for `require` |
//! | `prefer` | with TLS, without TLS | as for `require` |
//! | `require` | with TLS | the chain, if there is a file of certificates |
//! | `verify-ca` | with TLS | the chain |
//! | `verify-full` | with TLS | the chain and the host's name |
//!
//! S1. Where no `sslmode` is given, it is `verify-full`, for libpq's `prefer` is plain text to
//!     all who sit in between. To this machine itself (`localhost`, `127.0.0.0/8`, `::1`) it is
//!     `prefer`, unless `sslrootcert` is given.
//! S2. Certificates to trust are those of `sslrootcert`, else of `~/.postgresql/root.crt`.
//!     Else `verify-full` trusts what the system trusts, as with `sslrootcert=system`.
//! S3. Over a socket of this machine no TLS is spoken, whatever `sslmode` is.
//! S4. A file that the user named has to be there. One at its usual place need not be.

use std::io;
use std::path::{Path, PathBuf};

use super::connection_string::Pairs;
use super::environment::Environment;
use crate::lease::{OptionNames, Tls, Trust};
use crate::lock::error::Error;
use crate::sys::{libpq, permissions};

const OPTIONS: OptionNames = OptionNames { ca: "sslrootcert", cert: "sslcert", key: "sslkey" };

/// For the trust in what the system trusts.
const SYSTEM: &str = "system";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

const MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// What a user says of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Security {
    /// For hosts that are not this machine.
    pub(super) mode: SslMode,
    /// For this machine, over TCP.
    loopback_mode: SslMode,
    /// Those of the system without one.
    root_file: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Security {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn new(pairs: &Pairs, environment: Environment<'_>) -> Result<Self, Error> {
        let given = pairs.get("sslmode").map(mode_of).transpose()?;
        let root = pairs.get("sslrootcert");
        let mode = given.unwrap_or(SslMode::VerifyFull);
        let loopback_mode = match (given, root) {
            (None, None) => SslMode::Prefer,
            _ => mode,
        };
        if mode == SslMode::Disable {
            return Ok(Self { mode, loopback_mode, root_file: None, identity: None });
        }
        let root_file = match root {
            Some(SYSTEM) if mode != SslMode::VerifyFull => {
                return Err(invalid(
                    "sslrootcert",
                    "with what the system trusts any owner of a certificate could answer, \
                     unless sslmode is verify-full",
                ));
            }
            Some(SYSTEM) => None,
            Some(file) => Some(PathBuf::from(file)),
            None => usual(environment, "root.crt")?,
        };
        if mode == SslMode::VerifyCa && root_file.is_none() {
            let why = "verify-ca needs the certificates to trust: name their file with sslrootcert";
            let usual = Path::new(libpq::CERTIFICATES_SHOWN).join("root.crt");
            return Err(invalid("sslmode", &format!("{why}, or put it at {}", usual.display())));
        }
        let identity = identity(pairs, environment)?;
        Ok(Self { mode, loopback_mode, root_file, identity })
    }

    /// For each host how it is spoken to, in the order of the tries; `None` is without TLS.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: what is wrong with a file or a host.
    pub(super) fn tries(&self, name: &str, is_loopback: bool) -> Result<Vec<Option<Tls>>, Error> {
        let mode = if is_loopback { self.loopback_mode } else { self.mode };
        let tls = || self.tls(mode, name).map(Some);
        Ok(match mode {
            SslMode::Disable => vec![None],
            SslMode::Allow => vec![None, tls()?],
            SslMode::Prefer => vec![tls()?, None],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => vec![tls()?],
        })
    }

    fn tls(&self, mode: SslMode, name: &str) -> Result<Tls, Error> {
        let trust = match (mode, &self.root_file) {
            (SslMode::VerifyFull, None) => Trust::System,
            (SslMode::VerifyFull, Some(file)) => Trust::File(file),
            (_, Some(file)) => Trust::FileForAnyName(file),
            (_, None) => Trust::All,
        };
        let identity = self.identity.as_ref();
        let identity = identity.map(|(cert, key)| (cert.as_path(), key.as_path()));
        Tls::new(name, trust, identity, OPTIONS).map_err(|error| match error {
            Error::InvalidOption { option: "server", why } => {
                Error::InvalidOption { option: "host", why }
            }
            error => error,
        })
    }
}

fn mode_of(text: &str) -> Result<SslMode, Error> {
    let found = MODES.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, mode)| mode).ok_or_else(|| {
        let names = MODES.map(|(name, _)| name).join(", ");
        Error::InvalidOption { option: "sslmode", why: format!("{text:?} is none of {names}") }
    })
}

/// The certificate of this client and its key.
fn identity(
    pairs: &Pairs,
    environment: Environment<'_>,
) -> Result<Option<(PathBuf, PathBuf)>, Error> {
    let cert = match pairs.get("sslcert") {
        Some(file) => Some(PathBuf::from(file)),
        None => usual(environment, "postgresql.crt")?,
    };
    let Some(cert) = cert else {
        return match pairs.get("sslkey") {
            Some(_) => Err(invalid("sslkey", "a key needs a certificate: add sslcert")),
            None => Ok(None),
        };
    };
    let key = match pairs.get("sslkey") {
        Some(file) => Some(PathBuf::from(file)),
        None => usual(environment, "postgresql.key")?,
    };
    let key = key.ok_or_else(|| {
        let why = format!("there is the certificate {} and no key: add sslkey", cert.display());
        Error::InvalidOption { option: "sslkey", why }
    })?;
    check_key(&key)?;
    Ok(Some((cert, key)))
}

/// Rights that no user but root may have given on a key of its own.
const OF_OTHERS: u32 = 0o077;

/// The same for a key of root's, which a group may read.
const OF_OTHERS_OF_ROOT: u32 = 0o037;

/// As libpq: a key that others can read is no secret.
fn check_key(file: &Path) -> Result<(), Error> {
    let wrong = |why: &str| {
        let why = format!("{}: {why}", file.display());
        Err(Error::InvalidOption { option: "sslkey", why })
    };
    let about = match std::fs::metadata(file) {
        Ok(about) => about,
        Err(error) => return wrong(&error.to_string()),
    };
    let others = if permissions::is_of_root(&about) { OF_OTHERS_OF_ROOT } else { OF_OTHERS };
    if !about.is_file() {
        return wrong("it is no plain file");
    }
    if permissions::mode(&about).is_some_and(|mode| mode & others != 0) {
        return wrong("others have rights on it: chmod 600, or 640 if root is its owner");
    }
    Ok(())
}

/// A file in libpq's directory, if there is one.
fn usual(environment: Environment<'_>, name: &str) -> Result<Option<PathBuf>, Error> {
    let file = environment.at_home(Path::new(libpq::CERTIFICATES).join(name))?;
    Ok(file.filter(|file| match std::fs::metadata(file) {
        Ok(_) => true,
        Err(error) => {
            !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
    }))
}

fn invalid(option: &'static str, why: &str) -> Error {
    Error::InvalidOption { option, why: why.to_owned() }
}
