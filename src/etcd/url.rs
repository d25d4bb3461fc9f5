//! A cluster as a URL names it, and the environment of etcdctl for what it leaves out.
//!
//! U1. What the URL says wins. Of the environment an empty value is none, as for etcdctl.
//! U2. `ETCDCTL_USER` is `name:password`, or a name where the password stands elsewhere.
//! U3. A password is never in the URL, and neither it nor what may be one is in an error.

#![expect(clippy::disallowed_methods, reason = "reads the password file that a URL names")]

use std::env::VarError;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::locks::EtcdLocks;
use super::options::EtcdOptions;
use crate::lock::error::Error;

const ENDPOINTS: &str = "ETCDCTL_ENDPOINTS";
const USER: &str = "ETCDCTL_USER";
const PASSWORD: &str = "ETCDCTL_PASSWORD";
const CA_FILE: &str = "ETCDCTL_CACERT";
const CERT_FILE: &str = "ETCDCTL_CERT";
const KEY_FILE: &str = "ETCDCTL_KEY";

/// What the keys of a URL say.
#[derive(Default)]
pub(crate) struct UrlKeys {
    pub(crate) options: EtcdOptions,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
}

/// Where a variable of the environment is looked up.
type Environment<'a> = &'a dyn Fn(&'static str) -> Result<Option<String>, Error>;

impl UrlKeys {
    /// The locks of the cluster at `authority`, as in `h1:2379,h2:2379`, below `path`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(crate) fn open(
        self,
        is_tls: bool,
        authority: &str,
        path: &str,
    ) -> Result<EtcdLocks, Error> {
        self.open_in(&variable, is_tls, authority, path)
    }

    fn open_in(
        mut self,
        environment: Environment<'_>,
        is_tls: bool,
        authority: &str,
        path: &str,
    ) -> Result<EtcdLocks, Error> {
        let endpoints = match authority {
            "" => endpoints_of(environment, is_tls)?,
            _ => hosts(authority)?.to_owned(),
        };
        if let Some((user, password)) = self.credentials(environment)? {
            self.options = self.options.user(user, password);
        }
        let file = |given: Option<PathBuf>, name| -> Result<Option<PathBuf>, Error> {
            Ok(given.or(environment(name)?.map(PathBuf::from)))
        };
        if let Some(file) = file(self.ca_file, CA_FILE)? {
            self.options = self.options.ca_file(file);
        }
        self.options = match (file(self.cert_file, CERT_FILE)?, file(self.key_file, KEY_FILE)?) {
            (Some(cert), Some(key)) => self.options.identity(cert, key),
            (None, None) => self.options,
            _ => {
                return Err(wrong(format!(
                    "cert_file and key_file go together, as do {CERT_FILE} and {KEY_FILE}"
                )));
            }
        };
        EtcdLocks::with_options(endpoints, self.options.tls(is_tls).prefix(prefix(path)?))
    }

    /// Name and password. (U1, U2)
    fn credentials(&self, environment: Environment<'_>) -> Result<Option<(String, String)>, Error> {
        let file = self.password_file.as_deref().map(password_in).transpose()?;
        let password = match file {
            Some(password) => Some(password),
            None => environment(PASSWORD)?,
        };
        let known = match &self.user {
            Some(user) => Some(user.clone()),
            None => environment(USER)?,
        };
        match (known, password) {
            (None, None) => Ok(None),
            (None, Some(_)) => {
                Err(wrong(format!("there is a password and no user: add ?user=, or set {USER}")))
            }
            // Of the environment: the URL has no : in a user.
            (Some(user), password) if user.contains(':') => {
                match (user.split_once(':'), password) {
                    (Some((user, own)), None) => Ok(Some((user.to_owned(), own.to_owned()))),
                    _ => Err(Error::InvalidOption {
                        option: USER,
                        why: format!(
                            "it has a password after its :, and {PASSWORD} or password_file has \
                         another: leave one"
                        ),
                    }),
                }
            }
            (Some(user), Some(password)) => Ok(Some((user, password))),
            (Some(user), None) => Err(wrong(format!(
                "the user {user:?} has no password: write it into a file and name that with \
                 ?password_file=, or set {PASSWORD}"
            ))),
        }
    }
}

/// # Errors
/// It is not UTF-8.
fn variable(name: &'static str) -> Result<Option<String>, Error> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            Err(Error::InvalidOption { option: name, why: "it is not UTF-8".to_owned() })
        }
    }
}

/// For a URL that names no host.
fn endpoints_of(environment: Environment<'_>, is_tls: bool) -> Result<String, Error> {
    let endpoints = environment(ENDPOINTS)?.ok_or_else(|| {
        wrong(format!(
            "it names no host, as in etcd://h1:2379,h2:2379/jobs, and {ENDPOINTS} is not set"
        ))
    })?;
    let is_plain = |endpoint: &str| endpoint.trim().starts_with("http://");
    if is_tls && endpoints.split(',').any(is_plain) {
        let why = "it has an http:// endpoint, and the URL says etcd+tls: write https://";
        return Err(Error::InvalidOption { option: ENDPOINTS, why: why.to_owned() });
    }
    Ok(endpoints)
}

/// Checks each host of a URL. What is wrong with a port, its endpoint says.
fn hosts(authority: &str) -> Result<&str, Error> {
    let mut is_in_brackets = false;
    let hosts = authority.split(|character| {
        match character {
            '[' => is_in_brackets = true,
            ']' => is_in_brackets = false,
            _ => {}
        }
        character == ',' && !is_in_brackets
    });
    for host in hosts {
        match host {
            "" => return Err(wrong("it has an empty host: write etcd://h1:2379,h2:2379")),
            "http:" | "https:" => {
                return Err(wrong(
                    "its hosts have no scheme of their own: write etcd://h1:2379,h2:2379, or \
                     etcd+tls:// for TLS",
                ));
            }
            _ if host.contains(',') => {
                return Err(wrong("it has a , within [ ], where one IPv6 address belongs"));
            }
            _ if host.contains(|it: char| it == '%' || it.is_whitespace() || it.is_control()) => {
                return Err(wrong("a host has no %, white space or control character in it"));
            }
            _ => {}
        }
    }
    Ok(authority)
}

/// Decoded once. `/jobs`, `jobs` and `/jobs/` are the same to the options.
fn prefix(path: &str) -> Result<String, Error> {
    let decoded = percent_decode_str(path).decode_utf8();
    decoded.map(Into::into).map_err(|_| wrong("its prefix is not UTF-8"))
}

/// Up to the end of the line: editors put one there.
fn password_in(file: &Path) -> Result<String, Error> {
    let wrong = |why: String| Error::InvalidOption {
        option: "password_file",
        why: format!("{} {why}", file.display()),
    };
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    match password {
        "" => Err(wrong("is empty".to_owned())),
        _ if password.contains('\n') => Err(wrong("has more than one line".to_owned())),
        _ => Ok(password.to_owned()),
    }
}

/// Never with the URL in it. (U3)
fn wrong(why: impl Into<String>) -> Error {
    Error::InvalidOption { option: "url", why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [ENDPOINTS, USER, PASSWORD, CA_FILE, CERT_FILE, KEY_FILE];

    /// Name and password that are sent, or the error.
    fn credentials(
        user: Option<&str>,
        set: &[(&str, &str)],
    ) -> Result<Option<(String, String)>, String> {
        let keys = UrlKeys { user: user.map(str::to_owned), ..UrlKeys::default() };
        let credentials = keys.credentials(&|name| Ok(value(name, set)));
        credentials.map_err(|error| error.to_string())
    }

    fn value(name: &str, set: &[(&str, &str)]) -> Option<String> {
        assert!(NAMES.contains(&name));
        set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    /// The endpoints, or the error.
    fn endpoints(is_tls: bool, authority: &str, set: &[(&str, &str)]) -> Result<String, String> {
        let environment = |name| Ok(value(name, set));
        let opened = UrlKeys::default().open_in(&environment, is_tls, authority, "/jobs");
        opened.map(|locks| locks.url().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_user_is_found_as_etcdctl_finds_it() {
        let bob = |password: &str| Ok(Some(("bob".to_owned(), password.to_owned())));
        assert_eq!(credentials(None, &[]), Ok(None));
        assert_eq!(credentials(None, &[(USER, "bob:a:b")]), bob("a:b"));
        assert_eq!(credentials(None, &[(USER, "bob"), (PASSWORD, "pw")]), bob("pw"));
        assert_eq!(credentials(Some("bob"), &[(USER, "eve:x"), (PASSWORD, "pw")]), bob("pw"));
    }

    #[test]
    fn what_is_wrong_with_a_user_is_said_without_a_password() {
        for (user, set, part) in [
            (None, &[(PASSWORD, "hunter2")][..], "no user"),
            (None, &[(USER, "bob")], "\"bob\" has no password"),
            (None, &[(USER, "bob:hunter2"), (PASSWORD, "hunter2")], "leave one"),
            // Never another user's password.
            (Some("bob"), &[(USER, "eve:hunter2")], "\"bob\" has no password"),
        ] {
            let error = credentials(user, set).unwrap_err();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn hosts_of_the_url_come_before_those_of_the_environment() {
        let set = [(ENDPOINTS, "http://e1:1,e2")];
        assert_eq!(endpoints(false, "h1", &set).unwrap(), "etcd://h1:2379/jobs/");
        assert_eq!(endpoints(false, "", &set).unwrap(), "etcd://e1:1,e2:2379/jobs/");
        let error = endpoints(true, "", &set).unwrap_err();
        assert!(error.contains(ENDPOINTS) && error.contains("https://"), "{error}");
        let error = endpoints(false, "", &[]).unwrap_err();
        assert!(error.contains("no host") && error.contains(ENDPOINTS), "{error}");
    }

    #[test]
    fn files_of_the_environment_stand_for_those_the_url_leaves_out() {
        let error = endpoints(false, "h1", &[(CA_FILE, "/none/ca.pem")]).unwrap_err();
        assert!(error.contains("/none/ca.pem"), "TLS is spoken as by etcdctl: {error}");
        let error = endpoints(false, "h1", &[(CERT_FILE, "/none/cert.pem")]).unwrap_err();
        assert!(error.contains("go together"), "{error}");
        let set = [(CERT_FILE, "/none/cert.pem"), (KEY_FILE, "/none/key.pem")];
        let error = endpoints(true, "h1", &set).unwrap_err();
        assert!(error.contains("/none/key.pem"), "{error}");
    }
}
