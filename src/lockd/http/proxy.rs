//! Requests that came through a proxy, and the address they count for.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};

use super::permits::PeerGroup;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What a proxy adds to the requests that it passes on. nginx adds none of these
/// unless it is told to (see `_docs::behind_a_proxy`).
const TRACES: [HeaderName; 6] = [
    header::FORWARDED,
    header::VIA,
    FOR,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// Whether a request was passed on: then its peer is not its sender.
pub(crate) fn is_passed_on(headers: &HeaderMap) -> bool {
    TRACES.iter().any(|name| headers.contains_key(name))
}

/// The peer that a request counts for. A proxy on this machine is believed about its
/// client, for limits only: that makes no administrator.
pub(crate) fn group(peer: SocketAddr, headers: &HeaderMap) -> PeerGroup {
    let group = PeerGroup::of(peer);
    if group != PeerGroup::Here || !is_passed_on(headers) {
        return group;
    }
    // A client that cannot be told is none of this machine's all the same.
    named(headers).map_or(PeerGroup::V4([0; 4]), |address| PeerGroup::of((address, 0).into()))
}

/// The client for which a proxy on this machine passed a request on.
pub(crate) fn sender(peer: SocketAddr, headers: &HeaderMap) -> Option<IpAddr> {
    if PeerGroup::of(peer) == PeerGroup::Here { named(headers) } else { None }
}

/// The sender, as the last proxy has it: what stands before that, the sender
/// itself may have written.
fn named(headers: &HeaderMap) -> Option<IpAddr> {
    let last = |name| {
        let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
        line.rsplit(',').next().map(str::trim)
    };
    if let Some(address) = last(FOR) {
        return parse(address);
    }
    let pairs = last(header::FORWARDED)?.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    parse(node.trim_matches('"'))
}

/// An address, with or without a port.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, name: &'static str, values: &[&str]) -> PeerGroup {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().expect("a value"));
        }
        group(peer.parse().expect("an address"), &headers)
    }

    #[test]
    fn a_client_of_a_proxy_here_counts_for_itself() {
        let client = PeerGroup::V4([192, 0, 2, 7]);
        let here = "127.0.0.1:9";
        for (name, values) in [
            ("x-forwarded-for", &["10.0.0.1, 192.0.2.7"][..]),
            ("x-forwarded-for", &["10.0.0.1", "192.0.2.7:4711"]),
            ("forwarded", &["for=10.0.0.1, proto=http;For=\"192.0.2.7:80\""]),
        ] {
            assert_eq!(of(here, name, values), client, "{values:?}");
        }
        let six = of(here, "forwarded", &["for=\"[2001:db8:1:2::9]:4711\""]);
        assert_eq!(six, PeerGroup::V6([0x2001, 0xdb8, 1, 2]));
        for unknown in ["unknown", "", "_hidden"] {
            assert_eq!(of(here, "x-forwarded-for", &[unknown]), PeerGroup::V4([0; 4]));
        }
        assert_eq!(of(here, "accept", &["x"]), PeerGroup::Here);
        assert_eq!(
            of("192.0.2.1:9", "x-forwarded-for", &["127.0.0.1"]),
            PeerGroup::V4([192, 0, 2, 1])
        );
    }
}
