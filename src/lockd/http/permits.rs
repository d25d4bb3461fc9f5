//! Permits for requests that stay, limited for each address or token and for all.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::sys::mutex::Mutex;

/// What counts as one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerGroup {
    Here,
    V4([u8; 4]),
    V6([u16; 4]),
}

impl PeerGroup {
    pub(crate) fn of(peer: SocketAddr) -> Self {
        match peer.ip().to_canonical() {
            address if address.is_loopback() => Self::Here,
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [first, second, third, fourth, ..] = address.segments();
                Self::V6([first, second, third, fourth])
            }
        }
    }
}

/// The permits. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Permits(Arc<PermitsInner>);

#[derive(Debug)]
struct PermitsInner {
    in_all: usize,
    per_share: usize,
    taken: Mutex<Taken>,
}

/// The callers that share a limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Share {
    pub(crate) group: PeerGroup,
    /// The name of the token, where one is needed.
    pub(crate) token: Option<Arc<str>>,
}

/// For a peer without a token.
impl From<PeerGroup> for Share {
    fn from(group: PeerGroup) -> Self {
        Self { group, token: None }
    }
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by_share: HashMap<Share, usize>,
}

/// One permit, free again when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    shared: Arc<PermitsInner>,
    share: Share,
}

impl Permits {
    /// Requests of this machine itself count for the limit of all only.
    pub(crate) fn new(in_all: usize, per_share: usize) -> Self {
        Self(Arc::new(PermitsInner { in_all, per_share, taken: Mutex::default() }))
    }

    /// A permit, if one is free.
    pub(crate) fn take(&self, share: Share) -> Option<Permit> {
        let mut taken = self.0.taken.lock();
        let of_share = taken.by_share.get(&share).copied().unwrap_or(0);
        let is_full = share.group != PeerGroup::Here && of_share >= self.0.per_share;
        if is_full || taken.in_all >= self.0.in_all {
            return None;
        }
        taken.in_all += 1;
        taken.by_share.insert(share.clone(), of_share + 1);
        drop(taken);
        Some(Permit { shared: Arc::clone(&self.0), share })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.shared.taken.lock();
        taken.in_all -= 1;
        if let Some(count) = taken.by_share.get_mut(&self.share) {
            *count -= 1;
            if *count == 0 {
                taken.by_share.remove(&self.share);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_does_not_take_all() {
        let permits = Permits::new(3, 1);
        let take = |group| permits.take(Share { group, token: None });
        let (one, two) = (PeerGroup::V4([192, 0, 2, 1]), PeerGroup::V4([192, 0, 2, 2]));
        let first = take(one).unwrap();
        assert!(take(one).is_none());
        let _second = take(two).unwrap();
        let _here = take(PeerGroup::Here).unwrap();
        assert!(take(PeerGroup::Here).is_none());
        drop(first);
        let _again = take(one).unwrap();
        assert!(take(PeerGroup::Here).is_none());
    }

    #[test]
    fn who_shares_an_address_has_places_by_token() {
        let permits = Permits::new(9, 1);
        let take = |token: &str| {
            permits.take(Share { group: PeerGroup::V4([192, 0, 2, 1]), token: Some(token.into()) })
        };
        let _web = take("web").unwrap();
        let _batch = take("batch").unwrap();
        assert!(take("web").is_none());
    }
}
