//! Whether a browser was sent here by somebody else's page.
//!
//! O1. A page that was loaded from elsewhere can send requests here, but its
//!     browser says so in `Origin` or `Sec-Fetch-Site`: those are refused, also
//!     the kinds that need no permission first, such as a POST of text.
//! O2. A page can have its own name resolve to this machine, and then asks its
//!     own origin; its name is in `Host`. So `Host` is an address or a name
//!     that is known to be this daemon's.
//! O3. A page may link to the daemon's page; it may not frame it (see `page`).

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header, request::Parts};

/// What this daemon is called.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// In lower case.
    names: Vec<String>,
    /// Only addresses of this machine's own.
    is_local: bool,
    is_tls: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Foreign {
    #[error("a request must say in one Host header whom it is for")]
    NoHost,
    #[error(
        "this daemon is not called as the Host header says: let its administrator add the name"
    )]
    Host,
    #[error("a page from elsewhere may not use this daemon")]
    Origin,
}

impl Foreign {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NoHost => StatusCode::BAD_REQUEST,
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin => StatusCode::FORBIDDEN,
        }
    }

    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::NoHost => "no_host",
            Self::Host => "foreign_host",
            Self::Origin => "foreign_origin",
        }
    }
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

impl Hosts {
    /// Of a daemon that listens at loopback only, or at others too.
    pub(crate) fn new(names: &[String], is_local: bool, is_tls: bool) -> Self {
        let mut names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        // Browsers ask no name server for this one.
        names.push("localhost".to_owned());
        if !is_local {
            let system = rustix::system::uname();
            names.push(system.nodename().to_string_lossy().to_ascii_lowercase());
        }
        Self { names, is_local, is_tls }
    }

    /// Whether the request is for this daemon and from nobody else's page.
    pub(crate) fn check(&self, request: &Parts) -> Result<(), Foreign> {
        let host = one(&request.headers, &header::HOST).map_err(|()| Foreign::NoHost)?;
        // A browser always sends one; clients of HTTP/1.0 need not.
        let Some(host) = host else {
            let is_old = request.version == axum::http::Version::HTTP_10;
            let is_plain = is_old && !request.headers.contains_key(header::ORIGIN);
            return if is_plain { Ok(()) } else { Err(Foreign::NoHost) };
        };
        let named = Authority::try_from(host).map_err(|_| Foreign::NoHost)?;
        // A target with a host of its own goes before the header, RFC 9112 3.2.2.
        for authority in request.uri.authority().into_iter().chain([&named]) {
            if !self.knows(authority) {
                return Err(Foreign::Host);
            }
        }
        if self.is_same_origin(request, host) { Ok(()) } else { Err(Foreign::Origin) }
    }

    /// O2. The port does not matter: it may be forwarded.
    fn knows(&self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        if let Ok(address) = bare.parse::<std::net::IpAddr>() {
            // No name server is asked for an address.
            return !self.is_local
                || address.to_canonical().is_loopback()
                || self.names.contains(&host);
        }
        self.names.contains(&host)
    }

    /// O1. `host` is the Host header.
    fn is_same_origin(&self, request: &Parts, host: &str) -> bool {
        let headers = &request.headers;
        let Ok(origin) = one(headers, &header::ORIGIN) else { return false };
        if let Some(origin) = origin {
            let Some((scheme, authority)) = origin.split_once("://") else { return false };
            let is_scheme = scheme == "https" || (scheme == "http" && !self.is_tls);
            if !is_scheme || !authority.eq_ignore_ascii_case(host) {
                return false;
            }
        }
        let Ok(site) = one(headers, &FETCH_SITE) else { return false };
        match site {
            None | Some("same-origin" | "none") => true,
            Some(_) => is_link(request),
        }
    }
}

/// O3.
fn is_link(request: &Parts) -> bool {
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    let is_navigation = one(&request.headers, &FETCH_MODE) == Ok(Some("navigate"));
    is_read && is_navigation && request.uri.path() == "/"
}

/// The value of a header that comes at most once.
pub(crate) fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(|value| value.to_str().map_err(drop)).transpose()?;
    if values.next().is_some() { Err(()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn check(
        hosts: &Hosts,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> Result<(), Foreign> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        hosts.check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_name_of_somebody_else_is_refused() {
        let hosts = Hosts::new(&["Locks.example".to_owned()], true, false);
        for own in [
            "localhost",
            "LOCALHOST:8000",
            "127.0.0.1:9",
            "127.1.2.3",
            "[::1]:80",
            "locks.example:1",
        ] {
            assert_eq!(check(&hosts, "GET", "/", &[("host", own)]), Ok(()), "{own}");
        }
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "192.0.2.1",
            "x@localhost",
            "127.0.0.1.nip.io",
        ] {
            let refused = check(&hosts, "GET", "/", &[("host", foreign)]);
            assert_eq!(refused, Err(Foreign::Host), "{foreign}");
        }
        for none in ["", "localhost, evil.example", "a b"] {
            assert_eq!(
                check(&hosts, "GET", "/", &[("host", none)]),
                Err(Foreign::NoHost),
                "{none}"
            );
        }
        let two = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(check(&hosts, "GET", "/", &two), Err(Foreign::NoHost));
        assert_eq!(check(&hosts, "GET", "/", &[]), Err(Foreign::NoHost));
        let absolute = check(&hosts, "GET", "http://evil.example/", &[("host", "localhost")]);
        assert_eq!(absolute, Err(Foreign::Host));
        let everywhere = Hosts::new(&[], false, false);
        assert_eq!(check(&everywhere, "GET", "/", &[("host", "192.0.2.1:8000")]), Ok(()));
        assert_eq!(check(&everywhere, "GET", "/", &[("host", "localhost")]), Ok(()));
        let foreign = check(&everywhere, "GET", "/", &[("host", "evil.example")]);
        assert_eq!(foreign, Err(Foreign::Host));
    }

    #[test]
    fn a_page_of_somebody_else_is_refused() {
        let hosts = Hosts::new(&[], true, false);
        let with = |name, value| {
            check(&hosts, "POST", "/RPC2", &[("host", "localhost:8000"), (name, value)])
        };
        assert_eq!(with("origin", "http://localhost:8000"), Ok(()));
        assert_eq!(with("sec-fetch-site", "same-origin"), Ok(()));
        for foreign in
            ["null", "http://localhost:3000", "http://evil.example", "http://localhost", ""]
        {
            assert_eq!(with("origin", foreign), Err(Foreign::Origin), "{foreign}");
        }
        for site in ["cross-site", "same-site", "?"] {
            assert_eq!(with("sec-fetch-site", site), Err(Foreign::Origin), "{site}");
        }
        let tls = Hosts::new(&[], true, true);
        let headers = [("host", "localhost:8000"), ("origin", "http://localhost:8000")];
        assert_eq!(check(&tls, "POST", "/", &headers), Err(Foreign::Origin));
    }

    #[test]
    fn only_the_page_can_be_linked_to() {
        let hosts = Hosts::new(&[], true, false);
        let link = [
            ("host", "localhost"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
        ];
        assert_eq!(check(&hosts, "GET", "/", &link), Ok(()));
        assert_eq!(check(&hosts, "POST", "/", &link), Err(Foreign::Origin));
        assert_eq!(check(&hosts, "GET", "/v1/locks", &link), Err(Foreign::Origin));
        assert_eq!(check(&hosts, "GET", "/", &link[..2]), Err(Foreign::Origin));
    }
}
