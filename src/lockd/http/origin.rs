//! Refusal of requests that a foreign page made a browser send.
//!
//! O1. A page that was loaded from elsewhere can send requests here. Its browser says so
//!     in `Origin` or `Sec-Fetch-Site`. Such requests are refused, also the kinds that need no
//!     permission first, as a POST of text.
//! O2. A page can have its own name resolve to this machine, and then asks its
//!     own origin; its name is in `Host`. So `Host` is an address or a name
//!     that is known to be this daemon's.
//! O3. A page may link to the daemon's page; it may not frame it (see `page`).

use std::net::IpAddr;

use axum::http::Uri;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, header, request::Parts};

use crate::sys::host;
use crate::wire::Code;

/// What this daemon is called.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// In lower case.
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    /// Where browsers find it, if that is not where it listens.
    public: Option<PublicUrl>,
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
    pub(crate) fn code(self) -> Code {
        match self {
            Self::NoHost => Code::NoHost,
            Self::Host => Code::ForeignHost,
            Self::Origin => Code::ForeignOrigin,
        }
    }
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

impl Hosts {
    /// Of a daemon that listens at loopback only, or at others too.
    ///
    /// # Errors
    /// A name that no `Host` header can have, and what is wrong with it.
    pub(crate) fn new(
        names: &[String],
        public: Option<PublicUrl>,
        is_local: bool,
        is_tls: bool,
    ) -> Result<Self, (String, &'static str)> {
        // Browsers ask no name server for this one.
        let own = vec!["localhost".to_owned()];
        let mut hosts = Self { names: own, addresses: Vec::new(), public: None, is_local, is_tls };
        for name in names {
            hosts.add(name).map_err(|why| (name.clone(), why))?;
        }
        if let Some(public) = &public {
            // It was looked at already.
            let _ = hosts.add(&public.host);
        }
        if !is_local {
            hosts.names.push(host::name().to_ascii_lowercase());
        }
        Ok(Self { public, ..hosts })
    }

    fn add(&mut self, name: &str) -> Result<(), &'static str> {
        if let Some(address) = address(name) {
            self.addresses.push(address);
            return Ok(());
        }
        check_name(name)?;
        self.names.push(name.to_ascii_lowercase());
        Ok(())
    }

    pub(crate) fn prefix(&self) -> &str {
        self.public.as_ref().map_or("", |public| &public.prefix)
    }

    /// Whether requests come through a proxy.
    pub(crate) fn is_public(&self) -> bool {
        self.public.is_some()
    }

    /// Check that the request is for this daemon, and not from a foreign page.
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
        if let Some(address) = address(&host) {
            // No name server is asked for an address.
            return !self.is_local || address.is_loopback() || self.addresses.contains(&address);
        }
        self.names.contains(&host)
    }

    /// O1. `host` is the Host header.
    fn is_same_origin(&self, request: &Parts, host: &str) -> bool {
        let headers = &request.headers;
        let Ok(origin) = one(headers, &header::ORIGIN) else { return false };
        let is_public = |origin: &str| {
            self.public.as_ref().is_some_and(|public| origin.eq_ignore_ascii_case(&public.origin))
        };
        if let Some(origin) = origin.filter(|origin| !is_public(origin)) {
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

/// A literal address, with or without brackets.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    if name.contains("://") {
        return Err("this is a URL: name the host only, or give it as the public URL");
    }
    if name.contains('*') {
        return Err("a star stands for nothing here: name each host");
    }
    if name.contains(':') {
        return Err("leave the port away: a name is known with every port");
    }
    if !name.is_ascii() {
        return Err("write it as browsers send it, in ASCII (xn--…)");
    }
    if name.is_empty() || !name.chars().all(is_part) {
        return Err("no host is called so");
    }
    Ok(())
}

/// Where browsers and clients find the daemon, when something stands before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicUrl {
    /// As browsers send it: the scheme, the host and the port if it is not the usual.
    origin: String,
    host: String,
    /// What stands before the daemon's own paths; nothing, or it begins with a
    /// slash and does not end in one.
    prefix: String,
}

impl PublicUrl {
    /// # Errors
    /// What is wrong with it. The URL is not in it: it may have a password.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "this is no URL")?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let usual = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err("it begins with neither http:// nor https://"),
        };
        let authority = uri.authority().ok_or("the host is missing")?;
        if authority.as_str().contains('@') {
            return Err("no user and no password belong here");
        }
        if uri.query().is_some() || url.contains('#') {
            return Err("only a host, a port and a path belong here");
        }
        let host = authority.host().to_ascii_lowercase();
        if address(&host).is_none() {
            check_name(&host)?;
        }
        let port = authority.port_u16().filter(|port| *port != usual);
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let prefix = uri.path().trim_end_matches('/').to_owned();
        if prefix.contains(['{', '}', '%']) || prefix.contains("//") {
            return Err("the path has characters that only plain ones can stand for");
        }
        Ok(Self { origin: format!("{scheme}://{host}{port}"), host, prefix })
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
        let hosts = Hosts::new(&["Locks.example".to_owned()], None, true, false).unwrap();
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
        let everywhere = Hosts::new(&[], None, false, false).unwrap();
        assert_eq!(check(&everywhere, "GET", "/", &[("host", "192.0.2.1:8000")]), Ok(()));
        assert_eq!(check(&everywhere, "GET", "/", &[("host", "localhost")]), Ok(()));
        let foreign = check(&everywhere, "GET", "/", &[("host", "evil.example")]);
        assert_eq!(foreign, Err(Foreign::Host));
    }

    #[test]
    fn a_page_of_somebody_else_is_refused() {
        let hosts = Hosts::new(&[], None, true, false).unwrap();
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
        let tls = Hosts::new(&[], None, true, true).unwrap();
        let headers = [("host", "localhost:8000"), ("origin", "http://localhost:8000")];
        assert_eq!(check(&tls, "POST", "/", &headers), Err(Foreign::Origin));
    }

    #[test]
    fn only_the_page_can_be_linked_to() {
        let hosts = Hosts::new(&[], None, true, false).unwrap();
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

    #[test]
    fn a_name_that_can_never_match_is_refused() {
        for name in
            ["locks.test:8000", "http://locks.test", "*", "*.test", "", "a b", "löcks", "a/b"]
        {
            let refused = Hosts::new(&[name.to_owned()], None, true, false);
            assert_eq!(refused.unwrap_err().0, name);
        }
        let names = ["192.0.2.1", "::ffff:192.0.2.2", "[2001:db8::0:1]", "a_b.C-d"];
        let hosts = Hosts::new(&names.map(str::to_owned), None, true, false).unwrap();
        for host in ["192.0.2.1:9", "192.0.2.2", "[2001:DB8:0::1]:80", "A_B.c-d:1"] {
            assert_eq!(check(&hosts, "GET", "/", &[("host", host)]), Ok(()), "{host}");
        }
    }

    #[test]
    fn the_public_url_is_an_origin() {
        let public = PublicUrl::parse("https://Locks.example:443/team/locks/").unwrap();
        assert_eq!(public.prefix, "/team/locks");
        let hosts = Hosts::new(&[], Some(public), true, false).unwrap();
        let with = |host, origin| check(&hosts, "POST", "/", &[("host", host), ("origin", origin)]);
        // A proxy sends its own idea of the host, or the browser's.
        for host in ["127.0.0.1:8000", "locks.example"] {
            assert_eq!(with(host, "https://locks.example"), Ok(()), "{host}");
            assert_eq!(with(host, "https://locks.example:8443"), Err(Foreign::Origin));
            assert_eq!(with(host, "http://evil.example"), Err(Foreign::Origin));
        }
        assert_eq!(with("127.0.0.1:8000", "http://locks.example"), Err(Foreign::Origin));
        for wrong in [
            "locks.example",
            "ftp://locks.example",
            "https://",
            "https://u:p@locks.example",
            "https://locks.example/?a",
            "https://locks.example/#a",
            "https://*.example",
            "https://locks.example/{a}",
        ] {
            assert!(PublicUrl::parse(wrong).is_err(), "{wrong}");
        }
    }
}
