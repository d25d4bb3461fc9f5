//! Where the members of a cluster are.

use std::fmt;
use std::sync::Arc;

use http::Uri;

use crate::lease::Tls;
use crate::lock::error::Error;

/// etcd's port for clients.
const PORT: u16 = 2379;

/// Where one member is.
#[derive(Clone)]
pub(super) struct Endpoint(Arc<Inner>);

struct Inner {
    host: String,
    port: u16,
    origin: Uri,
    tls: Option<Tls>,
}

/// How TLS is spoken to a host; `None` if it is not spoken.
pub(super) type TlsFor<'a> = &'a dyn Fn(&str) -> Result<Tls, Error>;

impl Endpoint {
    /// Endpoints as in `h1:2379,https://h2:2379`. Those without a scheme have the TLS of
    /// `is_secret`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn parse_all(
        text: &str,
        is_secret: bool,
        tls: TlsFor<'_>,
    ) -> Result<Vec<Self>, Error> {
        let endpoints: Result<Vec<_>, _> =
            text.split(',').map(|endpoint| Self::parse(endpoint.trim(), is_secret, tls)).collect();
        endpoints
    }

    fn parse(text: &str, is_secret: bool, tls: TlsFor<'_>) -> Result<Self, Error> {
        let (is_secret, authority) = match text.split_once("://") {
            None => (is_secret, text),
            Some(("http" | "etcd", authority)) => (false, authority),
            Some(("https" | "etcd+tls", authority)) => (true, authority),
            Some((scheme, _)) => {
                return Err(invalid(format!(
                    "there is no scheme {scheme:?} here: write host:port, http://host:port or \
                     https://host:port"
                )));
            }
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['@', '/', '?', '#']) {
            return Err(invalid(
                "an endpoint is a host and a port and nothing else: user, password and prefix \
                 have options of their own"
                    .to_owned(),
            ));
        }
        let (host, port) = split(authority)?;
        let scheme = if is_secret { "https" } else { "http" };
        let shown =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let origin = format!("{scheme}://{shown}").parse::<Uri>();
        let origin = origin.map_err(|error| invalid(format!("{shown:?}: {error}")))?;
        let tls = is_secret.then(|| tls(host)).transpose()?;
        Ok(Self(Arc::new(Inner { host: host.to_owned(), port, origin, tls })))
    }

    pub(super) fn host(&self) -> &str {
        &self.0.host
    }

    pub(super) fn port(&self) -> u16 {
        self.0.port
    }

    pub(super) fn origin(&self) -> &Uri {
        &self.0.origin
    }

    pub(super) fn tls(&self) -> Option<&Tls> {
        self.0.tls.as_ref()
    }
}

/// Host and port.
impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.origin.authority().map_or(Ok(()), |authority| authority.fmt(out))
    }
}

/// `host`, `host:port`, `[::1]:port`.
fn split(authority: &str) -> Result<(&str, u16), Error> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| invalid(format!("{authority:?} has a [ without a ]")))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(invalid(format!("{authority:?} has something behind its ]"))),
            }
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(invalid(format!("{authority:?}: write an IPv6 address in [ ]")));
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err(invalid("it names no host, as in h1:2379,h2:2379".to_owned()));
    }
    let Some(port) = port else { return Ok((host, PORT)) };
    match port.parse() {
        Ok(port) if port > 0 => Ok((host, port)),
        _ => Err(invalid(format!("{port:?} is no port"))),
    }
}

fn invalid(why: String) -> Error {
    Error::InvalidOption { option: "endpoints", why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let no_tls: TlsFor<'_> = &|host| panic!("no TLS is asked for: {host}");
        let parsed = Endpoint::parse_all(text, false, no_tls).map_err(|error| error.to_string())?;
        Ok(parsed.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_list_is_split_at_its_commas() {
        assert_eq!(
            parse("h1:1, http://h2:2/,[::1]:3,h4").unwrap(),
            ["h1:1", "h2:2", "[::1]:3", "h4:2379"]
        );
    }

    #[test]
    fn what_is_wrong_with_an_endpoint_is_said() {
        for (text, part) in [
            ("", "no host"),
            ("h1,,h2", "no host"),
            (":2379", "no host"),
            ("h:x", "no port"),
            ("h:0", "no port"),
            ("::1", "in [ ]"),
            ("[::1", "without a ]"),
            ("ftp://h", "no scheme"),
            ("u:secret@h:1", "nothing else"),
            ("h:1/prefix", "nothing else"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
